"""Check requirements.lock: that its packages satisfy each other, and that none has a known vulnerability.

    python infra/check_dependencies.py PIP_AUDIT

PIP_AUDIT is the path of pip-audit's executable; `make check-deps` installs it apart from .venv. Vulnerabilities come
from PyPI, version by version: a mirror of PyPI often has no such pages. Then a line on stderr, which begins with WARNING,
says how many packages were audited. The exit code is 1 for a conflict or a vulnerability. It is 0 if packages could not be
audited, since the machine may see no other index: read the warning before a release.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement

LOCK: Final = Path("requirements.lock")
_SHOWN: Final = 5

# (package, what it asks for): why the lock does not heed it
ACCEPTED: Final[Mapping[tuple[str, str], str]] = {
    ("hpsv2", "protobuf"): "hpsv2 does not import it; protobuf 3 gets no more security fixes",
    ("hpsv2", "pytest"): "hpsv2 does not import it",
    ("pytest-split", "pytest"): "only hpsv2 asks for pytest-split, and nothing imports it",
}


def read_lock(path: Path) -> dict[str, str]:
    """Read the lock: from the name of each package to its version."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {_canonical(name): version for name, version in pins}


def conflicts(lock: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield (package, package it requires, problem) for requirements that the lock does not satisfy.

    The requirements are those of the installed packages, without extras.
    """
    for name in sorted(lock):
        for text in metadata.requires(name) or []:
            required = Requirement(text)
            if required.marker is not None and not required.marker.evaluate({"extra": ""}):
                continue
            found = lock.get(_canonical(required.name))
            if found is None:
                yield name, required.name, f"{name} {lock[name]} requires {text}, which the lock lacks"
            elif not required.specifier.contains(found, prereleases=True):
                yield name, required.name, f"{name} {lock[name]} requires {text}, the lock has {found}"


def findings(report: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Read pip-audit's JSON report: one line for each vulnerability, and the packages that it could not audit."""
    vulnerable = [
        f"{package['name']} {package['version']}: {one['id']}, fixed in {', '.join(one['fix_versions']) or 'no version'}"
        for package in report["dependencies"]
        for one in package.get("vulns", [])
    ]
    return vulnerable, [package["name"] for package in report["dependencies"] if "skip_reason" in package]


def audit(pip_audit: str) -> Mapping[str, Any]:
    """Run pip-audit on the lock and return its report. Raises `RuntimeError` with its last line if there is none."""
    command = [
        pip_audit,
        "-r",
        str(LOCK),
        "--no-deps",
        "--disable-pip",
        "-f",
        "json",
        "--progress-spinner",
        "off",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report: Mapping[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        raise RuntimeError((done.stderr.strip() or "no output").splitlines()[-1]) from None
    return report


def coverage(num_packages: int, skipped: Sequence[str], failure: str = "") -> tuple[str, str]:
    """Return a line on the packages that were audited, and a warning on those that were not; each may be empty.

    skipped: packages of which the index has no record. failure: why pip-audit could not audit any.
    """
    audited = 0 if failure else num_packages - len(skipped)
    if audited == num_packages:
        return f"{audited} packages audited: no known vulnerability", ""
    names = ", ".join(skipped[:_SHOWN]) + (", ..." if len(skipped) > _SHOWN else "")
    reason = failure or f"the package index has no record of {len(skipped)} packages ({names})"
    warning = (
        f"WARNING: only {audited} of {num_packages} packages audited for known vulnerabilities: {reason}. Run this where "
        "https://pypi.org can be reached, before a release"
    )
    return (f"{audited} packages audited: no known vulnerability" if audited else ""), warning


def main() -> int:
    """Print what is wrong with the lock; return 1 if anything is."""
    lock = read_lock(LOCK)
    open_conflicts = []
    for name, required, problem in conflicts(lock):
        if reason := ACCEPTED.get((name, _canonical(required))):
            print(f"accepted: {problem} ({reason})")
        else:
            open_conflicts.append(problem)
    print("\n".join(open_conflicts) or f"{LOCK}: {len(lock)} packages satisfy each other")
    vulnerable, skipped, failure = list[str](), list[str](), ""
    try:
        vulnerable, skipped = findings(audit(sys.argv[1]))
    except RuntimeError as error:
        failure = f"pip-audit could not reach its source ({error})"
    sound, warning = coverage(len(lock), skipped, failure)
    for line in vulnerable or [sound] * bool(sound):
        print(line)
    if warning:
        print(warning, file=sys.stderr)
    return 1 if open_conflicts or vulnerable else 0


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    sys.exit(main())
