"""The model card: what the model is, the verdict, and lines that load it and draw a picture."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import yaml

from srpo_core.config import Settings
from srpo_core.quantizers import WEIGHTS
from srpo_core.release.layout import format_directory

PIPELINE_TAG: Final = "text-to-image"


def model_card(
    version: str, settings: Settings, *, pipeline: str, decision: Mapping[str, Any], proof: Mapping[str, Any]
) -> str:
    """Markdown with the YAML header that hubs read.

    pipeline: the diffusers class that loads the release.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    header = {
        "base_model": settings.release.base_model,
        "license": settings.release.license,
        "pipeline_tag": PIPELINE_TAG,
        "library_name": "diffusers",
        "tags": list(settings.release.tags),
    }
    formats = {
        name: figures | {"path": f"{format_directory(name)}/{WEIGHTS}"}
        for name, figures in proof["formats"].items()
    }
    environment = Environment(
        loader=PackageLoader("srpo_core", "release"),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  (Markdown, no HTML)
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["literal"] = partial(json.dumps, ensure_ascii=False)
    return environment.get_template("model_card.md.j2").render(
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True).rstrip(),
        version=version,
        pipeline=pipeline,
        settings=settings,
        decision=decision,
        formats=formats,
        call=picture_call(settings, proof),
    )


def picture_call(settings: Settings, proof: Mapping[str, Any]) -> dict[str, Any]:
    """What a pipeline needs to draw as this model was evaluated: prompt, size and steps."""
    return {
        "prompt": proof["prompts"][0],
        "height": settings.model.height,
        "width": settings.model.width,
        "max_sequence_length": settings.model.max_sequence_length,
        "num_inference_steps": settings.draw.steps,
        "guidance_scale": settings.draw.guidance,
    }
