import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pytest
import yaml

from srpo_core.runtime.telemetry import quiet_environment

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
PIPELINES = yaml.safe_load((ROOT / "pipelines.yaml").read_text())
# commands of third-party images
FOREIGN = {"database": {"pg_isready"}, "store": {"minio", "mc", "mkdir"}}
LISTENING = {"database": 5432}


def logical_lines(text: str) -> list[str]:
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [line for line in joined.splitlines() if line.strip()]


def instructions(word: str) -> list[str]:
    lines = logical_lines((INFRA / "Dockerfile").read_text())
    return [line.split(maxsplit=1)[1] for line in lines if line.split()[0] == word]


def simple_commands(command: list[str]) -> list[list[str]]:
    """Split the command of a service, which may be a shell line, into simple commands."""
    if command[:2] == ["sh", "-c"]:
        command = command[2:]
    if len(command) == 1:
        return [shlex.split(part.strip().removeprefix("exec ")) for part in command[0].split("&&")]
    return [command]


def commands(name: str) -> list[list[str]]:
    service = SERVICES[name]
    found = (
        simple_commands([*service.get("entrypoint", []), *service["command"]]) if "command" in service else []
    )
    if "healthcheck" in service:
        found.append(service["healthcheck"]["test"][1:])
    return found


def ports(name: str) -> set[int]:
    service = SERVICES[name]
    published = {int(entry.rsplit(":", 1)[1]) for entry in service.get("ports", [])}
    return published | {int(entry) for entry in service.get("expose", [])}


def test_the_image_copies_existing_files_and_installs_the_lock():
    sources = [source for line in instructions("COPY") for source in line.split()[:-1]]
    assert sources == ["requirements.lock", "."]
    assert all((ROOT / source).exists() for source in sources)
    assert any("-r requirements.lock" in line for line in instructions("RUN"))
    (workdir,) = instructions("WORKDIR")
    (environment,) = instructions("ENV")
    assert dict(pair.split("=", 1) for pair in environment.split())["SRPO_CHECKOUT"] == workdir
    (base,) = instructions("FROM")
    assert base.startswith(f"python:{sys.version_info.major}.{sys.version_info.minor}-")


def test_the_image_disables_the_same_telemetry_as_the_command_line():
    (environment,) = instructions("ENV")
    assert quiet_environment({}).items() <= dict(pair.split("=", 1) for pair in environment.split()).items()


def test_the_image_has_the_git_history_but_no_local_state():
    ignored = (INFRA / "Dockerfile.dockerignore").read_text().split()
    assert ".git" not in ignored
    kept_out = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()}
    assert {".venv", ".srpo", "store", "runs"} <= kept_out & set(ignored)
    assert {"/models"} <= kept_out
    assert {"models"} <= set(ignored)


def test_all_nodes_of_the_ray_cluster_mount_the_shared_directory():
    nodes = [name for name in SERVICES if any(words[:2] == ["ray", "start"] for words in commands(name))]
    assert nodes == ["worker", "ray"]
    meeting = PurePosixPath(SERVICES["worker"]["environment"]["SRPO_SHARED"])
    mounts = [dict(reversed(volume.split(":")[:2]) for volume in SERVICES[name]["volumes"]) for name in nodes]
    volumes = [
        {volume for place, volume in found.items() if meeting.is_relative_to(place)} for found in mounts
    ]
    assert volumes == [{"state"}, {"state"}]


def test_a_repository_in_a_volume_is_updated_to_the_commit_of_the_image_and_keeps_its_tags(tmp_path):
    """A volume is filled from an image once; the Dockerfile stores the history of the image beside it."""
    (baked,) = (line.split()[-1] for line in instructions("RUN") if line.startswith("git clone"))
    mine = [shlex.join(command) for command in commands("worker") if command[0] == "git"]
    assert baked in mine[0]

    def git(where, *arguments):
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=where, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    git(old, "init", "--quiet", "--initial-branch=main")
    (old / "code.py").write_text("1")
    git(old, "add", ".")
    git(old, "commit", "--quiet", "-m", "old")
    git(tmp_path, "clone", "--quiet", str(old), str(new))
    (new / "code.py").write_text("2")
    git(new, "commit", "--quiet", "--all", "-m", "new")
    git(tmp_path, "clone", "--quiet", "--bare", str(new), str(tmp_path / "baked.git"))
    git(old, "tag", "data-1")  # a tag that exists only in the volume
    (old / "code.py").write_text("2")  # the content of the new image
    for line in mine:
        there = line.replace(baked, str(tmp_path / "baked.git"))
        subprocess.run(shlex.split(there), cwd=old, check=True, capture_output=True)
    assert git(old, "rev-parse", "HEAD") == git(new, "rev-parse", "HEAD")
    assert git(old, "status", "--porcelain") == ""
    assert git(old, "tag") == "data-1"


def test_builds_refer_to_existing_files():
    for service in SERVICES.values():
        if "build" in service:
            context = (INFRA / service["build"]["context"]).resolve()
            assert context == ROOT
            assert (context / service["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("name", SERVICES)
def test_every_command_of_a_service_exists(name):
    for command in commands(name):
        if command[0] == "git":
            assert any("install" in line and " git " in line for line in instructions("RUN"))
            continue
        ours = name not in FOREIGN
        assert (
            shutil.which(command[0], path=str(Path(sys.executable).parent))
            if ours
            else (command[0] in FOREIGN[name])
        ), command


@pytest.mark.pipeline
@pytest.mark.parametrize("name", [name for name in SERVICES if name not in FOREIGN])
def test_every_option_of_prefect_and_ray_exists(name):
    for command in commands(name):
        words = [word for word in command if not word.startswith("-")]
        if words[0] not in {"prefect", "ray"}:
            continue
        depth = (
            3 if words[:2] in (["prefect", "server"], ["prefect", "worker"], ["prefect", "work-pool"]) else 2
        )
        texts = [
            subprocess.run(
                [str(Path(sys.executable).parent / words[0]), *words[1:level], "--help"],
                capture_output=True,
                text=True,
                check=True,
                env={"COLUMNS": "200", "TERMINAL_WIDTH": "200", "PATH": str(Path(sys.executable).parent)},
            ).stdout
            for level in range(1, depth + 1)
        ]
        for option in (word.partition("=")[0] for word in command if word.startswith("--")):
            assert any(option in text for text in texts), (command, option)


def test_every_address_in_the_environment_has_a_port_of_its_service():
    seen = set()
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            address = urlsplit(value if "://" in value else f"ray://{value}")
            host = "server" if address.hostname == "127.0.0.1" else address.hostname
            if host in SERVICES and name != "SRPO_STORE":
                assert address.port in ports(host), (name, value)
                seen.add((name, host))
    assert seen == {
        ("PREFECT_API_URL", "server"),
        ("PREFECT_UI_URL", "server"),
        ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "database"),
        ("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "server"),
        ("PREFECT_SERVER_UI_API_URL", "server"),
        ("RAY_ADDRESS", "ray"),
        ("AWS_ENDPOINT_URL", "store"),
    }


def test_the_service_listens_on_every_published_port():
    for name in SERVICES:
        text = " ".join(" ".join(command) for command in commands(name))
        listening = {int(port) for port in re.findall(r"(?:port[= ]|address :)(\d+)", text)}
        assert ports(name) <= listening | {LISTENING.get(name)}, name
        assert all(entry.startswith("127.0.0.1:") for entry in SERVICES[name].get("ports", [])), name


def test_dependencies_and_volumes_are_declared():
    for service in SERVICES.values():
        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICES
            assert how["condition"] != "service_healthy" or "healthcheck" in SERVICES[other]
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= set(COMPOSE["volumes"])
    assert {volume.split(":")[0] for name in SERVICES for volume in SERVICES[name].get("volumes", [])} == set(
        COMPOSE["volumes"]
    )


def test_the_compose_file_contains_no_secrets_and_the_readme_lists_them():
    text = (INFRA / "compose.yaml").read_text()
    secrets = set(re.findall(r"\$\{(\w+)", text))
    section = (INFRA / "README.md").read_text().partition("## With containers")[2].partition("\n## ")[0]
    assert {line.partition("=")[0] for line in re.findall(r"^\w+=\.\.\.", section, re.M)} == secrets
    assert not re.search(r"(PASSWORD|TOKEN|SECRET\w*): (?!\$\{)", text)


def test_the_prefect_server_asks_for_a_secret_that_its_clients_have_and_closes_foreign_origins():
    server = SERVICES["server"]["environment"]
    clients = [
        SERVICES[name]["environment"]
        for name in SERVICES
        if "PREFECT_API_URL" in SERVICES[name].get("environment", {})
    ]
    assert len(clients) == 3
    secret = server["PREFECT_SERVER_API_AUTH_STRING"]
    assert re.fullmatch(r"srpo:\$\{PREFECT_SECRET:\?.*\}", secret), "the run must fail without it"
    assert all(client["PREFECT_API_AUTH_STRING"] == secret for client in clients)
    (published,) = (entry.rsplit(":", 1)[0] for entry in SERVICES["server"]["ports"])
    assert server["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == f"http://{published}"


def test_the_readme_starts_no_prefect_server_without_the_variables_of_its_secret():
    readme = (INFRA / "README.md").read_text()
    (block,) = [
        block
        for block in re.findall(r"^```\w*\n(.*?)^```$", readme, re.S | re.M)
        if "prefect server start" in block
    ]
    assert block.index('eval "$(srpo server-environment)"') < block.index("prefect server start")


def test_worker_and_deployments_use_the_same_pool():
    pools = {deployment["work_pool"]["name"] for deployment in PIPELINES["deployments"]}
    text = " ".join(" ".join(command) for name in ("deploy", "worker") for command in commands(name))
    for pool in pools:
        assert f"work-pool create {pool} --type process" in text
        assert f"worker start --pool {pool}" in text
    assert f"--prefect-file {next(ROOT.glob('pipelines.yaml')).name}" in text


def test_deployments_name_existing_flows():
    for deployment in PIPELINES["deployments"]:
        file, _, function = deployment["entrypoint"].partition(":")
        assert f"\ndef {function}(" in (ROOT / file).read_text()
    (step,) = PIPELINES["pull"]
    assert step["prefect.deployments.steps.set_working_directory"]["directory"] == "{{ $SRPO_CHECKOUT }}"


def test_paths_in_the_readme_exist():
    readme = (INFRA / "README.md").read_text()
    for path in re.findall(r"`([\w./-]+\.(?:yaml|lock|md)|infra/Dockerfile|tests/infra/)`", readme):
        assert (ROOT / path).exists(), path
