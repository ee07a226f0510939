"""ComfyUI workflows of a release: the graph for the editor, and the prompt for the API."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

Link = tuple[str, int]


@dataclass(frozen=True)
class Node:
    """One node of a workflow.

    kind: the node's class; widgets: values in the editor's order; inputs: link and type by name, where a link is
    (node, output slot); outputs: their types.
    """

    kind: str
    widgets: Mapping[str, Any]
    inputs: Mapping[str, tuple[Link, str]]
    outputs: tuple[str, ...]


# The editor stores one more value after a seed: how it changes between runs.
_EXTRA_VALUES: Final[Mapping[str, str]] = MappingProxyType({"seed": "fixed"})
_COLUMN, _ROW = 340, 180


def nodes_of(weights: str, call: Mapping[str, Any]) -> dict[str, Node]:
    """Build the nodes of a FLUX text-to-image workflow.

    weights: name of the transformer's file; call: `generation_call` of the release.
    """
    gguf = weights.endswith(".gguf")
    loader = (
        Node("UnetLoaderGGUF", {"unet_name": weights}, {}, ("MODEL",))
        if gguf
        else Node("UNETLoader", {"unet_name": weights, "weight_dtype": "default"}, {}, ("MODEL",))
    )
    text_encoders = {
        "clip_name1": "t5xxl_fp16.safetensors",
        "clip_name2": "clip_l.safetensors",
        "type": "flux",
    }
    size = {"width": call["width"], "height": call["height"], "batch_size": 1}
    sampler = {
        "seed": 0,
        "steps": call["num_inference_steps"],
        "cfg": 1.0,  # FLUX.1-dev takes its guidance scale as an input of the model
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
    }
    return {
        "1": loader,
        "2": Node("DualCLIPLoader", text_encoders, {}, ("CLIP",)),
        "3": Node("VAELoader", {"vae_name": "ae.safetensors"}, {}, ("VAE",)),
        "4": Node(
            "CLIPTextEncode", {"text": call["prompt"]}, {"clip": (("2", 0), "CLIP")}, ("CONDITIONING",)
        ),
        "5": Node("CLIPTextEncode", {"text": ""}, {"clip": (("2", 0), "CLIP")}, ("CONDITIONING",)),
        "6": Node(
            "FluxGuidance",
            {"guidance": call["guidance_scale"]},
            {"conditioning": (("4", 0), "CONDITIONING")},
            ("CONDITIONING",),
        ),
        "7": Node("EmptySD3LatentImage", size, {}, ("LATENT",)),
        "8": Node(
            "KSampler",
            sampler,
            {
                "model": (("1", 0), "MODEL"),
                "positive": (("6", 0), "CONDITIONING"),
                "negative": (("5", 0), "CONDITIONING"),
                "latent_image": (("7", 0), "LATENT"),
            },
            ("LATENT",),
        ),
        "9": Node("VAEDecode", {}, {"samples": (("8", 0), "LATENT"), "vae": (("3", 0), "VAE")}, ("IMAGE",)),
        "10": Node("SaveImage", {"filename_prefix": "srpo"}, {"images": (("9", 0), "IMAGE")}, ()),
    }


def api_prompt(nodes: Mapping[str, Node]) -> dict[str, Any]:
    """Return the workflow in the form that ComfyUI's API takes as `prompt`."""
    return {
        name: {
            "class_type": node.kind,
            "inputs": dict(node.widgets) | {to: list(link) for to, (link, _) in node.inputs.items()},
        }
        for name, node in nodes.items()
    }


def editor_graph(nodes: Mapping[str, Node]) -> dict[str, Any]:
    """Return the workflow in the form that ComfyUI's editor opens and saves, version 0.4."""
    links: list[list[Any]] = []
    entries = {name: _editor_node(name, node, order) for order, (name, node) in enumerate(nodes.items())}
    for name, node in nodes.items():
        for slot, (to, ((origin, output), kind)) in enumerate(node.inputs.items()):
            number = len(links) + 1
            links.append([number, int(origin), output, int(name), slot, kind])
            entries[name]["inputs"].append({"name": to, "type": kind, "link": number})
            entries[origin]["outputs"][output]["links"].append(number)
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": list(entries.values()),
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def workflow_text(weights: str, call: Mapping[str, Any]) -> str:
    """Return the text of a workflow file for ComfyUI's editor."""
    return json.dumps(editor_graph(nodes_of(weights, call)), indent=2, ensure_ascii=False) + "\n"


def copy_with_workflow(source: Path, target: Path, weights: str, call: Mapping[str, Any]) -> None:
    """Copy a PNG and add the workflow to its metadata as ComfyUI does, so that dragging it into ComfyUI opens it."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    nodes = nodes_of(weights, call)
    metadata = PngInfo()
    metadata.add_text("prompt", json.dumps(api_prompt(nodes)))
    metadata.add_text("workflow", json.dumps(editor_graph(nodes)))
    with Image.open(source) as image:
        image.save(target, format="PNG", pnginfo=metadata)


def _editor_node(name: str, node: Node, order: int) -> dict[str, Any]:
    values: list[Any] = []
    for key, value in node.widgets.items():
        values.append(value)
        if key in _EXTRA_VALUES:
            values.append(_EXTRA_VALUES[key])
    return {
        "id": int(name),
        "type": node.kind,
        "pos": [order // 3 * _COLUMN, order % 3 * _ROW],
        "size": [300, 120],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [],
        "outputs": [
            {"name": kind, "type": kind, "links": [], "slot_index": slot}
            for slot, kind in enumerate(node.outputs)
        ],
        "properties": {"Node name for S&R": node.kind},
        "widgets_values": values,
    }
