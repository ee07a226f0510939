"""Stage train: SRPO on Ray Train, resumable; no output depends on time."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srpo_core.algorithm.control_words import count_prompts
from srpo_core.artifacts import AGREEMENT, EMBEDDINGS, ROLLOUTS, read_json
from srpo_core.config import (
    ControlWords,
    ModelSettings,
    ResourceSettings,
    RewardSettings,
    ScorerSettings,
    TrainSettings,
)
from srpo_core.errors import ArtifactError
from srpo_core.models import files_to_load
from srpo_core.prompts import read_texts
from srpo_core.runtime.digests import known_digest
from srpo_core.runtime.dvc_yaml import files_below
from srpo_core.runtime.live_loggers import live_loggers
from srpo_core.runtime.processes import OWNER, end_leftovers, owner_mark
from srpo_core.runtime.resume import key_of, register_external, resumable
from srpo_core.runtime.shared_files import COMPLETE, storage
from srpo_core.training.export import export
from srpo_core.training.job import PROGRESS, TrainJob
from srpo_core.training.launch import base_images, fit, share_inputs
from srpo_core.training.step_log import log_steps

log = logging.getLogger(__name__)


def run(
    *,
    seed: int,
    model: ModelSettings,
    rewards: list[RewardSettings],
    select_judge: ScorerSettings,
    control_words: ControlWords,
    train: TrainSettings,
    resources: ResourceSettings,
) -> None:
    """Train and write runs/train/{checkpoints,samples,log,outcome.json}; a killed run resumes from its last checkpoint.

    Raises:
        ArtifactError: an input is missing or damaged, or a further reward is not the one that check_reward checked.
        ConfigError: this machine has too few GPUs, or a path is absolute although workers run on other machines.
        DivergenceError: a loss or gradient was not finite.
    """
    word_counts = count_control_words(control_words)
    require_checked(rewards)
    with resumable("train") as directory:
        end_leftovers()  # processes of a killed run must not train beside this one
        os.environ[OWNER] = owner_mark()  # inherited by all processes that this one starts
        inputs, digests, state = share_inputs(
            directory,
            *files_to_load(model),
            *(Path(one.path) for one in rewards),
            Path(select_judge.path),
        )
        if storage() is not None:
            register_external(directory, inputs / COMPLETE, state, inputs)
        job = TrainJob(
            inputs=inputs,
            digests=digests,
            state=state,
            base_images=base_images(_key(seed, model, rewards, select_judge, train)),
            seed=seed,
            model=model,
            rewards=rewards,
            select_judge=select_judge,
            control_words=control_words,
            train=train,
            resources=resources,
            resume=0,
            attempt="",
        )
        shown = {"seed": seed, "model": model.model_dump(mode="json"), "train": train.model_dump(mode="json")}
        with (
            live_loggers(resources.loggers, directory.name, shown) as loggers,
            log_steps(state / PROGRESS, train.steps, loggers),
        ):
            fit(job)
        export(job, word_counts)


def _key(
    seed: int,
    model: ModelSettings,
    rewards: list[RewardSettings],
    judge: ScorerSettings,
    train: TrainSettings,
) -> str:
    """Return the name of what early stop measures of the base's images: the same for runs that train differently.

    It does not say how many images are generated at once, which depends on the workers; see `Images.sizes`.
    """
    rule, compute = train.early_stop, train.compute
    settings = {
        "seed": seed,
        "parts": [part.model_dump(mode="json") for part in (model, *rewards, judge)],
        "guidance_scale": train.rollout.guidance_scale,
        "precision": [compute.autocast, compute.tf32, compute.attention, compute.compile],
        "tune": [train.tune, train.lora.model_dump(mode="json")],
        **({"weights": read_json(AGREEMENT)["weights"]} if len(rewards) > 1 else {}),
        "images": rule and [rule.base_seeds, rule.num_inference_steps],
        "metrics": rule and sorted({limit.metric for limit in rule.limits.values()}),
    }
    return key_of("train", settings, without={EMBEDDINGS / "train.safetensors", ROLLOUTS, AGREEMENT})


def require_checked(rewards: Sequence[RewardSettings]) -> None:
    """Require that the further rewards are those that check_reward has checked: dvc.yaml names only the first one's files.

    Raises:
        ArtifactError: a file was added, removed or changed since then.
    """
    if len(rewards) == 1:
        return
    checked = read_json(AGREEMENT)["weights"]
    found = {str(file): known_digest(file) for one in rewards[1:] for file in files_below(Path(one.path))}
    if other := sorted(name for name in {*checked, *found} if checked.get(name) != found.get(name)):
        raise ArtifactError(
            f"{other[0]} of a reward is not as it was when check_reward ran: run 'dvc repro --force -s check_reward', then "
            "'dvc repro'"
        )


def count_control_words(words: ControlWords) -> Mapping[str, Any]:
    """Count the training prompts that contain each control word, and warn of words that none contains.

    Nothing in this run's data explains such a word: the reward and the base must know it from elsewhere.

    Returns `prompts`, the number of training prompts; `wanted` and `unwanted`, the count by word.
    """
    prompts = read_texts("train")
    sides = {"wanted": words.wanted, "unwanted": words.unwanted}
    counts = {side: {word: count_prompts(word, prompts) for word in some} for side, some in sides.items()}
    if missing := [word for some in counts.values() for word, count in some.items() if count == 0]:
        log.warning(
            "none of the %d training prompts contains the control words %s: the base and the reward must know them "
            "from elsewhere; a rare word steers better together with a frequent one",
            len(prompts),
            ", ".join(missing),
        )
    return {"prompts": len(prompts), **counts}
