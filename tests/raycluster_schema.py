"""The fields of a RayCluster, as KubeRay's CustomResourceDefinition `rayclusters.ray.io` (v1) has them, as a JSON schema.

The definition itself repeats Kubernetes' pod template for each group and has 0.9 MB; no package of PyPI has it. Here a field
that it does not have is an error, as for `kubectl --validate=strict`. Pod templates are checked by Kubernetes' own schema.
"""

STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}
FLAG = {"type": "boolean"}
TEXT = {"type": "string"}
TEMPLATE = {"type": "object"}


def _object(required, **fields):
    return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}


HEAD = _object(
    ["rayStartParams", "template"],
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]},
    headService={"type": "object"},
    enableIngress=FLAG,
    rayStartParams=STRINGS,
    template=TEMPLATE,
)
GROUP = _object(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts={"type": "integer", "minimum": 1},
    idleTimeoutSeconds=COUNT,
    suspend=FLAG,
    rayStartParams=STRINGS,
    template=TEMPLATE,
    scaleStrategy=_object([], workersToDelete={"type": "array", "items": TEXT}),
)
SPEC = _object(
    ["headGroupSpec"],
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": GROUP},
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions={"type": "object"},
    headServiceAnnotations=STRINGS,
    suspend=FLAG,
    managedBy=TEXT,
)
RAY_CLUSTER = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayCluster"},
    metadata=_object(["name"], name=TEXT, namespace=TEXT, labels=STRINGS, annotations=STRINGS),
    spec=SPEC,
)
