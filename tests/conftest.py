"""Share fixtures between the tests, and distribute the tests over pytest-xdist's workers."""

import io
import os
import sys
import threading
from pathlib import Path
from types import MappingProxyType

import pytest

from srpo_core.config import load_settings
from srpo_core.data.rules import Findings

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ["red apple", "crab", "tiger face", "penguin", "rose"]

# The tests of a group run on one worker, in order. Every other file is a group of its own. Groups start in the
# order given here, the longest first, so that no worker runs alone at the end.
# "pipeline" and "flows": share a Prefect server, and "pipeline" a run of the pipeline. Each run ends what dead runs
# have left on the machine, so within a group no run hides that another leaves a process. Between the two groups this
# can happen, but a run starts too rarely to hide it always.
GROUPS = {
    "pipeline": "pipeline",
    "flows": "flows",
    "runtime/test_processes.py": "flows",
    "training/test_kills.py": "flows",
    "workspace": "flows",
    # share a Ray cluster
    "training/test_launch.py": "ray",
    "runtime/test_ray_cluster.py": "ray",
    # share the counted calls of FLUX.1-dev
    "plan": "plan",
}


def group_of(path: Path) -> str:
    """Return the group of a test file: that of its path in `GROUPS`, or of its directory, or the file alone."""
    name = path.relative_to(ROOT / "tests").as_posix()
    return GROUPS.get(name) or GROUPS.get(name.split("/")[0]) or name


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Keep the tests of a group together, and start the long groups first."""
    order = list(dict.fromkeys(GROUPS.values()))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item.path)))
    items.sort(key=lambda item: order.index(name) if (name := group_of(item.path)) in order else len(order))


@pytest.fixture(scope="session", autouse=True)
def _commands_of_this_environment():
    """Put dvc, prefect and srpo on PATH, so that the environment need not be activated.

    Ray's workers run at niceness 15, so that beside other tests they would hardly run at all.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        yield


@pytest.fixture
def ingest_settings():
    """Return a function that makes the settings of ingest in the preset tiny with changes; severities by rule."""

    def change(rules=None, **changes):
        tiny = load_settings(ROOT / "profiles/tiny.yaml").ingest
        severities = tiny.rules.model_copy(update=rules or {})
        return tiny.model_copy(update={"rules": severities, **changes})

    return change


@pytest.fixture
def findings(ingest_settings):
    """What collects the problems of records, with the settings of the preset tiny: a critical one ends the run."""
    return Findings(ingest_settings(), io.StringIO())


@pytest.fixture(scope="session")
def moto_endpoint():
    """A server of moto that checks a condition and writes in one step, as S3 does; by itself moto lets several win."""
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    honest, one_at_a_time = S3Response.put_object, threading.Lock()

    def put_object(self):
        with one_at_a_time:
            return honest(self)

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Response, "put_object", put_object)
        server.start()
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
        server.stop()


def s3_variables(endpoint):
    """Environment variables with dummy credentials, which also block the way to any real cloud."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "dummy",
        "AWS_SECRET_ACCESS_KEY": "dummy",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }


@pytest.fixture(scope="session")
def swift_endpoint(tmp_path_factory):
    """A server of OpenStack Swift, which is installed from PyPI: takes a minute and a network."""
    from swift_server import swift_server

    with swift_server(tmp_path_factory.mktemp("swift"), tmp_path_factory.mktemp("environment")) as url:
        yield url


@pytest.fixture
def s3_environment(monkeypatch, moto_endpoint):
    """Use moto's server in this process and those that it starts; this one repeats requests without long delays."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    for name, value in s3_variables(moto_endpoint).items():
        monkeypatch.setenv(name, value)
    return moto_endpoint


@pytest.fixture
def bucket(s3_environment, request):
    """Create a bucket for this test."""
    import boto3

    name = f"releases-{abs(hash(request.node.nodeid)):x}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture
def reports(tmp_path, monkeypatch):
    """What this process reports of its progress, in order: (label, done, total), every item of it."""
    from srpo_core.runtime import progress

    found, write, asked = [], progress._write, tmp_path / "progress of this test"

    def kept(path, content):
        if path == asked:
            one = progress.Report.model_validate_json(content)
            found.append((one.label, one.done, one.total))
        write(path, content)

    monkeypatch.setattr(progress, "_write", kept)
    monkeypatch.setattr(progress, "LEAST_SECONDS", 0)
    monkeypatch.setenv("SRPO_PROGRESS", str(asked))
    return found


@pytest.fixture
def receiver():
    """A channel for messages: `receiver.url` is a URL for SRPO_NOTIFY."""
    from receiver import Receiver

    server = Receiver()
    yield server
    server.close()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    """One Prefect server for all tests of a worker."""
    from prefect_server import running_server

    with running_server(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.fixture(scope="session")
def one_cpu_cluster(moto_endpoint):
    """Start a Ray cluster of one CPU outside any run, which does not find this checkout; yield its address.

    Its workers may use the S3 server of the tests.
    """
    from ray_head import ray_head

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= s3_variables(moto_endpoint)
    with ray_head(environment, cpus=1) as address:
        yield address


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory):
    """Create a directory with the tiny family and a few encoded prompts."""
    from srpo_core.models import encode_prompts
    from srpo_core.models.embeddings import write_embeddings

    root = tmp_path_factory.mktemp("project")
    (root / "assets").symlink_to(ROOT / "assets")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        condition = encode_prompts(load_settings(ROOT / "profiles/tiny.yaml").model, PROMPTS, batch_size=8)
        write_embeddings("train", PROMPTS, [""] * len(PROMPTS), condition)
        write_embeddings("validation", PROMPTS, [""] * len(PROMPTS), condition)
        write_embeddings("alarm", PROMPTS, [""] * len(PROMPTS), condition)
    return root


@pytest.fixture
def job(tiny_project, tmp_path, monkeypatch):
    """A short training job on the tiny family."""
    from srpo_core.runtime.shared_files import Location
    from srpo_core.training.job import TrainJob

    monkeypatch.chdir(tiny_project)
    settings = load_settings(ROOT / "profiles/tiny.yaml")
    rollout = settings.train.rollout.model_copy(update={"num_inference_steps": 3})
    train = settings.train.model_copy(
        update={
            "steps": 4,
            "batch_size": 4,
            "checkpoint_every": 2,
            "sample_prompts": 2,
            "rollout": rollout,
            "early_stop": None,
        }
    )
    return TrainJob(
        inputs=Location.of(tiny_project),
        digests={},
        state=Location.of(tmp_path),
        base_images=Location.of(tmp_path / "base_images"),
        seed=0,
        model=settings.model,
        rewards=settings.rewards,
        select_judge=settings.select_judge,
        control_words=settings.control_words,
        train=train,
        resources=settings.resources,
        resume=0,
        attempt="test",
    )


@pytest.fixture
def register(monkeypatch):
    """Add an entry to a registry for the length of a test, in every module that has imported the registry."""

    def add(registry, name, entry):
        extended = MappingProxyType({**registry, name: entry})
        for path, module in list(sys.modules.items()):
            if path.partition(".")[0] in ("srpo_core", "flows"):
                for attribute in [key for key, value in vars(module).items() if value is registry]:
                    monkeypatch.setattr(module, attribute, extended)
        return extended

    return add
