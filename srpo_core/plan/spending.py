"""Where the time of a run goes: every stage by what it does, on one machine after the other's stage has ended.

Not counted: ingest, gate and report, which use no device and take minutes on the CPU, starting Ray and Python, converting
weights to formats on the CPU, and the statistics of images that no scorer computes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from srpo_core.fidelity.format_images import PROOF_PROMPTS
from srpo_core.plan.case import Case
from srpo_core.plan.images import Generated, generated, num_models, pairs, samples, watched
from srpo_core.plan.loading import bytes_loaded, bytes_of_checkpoint
from srpo_core.plan.memory import bytes_of_moments, scorers_of
from srpo_core.plan.rollouts import num_pairs, num_prompts
from srpo_core.plan.step import compute_seconds
from srpo_core.plan.traffic import traffic_seconds
from srpo_core.preflight.disk import bytes_of_formats
from srpo_core.selection.halving import image_counts
from srpo_core.training.steps import checkpoint_steps


@dataclass(frozen=True)
class Spent:
    """What a stage spends time on. what: the kind of work; detail: how much of it, in words."""

    stage: str
    what: str
    seconds: float
    detail: str


def spending(case: Case) -> list[Spent]:
    """List what every stage spends time on, in the order of the pipeline."""
    work = [*_embed(case), *_rollouts(case), *_check_reward(case), *_train(case)]
    for stage in ("select", "evaluate"):
        work += _compare(case, stage)
    return [*work, *_quantize(case), *_publish(case)]


def _embed(case: Case) -> Iterator[Spent]:
    settings = case.settings
    early = settings.train.early_stop
    prompts = num_prompts(settings.train) + settings.select.num_prompts
    prompts += settings.evaluate.num_prompts + (0 if early is None else early.num_prompts)
    flops = case.counts.encode.flops / settings.resources.encode_batch_size
    yield _loading(case, "embed", 2 * case.sizes.encoders)
    seconds = prompts * case.cluster.seconds(flops, half=False)
    yield Spent("embed", "encoding", seconds, f"{prompts:,} prompts in float32")


def _rollouts(case: Case) -> Iterator[Spent]:
    if not num_pairs(case.settings.train):
        return
    files, made = 2 * (case.base + case.sizes.vae), pairs(case)
    tasks = case.settings.resources.generate_workers
    yield _hashing(case, "rollouts", files)
    yield _loading(case, "rollouts", files, by=_by(tasks))
    where = "one device" if made.devices == 1 else f"{made.devices} devices"
    detail = f"{made.num_images:,} pairs on {where}, which later runs reuse"
    yield Spent("rollouts", "generation", 3600 * made.hours, detail)


def _by(tasks: int) -> str:
    return f" by each of {tasks} tasks" if tasks > 1 else ""


def _check_reward(case: Case) -> Iterator[Spent]:
    images = 2 * (case.settings.check_reward.max_pairs or 0)
    yield _loading(case, "check_reward", 2 * 4 * case.sizes.reward + case.scorer)
    yield _scoring(case, "check_reward", images, scorers=len(case.settings.rewards), devices=1)


def _train(case: Case) -> Iterator[Spent]:
    train, sizes = case.settings.train, case.sizes
    yield _loading(case, "train", 2 * (case.base + sizes.vae) + 4 * sizes.reward)
    step = compute_seconds(case) + traffic_seconds(case)
    yield Spent("train", "training", train.steps * step, f"{train.steps} steps")
    yield _images(case, "train", "samples", samples(case), scorers=0)
    for what, some in watched(case).items():
        # every device measures all images
        scorers = scorers_of(case.settings)["train"]
        yield _images(case, "train", "early stop", some, scorers=scorers, note=f", {what}", scoring=1)
    checkpoints = len(checkpoint_steps(train))
    if not case.settings.resources.async_checkpoints:
        state = (4 + bytes_of_moments(train)) * sizes.trained
        yield _disk(case, "train", "checkpoints", checkpoints * state / case.shards)
    exported = bytes_of_checkpoint(case)
    # the weights of each checkpoint, which are verified, and the exported ones, by DVC
    yield _hashing(case, "train", checkpoints * (4 * sizes.trained + exported))
    yield _disk(case, "train", "export", checkpoints * (4 * sizes.trained + exported))


def _compare(case: Case, stage: str) -> Iterator[Spent]:
    models, made = num_models(case)[stage], generated(case)[stage]
    scorers = scorers_of(case.settings)[stage]
    if stage == "select":  # each file once per machine: a later stage finds the digests
        files = (
            (0 if num_pairs(case.settings.train) else 2 * (case.base + case.sizes.vae))
            + scorers * case.scorer
            + (models - 1) * bytes_of_checkpoint(case)
        )
        yield _hashing(case, stage, files)
    tasks = case.settings.resources.generate_workers
    yield _loading(case, stage, bytes_loaded(case, stage), by=_by(tasks))
    of_base = made.num_images // models
    kept = f", {of_base:,} of them by the base, which later runs of the same seed reuse"
    if stage == "select":
        least, most = image_counts(models - 1, case.settings.select)
        kept += f"; halving may leave out {most - least:,}" if most > least else ""
    yield _images(case, stage, "generation", made, scorers=scorers, note=kept)


def _quantize(case: Case) -> Iterator[Spent]:
    settings = case.settings
    formats, merged = bytes_of_formats(settings, case.base), 4 * case.base
    lora = settings.train.tune == "lora"
    # the base, the weights to convert and to compare with, and every file; adapters are merged into the base first
    yield _loading(case, "quantize", (4 if lora else 2) * case.base + 2 * merged + formats)
    yield _disk(case, "quantize", "export", (merged if lora else 0) + formats)
    yield _hashing(
        case, "quantize", bytes_of_checkpoint(case) + 2 * formats
    )  # twice: its own digests and DVC's
    flops = (1 + len(settings.quantize.formats)) * PROOF_PROMPTS * case.counts.velocity[False].flops
    proofs = case.cluster.seconds(flops, half=False)
    yield Spent("quantize", "proofs", proofs, f"forward passes of {PROOF_PROMPTS} prompts in float32")
    scorers = scorers_of(settings)["quantize"]
    yield _images(case, "quantize", "generation", generated(case)["quantize"], scorers=scorers)


def _publish(case: Case) -> Iterator[Spent]:
    size = bytes_of_formats(case.settings, case.base)
    yield _hashing(case, "publish", size)
    seconds = 2 * size / case.cluster.upload
    yield Spent("publish", "upload", seconds, f"{_gb(size)} to the store, and read back")


def _images(
    case: Case, stage: str, what: str, made: Generated, *, scorers: int, note: str = "", scoring: int = 0
) -> Spent:
    """Generation and scoring; scoring: number of devices over which the scoring is distributed, 0 for all of them."""
    score = _scoring(case, stage, made.num_images, scorers=scorers, devices=scoring or made.devices)
    where = "one device" if made.devices == 1 else f"{made.devices} devices"
    detail = f"{made.num_images:,} images on {where}{note}"
    return Spent(stage, what, 3600 * made.hours + score.seconds, detail)


def _scoring(case: Case, stage: str, images: int, *, scorers: int, devices: int) -> Spent:
    flops = case.counts.score.flops / len(case.settings.rewards)
    seconds = ceil(images / devices) * scorers * case.cluster.seconds(flops, half=False)
    return Spent(stage, "scoring", seconds, f"{images:,} images by {scorers} scorers in float32")


def _loading(case: Case, stage: str, size: float, *, by: str = "") -> Spent:
    """Processes of a machine that read the same files at the same time take as long as one: the others find them cached."""
    return _disk(case, stage, "loading", size, by=by)


def _disk(case: Case, stage: str, what: str, size: float, *, by: str = "") -> Spent:
    return Spent(stage, what, size / case.cluster.disk, f"{_gb(size)}{by}")


def _hashing(case: Case, stage: str, size: float) -> Spent:
    return Spent(stage, "hashing", size / case.cluster.digest, _gb(size))


def _gb(size: float) -> str:
    return f"{size / 1e9:,.0f} GB"
