"""The packages that scorers use; if one is missing, the error is one line that says how to install it."""

import importlib.util
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from srpo_core.errors import ConfigError

# from the name that is imported to the name on PyPI
PACKAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "open_clip": "open_clip_torch",
        "timm": "timm",
        "torchmetrics": "torchmetrics",
        "transformers": "transformers",
    }
)


def require_package(name: str, needed_by: str) -> None:
    """Check that a package of `PACKAGES` is installed before it is imported.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec(name) is None:
        raise ConfigError(
            f"{needed_by} needs the package {name}, which is not installed: pip install {PACKAGES[name]}, "
            "or all that the project needs: pip install -r requirements.lock"
        )
