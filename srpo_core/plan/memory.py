"""Peak memory of one device, by stage of the pipeline and by part."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from srpo_core.config import ScorerSettings, Settings, TrainSettings
from srpo_core.fidelity.format_images import PROOF_PROMPTS
from srpo_core.plan.case import Case
from srpo_core.plan.rollouts import num_pairs, rolled_out_share

Parts = Mapping[str, float]  # bytes by part

# per parameter; bitsandbytes has a scale in float32 for each moment of a block of 256 values
BYTES_OF_MOMENTS: Final[Mapping[str, float]] = MappingProxyType({"adamw": 8, "adamw_8bit": 2 + 8 / 256})
STEP: Final = "train: step"


def memory_by_stage(case: Case) -> Mapping[str, Parts]:
    """Bytes by part at the peak of each stage that uses a device; gate and report use none, and ingest reads files.

    The architectures of judges and scorers are not read: each is assumed to be as large as the reward.
    """
    settings, counts, scorers = case.settings, case.counts, scorers_of(case.settings)
    generate, train = settings.generate, settings.train
    samples = min(math.ceil(train.sample_prompts / case.cluster.gpus), case.at_once)
    training = {"train: samples": _generating_in_training(case, samples)}
    if train.early_stop is not None:
        training["train: early stop"] = _generating_in_training(case, case.at_once)
    decoded = generate.batch_size if generate.decode == "whole" else 1
    passing = max(
        generate.batch_size * counts.velocity[generate.autocast].peak, decoded * counts.decode_in_parts.peak
    )
    proof = PROOF_PROMPTS * counts.velocity[False].peak
    whole = {"parameters": on_device(case, half=generate.autocast)}
    compared = {**whole, "adapters": adapter_bytes(case)}
    pairs: dict[str, Parts] = {}
    if num_pairs(train):
        made = train.rollout.cached.batch_size * counts.velocity[case.half].peak
        pairs["rollouts"] = _generating(
            case, made, {"parameters": on_device(case, half=case.half)}, scorers=0
        )
    return {
        "embed": _parts(case, counts.encode.peak, {"text encoders": 4.0 * case.sizes.encoders}),
        **pairs,
        "check_reward": _parts(case, counts.score.peak, {"scorers": 4.0 * case.sizes.reward}),
        STEP: memory_of_a_step(case),
        **training,
        "select": _generating(case, passing, compared, scorers=scorers["select"]),
        "evaluate": _generating(case, passing, compared, scorers=scorers["evaluate"]),
        "quantize": _generating(
            case,
            max(passing, proof),
            {"parameters": on_device(case, half=False)},
            scorers=scorers["quantize"],
        ),
    }


def on_device(case: Case, *, half: bool) -> float:
    """Bytes of a model's weights on a device that generates: matrices in bfloat16 or float32.

    With `resources.offload`, those of two blocks (current and prefetched) and what is outside of the blocks.
    """
    width = 2.0 if half else 4.0
    if case.settings.resources.offload:
        return width * (2 * case.sizes.block + case.sizes.rest)
    return width * case.base


def adapter_bytes(case: Case) -> float:
    """Bytes of the adapters that select and evaluate put on the base."""
    train, generate = case.settings.train, case.settings.generate
    return (2.0 if generate.autocast else 4.0) * case.sizes.trained if train.tune == "lora" else 0.0


def scorers_of(settings: Settings) -> Mapping[str, int]:
    """Number of scorers that each stage holds on a device at once."""
    rewards, further = settings.rewards, settings.evaluate.scorers.values()
    return {
        "train": _different(*rewards, settings.select_judge),
        "select": _different(*rewards, settings.select_judge),
        "evaluate": _different(*rewards, settings.judge, *further),
        "quantize": _different(*rewards, settings.judge),
    }


def _different(*scorers: ScorerSettings) -> int:
    return len({one.path for one in scorers})


def memory_of_a_step(case: Case) -> Parts:
    """Bytes by part at the peak of a training step."""
    counted, cost = case.counts.call, case.cost_of_method
    transformer = {"activations, transformer": counted.transformer.kept}
    beyond = {"activations, decoder": counted.decode.kept, "activations, reward": counted.reward.kept}
    scored: tuple[float, int, Mapping[str, int]] = (
        (kept_gathered(case), counted.peak_before, {**transformer, **beyond})
        if cost.reward_gradient
        else (kept_gathered(case), counted.peak_scored, {})
    )
    moments: list[tuple[float, int, Mapping[str, int]]] = [
        scored,
        (gathered_bytes(case), counted.peak_after, transformer),  # decoder and reward are done
    ]
    if rolled_out_share(case.settings.train):
        moments.insert(0, (gathered_to_generate(case), counted.peak_rollout, {}))
    gathered, peak, kept = max(moments, key=lambda moment: moment[0] + moment[1])
    return {
        **state_of_training(case),
        "gathered weights": gathered,
        "weights out of 4 bits": weights_out_of_four_bits(case),
        **_held(case),
        **kept,
        "trajectories": trajectories(case),
        "passing tensors": peak - sum(kept.values()),
        "device's own": case.context,
    }


def trajectories(case: Case) -> float:
    """Bytes of the rollouts' latents that are kept until they are trained: those of all micro-batches for several updates."""
    counted, cost = case.counts.call, case.cost_of_method
    images = case.at_once if cost.updates == 1 else case.images
    return cost.kept_latents * images * counted.latents / counted.num_images


def state_of_training(case: Case) -> Parts:
    """Bytes of parameters, gradients and optimizer."""
    train, sizes = case.settings.train, case.sizes
    return {
        "parameters": (4 * sizes.trained + _frozen_bytes(case)) / case.shards,
        "gradients": 4 * sizes.trained / case.shards,
        "optimizer": bytes_of_moments(train) * sizes.trained / case.shards,
        "moving averages": 4.0 * sizes.trained / case.shards if train.ema else 0.0,
    }


def bytes_of_moments(train: TrainSettings) -> float:
    """Bytes of the optimizer's moments per trained parameter."""
    return BYTES_OF_MOMENTS[train.optimizer.kind]


def gathered_bytes(case: Case) -> float:
    """Bytes gathered for computing: two blocks (current and prefetched), the rest, one block's gradients."""
    if case.shards == 1:
        return 0.0
    sizes = case.sizes
    return case.gathered_width * (2 * sizes.block + sizes.rest) + 4 * sizes.trained_of_block


def weights_out_of_four_bits(case: Case) -> float:
    """Bytes of the largest matrix in bfloat16: bitsandbytes converts a layer's weights each time it computes with them."""
    train = case.settings.train
    in_four_bits = train.tune == "lora" and train.lora.frozen == "nf4"
    return 2.0 * case.sizes.largest_matrix if in_four_bits else 0.0


def gathered_to_generate(case: Case) -> float:
    """Bytes gathered while images are generated in training: all weights, or blocks as for computing."""
    if case.shards == 1:
        return 0.0
    sizes, kept = case.sizes, case.settings.train.compute.gather_rollout
    return case.gathered_width * (sizes.all if kept else 2 * sizes.block + sizes.rest)


def kept_gathered(case: Case) -> float:
    """Bytes that stay gathered between a forward and its backward pass: the parameters outside of the blocks."""
    return 0.0 if case.shards == 1 else case.gathered_width * case.sizes.rest


def _held(case: Case) -> Parts:
    """What a training worker holds on its device beside the state of the model."""
    train, sizes = case.settings.train, case.sizes
    # early stop measures with the rewards of training, and with select's judge
    scorers = (
        0 if train.early_stop is None else scorers_of(case.settings)["train"] - len(case.settings.rewards)
    )
    return {
        "VAE and reward": 4.0 * (sizes.vae + sizes.reward),
        "judge of early stop": scorers * case.scorer,
    }


def _generating_in_training(case: Case, num_images: int) -> Parts:
    counts = case.counts
    passing = num_images * max(counts.velocity[case.half].peak, counts.decode[case.half].peak)
    weights = {
        **state_of_training(case),
        "gathered weights": gathered_to_generate(case),
        "weights out of 4 bits": weights_out_of_four_bits(case),
        **_held(case),
    }
    return _parts(case, passing, weights)


def _generating(case: Case, passing: float, weights: Parts, *, scorers: int) -> Parts:
    """Memory of a device that generates with one model after the other, however it was trained."""
    beside = {"VAE": 4.0 * case.sizes.vae, "scorers": scorers * case.scorer}
    return _parts(case, passing, {**weights, **beside})


def _parts(case: Case, passing: float, weights: Parts) -> Parts:
    return {**weights, "passing tensors": passing, "device's own": case.context}


def _frozen_bytes(case: Case) -> float:
    """Bytes of the weights that are not trained."""
    train, sizes = case.settings.train, case.sizes
    frozen = sizes.all - sizes.trained
    if train.tune == "lora" and train.lora.frozen == "nf4":  # all but the matrices is in bfloat16
        return sizes.in_four_bits + 2.0 * (frozen - sizes.matrices)
    return frozen * (2.0 if train.tune == "lora" and train.lora.frozen == "bfloat16" else 4.0)
