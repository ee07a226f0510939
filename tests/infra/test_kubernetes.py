"""infra/kubernetes/ has the services of infra/compose.yaml: the same commands, variables, ports and secrets."""

import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "infra/kubernetes"
README = (ROOT / "infra/README.md").read_text()
SERVICES = yaml.safe_load((ROOT / "infra/compose.yaml").read_text())["services"]
KUSTOMIZATION = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
MANIFESTS = [
    document
    for name in KUSTOMIZATION["resources"]
    for document in yaml.safe_load_all((KUBERNETES / name).read_text())
]
BY_NAME = {(one["kind"], one["metadata"]["name"]): one for one in MANIFESTS}
RAY = BY_NAME["RayCluster", "ray"]["spec"]
GROUPS = {group["groupName"]: group for group in RAY["workerGroupSpecs"]}
# a service that the operator of KubeRay makes for the head
HEAD = "ray-head-svc"
WORKLOADS = {
    name: one["spec"]["template"]
    for (kind, name), one in BY_NAME.items()
    if kind in ("Deployment", "StatefulSet", "Job")
}
RAY_PODS = {
    "head": RAY["headGroupSpec"]["template"],
    **{name: one["template"] for name, one in GROUPS.items()},
}
# compose has one object store of its own; here its address is a setting, and its user is part of the secret
ELSEWHERE = {"store"}


def container(template):
    (found,) = template["spec"]["containers"]
    return found


def variables(template):
    """Return the variables of a pod: values, the key of a secret as `${KEY}`, and those of config maps."""
    found = {}
    for source in container(template).get("envFrom", []):
        found |= BY_NAME["ConfigMap", source["configMapRef"]["name"]]["data"]
    for entry in container(template).get("env", []):
        found[entry["name"]] = (
            entry["value"] if "value" in entry else f"${{{entry['valueFrom']['secretKeyRef']['key']}}}"
        )
    return found


def secret_keys():
    pods = [*WORKLOADS.values(), *RAY_PODS.values()]
    return [
        (entry["valueFrom"]["secretKeyRef"], entry["name"])
        for pod in pods
        for entry in container(pod).get("env", [])
        if "valueFrom" in entry
    ]


def test_every_manifest_belongs_to_the_kustomization():
    files = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(KUSTOMIZATION["resources"])
    assert len(BY_NAME) == len(MANIFESTS)


def test_there_is_a_workload_for_each_service_of_compose():
    assert set(WORKLOADS) | {"ray"} == set(SERVICES) - ELSEWHERE


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_a_workload_has_the_command_of_the_service(name):
    command = " ".join(container(WORKLOADS[name]).get("command", []))
    command = command.replace(HEAD, "ray").replace(" --num-gpus=0", "")
    assert command == " ".join(SERVICES[name].get("command", []))


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_a_workload_has_the_variables_of_the_service(name):
    compose, here = SERVICES[name].get("environment", {}), variables(WORKLOADS[name])
    assert set(compose) <= set(here)
    assert set(here) - set(compose) <= {"PREFECT_SECRET", "POSTGRES_PASSWORD", "PGDATA"}
    for variable, value in compose.items():
        if variable.startswith(("PREFECT_", "POSTGRES_", "RAY_")):
            plain = re.sub(r"\$\{(\w+)[^}]*\}", r"$\1", value)  # ${NAME:?what to do} and $(NAME)
            assert re.sub(r"\$[({](\w+)[)}]", r"$\1", here[variable]).replace(HEAD, "ray") == plain, variable


def test_a_variable_is_defined_before_another_one_uses_it():
    """Kubernetes replaces $(NAME) only by the variables above it, and otherwise leaves it as it is."""
    used = 0
    for template in WORKLOADS.values():
        above = set()
        for entry in container(template).get("env", []):
            names = set(re.findall(r"\$\((\w+)\)", entry.get("value", "")))
            assert names <= above, entry
            used += len(names)
            above.add(entry["name"])
    assert used >= 4


@pytest.mark.parametrize("name", ["database", "server"])
def test_a_service_has_the_port_of_compose_and_its_pods(name):
    service, template = BY_NAME["Service", name]["spec"], WORKLOADS[name]
    (port,) = (entry["port"] for entry in service["ports"])
    published = [*SERVICES[name].get("ports", []), *SERVICES[name].get("expose", [])]
    assert [int(entry.rsplit(":", 1)[-1]) for entry in published] == [port]
    assert [entry["containerPort"] for entry in container(template)["ports"]] == [port]
    assert service["selector"].items() <= template["metadata"]["labels"].items()


def test_selectors_match_their_pods():
    for (_, name), one in BY_NAME.items():
        spec = one.get("spec", {})
        if "matchLabels" in spec.get("selector", {}):
            assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"], name


def test_every_address_in_the_environment_is_a_service_with_that_port():
    ports = {
        name: {entry["port"] for entry in one["spec"]["ports"]}
        for (kind, name), one in BY_NAME.items()
        if kind == "Service"
    }
    ports[HEAD] = {entry["containerPort"] for entry in container(RAY_PODS["head"])["ports"]}
    seen = set()
    for template in WORKLOADS.values():
        for name, value in variables(template).items():
            address = urlsplit(value if "://" in value else f"ray://{value}")
            host = "server" if address.hostname == "127.0.0.1" else address.hostname
            if host in ports:
                assert address.port in ports[host], (name, value)
                seen.add((name, host))
    assert seen == {
        ("PREFECT_API_URL", "server"),
        ("PREFECT_UI_URL", "server"),
        ("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "server"),
        ("PREFECT_SERVER_UI_API_URL", "server"),
        ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "database"),
        ("RAY_ADDRESS", HEAD),
    }


def test_the_readme_lists_the_keys_of_the_secret_and_no_manifest_has_one():
    (block,) = (
        text for text in re.findall(r"^```\n(.*?)^```$", README, re.S | re.M) if "STORE_USER=" in text
    )
    listed = set(re.findall(r"^(\w+)=\.\.\.", block, re.M))
    assert {reference["key"] for reference, _ in secret_keys()} == listed
    (generator,) = KUSTOMIZATION["secretGenerator"]
    assert {reference["name"] for reference, _ in secret_keys()} == {generator["name"]} == {"srpo"}
    assert generator["envs"] == ["secrets.env"]
    ignored = subprocess.run(
        ["git", "check-ignore", "infra/kubernetes/secrets.env"], cwd=ROOT, capture_output=True, check=False
    )
    assert ignored.returncode == 0
    for template in [*WORKLOADS.values(), *RAY_PODS.values()]:
        for name, value in variables(template).items():
            if re.search(r"PASSWORD|TOKEN|SECRET|AUTH_STRING|KEY", name):
                assert "$" in value, name


def test_only_an_absent_notification_leaves_a_pod_running():
    optional = {name for reference, name in secret_keys() if reference.get("optional")}
    assert optional == {"SRPO_NOTIFY"}


def test_the_worker_has_the_volumes_of_compose_in_one_claim():
    worker = WORKLOADS["worker"]
    mounts = {one["mountPath"]: one for one in container(worker)["volumeMounts"]}
    compose = dict(reversed(volume.split(":")[:2]) for volume in SERVICES["worker"]["volumes"])
    assert {place: one["subPath"] for place, one in mounts.items() if one["name"] == "work"} == compose
    (initial,) = worker["spec"]["initContainers"]
    assert [one["subPath"] for one in initial["volumeMounts"]] == [mounts["/srpo/.git"]["subPath"]]


def test_a_mount_has_a_volume_and_a_volume_its_claim():
    for name, template in {**WORKLOADS, **RAY_PODS}.items():
        volumes = {one["name"]: one for one in template["spec"].get("volumes", [])}
        claimed = {"database"} if name == "database" else set()  # of the StatefulSet
        for one in container(template).get("volumeMounts", []):
            assert one["name"] in set(volumes) | claimed
        for one in volumes.values():
            if "persistentVolumeClaim" in one:
                assert ("PersistentVolumeClaim", one["persistentVolumeClaim"]["claimName"]) in BY_NAME


def test_the_repository_of_a_new_volume_is_that_of_the_image_and_a_used_one_is_left_alone(tmp_path):
    (initial,) = WORKLOADS["worker"]["spec"]["initContainers"]
    image, volume = tmp_path / "image", tmp_path / "volume"
    volume.mkdir()
    subprocess.run(["git", "init", "--quiet", str(image)], check=True)
    command = initial["command"][2].replace("/srpo/.git", f"{image}/.git").replace("/versions", str(volume))
    subprocess.run(["sh", "-c", command], check=True)
    assert (volume / "HEAD").read_text() == (image / ".git/HEAD").read_text()
    (volume / "HEAD").write_text("ref: refs/heads/used\n")
    subprocess.run(["sh", "-c", command], check=True)
    assert (volume / "HEAD").read_text() == "ref: refs/heads/used\n"


def test_ray_has_the_version_of_the_lock_and_its_head_schedules_no_work():
    assert f"ray=={RAY['rayVersion']}\n" in (ROOT / "requirements.lock").read_text()
    head = RAY["headGroupSpec"]["rayStartParams"]
    assert (head["num-cpus"], head["num-gpus"]) == ("0", "0")
    assert "nvidia.com/gpu" not in container(RAY_PODS["head"])["resources"]["limits"]
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(
        " ".join(container(WORKLOADS["worker"])["command"]).split()
    )


def test_groups_of_gpus_request_them_and_the_presets_of_the_readme_exist():
    gpus = {
        name: container(group["template"])["resources"]["limits"].get("nvidia.com/gpu", 0)
        for name, group in GROUPS.items()
    }
    assert gpus == {"cpu": 0, "gpu": 1, "gpu-node": 8}
    rows = re.findall(r"^\| (`[^|]+`) \| `([\w-]+)` \| (\d+) \|", README, re.M)
    presets = {preset: group for names, group, _ in rows for preset in re.findall(r"`(\w+)`", names)}
    assert set(presets) == {path.stem for path in (ROOT / "profiles").glob("*.yaml")}
    for preset, group in presets.items():
        settings = yaml.safe_load((ROOT / f"profiles/{preset}.yaml").read_text())["resources"]
        replicas = next(int(count) for names, _, count in rows if f"`{preset}`" in names)
        assert replicas <= GROUPS[group]["maxReplicas"]
        assert settings["use_gpu"] == bool(gpus[group])
        if settings["use_gpu"]:
            assert replicas * gpus[group] == settings["train_workers"], preset


def test_the_pods_of_ray_have_the_secret_the_store_and_the_image():
    for name, template in RAY_PODS.items():
        given = variables(template)
        assert given["RAY_AUTH_MODE"] == "token"
        assert given["RAY_AUTH_TOKEN"] == "${RAY_AUTH_TOKEN}"
        assert container(template)["image"] == "srpo"
        if name != "head":
            assert {"SRPO_SHARED", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= set(
                given
            )


def test_the_image_has_what_kuberay_probes_its_pods_with():
    """Its probes call wget, and without it no pod becomes ready (ray-project/kuberay#2063)."""
    assert re.search(r"apt-get install .*\bwget\b", (ROOT / "infra/Dockerfile").read_text())


def test_no_pod_gets_the_credentials_of_the_cluster_or_variables_of_its_services():
    """A service named `server` would otherwise add SERVER_PORT=tcp://… to each pod."""
    for template in [*WORKLOADS.values(), *RAY_PODS.values()]:
        assert template["spec"]["automountServiceAccountToken"] is False
        assert template["spec"]["enableServiceLinks"] is False


@pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is not installed; nothing else reads kustomizations"
)
def test_kustomize_replaces_every_image_and_fails_without_the_secrets(tmp_path):
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes", ignore=shutil.ignore_patterns("*.env"))
    build = ["kubectl", "kustomize", str(tmp_path / "kubernetes")]
    refused = subprocess.run(build, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "secrets.env" in refused.stderr
    (tmp_path / "kubernetes/secrets.env").write_text("POSTGRES_PASSWORD=not-a-secret\n")
    (overlay,) = (
        text for text in re.findall(r"```yaml\n(.*?)```", README, re.S) if "kind: Kustomization" in text
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/kustomization.yaml").write_text(overlay.replace("infra/kubernetes", "kubernetes"))
    for directory, name in (("kubernetes", "registry.example.com/srpo"), ("mine", "registry.mine.org/srpo")):
        text = subprocess.run(
            ["kubectl", "kustomize", str(tmp_path / directory)], capture_output=True, text=True, check=True
        ).stdout
        built = [one for one in yaml.safe_load_all(text) if one]
        assert len(built) == len(MANIFESTS) + 1
        assert set(re.findall(r"image: (\S+?):", text)) == {"postgres", name}
        namespaces = {one["metadata"].get("namespace") for one in built if one["kind"] != "Namespace"}
        assert namespaces == {"srpo"}
    worker = next(one for one in built if (one["kind"], one["metadata"]["name"]) == ("Deployment", "worker"))
    assert container(worker["spec"]["template"])["resources"]["limits"]["nvidia.com/gpu"] == 1
    ray = next(one for one in built if one["kind"] == "RayCluster")
    assert {one["groupName"]: one["replicas"] for one in ray["spec"]["workerGroupSpecs"]} == {
        "cpu": 0,
        "gpu": 0,
        "gpu-node": 4,
    }
