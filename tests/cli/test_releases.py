"""The commands that move aliases and remove releases."""

import os
import subprocess
import sys
from pathlib import Path

from small_release import publish_small

from srpo_core.release.aliases import resolve
from srpo_core.storage import open_store

ROOT = Path(__file__).parents[2]

COMMANDS = """
import sys
from srpo_core.cli.main import main
for line in sys.stdin.read().splitlines():
    sys.argv = ["srpo", *line.split()]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, ended.code
print(sorted({"prefect", "torch", "ray"} & {name.partition(".")[0] for name in sys.modules}))
"""


def test_promote_rollback_and_gc_run_in_their_own_process_and_load_no_server(tmp_path):
    store = open_store(str(tmp_path / "store"))
    for number in (1, 2, 3):
        publish_small(store, tmp_path, number)
    lines = "promote tiny-1\npromote tiny-2 --reason sharper\nrollback\ngc --keep 0 --delete\n"
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        input=lines,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SRPO_STORE": store.uri, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "tiny/production  nothing → tiny-1",
        "tiny/production  tiny-1 → tiny-2",
        "tiny/production  tiny-2 → tiny-1",
        "removed  tiny-3",
        "[]",
    ]
    assert resolve(store, "production") == "tiny-1"
    assert store.versions() == ["tiny-1", "tiny-2"]
