"""The model card: what the model is, code that generates an image, the files, and the verdict of the gate."""

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

import yaml

from srpo_core.artifacts import LORA_FILE
from srpo_core.config import Settings
from srpo_core.release.layout import checkpoint_file, format_files, gguf_file
from srpo_core.report.text import markdown_text, visible
from srpo_core.weights.files import WEIGHTS

PIPELINE_TAG: Final = "text-to-image"

# diffusers splits the tensors of every single file for this width; ComfyUI supports only this head width.
DIFFUSERS_WIDTH: Final = 3072
COMFYUI_HEAD: Final = 128


def model_card(
    version: str,
    settings: Settings,
    *,
    pipeline: str,
    decision: Mapping[str, Any],
    proof: Mapping[str, Any],
    config: Mapping[str, Any],
) -> str:
    """Render the model card: Markdown with the YAML header that model hubs read.

    pipeline: name of the diffusers class that loads the release; config: the transformer's config.json.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("srpo_core", "release"),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  (Markdown, no HTML)
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"literal": _literal, "text": markdown_text}
    width, head = config["num_attention_heads"] * config["attention_head_dim"], config["attention_head_dim"]
    formats = {name: list(released.values()) for name, released in format_files(settings, proof).items()}
    return environment.get_template("model_card.md.j2").render(
        header=yaml.safe_dump(_header(settings, decision), sort_keys=False, allow_unicode=True).rstrip(),
        version=version,
        pipeline=pipeline,
        settings=settings,
        decision=decision,
        proof=proof,
        rows=list(_rows(settings, proof)),
        checkpoint=checkpoint_file(formats),
        gguf=gguf_file(formats),
        lora_file=LORA_FILE,
        width=width,
        head=head,
        diffusers_width=DIFFUSERS_WIDTH,
        comfyui_head=COMFYUI_HEAD,
        licences=[PurePosixPath(name).name for name in settings.release.license_files],
        call=generation_call(settings, proof),
    )


def _literal(value: Any) -> str:
    """Write a value as a literal of Python and JSON that ends no block of code."""
    return visible(json.dumps(value, ensure_ascii=False)).replace("`", "\\u0060")


def _header(settings: Settings, decision: Mapping[str, Any]) -> dict[str, Any]:
    release = settings.release
    header: dict[str, Any] = {"base_model": release.base_model, "license": release.license}
    if release.license_name is not None:
        first = PurePosixPath(release.license_files[0]).name
        header |= {"license_name": release.license_name, "license_link": first}
    if release.datasets:
        header["datasets"] = list(release.datasets)
    return header | {
        "pipeline_tag": PIPELINE_TAG,
        "library_name": "diffusers",
        "tags": list(release.tags),
        "metrics": sorted({rule["metric"] for rule in decision["rules"]}),
    }


def _rows(settings: Settings, proof: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield one row per file: format, name, size, figures, and which programs load it."""
    for name, released in format_files(settings, proof).items():
        figures = proof["formats"][name]
        for made, file in released.items():
            loaders = "diffusers" if PurePosixPath(made).name == WEIGHTS else _loaders(name, file)
            yield {"format": name, "file": file, "megabytes": figures["files"][made]["bytes"] / 1e6} | {
                "figures": figures,
                "loaders": loaders,
            }


def _loaders(name: str, file: str) -> str:
    if file.endswith(".gguf"):
        return "ComfyUI-GGUF, diffusers"
    # diffusers loads a scaled file without an error, but then generates noise
    return "ComfyUI" if name.endswith("_scaled") else "ComfyUI, diffusers"


def generation_call(settings: Settings, proof: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a pipeline call as in the evaluation: prompt, size, steps, guidance."""
    return {
        "prompt": proof["prompts"][0],
        "height": settings.model.height,
        "width": settings.model.width,
        "max_sequence_length": settings.model.max_sequence_length,
        "num_inference_steps": settings.generate.num_inference_steps,
        "guidance_scale": settings.generate.guidance_scale,
    }
