"""Two hosts and a storage host in network namespaces of this machine, joined by a bridge; needs root and `ip`."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from living import runs_by_number

NETWORK = "10.213.77"


def missing_for_hosts() -> str | None:
    """Return why this machine cannot have network namespaces, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the command ip is missing: install iproute2"
    name = f"srpo-{os.getpid()}-try"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "this machine does not allow network namespaces (CAP_NET_ADMIN)"
    _ip("netns", "delete", name)
    return None


@dataclass(frozen=True)
class Host:
    """A host by the name of its namespace; its address is on its only interface, `eth0`."""

    name: str
    address: str
    network: str

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        hidden: Sequence[Path] = (),
    ) -> subprocess.Popen[bytes]:
        """Start a process on this host, which sees empty directories of its own in place of the `hidden` ones."""
        mounts = "".join(f"mount -t tmpfs tmpfs '{path}' && " for path in hidden)
        inside = ["sh", "-c", f'{mounts}cd / && exec "$@"', "sh", *command]
        with log.open("ab") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *inside],
                env=dict(environment),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def set_link(self, *, up: bool) -> None:
        """Plug the host's cable in or out."""
        _ip("-n", self.network, "link", "set", self._port, "up" if up else "down")

    def kill(self) -> None:
        """End the host at once: its cable first, so that nobody hears of the end of its processes."""
        self.set_link(up=False)
        self.end_processes()

    def end_processes(self) -> None:
        """Kill every process of this host."""
        _end_processes(self.name)

    @property
    def _port(self) -> str:
        return f"to-{self.address.rpartition('.')[2]}"


@contextmanager
def hosts(*names: str) -> Iterator[list[Host]]:
    """Create hosts with a common network; on exit, end their processes and remove them."""
    _remove_what_killed_tests_left()
    network = f"srpo-{os.getpid()}-net"
    with ExitStack() as stack:
        _create_namespace(stack, network)
        _ip("-n", network, "link", "add", "switch", "type", "bridge")
        _ip("-n", network, "link", "set", "switch", "up")
        made = []
        for number, name in enumerate(names, start=1):
            host = Host(f"srpo-{os.getpid()}-{name}", f"{NETWORK}.{number}", network)
            _create_namespace(stack, host.name)
            stack.callback(host.end_processes)
            _connect(host)
            made.append(host)
        yield made


def _remove_what_killed_tests_left() -> None:
    for line in subprocess.check_output(["ip", "netns", "list"], text=True).splitlines():
        name = line.split()[0]
        found = re.fullmatch(r"srpo-(\d+)-\w+", name)
        if found and not runs_by_number(int(found[1])):
            _end_processes(name)
            _ip("netns", "delete", name)


def _end_processes(namespace: str) -> None:
    until = time.monotonic() + 30
    while pids := subprocess.check_output(["ip", "netns", "pids", namespace], text=True).split():
        assert time.monotonic() < until, pids
        for pid in pids:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:  # it ended with another one
                continue
        time.sleep(0.1)


def _create_namespace(stack: ExitStack, name: str) -> None:
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "delete", name)
    _ip("-n", name, "link", "set", "lo", "up")


def _connect(host: Host) -> None:
    port = host._port
    _ip("-n", host.network, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.name)
    _ip("-n", host.network, "link", "set", port, "master", "switch", "up")
    _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
    _ip("-n", host.name, "link", "set", "eth0", "up")
    # Ray and gloo ask for the way to the internet to find out their own address
    _ip("-n", host.name, "route", "add", "default", "via", f"{NETWORK}.254", "dev", "eth0")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
