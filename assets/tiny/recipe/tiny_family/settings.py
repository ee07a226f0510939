"""Settings of the recipe: params.yaml beside dvc.yaml, one part per stage."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import yaml

Function = TypeVar("Function", bound=Callable[..., Any])


def read_settings(stage: str) -> dict[str, Any]:
    """The part of params.yaml that belongs to a stage, with the plan's name and the common parts filled in."""
    content = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    settings: dict[str, Any] = content[stage]
    common = {"name": stage, "seed": content["seed"], "processes": content["processes"]}
    return {**settings, "plan": {**common, **settings["plan"]}, "compile": content["compile"]}


def compiled(function: Function, settings: Mapping[str, Any]) -> Function:
    """Compile a function where the settings say so; needs a C++ compiler."""
    if not settings["compile"]:
        return function
    return cast(Function, torch.compile(function, dynamic=False))
