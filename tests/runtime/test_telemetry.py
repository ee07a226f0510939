import pytest

from srpo_core.runtime.telemetry import quiet_environment


def test_the_telemetry_of_every_tool_is_off_by_default():
    quiet = quiet_environment({})
    for tool in ("DVC", "PREFECT", "RAY", "GX", "HF_HUB"):
        assert any(name.startswith(tool) for name in quiet), tool
    assert quiet["DO_NOT_TRACK"] == "1"


def test_variables_set_by_the_user_are_kept():
    assert quiet_environment({"RAY_USAGE_STATS_ENABLED": "1"})["RAY_USAGE_STATS_ENABLED"] == "1"


def test_the_tools_read_the_variables(monkeypatch):
    for name, value in quiet_environment({}).items():
        monkeypatch.setenv(name, value)
    from dvc.analytics import is_enabled
    from huggingface_hub.constants import _is_true
    from prefect.settings import Settings

    assert is_enabled() is False
    assert Settings().server.analytics_enabled is False
    assert _is_true(quiet_environment({})["HF_HUB_DISABLE_TELEMETRY"])
    ray_usage = pytest.importorskip("ray._common.usage.usage_lib")
    assert ray_usage._usage_stats_enabledness().name == "DISABLED_EXPLICITLY"
