import os

import pytest

from srpo_core.runtime.cores import available_cores


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000\n", 6), ("250000 100000\n", 3), ("50000 100000\n", 1), ("9000000 100000\n", 6), ("", 6)],
)
def test_the_cores_are_those_of_the_affinity_within_the_quota_of_the_container(
    tmp_path, monkeypatch, quota, expected
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    (tmp_path / "cpu.max").write_text(quota)
    assert available_cores(tmp_path / "cpu.max") == expected
    assert available_cores(tmp_path / "missing") == 6
