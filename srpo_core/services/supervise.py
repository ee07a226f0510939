"""Run supervisord below its guardian: `python -m srpo_core.services.supervise FILE`.

supervisord ends, and its services with it, when the guardian is killed. What it prints before it can write its log, or
when it fails, is added to that log.
"""

import os
import sys
from pathlib import Path

from srpo_core.runtime.processes import die_with_parent
from srpo_core.services.configuration import LOG


def main(configuration: str) -> None:
    """Run supervisord in this process until it ends."""
    die_with_parent()
    with Path(LOG).open("a", encoding="utf-8") as log:
        for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
            os.dup2(log.fileno(), descriptor)
    from supervisor.supervisord import main as supervise

    supervise(["--silent", "--configuration", configuration])


if __name__ == "__main__":
    main(sys.argv[1])
