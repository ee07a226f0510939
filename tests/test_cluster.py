import logging
from pathlib import Path

import pytest
import torch

from srpo_core import cluster
from srpo_core.config import load_settings
from srpo_core.errors import ConfigError, SrpoError

TINY = Path(__file__).resolve().parents[1] / "profiles/tiny.yaml"


def on_gpus(wanted):
    return load_settings(TINY).resources.model_copy(update={"use_gpu": wanted})


@pytest.mark.parametrize("address", ["cluster", "http://cluster:8265", "ray://cluster:10001", ":6379"])
def test_an_address_of_another_form_shows_how_it_is_written(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match="write host:port"):
        cluster.require_cluster()


def test_a_cluster_that_does_not_answer_is_one_line_at_once(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(
        SrpoError, match=r"no Ray cluster answers at RAY_ADDRESS=127\.0\.0\.1:1 .*ray start --head"
    ):
        cluster.require_cluster()


def test_several_machines_need_to_be_told_where_they_share_files(monkeypatch, tmp_path):
    monkeypatch.delenv("SRPO_STORAGE", raising=False)
    cluster.require_shared_files(1)
    with pytest.raises(
        ConfigError, match="has 3 machines, which share no files that we know of: set SRPO_STORAGE"
    ):
        cluster.require_shared_files(3)
    monkeypatch.setenv("SRPO_STORAGE", str(tmp_path))
    cluster.require_shared_files(3)


def test_a_gpu_that_is_asked_for_and_not_there_is_refused(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cluster.local_device(on_gpus(False)) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"resources\.use_gpu is true and this machine has no GPU"):
        cluster.local_device(on_gpus(True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cluster.local_device(on_gpus(True)) == torch.device("cuda")


def test_a_machine_without_a_gpu_that_drives_a_cluster_says_that_its_cpu_works(monkeypatch, caplog):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert cluster.local_device(on_gpus(True)) == torch.device("cpu")
    assert "this machine has no GPU, so its CPU does what is not sent to the cluster" in caplog.text
