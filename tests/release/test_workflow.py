"""ComfyUI's workflows of a release, opened by the library that ComfyUI's editor opens them with."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

LITEGRAPH = "@comfyorg/litegraph@0.17.2"


@pytest.mark.network
def test_comfyui_s_graph_library_opens_both_workflows_with_every_link(release, tmp_path):
    """Needs node and npm's registry."""
    store, published = release
    for name in ("workflow.json", "workflow-gguf.json"):
        (tmp_path / name).write_bytes(b"".join(store.read(published.version, name)))
    shutil.copy(Path(__file__).parent / "open_workflow.mjs", tmp_path)
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", LITEGRAPH],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    done = subprocess.run(
        ["node", "open_workflow.mjs", "workflow.json", "workflow-gguf.json"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == [{"failed": False, "nodes": [10, 10], "links": [10, 10], "faults": 0}] * 2
