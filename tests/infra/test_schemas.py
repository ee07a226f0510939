"""infra/compose.yaml and infra/kubernetes/ against the schemas of their publishers."""

import copy
import json
from importlib.resources import files
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from raycluster_schema import RAY_CLUSTER

INFRA = Path(__file__).resolve().parents[2] / "infra"
KUBERNETES = "1.37"
MANIFESTS = [
    document
    for path in sorted((INFRA / "kubernetes").glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for document in yaml.safe_load_all(path.read_text())
]
NAMES = [f"{one['kind']}-{one['metadata']['name']}" for one in MANIFESTS]
# whose keys are free
FREE = {"labels", "matchLabels", "selector", "data", "requests", "limits", "rayStartParams"}


def compose_schema():
    """The schema of the Compose specification, which check-jsonschema has a copy of."""
    return json.loads(
        files("check_jsonschema.builtin_schemas.vendor").joinpath("compose-spec.json").read_text()
    )


def check(manifest):
    """Raise the error of a manifest that its schema refuses."""
    if manifest.get("kind") != "RayCluster":
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        return
    jsonschema.validate(manifest, RAY_CLUSTER)
    spec = manifest["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        template = {"apiVersion": "v1", "kind": "PodTemplate", "template": group["template"]}
        kubernetes_validate.validate(template, KUBERNETES, strict=True)


def keys(node, path=()):
    """Yield the path of each key whose name a schema decides."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*path, key)
            if key not in FREE:
                yield from keys(value, (*path, key))
    if isinstance(node, list):
        for place, value in enumerate(node):
            yield from keys(value, (*path, place))


def misspelt(node, path):
    """Return a copy in which the last key of a path has another name."""
    changed = copy.deepcopy(node)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[f"{path[-1]}s"] = at.pop(path[-1])
    return changed


def test_the_compose_file_is_valid():
    jsonschema.validate(yaml.safe_load((INFRA / "compose.yaml").read_text()), compose_schema())


@pytest.mark.parametrize(
    "path",
    [
        ("services",),
        ("services", "server", "ports"),
        ("services", "database", "healthcheck", "test"),
        ("services", "worker", "depends_on", "ray", "condition"),
        ("services", "server", "build", "dockerfile"),
        ("services", "worker", "shm_size"),
    ],
)
def test_a_misspelt_key_of_the_compose_file_is_an_error(path):
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(misspelt(compose, path), compose_schema())


@pytest.mark.parametrize("manifest", MANIFESTS, ids=NAMES)
def test_the_manifest_is_valid(manifest):
    check(manifest)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=NAMES)
def test_a_misspelt_key_of_the_manifest_is_an_error(manifest):
    """One key of each name, at its first place."""
    first = {path[-1]: path for path in reversed(list(keys(manifest)))}
    assert len(first) > 2
    for path in first.values():
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.SchemaNotFoundError, KeyError)):
            check(misspelt(manifest, path))


def test_a_value_of_the_wrong_type_is_an_error():
    for manifest, path, value in (
        (MANIFESTS[NAMES.index("RayCluster-ray")], ("spec", "workerGroupSpecs", 1, "replicas"), "1"),
        (
            MANIFESTS[NAMES.index("RayCluster-ray")],
            ("spec", "headGroupSpec", "rayStartParams", "num-cpus"),
            0,
        ),
        (MANIFESTS[NAMES.index("Deployment-server")], ("spec", "replicas"), "one"),
    ):
        changed = copy.deepcopy(manifest)
        at = changed
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            check(changed)
