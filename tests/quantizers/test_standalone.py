"""`srpo quantize` as a user runs it, including kills."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
from safetensors.numpy import load_file, save_file

from srpo_core.artifacts import sha256
from srpo_core.errors import ArtifactError, ConfigError, DataError
from srpo_core.quantizers import read_file
from srpo_core.quantizers.standalone import quantize_checkpoint
from srpo_core.runtime.file_lock import acquire


def quantize(source, names, out, stem=None):
    return list(
        quantize_checkpoint(source, names, out, stem=stem, bar=lambda *_: nullcontext(lambda _: None))
    )


def test_files_are_named_after_the_source_and_recorded_with_every_tensor(checkpoint, tmp_path):
    lines = quantize(checkpoint, ["Q8_0", "fp8_e4m3fn"], tmp_path)
    assert len(lines) == 2
    record = json.loads((tmp_path / "q8_0/quantize.json").read_text())
    (name,) = record["files"]
    assert name == f"{checkpoint.name}-q8_0.gguf"
    entry = record["files"][name]
    assert entry["sha256"] == sha256(tmp_path / "q8_0" / name)
    assert entry["source_sha256"] == sha256(checkpoint / "diffusion_pytorch_model.safetensors")
    assert len(entry["tensors"]) == len(read_file(tmp_path / "q8_0" / name)) - 2 * 2 * 4 - 2 * 2 * 3
    assert 3e-3 < entry["relative_error"] < 8e-3


def test_complete_formats_are_kept_and_incomplete_ones_are_written_again(checkpoint, tmp_path):
    quantize(checkpoint, ["q8_0"], tmp_path, "m")
    path = tmp_path / "q8_0/m-q8_0.gguf"
    before = path.stat().st_mtime_ns
    lines = quantize(checkpoint, ["q8_0", "bf16"], tmp_path, "m")
    assert [line.endswith("kept") for line in lines] == [True, False, False]
    assert path.stat().st_mtime_ns == before
    path.write_bytes(path.read_bytes()[:-1])
    assert not quantize(checkpoint, ["q8_0"], tmp_path, "m")[0].endswith("kept")


def test_formats_of_another_source_or_with_a_damaged_record_are_written_again(checkpoint, tmp_path):
    quantize(checkpoint, ["q8_0"], tmp_path, "m")
    (tmp_path / "q8_0/quantize.json").write_text('{"schema')
    assert not quantize(checkpoint, ["q8_0"], tmp_path, "m")[0].endswith("kept")
    os.utime(checkpoint / "diffusion_pytorch_model.safetensors")
    assert not quantize(checkpoint, ["q8_0"], tmp_path, "m")[0].endswith("kept")


def test_files_of_another_source_are_not_kept_if_a_kill_prevented_their_record(
    checkpoint, tmp_path, monkeypatch
):
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    weights = other / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(weights).items()}, weights)
    out = tmp_path / "out"
    quantize(checkpoint, ["q8_0"], out, "m")
    path = out / "q8_0/m-q8_0.gguf"
    first = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("srpo_core.quantizers.standalone.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            quantize(other, ["q8_0"], out, "m")
    assert path.stat().st_size == len(first)
    assert path.read_bytes() != first
    (line,) = quantize(checkpoint, ["q8_0"], out, "m")
    assert not line.endswith("kept")
    assert path.read_bytes() == first


def test_invalid_input_raises_an_error_before_anything_is_written(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="unknown quantizer 'q9'"):
        quantize(checkpoint, ["q9"], tmp_path / "out")
    with pytest.raises(DataError, match="is no FLUX checkpoint"):
        quantize(tmp_path, ["q8_0"], tmp_path / "out")
    with pytest.raises(DataError, match="--name a/b is not a file name"):
        quantize(checkpoint, ["q8_0"], tmp_path / "out", "a/b")
    assert not (tmp_path / "out").exists()


def test_a_kept_file_with_a_flipped_byte_is_reported_and_written_again(checkpoint, tmp_path, caplog):
    quantize(checkpoint, ["q8_0"], tmp_path, "m")
    path = tmp_path / "q8_0/m-q8_0.gguf"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert not quantize(checkpoint, ["q8_0"], tmp_path, "m")[0].endswith("kept")
    assert path.read_bytes() == data
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"{path} does not have the SHA-256 of its quantize.json: it is written again"
    assert quantize(checkpoint, ["q8_0"], tmp_path, "m")[0].endswith("kept")


def test_a_second_process_that_writes_to_the_same_directory_is_refused(checkpoint, tmp_path):
    with acquire(tmp_path / ".quantize.lock"):
        with pytest.raises(
            ArtifactError, match=r"another 'srpo quantize' writes to .*choose another directory"
        ):
            quantize(checkpoint, ["q8_0"], tmp_path, "m")
        assert [path.name for path in tmp_path.iterdir()] == [".quantize.lock"]
    assert len(quantize(checkpoint, ["q8_0"], tmp_path, "m")) == 1
    assert not (tmp_path / ".quantize.lock").exists()


@pytest.mark.pipeline
def test_a_killed_conversion_leaves_no_partial_file_and_resumes(checkpoint, tmp_path):
    command = [sys.executable, "-m", "srpo_core", "quantize", str(checkpoint), "--out", str(tmp_path)]
    for name in ("q4_k_m", "bf16", "q8_0"):
        command += ["--format", name]
    draws = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(draws.uniform(0.8, 3.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in tmp_path.rglob("*.gguf"):
            if not path.name.startswith("."):
                read_file(path)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 4
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def test_a_full_disk_raises_a_one_line_error_and_leaves_no_file(checkpoint, tmp_path):
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); import signal; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from srpo_core.__main__ import main; main()"
    )
    arguments = ["quantize", str(checkpoint), "--format", "q8_0", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"{tmp_path} cannot be written to (" in done.stderr
    assert "File too large" in done.stderr
    assert "free space there or choose another --out, then repeat the command" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
