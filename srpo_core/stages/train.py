"""Stage train: SRPO on Ray Train, resumable, its outputs free of times."""

import json
import logging
import os
import time

from srpo_core.algorithm import method_of
from srpo_core.algorithm.control_words import count_prompts
from srpo_core.artifacts import home
from srpo_core.config import ControlWords, ModelSettings, ResourceSettings, ScorerSettings, TrainSettings
from srpo_core.errors import ConfigError
from srpo_core.models.embeddings import read_embeddings
from srpo_core.runtime.processes import OWNER, end_leftovers, owner_mark
from srpo_core.runtime.resume import register_external, resumable
from srpo_core.runtime.shared_files import COMPLETE, storage
from srpo_core.training.export import WordCounts, export
from srpo_core.training.follow import following, num_lines
from srpo_core.training.launch import fit, places
from srpo_core.training.worker import PROGRESS, TrainJob

log = logging.getLogger(__name__)


def run(
    *,
    seed: int,
    model: ModelSettings,
    reward: ScorerSettings,
    select_judge: ScorerSettings,
    control_words: ControlWords,
    train: TrainSettings,
    resources: ResourceSettings,
) -> None:
    """Train and leave runs/train/{checkpoints,samples,log}; a killed run goes on from its last checkpoint.

    Raises:
        ConfigError: more workers than images in a batch, or a method that cannot do what is asked.
        DivergenceError: a gradient was not finite.
    """
    if resources.train_workers > train.batch_size:
        raise ConfigError(
            f"resources.train_workers {resources.train_workers} is more than train.batch_size {train.batch_size}: "
            "every worker needs at least one image per step"
        )
    method_of(train)
    if resources.shard and train.rollout.source == "hybrid":
        raise ConfigError(
            "resources.shard with train.rollout.source hybrid: a worker whose images are all real would not call "
            "the model while the others wait for its share of it: take online or offline, or shard: false"
        )
    _require_gpus(resources)
    started = time.monotonic()
    words = word_counts(control_words)
    with resumable("train") as directory:
        end_leftovers()  # of an earlier try that was killed: never beside this one
        os.environ[OWNER] = owner_mark()  # on all that this one starts
        inputs, digests, state = places(directory, model.path, reward.path, select_judge.path)
        if storage() is not None:
            register_external(directory, inputs / COMPLETE, state, inputs)
        job = TrainJob(
            inputs=inputs,
            digests=digests,
            state=state,
            seed=seed,
            model=model,
            reward=reward,
            select_judge=select_judge,
            control_words=control_words,
            train=train,
            resources=resources,
            resume=0,
            attempt="",
        )
        done_before = num_lines(state / PROGRESS)
        with following(state / PROGRESS, train.steps):
            fit(job)
        _note_timing(num_lines(state / PROGRESS) - done_before, time.monotonic() - started)
        export(job, words)


def word_counts(words: ControlWords) -> WordCounts:
    """How many of the training prompts show each control word; a word that none shows is warned of.

    Wherever a reward or a base has its words from, a word that never stands in the prompts is one that nothing
    in this run's data explains.
    """
    prompts, _, _ = read_embeddings("train")
    sides = {"wanted": words.wanted, "unwanted": words.unwanted}
    counts = {side: {word: count_prompts(word, prompts) for word in some} for side, some in sides.items()}
    if unseen := [word for some in counts.values() for word, count in some.items() if count == 0]:
        log.warning(
            "control words that none of the %d training prompts shows: %s; base and reward must know them from "
            "elsewhere, and a frequent word beside a rare one steers better",
            len(prompts),
            ", ".join(unseen),
        )
    return {"prompts": len(prompts), **counts}


def _require_gpus(resources: ResourceSettings) -> None:
    """Ray would wait for them for ever; a cluster may still get them."""
    if not resources.use_gpu or "RAY_ADDRESS" in os.environ:
        return
    import torch

    found = torch.cuda.device_count()
    if found < resources.min_train_workers:
        raise ConfigError(
            f"resources.use_gpu asks for {resources.min_train_workers} GPUs and this machine has {found}: "
            "lower resources.min_train_workers, set use_gpu to false, or set RAY_ADDRESS to a cluster"
        )


def _note_timing(steps: int, seconds: float) -> None:
    path = home() / "timings/train.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"steps": steps, "seconds": round(seconds, 1)}) + "\n")
