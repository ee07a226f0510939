"""Stage train: SRPO on Ray Train, resumable, its outputs free of times."""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from srpo_core.algorithm.control_words import count_prompts
from srpo_core.artifacts import (
    CHECKPOINTS,
    EMBEDDINGS,
    SAMPLES,
    TRAIN_LOG,
    TRAIN_OUTCOME,
    home,
    step_directory,
    write_json,
)
from srpo_core.checkpoint import (
    WEIGHTS,
    Checkpoint,
    newest_checkpoint,
    open_checkpoint,
    step_location,
)
from srpo_core.cluster import ray_for, require_cluster
from srpo_core.config import (
    ControlWords,
    ModelSettings,
    ResourceSettings,
    ScorerSettings,
    TrainSettings,
)
from srpo_core.early_stop import BASE, over_trained
from srpo_core.errors import ArtifactError, ConfigError, SrpoError
from srpo_core.learner import method_of
from srpo_core.location import COMPLETE, Location, by_name, local_copy, share, storage
from srpo_core.models import write_transformer
from srpo_core.models.embeddings import read_embeddings
from srpo_core.processes import OWNER, end_leftovers, owner_mark
from srpo_core.resume import goes_too, resumable
from srpo_core.trainer import PROGRESS, TrainJob, train_worker
from srpo_core.trainer import SAMPLES as SAMPLES_NAME
from srpo_core.watchdog import stalled

POLL_SECONDS = 0.3
REMOTE_POLL_SECONDS = 2.0

WordCounts = Mapping[str, Any]
"""`prompts`: the number of training prompts; `wanted`, `unwanted`: by word, how many of them show it."""

# How many workers there are is settled at a start: Ray would end a group at work, and begin its part again from
# where it began, as soon as a device comes free.
NEVER: Final = 1e9

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
        ConfigError: more workers than pictures in a batch, or a method that cannot do what is asked.
        DivergenceError: a gradient was not finite.
    """
    if resources.train_workers > train.batch_size:
        raise ConfigError(
            f"resources.train_workers {resources.train_workers} is more than train.batch_size {train.batch_size}: "
            "every worker needs at least one picture per step"
        )
    method_of(train)
    if resources.shard and train.rollout.source == "hybrid":
        raise ConfigError(
            "resources.shard with train.rollout.source hybrid: a worker whose pictures are all real would not call "
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
            goes_too(directory, inputs / COMPLETE, state, inputs)
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
        done_before = len(_whole_lines(state / PROGRESS))
        with following(state / PROGRESS, train.steps):
            fit(job)
        _note_timing(len(_whole_lines(state / PROGRESS)) - done_before, time.monotonic() - started)
        export(job, words)


def places(directory: Path, *weights: str) -> tuple[Location, dict[str, str], Location]:
    """Where workers find the inputs, the digests of those that they must fetch, and where they keep their state.

    On this machine's disk: here, and the resume directory. With `SRPO_STORAGE`: copies below it, of the
    directories `weights` and of the embedded training prompts.

    Raises:
        ConfigError: a path in the settings is absolute, so that no worker elsewhere could find it.
    """
    shared = storage()
    if shared is None:
        return Location.of(Path.cwd()), {}, Location.of(directory)
    inputs, state = shared / "inputs" / directory.name, shared / "resume" / directory.name
    # what the fingerprint in the directory's name covers, and no more: it would differ under the same name
    digests = share(by_name([*map(Path, weights), EMBEDDINGS / "train.safetensors"]), inputs)
    return inputs, digests, state


def fit(job: TrainJob, worker: Callable[[TrainJob], None] = train_worker) -> None:
    """Run the workers on Ray until all steps are done: on the cluster of RAY_ADDRESS, else on a Ray of our own.

    When the group of workers fails, it is started again from the newest checkpoint, a bounded number of times.
    A worker's own error is raised again here as it was.
    """
    require_cluster()
    restarts = job.resources.stall.restarts
    for attempt in range(restarts + 1):
        newest = newest_checkpoint(job.state, job.train.checkpoint_steps)
        resume = min(newest.step, job.train.steps) if newest else 0
        if resume == job.train.steps:
            return
        try:
            _fit_once(replace(job, resume=resume, attempt=uuid4().hex[:8]), worker)
        except _GroupFailedError as failure:
            if attempt == restarts:
                raise SrpoError(f"training failed {attempt + 1} times: {failure}") from failure
            log.warning("%s; starting the workers again, %d of %d times", failure, attempt + 1, restarts)
        else:
            return


class _GroupFailedError(Exception):
    """The workers failed in a way that another start may mend."""


def _fit_once(job: TrainJob, worker: Callable[[TrainJob], None]) -> None:
    import ray
    from ray.exceptions import RayError
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources, name = job.resources, f"{job.state.name}-{job.attempt}"
    most, least = resources.train_workers, resources.min_train_workers
    try:
        with ray_for(most, least=least, use_gpu=resources.use_gpu):
            TorchTrainer(
                worker,
                train_loop_config=job,
                scaling_config=ScalingConfig(
                    num_workers=most if least == most else (least, most),
                    use_gpu=resources.use_gpu,
                    elastic_resize_monitor_interval_s=NEVER,
                ),
                run_config=RunConfig(
                    name=name,
                    storage_path=str(home() / "ray"),
                    failure_config=FailureConfig(max_failures=0),
                ),
            ).fit()
    except ray.train.TrainingFailedError as error:
        if stood := stalled(job.state, job.attempt):
            raise _GroupFailedError(stood) from error
        raise _own_error(error) from error
    except (RayError, ConnectionError) as error:
        raise _GroupFailedError(f"Ray ended: {_one_line(error)}") from error
    finally:
        shutil.rmtree(home() / "ray" / name, ignore_errors=True)


def export(job: TrainJob, words: WordCounts) -> None:
    """Leave each checkpoint's weights in one file, samples, and the metrics of every step as DVCLive writes them."""
    train = job.train
    shutil.rmtree(CHECKPOINTS, ignore_errors=True)  # none of a longer run before may stay
    for step in train.checkpoint_steps:
        checkpoint = _whole_checkpoint(step_location(job.state, step))
        export_weights(checkpoint, job, step_directory(step))
        if reason := over_trained(checkpoint.metrics, train.early_stop):
            log.warning("ended after step %d of %d: %s", step, train.steps, reason)
            break
    with local_copy(job.state / SAMPLES_NAME, _sample_digests(job.state)) as samples:
        shutil.copytree(samples, SAMPLES, dirs_exist_ok=True)
    log_metrics(checkpoint)
    outcome = {
        "steps": checkpoint.step,
        "planned_steps": train.steps,
        "stopped_early": reason,
        "control_words_in_prompts": words,
    }
    write_json(TRAIN_OUTCOME, outcome)
    log.info("%d checkpoints in %s", train.checkpoint_steps.index(checkpoint.step) + 1, CHECKPOINTS)


def _whole_checkpoint(location: Location) -> Checkpoint:
    try:
        return open_checkpoint(location)
    except ArtifactError as error:
        raise ArtifactError(f"{error}: remove it, and the same command trains it again") from error


def export_weights(checkpoint: Checkpoint, job: TrainJob, directory: Path) -> None:
    """Write a checkpoint's weights as a diffusers directory; adapters merged, and by themselves beside it."""
    digests = {name: digest for name, digest in checkpoint.digests.items() if name.startswith(WEIGHTS)}
    with local_copy(checkpoint.location, digests) as shards:
        write_transformer(job.model, job.train, shards / WEIGHTS, directory)


def _sample_digests(state: Location) -> dict[str, str]:
    samples = state / SAMPLES_NAME
    return {} if samples.path else {name: (samples / name).sha256() for name in samples.files()}


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


def log_metrics(checkpoint: Checkpoint) -> None:
    """Write the metrics of every step up to a checkpoint as a DVCLive directory."""
    from dvclive import Live

    with Live(str(TRAIN_LOG), save_dvc_exp=False, dvcyaml=None, report=None, monitor_system=False) as live:
        for step, row in enumerate(checkpoint.metrics, start=1):
            live.step = step
            for name, value in row.items():
                if not name.startswith(BASE):  # a single figure is no curve
                    live.log_metric(f"train/{name}", value, timestamp=False)


@contextmanager
def following(path: Location, steps: int) -> Iterator[None]:
    """Log each line that is added to a progress file, from a thread of its own."""
    seen = len(_whole_lines(path))
    ended = threading.Event()

    def report() -> None:
        nonlocal seen
        lines = _whole_lines(path)
        for line in lines[seen:]:
            row = json.loads(line)
            figures = "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name != "step")
            log.info("step %d of %d  %s", row["step"], steps, figures)
        seen = len(lines)

    def watch() -> None:
        while not ended.wait(POLL_SECONDS if path.path else REMOTE_POLL_SECONDS):
            report()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        report()


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


def _own_error(error: Any) -> Exception:
    """The error of ours that a worker raised; any other is one that another start may mend."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        if isinstance(failure, SrpoError):
            return failure
    rank, cause = next(iter(failures.items()), ("?", error))
    return _GroupFailedError(f"worker {rank} failed: {_one_line(cause)}")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).partition(" Worker info:")[0]  # Ray goes on for a page
    return f"{type(error).__name__}: {text[:300]}"


def _whole_lines(path: Location) -> list[str]:
    """The lines of a file that may just be written to."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return text[: text.rfind("\n") + 1].splitlines()


def _note_timing(steps: int, seconds: float) -> None:
    path = home() / "timings/train.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"steps": steps, "seconds": round(seconds, 1)}) + "\n")
