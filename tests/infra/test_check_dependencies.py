import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("check_dependencies", ROOT / "infra/check_dependencies.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_packages_of_the_lock_satisfy_each_other_except_for_the_accepted_conflicts(module):
    lock = module.read_lock(ROOT / "requirements.lock")
    found = {(name, required): problem for name, required, problem in module.conflicts(lock)}
    assert found.keys() == module.ACCEPTED.keys(), found


def test_a_conflict_names_both_packages_and_both_versions(module):
    lock = module.read_lock(ROOT / "requirements.lock") | {"sqlalchemy": "1.0", "greenlet": "3.9"}
    found = [problem for _, required, problem in module.conflicts(lock) if required == "sqlalchemy"]
    assert any(
        "prefect 3.8.8 requires sqlalchemy" in line and "the lock has 1.0" in line for line in found
    ), found


def test_a_package_that_the_lock_lacks_is_a_conflict(module):
    lock = module.read_lock(ROOT / "requirements.lock")
    del lock["botocore"]
    found = [problem for _, required, problem in module.conflicts(lock) if required == "botocore"]
    assert any("boto3" in line and "which the lock lacks" in line for line in found), found


def test_the_lock_has_a_protobuf_that_is_still_maintained(module):
    lock = module.read_lock(ROOT / "requirements.lock")
    assert int(lock["protobuf"].partition(".")[0]) >= 6


def test_a_vulnerability_of_the_report_is_a_line_with_the_version_that_mends_it(module):
    report = json.loads(
        '{"dependencies": [{"name": "flask", "version": "0.5", "vulns": [{"id": "PYSEC-2019-179", "fix_versions":'
        ' ["1.0"], "aliases": ["CVE-2019-1010083"], "description": "…"}]}, {"name": "click", "version": "8.5.1",'
        ' "vulns": []}, {"name": "own", "skip_reason": "Dependency not found on PyPI: own (1.0)"}], "fixes": []}'
    )
    assert module.findings(report) == (["flask 0.5: PYSEC-2019-179, fixed in 1.0"], ["own"])


AUDITS = {
    "nothing": json.dumps(
        {"dependencies": [{"name": f"p{n}", "skip_reason": "not found"} for n in range(7)]}
    ),
    "some": '{"dependencies": [{"name": "p0", "version": "1", "vulns": []}, {"name": "p1", "skip_reason": "x"}]}',
    "all": '{"dependencies": [{"name": "p0", "version": "1", "vulns": []}]}',
    "vulnerable": '{"dependencies": [{"name": "p0", "version": "1", "vulns": [{"id": "X", "fix_versions": []}]}]}',
    "unreachable": "",
}


@pytest.mark.parametrize(
    ("audit", "code", "printed", "warned"),
    [
        (
            "nothing",
            0,
            [],
            "WARNING: only 0 of 7 packages audited for known vulnerabilities: the package index has no",
        ),
        ("some", 0, ["1 packages audited: no known vulnerability"], "WARNING: only 1 of 2 packages audited"),
        ("all", 0, ["1 packages audited: no known vulnerability"], ""),
        ("vulnerable", 1, ["p0 1: X, fixed in no version"], ""),
        (
            "unreachable",
            0,
            [],
            "WARNING: only 0 of 7 packages audited for known vulnerabilities: pip-audit could not reach its source (no",
        ),
    ],
)
def test_what_was_not_audited_is_a_warning_and_never_counts_as_free_of_vulnerabilities(
    module, tmp_path, monkeypatch, capsys, audit, code, printed, warned
):
    """pip-audit is a program that prints one of its reports."""
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{AUDITS[audit]}\nEND\n")
    program.chmod(0o755)
    count = max(AUDITS[audit].count('"name"'), 1) if audit != "unreachable" else 7
    monkeypatch.setattr(module, "read_lock", lambda _: {f"p{n}": "1" for n in range(count)})
    monkeypatch.setattr(module, "conflicts", lambda _: iter(()))
    monkeypatch.setattr("sys.argv", ["check_dependencies.py", str(program)])
    assert module.main() == code
    told = capsys.readouterr()
    assert told.out.splitlines()[1:] == printed
    assert told.err.startswith(warned)
    assert bool(told.err) == bool(warned)
