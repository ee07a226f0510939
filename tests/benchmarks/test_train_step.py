"""The literal and the exact step of the benchmark must be the same step; times are not tested."""

import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHARED_S = Path(__file__).parents[3] / "shared/bench/S"
NORM = 1e-5
LOSS = 1e-6


@pytest.fixture(scope="module")
def train_step(benchmark_named):
    return benchmark_named("train_step")


@pytest.fixture
def restore_anomaly_mode():
    yield
    torch.autograd.set_detect_anomaly(False)


@pytest.fixture
def restore_timed_functions(monkeypatch):
    """Let monkeypatch restore the functions of torch that the phases wrap."""
    monkeypatch.setattr(torch.Tensor, "backward", torch.Tensor.backward)
    for name in ("clip_grad_norm_", "get_total_norm", "clip_grads_with_norm_"):
        monkeypatch.setattr(torch.nn.utils, name, getattr(torch.nn.utils, name))


@pytest.fixture(scope="module")
def small_spec(tmp_path_factory):
    directory = tmp_path_factory.mktemp("spec")
    spec = json.loads((Path(__file__).parent / "small_spec.json").read_text())
    (directory / "spec.json").write_text(json.dumps(spec))
    return directory


def exact_and_literal(train_step, directory, step=1):
    """Return (loss, gradient norm) of one exact step and of one literal step."""
    from literal_step import LiteralStep
    from step_spec import load_spec

    settings = train_step.train_settings(load_spec(directory), pairs=1, source="online")
    spec = load_spec(directory)
    ours = train_step.learner_of(spec, settings).step(train_step.batch_of(spec, step), step)
    literal = LiteralStep(load_spec(directory))
    loss = literal.run(step, spec.noise(step), spec.mid_timestep)
    return (ours["loss"], ours["grad_norm"]), (loss, literal.grad_norm)


def assert_equal(ours, literal):
    assert ours[0] == pytest.approx(literal[0], abs=LOSS)
    assert ours[1] == pytest.approx(literal[1], rel=NORM)
    assert literal[1] > 0


@pytest.mark.usefixtures("restore_anomaly_mode")
def test_literal_and_exact_are_the_same_step(train_step, small_spec):
    assert_equal(*exact_and_literal(train_step, small_spec))


@pytest.mark.usefixtures("restore_anomaly_mode")
@pytest.mark.skipif(not SHARED_S.is_dir(), reason="the specification S is not at hand")
def test_literal_and_exact_are_the_same_step_on_specification_s(train_step):
    assert_equal(*exact_and_literal(train_step, SHARED_S, step=2))


def test_missing_weights_are_always_the_same(train_step, small_spec):
    from step_spec import load_spec

    first, second = load_spec(small_spec), load_spec(small_spec)
    assert torch.equal(first.flux.proj_out.weight, second.flux.proj_out.weight)
    assert torch.equal(first.prompt_embeds, second.prompt_embeds)
    assert torch.equal(first.noise(3), second.noise(3))
    assert not torch.equal(first.noise(3), first.noise(4))


@pytest.mark.usefixtures("restore_timed_functions")
@pytest.mark.parametrize(("method", "pairs"), [("shared", 2), ("offline", 1)])
def test_every_method_runs_and_names_its_phases(train_step, small_spec, method, pairs):
    from phases import Phases
    from step_spec import load_spec

    phases = Phases()
    step = train_step.ours(load_spec(small_spec), phases, pairs=pairs, offline=method == "offline")
    figures = train_step.run(step, phases, steps=1, pairs=pairs)
    expected = {"forward", "decode", "reward", "backward", "optimizer"}
    assert set(figures["phases"]) == expected | (set() if method == "offline" else {"rollout"})
    assert figures["loss"] > 0


@pytest.mark.usefixtures("restore_timed_functions")
@pytest.mark.parametrize("named", ["get_total_norm", "clip_grads_with_norm_"])
def test_norm_and_clipping_count_as_optimizer(train_step, small_spec, named):
    from phases import Phases
    from step_spec import load_spec

    phases, seen = Phases(), []
    inner = getattr(torch.nn.utils, named)
    setattr(torch.nn.utils, named, lambda *given, **more: seen.append(named) or inner(*given, **more))
    spec = load_spec(small_spec)
    learner = train_step.learner_of(spec, train_step.train_settings(spec, pairs=1, source="online"))
    phases.time_optimizer(learner.optimizer)
    timed = getattr(torch.nn.utils, named)
    learner.step(train_step.batch_of(spec, 1), 1)
    assert seen == [named]
    assert timed.__wrapped__ is not inner
    assert phases.seconds["optimizer"] > 0


@pytest.mark.parametrize(
    "directory",
    [
        BENCHMARKS / "specs/S",
        pytest.param(
            SHARED_S,
            marks=pytest.mark.skipif(not SHARED_S.is_dir(), reason="the specification S is not at hand"),
        ),
    ],
    ids=["shipped", "specification"],
)
def test_the_specification_has_twelve_text_tokens(train_step, directory):
    from step_spec import load_spec

    assert load_spec(directory).prompt_embeds.shape == (1, 12, 48)


@pytest.mark.usefixtures("restore_timed_functions")
def test_the_step_of_a_profile_runs_and_names_its_phases(train_step, tmp_path, monkeypatch):
    from phases import Phases

    from srpo_core.config import Settings, load_settings, patched

    monkeypatch.chdir(tmp_path)  # the benchmark changes the directory; monkeypatch restores it
    tiny = load_settings(train_step.ROOT / "profiles/tiny.yaml").model_dump()
    small = {"train": {"batch_size": 2, "rollout": {"num_inference_steps": 2}, "draft": {"last_steps": 1}}}
    phases = Phases()
    step = train_step.profile_step(Settings.model_validate(patched(tiny, small)), phases, tmp_path)
    assert train_step.run(step, phases, steps=1, pairs=1)["loss"] > 0
    assert set(phases.seconds) == {"rollout", "forward", "decode", "reward", "backward", "optimizer"}
