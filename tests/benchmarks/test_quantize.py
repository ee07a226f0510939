"""Peak memory of `srpo quantize` on generated checkpoints, and the output of the benchmark."""

import json
import subprocess
import sys

import pytest

HIDDEN = 1024
# The last line is the peak memory of this process in kB. ru_maxrss may also include memory of the parent.
RUN_AND_TELL = """
from srpo_core.__main__ import main
try:
    main()
finally:
    with open("/proc/self/status") as status:
        print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


@pytest.fixture(scope="module")
def benchmark(benchmark_named):
    return benchmark_named("quantize")


def peak_bytes(source, out):
    arguments = ["quantize", source, "--format", "fp8_e4m3fn_scaled", "--format", "q8_0", "--out", out]
    done = subprocess.run(
        [sys.executable, "-c", RUN_AND_TELL, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    return 1024 * int(done.stdout.split()[-1])


@pytest.mark.pipeline
def test_memory_does_not_grow_with_the_checkpoint(benchmark, tmp_path):
    """Input grows by 0.8 GB; tensors or mapped pages left in memory would raise the peak by as much.

    Two equal runs were seen to differ by 50 MB.
    """
    sizes, peaks = [], []
    for double, single in ((3, 4), (9, 15)):
        source = tmp_path / f"{double}"
        sizes.append(benchmark.write_checkpoint(source, double, single, hidden=HIDDEN))
        peaks.append(peak_bytes(source, tmp_path / f"out-{double}"))
    assert sizes[1] > 2.9 * sizes[0] > 1e9
    assert peaks[1] < peaks[0] + 0.1 * (sizes[1] - sizes[0])
    assert max(peaks) < 0.3e9


@pytest.mark.pipeline
def test_the_benchmark_ends_with_the_peaks_at_both_sizes(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        benchmark,
        "make_checkpoint",
        lambda directory, gigabytes: benchmark.write_checkpoint(directory, 1, int(gigabytes), hidden=256),
    )
    monkeypatch.setattr(
        sys,
        "argv",
        ["quantize", "--size", "1", "--larger", "3", "--format", "bf16_single", "--work", str(tmp_path)],
    )
    benchmark.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["row"] for line in lines] == [
        benchmark.BASELINE,
        "bf16_single",
        "bf16_single",
        "peak of bf16_single",
    ]
    assert lines[3]["input_gb"] == [lines[1]["input_gb"], lines[2]["input_gb"]]
    assert lines[3]["peak_rss_gb"] == [lines[1]["peak_rss_gb"], lines[2]["peak_rss_gb"]]
    assert lines[1]["input_gb"] < lines[2]["input_gb"]
    assert all(line["gb_per_cpu_s"] > 0 for line in lines[:3])
    assert list(tmp_path.iterdir()) == []
