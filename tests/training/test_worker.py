import json
import math
import time
from dataclasses import replace
from functools import partial
from itertools import count

import pytest
import torch

from srpo_core.algorithm import METHODS
from srpo_core.config import EmaSettings, StallSettings
from srpo_core.errors import DivergenceError
from srpo_core.models.embeddings import read_embeddings, write_embeddings
from srpo_core.runtime.shared_files import Location
from srpo_core.training.betting import SHARES
from srpo_core.training.checkpoint import AVERAGES, WEIGHTS, newest_checkpoint
from srpo_core.training.early_stop import Bets, Evaluation
from srpo_core.training.job import PROGRESS, SAMPLES
from srpo_core.training.steps import checkpoint_steps
from srpo_core.training.watchdog import EXIT_CODE, Watchdog
from srpo_core.training.worker import Worker
from srpo_core.weights.shards import read_whole

CPU = torch.device("cpu")


def worker(job, rank=0, world=1):
    return Worker(job, rank=rank, world=world, device=CPU)


def shorter(job, steps):
    return replace(job, train=job.train.model_copy(update={"steps": steps}))


def weights(checkpoint, part=WEIGHTS):
    whole = read_whole(checkpoint.location.path / part)
    return {name: tensor.numpy().tobytes() for name, tensor in whole.items()}


def test_a_resumed_run_ends_with_the_same_bits_and_trains_only_the_missing_steps(job, tmp_path):
    """No random state is saved, and the global generators of the resumed run are in another state."""
    job = with_train(job, ema=EmaSettings(decay=0.9, start=0))
    torch.manual_seed(1)
    worker(job).run()
    straight = newest_checkpoint(job.state, count(2, 2))
    other = replace(job, state=Location.of(tmp_path / "interrupted"))
    torch.manual_seed(2)
    worker(shorter(other, 2)).run()
    torch.manual_seed(3)
    worker(replace(other, resume=2)).run()
    resumed = newest_checkpoint(other.state, count(2, 2))
    assert resumed.step == straight.step == 4
    assert weights(resumed) == weights(straight)
    assert weights(resumed, AVERAGES) == weights(straight, AVERAGES) != weights(straight)
    assert resumed.metrics == straight.metrics
    trained = [json.loads(line)["step"] for line in (other.state / PROGRESS).read_text().splitlines()]
    assert trained == [1, 2, 3, 4]


def test_a_run_writes_checkpoints_samples_and_the_metrics_of_every_step(job):
    worker(job).run()
    assert sorted(path.name for path in job.state.path.glob("step-*")) == ["step-000002", "step-000004"]
    assert len(list((job.state.path / SAMPLES).glob("*.png"))) == 2
    metrics = newest_checkpoint(job.state, count(2, 2)).metrics
    assert [set(row) for row in metrics] == [{"loss", "reward_denoise", "reward_inversion", "grad_norm"}] * 4


def test_the_last_step_has_a_checkpoint_if_the_interval_does_not_divide_the_steps(job):
    three = shorter(job, 3)
    assert checkpoint_steps(three.train) == (2, 3)
    worker(three).run()
    assert sorted(path.name for path in job.state.path.glob("step-*")) == ["step-000002", "step-000003"]
    assert newest_checkpoint(job.state, checkpoint_steps(three.train)).step == 3


def test_the_batches_of_two_workers_together_are_the_batch_of_one(job):
    whole = worker(job).batch(3)
    first, second = (worker(job, rank, 2).batch(3) for rank in range(2))
    for rank, share in enumerate((first, second)):
        assert share.prompts == whole.prompts[rank::2]
        midpoints = [b.draws.integers(("midpoint", 0), 5, 995) for b in (share, whole)]
        assert midpoints[0] == midpoints[1][rank::2]
        assert torch.equal(share.noise, whole.noise[rank::2])
        for name, tensor in share.condition.tensors.items():
            assert torch.equal(tensor, whole.condition.tensors[name][rank::2])


def test_a_step_changes_every_tensor_of_the_transformer(job):
    trained = worker(job)
    before = {name: tensor.clone() for name, tensor in trained.model.transformer.state_dict().items()}
    trained.step(1)
    after = trained.model.transformer.state_dict()
    assert not [name for name in before if torch.equal(before[name], after[name])]


@pytest.mark.parametrize(("enabled", "expected"), [(True, "tf32"), (False, "ieee")])
def test_steps_and_sample_images_are_computed_in_the_precision_of_the_settings(job, enabled, expected):
    compute = job.train.compute.model_copy(update={"tf32": enabled})
    trained, seen = worker(with_train(shorter(job, 1), compute=compute)), set()
    trained.model.transformer.proj_out.register_full_backward_hook(
        lambda *_: seen.add(("backward", torch.backends.cuda.matmul.fp32_precision))
    )
    trained.model.vae.decoder.register_forward_hook(
        lambda *_: seen.add(
            ("decode" if torch.is_grad_enabled() else "sample", torch.backends.cudnn.conv.fp32_precision)
        )
    )
    trained.run()
    assert seen == {("backward", expected), ("decode", expected), ("sample", expected)}
    assert torch.backends.cuda.matmul.fp32_precision != "tf32", "restored"


def with_train(job, **changes):
    return replace(job, train=job.train.model_copy(update=changes))


def test_shared_noise_is_equal_within_a_step_and_differs_between_steps(job):
    shared = worker(with_train(job, noise="shared"))
    noise, following = shared.batch(1).noise, shared.batch(2).noise
    assert all(torch.equal(noise[0], other) for other in noise)
    assert not torch.equal(noise[0], following[0])
    own = worker(job).batch(1).noise
    assert not any(torch.equal(own[0], other) for other in own[1:])


def test_hybrid_chooses_real_images_per_sample_independently_of_the_number_of_workers(job):
    hybrid = job.train.rollout.model_copy(update={"source": "hybrid", "share_offline": 0.5})
    mixed = with_train(job, rollout=hybrid, batch_size=40)
    latents = torch.arange(5.0)[:, None, None].expand(5, 16, 64)
    workers = [worker(job), worker(job, 0, 2), worker(job, 1, 2)]
    for one in workers:
        one.job, one.prompts = mixed, replace(one.prompts, real=latents)
    whole, *parts = [one.batch(1) for one in workers]
    assert 10 < len(whole.given) < 30
    for rank, part in enumerate(parts):
        assert {2 * place + rank for place in part.given} == {p for p in whole.given if p % 2 == rank}
    for place, image in whole.given.items():
        assert workers[0].prompts.texts[int(image[0, 0])] == whole.prompts[place]


def one_step(job, **changes):
    """Return the metrics of one step on two images, and the largest change of a weight."""
    rollout = job.train.rollout.model_copy(
        update={"num_inference_steps": 4, "source": changes.pop("source", "online")}
    )
    trained = worker(with_train(job, batch_size=2, rollout=rollout, **changes))
    before = [parameter.detach().clone() for parameter in trained.model.transformer.parameters()]
    random_state = torch.get_rng_state()
    metrics = trained.step(1)
    assert torch.equal(torch.get_rng_state(), random_state), "exact resume needs keyed random numbers alone"
    after = trained.model.transformer.parameters()
    return metrics, max(float((a.detach() - b).abs().max()) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_the_tiny_base(job, method):
    metrics, moved = one_step(job, method=method)
    rewards = {name for name in metrics if name.startswith("reward_")}
    assert rewards == ({"reward_denoise", "reward_inversion"} if method == "srpo" else {"reward_wanted"})
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["grad_norm"] > 0
    # AdamW's first step changes every weight with a nonzero gradient by the learning rate
    assert moved == pytest.approx(job.train.optimizer.learning_rate, rel=0.05)


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if entry.real_images])
@pytest.mark.parametrize("source", ["offline", "hybrid"])
def test_every_method_that_supports_real_images_trains_the_tiny_base_on_them(
    job, tiny_project, tmp_path, monkeypatch, method, source
):
    texts, styles, condition = read_embeddings("train")
    (tmp_path / "assets").symlink_to(tiny_project / "assets")
    monkeypatch.chdir(tmp_path)
    latents = torch.randn(len(texts), 16, 64, generator=torch.Generator().manual_seed(0))
    write_embeddings("train", texts, styles, condition, latents)
    metrics, moved = one_step(job, method=method, source=source)
    assert metrics["grad_norm"] > 0
    assert moved == pytest.approx(job.train.optimizer.learning_rate, rel=0.05)
    assert metrics != one_step(job, method=method)[0]


def test_a_step_that_is_not_finite_does_not_change_the_weights(job):
    trained = worker(job)
    before = {name: tensor.clone() for name, tensor in trained.model.transformer.state_dict().items()}
    encode = trained.learner.reward.encode_images
    trained.learner.reward.encode_images = lambda images: encode(images) * float("nan")
    with pytest.raises(
        DivergenceError, match=r"step 1: loss is nan, reward_denoise is nan.*grad_norm is nan"
    ):
        trained.step(1)
    after = trained.model.transformer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_step_with_all_gpu_options_is_close_to_the_plain_step(job):
    """Autocast, checkpointing and fused AdamW: one step with the same random numbers."""
    compute = job.train.compute.model_copy(
        update={"autocast": True, "gather_rollout": True, "checkpoint_blocks": 0.5, "checkpoint_decode": True}
    )
    plain, economical = worker(job), worker(with_train(job, compute=compute))
    exact, near = plain.step(1), economical.step(1)
    for name in ("loss", "reward_denoise", "reward_inversion"):
        assert near[name] == pytest.approx(exact[name], abs=0.03), name
    assert near["grad_norm"] == pytest.approx(exact["grad_norm"], rel=0.1)
    assert {p.dtype for p in economical.model.transformer.parameters()} == {torch.float32}


def test_a_last_background_checkpoint_that_never_ends_is_a_stall(job, monkeypatch):
    ended = []

    class Stuck(Worker):
        def __init__(self, job):
            self.job, self.rank, self.world = job, 0, 1

        def _run(self, writer, watchdog):
            pass

        def _writer(self):
            return self

        def finish(self):
            time.sleep(2)

    stall = StallSettings(factor=2, least_seconds=0.2, restarts=0)
    resources = job.resources.model_copy(update={"stall": stall})
    monkeypatch.setattr(
        "srpo_core.training.worker.Watchdog", partial(Watchdog, exit_process=ended.append, grace=0.0)
    )
    Stuck(replace(job, resources=resources)).run()
    assert ended == [EXIT_CODE]


def test_a_diverging_run_finishes_the_checkpoint_that_is_being_written(job):
    ended = []

    class Diverging(Worker):
        def __init__(self, job):
            self.job, self.rank, self.world = job, 0, 1

        def _run(self, writer, watchdog):
            raise DivergenceError("step 16: loss is nan")

        def _writer(self):
            return self

        def finish(self):
            ended.append("step 15")

    with pytest.raises(DivergenceError, match="step 16"):
        Diverging(job).run()
    assert ended == ["step 15"]


def test_an_evaluation_that_takes_longer_than_a_step_is_not_a_stall(job):
    """The watchdog allows 0.2 s for a step, and a second for the work between steps."""
    ended, evaluated = [], []

    class Evaluating(Worker):
        def __init__(self, job):
            self.job, self.rank, self.metrics, self.evaluations = job, 0, [], []
            self.model, self.average, self.evaluator = None, None, self

        def step(self, step):
            return {"loss": 1.0}

        def evaluate(self, model, step):
            evaluated.append(step)
            time.sleep(0.5)
            return Evaluation(step, [Bets("broken", "broken", [0.0] * len(SHARES), 0.0, 0.1)])

        def _save(self, step, writer):
            pass

    stall = StallSettings(factor=5, least_seconds=0.2, restarts=0)
    with Watchdog(job.state, "a", 0, 1, stall, exit_process=ended.append, grace=0.0) as watchdog:
        Evaluating(job)._run(None, watchdog)
    assert evaluated == [2, 4]
    assert ended == []
