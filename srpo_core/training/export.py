"""Write the outputs of training: each checkpoint's weights in one file, sample images, metrics, outcome."""

import logging
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from srpo_core.artifacts import CHECKPOINTS, SAMPLES, TRAIN_LOG, TRAIN_OUTCOME, step_directory, write_json
from srpo_core.errors import ArtifactError
from srpo_core.models import write_transformer
from srpo_core.runtime.progress import with_progress
from srpo_core.runtime.shared_files import Location, local_copy
from srpo_core.training import job as names
from srpo_core.training.checkpoint import Checkpoint, open_checkpoint, step_location
from srpo_core.training.early_stop import Evaluation, alarm_outcome
from srpo_core.training.job import TrainJob
from srpo_core.training.steps import checkpoint_steps

log = logging.getLogger(__name__)


def export(job: TrainJob, word_counts: Mapping[str, Any]) -> None:
    """Write checkpoints, samples, the metrics of every step in DVCLive's format, and the outcome.

    word_counts: see `count_control_words`; part of the outcome.

    Raises:
        ArtifactError: a checkpoint is missing or damaged.
    """
    train = job.train
    shutil.rmtree(CHECKPOINTS, ignore_errors=True)  # an earlier, longer run may have left more of them
    for step in with_progress(checkpoint_steps(train), "export checkpoint"):
        checkpoint = export_weights(step, job)
        evaluations = [Evaluation.from_json(one) for one in checkpoint.evaluations]
        alarm = alarm_outcome(evaluations, train.early_stop, len(checkpoint_steps(train)))
        if alarm is not None and alarm["reason"]:
            log.warning("%s: %s", ended(step, train.steps), alarm["reason"])
            break
    with local_copy(job.state / names.SAMPLES, _sample_digests(job.state)) as samples:
        shutil.copytree(samples, SAMPLES, dirs_exist_ok=True)
    write_metrics(checkpoint)
    outcome = {
        "steps": checkpoint.step,
        "planned_steps": train.steps,
        "stopped_early": alarm["reason"] if alarm and checkpoint.step < train.steps else None,
        "alarm": alarm,
        "control_words_in_prompts": word_counts,
    }
    write_json(TRAIN_OUTCOME, outcome)
    log.info("%d checkpoints in %s", checkpoint_steps(train).index(checkpoint.step) + 1, CHECKPOINTS)


def ended(steps: int, planned: int) -> str:
    """Return when the alarm came, in words."""
    return f"training ended after step {steps} of {planned}" if steps < planned else "alarm at the last step"


def export_weights(step: int, job: TrainJob) -> Checkpoint:
    """Verify a checkpoint's weights and write them as a diffusers directory, or a directory of adapters.

    With `train.ema` these are the averages. The optimizer's state is not read: only training needs it.

    Raises:
        ArtifactError: a file of the checkpoint is missing, or one of its weights is damaged.
    """
    with ExitStack() as held:
        try:
            checkpoint = open_checkpoint(step_location(job.state, step), verify=False)
            if checkpoint.location.path is not None:  # a downloaded copy is verified when it is made
                checkpoint.verify_weights()
            shards = held.enter_context(local_copy(checkpoint.location, checkpoint.weights))
        except ArtifactError as error:
            raise ArtifactError(f"{error}: delete it, and the same command trains it again") from error
        write_transformer(job.model, job.train, shards / checkpoint.released, step_directory(step))
    return checkpoint


def write_metrics(checkpoint: Checkpoint) -> None:
    """Write the metrics of every step up to a checkpoint as a DVCLive directory."""
    from dvclive import Live

    with Live(str(TRAIN_LOG), save_dvc_exp=False, dvcyaml=None, report=None, monitor_system=False) as live:
        for step, row in enumerate(checkpoint.metrics, start=1):
            live.step = step
            for name, value in row.items():
                live.log_metric(f"train/{name}", value, timestamp=False)


def _sample_digests(state: Location) -> dict[str, str]:
    samples = state / names.SAMPLES
    return {} if samples.path else {name: (samples / name).sha256() for name in samples.files()}
