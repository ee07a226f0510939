"""ComfyUI workflows of a release: their links are consistent, and the library of ComfyUI's editor opens them."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from srpo_core.release.layout import checkpoint_file, gguf_file

LITEGRAPH = "@comfyorg/litegraph@0.17.2"
# The loader node of each workflow.
LOADERS = {"workflow.json": "UNETLoader", "workflow-gguf.json": "UnetLoaderGGUF"}


def workflow(one_release, name):
    store, published = one_release
    return json.loads(b"".join(store.read(published.version, name)))


@pytest.mark.parametrize("name", LOADERS)
def test_both_ends_of_every_link_have_its_number_and_type(release, name):
    graph = workflow(release, name)
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert len(nodes) == len(graph["nodes"]) == graph["last_node_id"] == 10
    assert [link[0] for link in graph["links"]] == list(range(1, graph["last_link_id"] + 1))
    for number, origin, output, target, slot, kind in graph["links"]:
        left, right = nodes[origin]["outputs"][output], nodes[target]["inputs"][slot]
        assert number in left["links"]
        assert right["link"] == number
        assert left["type"] == right["type"] == kind
    outgoing = [link for node in nodes.values() for end in node["outputs"] for link in end["links"]]
    incoming = [end["link"] for node in nodes.values() for end in node["inputs"]]
    assert sorted(outgoing) == sorted(incoming) == [link[0] for link in graph["links"]]


@pytest.mark.parametrize("name", LOADERS)
def test_a_workflow_loads_a_file_of_its_release_with_the_right_node(release, name):
    store, published = release
    (loader,) = (node for node in workflow(release, name)["nodes"] if node["type"] in LOADERS.values())
    assert loader["type"] == LOADERS[name]
    weights = loader["widgets_values"][0]
    assert weights in store.manifest(published.version)["files"]
    assert weights.endswith(".gguf" if "gguf" in name else ".safetensors")


def test_the_saved_image_depends_on_every_node(release):
    """The image depends on the model, both prompts, the latents and the decoder."""
    graph = workflow(release, "workflow.json")
    origins = {}
    for _, origin, _, target, _, _ in graph["links"]:
        origins.setdefault(target, set()).add(origin)
    (end,) = (node["id"] for node in graph["nodes"] if node["type"] == "SaveImage")
    reached, frontier = set(), {end}
    while frontier:
        reached |= frontier
        frontier = {origin for node in frontier for origin in origins.get(node, ())} - reached
    assert reached == {node["id"] for node in graph["nodes"]}


def test_a_quantized_gguf_is_preferred_to_a_float_one(adapted_release):
    (loader,) = (
        node for node in workflow(adapted_release, "workflow-gguf.json")["nodes"] if "GGUF" in node["type"]
    )
    assert loader["widgets_values"] == ["tiny-q5_0.gguf"]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["bf16", "gguf_bf16", "q4_0", "q8_0"], "q8_0"),
        (["bf16", "gguf_bf16", "gguf_f16", "q4_k_m", "q5_0"], "q4_k_m"),
        (["bf16", "gguf_f16"], "gguf_f16"),
        (["bf16", "fp8_e4m3fn"], None),
    ],
)
def test_the_recommended_gguf_is_q8_0_else_quantized_else_any(names, chosen):
    ends = {name: "safetensors" if name in ("bf16", "fp8_e4m3fn") else "gguf" for name in names}
    formats = {name: [f"tiny-{name}.{end}"] for name, end in ends.items()}
    assert gguf_file(formats) == (chosen and f"tiny-{chosen}.gguf")


def test_the_checkpoint_of_a_workflow_is_neither_a_directory_nor_a_scaled_file():
    formats = {
        "fp8_e4m3fn_scaled": ["m-fp8_e4m3fn_scaled.safetensors"],
        "bf16": ["transformer/diffusion_pytorch_model.safetensors", "m-bf16.safetensors"],
    }
    assert checkpoint_file(formats) == "m-bf16.safetensors"


@pytest.mark.network
def test_the_comfyui_graph_library_opens_both_workflows_with_every_link(release, tmp_path):
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
