"""Entry point of the command `srpo`; its commands are in srpo_core/cli/."""

import sys

try:
    from srpo_core.cli.main import main
except ModuleNotFoundError as missing:
    sys.exit(
        f"srpo: error: {sys.executable} has no {missing.name}: "
        "run 'make setup', then 'source .venv/bin/activate'"
    )

if __name__ == "__main__":
    main()
