"""A real S3 server that checks signatures and digests: OpenStack Swift with its s3api, four daemons from PyPI.

Swift is installed in an environment of its own, because it is no dependency of the project. It needs a file system with
extended attributes.
"""

import getpass
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

VERSION = "2.38.3"
ACCESS_KEY, SECRET = "test:tester", "testing"
SERVERS = ("account", "container", "object")
START_SECONDS = 60

SWIFT_CONF = """\
[swift-hash]
swift_hash_path_suffix = suffix
swift_hash_path_prefix = prefix
[storage-policy:0]
name = Policy-0
default = yes
"""

STORAGE = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {root}
devices = {root}/devices
mount_check = false
user = {user}
workers = 0
[pipeline:main]
pipeline = healthcheck {name}-server
[filter:healthcheck]
use = egg:swift#healthcheck
[app:{name}-server]
use = egg:swift#{name}
"""

PROXY = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {root}
user = {user}
workers = 0
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck listing_formats bulk s3api tempauth copy slo dlo versioned_writes symlink proxy-server
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_object_versioning = true
[filter:symlink]
use = egg:swift#symlink
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
"""


def s3_variables(endpoint: str) -> dict[str, str]:
    """Return the environment variables by which S3 clients use the server, and nothing else."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }


def install(environment: Path) -> Path:
    """Install Swift into a virtual environment, once; return the directory of its commands."""
    done = environment / f"swift-{VERSION}"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        pip = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "setuptools<81", f"swift=={VERSION}"], check=True)
        done.touch()
    return environment / "bin"


@contextmanager
def swift_server(root: Path, environment: Path) -> Iterator[str]:
    """Run proxy, account, container and object server in `root`; yield the endpoint of the proxy's S3 interface."""
    bin_directory = install(environment)
    ports = {name: _free_port() for name in ("proxy", *SERVERS)}
    (root / "devices/sdb").mkdir(parents=True)
    (root / "swift.conf").write_text(SWIFT_CONF)
    for name in SERVERS:
        ring = [str(bin_directory / "swift-ring-builder"), f"{name}.builder"]
        device = f"r1z1-127.0.0.1:{ports[name]}/sdb"
        for arguments in (["create", "4", "1", "1"], ["add", device, "1"], ["rebalance"]):
            subprocess.run([*ring, *arguments], cwd=root, check=True, stdout=subprocess.DEVNULL)
    with ExitStack() as stack:
        for name, port in ports.items():
            template = PROXY if name == "proxy" else STORAGE
            path = root / f"{name}-server.conf"
            path.write_text(template.format(name=name, port=port, root=root, user=getpass.getuser()))
            stack.enter_context(_daemon([str(bin_directory / f"swift-{name}-server"), str(path), "-v"], root))
        for port in ports.values():
            _wait_until_healthy(f"http://127.0.0.1:{port}/healthcheck")
        yield f"http://127.0.0.1:{ports['proxy']}"


@contextmanager
def _daemon(command: list[str], root: Path) -> Iterator[None]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (root / f"{Path(command[0]).name}.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, cwd=root, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=START_SECONDS)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _wait_until_healthy(url: str) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            with urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (URLError, ConnectionError):
            pass
        if time.monotonic() > until:
            raise TimeoutError(f"{url} does not answer after {START_SECONDS} s: see the logs of the daemons")
        time.sleep(0.2)
