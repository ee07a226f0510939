"""The packages that scorers come from: one that is missing is one line that names how to install it."""

import importlib.util
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from srpo_core.errors import ConfigError

# by the name that is imported: its name at the registry
PACKAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "open_clip": "open_clip_torch",
        "timm": "timm",
        "torchmetrics": "torchmetrics",
        "transformers": "transformers",
    }
)


def require_package(name: str, needed_by: str) -> None:
    """See that a package of `PACKAGES` is installed, before it is imported.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec(name) is None:
        raise ConfigError(
            f"{needed_by} needs the package {name}, which is not installed: pip install {PACKAGES[name]}, "
            "or all that the project needs: pip install -r requirements.lock"
        )
