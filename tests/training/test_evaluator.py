"""Early stop on images of the tiny model, in the training loop."""

import json
from dataclasses import replace
from itertools import count

import pytest
import torch

from srpo_core import artifacts
from srpo_core.config import AlarmLimit, EarlyStop
from srpo_core.errors import ArtifactError, ConfigError
from srpo_core.models import encode_prompts, load_trainable
from srpo_core.models.embeddings import write_embeddings
from srpo_core.training import evaluator, export
from srpo_core.training.checkpoint import newest_checkpoint
from srpo_core.training.early_stop import Evaluation, alarm_reason
from srpo_core.training.evaluator import make_evaluator
from srpo_core.training.job import PROGRESS
from srpo_core.training.worker import Worker

CPU = torch.device("cpu")
PROMPTS = ["popcorn", "axe", "cookie", "bread", "violin"]  # the judge knows their subjects
RULE = EarlyStop(
    alpha=0.05,
    num_prompts=5,
    seeds_per_prompt=2,
    num_inference_steps=8,
    base_seeds=3,
    max_broken=0.1,
    limits={
        "subject": AlarmLimit(
            metric="judge_top5", compare="difference", side="at_least", margin=-0.2, cap=None
        ),
        "diversity": AlarmLimit(metric="diversity", compare="ratio", side="at_least", margin=0.3, cap=1.0),
    },
)


@pytest.fixture
def watched(job, tmp_path, monkeypatch):
    """Return the job with early stop on prompts whose subjects the judge knows."""
    place = tmp_path / "watched"
    place.mkdir()
    (place / "assets").symlink_to(job.inputs.path / "assets")
    monkeypatch.chdir(place)
    condition = encode_prompts(job.model, PROMPTS, batch_size=8)
    for split in ("train", "alarm"):
        write_embeddings(split, PROMPTS, [""] * 5, condition)
    return replace(job, train=job.train.model_copy(update={"early_stop": RULE}))


def base_of(job):
    return load_trainable(job.model, job.train, seed=job.seed, device=CPU)


def run(job):
    worker = Worker(job, rank=0, world=1, device=CPU)
    worker.run()
    return worker


def weights(worker):
    return {name: tensor.clone() for name, tensor in worker.model.transformer.state_dict().items()}


def test_the_images_of_the_base_are_generated_once(watched, monkeypatch):
    first = make_evaluator(watched, base_of(watched), device=CPU)
    (name,) = watched.base_images.names()
    written = (watched.base_images / name).read_bytes()
    monkeypatch.setattr(evaluator, "generate_pixels", None)  # cannot be called
    again = make_evaluator(watched, base_of(watched), device=CPU)
    assert watched.base_images.names() == [name]
    assert (watched.base_images / name).read_bytes() == written
    assert {name: values.tolist() for name, values in again.base.items()} == {
        name: values.tolist() for name, values in first.base.items()
    }
    assert [one.bound.tolist() for one in again.tested] == [one.bound.tolist() for one in first.tested]


def test_the_figures_of_the_base_are_kept_by_the_number_of_images_that_a_call_generates(watched):
    """That depends on the number of workers and on micro-batches, and rounding depends on it."""

    def sizes(world, **changes):
        job = replace(watched, train=watched.train.model_copy(update={"batch_size": 4, **changes}))
        images = evaluator._images(job, RULE, None, device=CPU, rank=0, world=world)
        return images.sizes(RULE.base_seeds)  # of 15 images

    assert sizes(1) == (4, 3)
    assert sizes(2) == (2, 2)
    assert sizes(4) == (1, 1)
    assert sizes(1, micro_batch_size=2) == (2, 1)
    assert sizes(1, batch_size=20) == (15, 15)
    assert sizes(1, batch_size=5) == (5, 5)


def test_a_damaged_file_of_the_base_names_the_way_out(watched):
    images = evaluator._images(watched, RULE, None, device=CPU, rank=0, world=1)
    (watched.base_images / "{}-{}.safetensors".format(*images.sizes(3))).write(b"not a file of tensors")
    with pytest.raises(ArtifactError, match=r"base_images/4-3\.safetensors is damaged .*delete it"):
        make_evaluator(watched, base_of(watched), device=CPU)


def test_each_evaluation_has_new_noise_that_depends_on_the_step_alone(watched):
    base = base_of(watched)
    made = make_evaluator(watched, base, device=CPU)
    diversity = [made.evaluate(base, step).bets[-1].figure for step in (1, 2, 1)]
    assert diversity[0] == diversity[2] != diversity[1]


def test_the_base_raises_no_alarm_and_a_model_of_noise_does(watched):
    base = base_of(watched)
    made = make_evaluator(watched, base, device=CPU)
    good = [made.evaluate(base, step) for step in (1, 2)]
    assert alarm_reason(good, RULE, 2) is None
    with torch.no_grad():
        for parameter in base.transformer.parameters():
            parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    reason = alarm_reason([good[0], made.evaluate(base, 2)], RULE, 2)
    assert "beyond the limit broken (mean 1.000" in reason


def test_workers_that_share_the_images_find_the_same_ones(watched, monkeypatch):
    world = 4  # of 15 images the last worker has one less than the others
    alone = make_evaluator(watched, base_of(watched), device=CPU)
    base, shares = base_of(watched), []

    def gather(parts, here):
        shares.append(here)
        for part, share in zip(parts, shares, strict=False):
            part.copy_(share)

    def figures(made):
        return {name: values.flatten()[:200] for name, values in made.measure(base, 7, 3).items()}

    expected = figures(alone.images)
    monkeypatch.setattr(evaluator.dist, "all_gather", gather)
    monkeypatch.setattr(evaluator.dist, "broadcast", lambda values, src: None)
    found = [figures(replace(alone.images, rank=rank, world=world)) for rank in range(world)]
    assert len({tuple(share.shape) for share in shares}) == 1, "every rank calls the model equally often"
    assert {name: values.tolist() for name, values in found[-1].items()} == {
        name: pytest.approx(values.tolist(), abs=1e-4) for name, values in expected.items()
    }


def test_early_stop_does_not_change_the_weights_and_its_evaluations_survive_a_kill(watched):
    train = watched.train.model_copy(update={"steps": 2, "checkpoint_every": 1})
    watched = replace(watched, train=train)
    without = train.model_copy(update={"early_stop": None})
    plain = weights(run(replace(watched, train=without, state=watched.state / "plain")))
    whole = run(replace(watched, state=watched.state / "whole"))
    assert all(torch.equal(plain[name], tensor) for name, tensor in weights(whole).items())
    # what a run that was killed after the checkpoint of step 1 has left
    short = train.model_copy(update={"steps": 1})
    run(replace(watched, train=short, state=watched.state / "killed"))
    resumed = run(replace(watched, state=watched.state / "killed", resume=1))
    assert [one.to_json() for one in resumed.evaluations] == [one.to_json() for one in whole.evaluations]
    assert [one.step for one in whole.evaluations] == [1, 2]


def test_a_run_that_destroys_its_images_ends_early_with_a_reason_and_keeps_its_checkpoints(watched):
    """With a learning rate a hundred times too high, the images are lost within a few steps."""
    optimizer = watched.train.optimizer.model_copy(update={"learning_rate": 2e-3})
    train = watched.train.model_copy(update={"optimizer": optimizer, "steps": 8})
    wild = replace(watched, train=train)
    run(wild)
    checkpoint = newest_checkpoint(wild.state, count(2, 2))
    assert 2 <= checkpoint.step < 8
    evaluations = [Evaluation.from_json(one) for one in checkpoint.evaluations]
    reason = alarm_reason(evaluations, RULE, 4)
    steps = len((wild.state / PROGRESS).read_text().splitlines())
    run(replace(wild, resume=checkpoint.step))  # a second start finds at once that the run has ended
    assert len((wild.state / PROGRESS).read_text().splitlines()) == steps == checkpoint.step
    export.export(wild, {"prompts": 5, "wanted": {}, "unwanted": {}})
    outcome = json.loads(artifacts.TRAIN_OUTCOME.read_text())
    assert outcome["stopped_early"] == outcome["alarm"]["reason"] == reason
    assert (outcome["steps"], outcome["planned_steps"]) == (checkpoint.step, 8)
    assert len(list(artifacts.CHECKPOINTS.iterdir())) == checkpoint.step // 2
    assert "alarm" in json.loads((wild.state / PROGRESS).read_text().splitlines()[-1])


def test_an_alarm_at_the_last_step_is_no_early_end():
    assert export.ended(20, 30) == "training ended after step 20 of 30"
    assert export.ended(30, 30) == "alarm at the last step"


def test_a_metric_that_does_not_exist_is_refused_before_training(watched):
    odd = {"beauty": RULE.limits["subject"].model_copy(update={"metric": "beauty"})}
    rule = RULE.model_copy(update={"limits": odd})
    wrong = replace(watched, train=watched.train.model_copy(update={"early_stop": rule}))
    with pytest.raises(ConfigError, match="unknown metric 'beauty'"):
        Worker(wrong, rank=0, world=1, device=CPU)


def test_the_judge_is_on_the_device_of_the_rank_and_batches_are_no_larger_than_those_of_training(watched):
    images = make_evaluator(watched, base_of(watched), device=CPU).images
    assert next(images.context.judge.parameters()).device == CPU
    size = watched.train.batch_size
    assert images.generate.batch_size == size
    for world, expected in ((2, -(-size // 2)), (4 * size, 1)):
        shared = evaluator._images(watched, RULE, None, device=CPU, rank=0, world=world)
        assert shared.generate.batch_size == expected


def test_the_images_are_measured_with_the_reward_that_training_holds(watched):
    from srpo_core.scorers import load_rewards

    reward = load_rewards(watched.rewards)
    made = make_evaluator(watched, base_of(watched), reward=reward, device=CPU)
    assert made.images.context.reward is reward
    alone = make_evaluator(watched, base_of(watched), device=CPU)
    assert alone.images.context.reward is not reward
