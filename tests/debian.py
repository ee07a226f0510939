"""Install what a nightly test needs of Debian's packages."""

import os
import shutil
import subprocess


def install_package(name: str) -> None:
    """Install a package if this is root on a system with apt-get; otherwise, or if it fails, nothing changes."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    subprocess.run(
        ["apt-get", "install", "--yes", "--no-install-recommends", name],
        # RUNLEVEL: a package starts no server of its own
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"},
        capture_output=True,
        check=False,
    )
