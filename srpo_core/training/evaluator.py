"""Images for early stop: of the base, generated once and kept, and of each checkpoint, from new noise each time.

The workers share the images: each generates some of them and receives all. The noise is keyed
by checkpoint, prompt and seed, and shares no key with training, so early stop does not change what is learned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from torch import distributed as dist

from srpo_core.config import EarlyStop, GenerateSettings
from srpo_core.errors import ArtifactError, DivergenceError
from srpo_core.generation.images import ImageSet, generate_pixels, measure_set
from srpo_core.models.embeddings import ALARM, read_embeddings
from srpo_core.protocols import BaseModel, RewardModel
from srpo_core.runtime.shared_files import Location
from srpo_core.scorers.metrics import MetricContext, check_metrics, find_metric
from srpo_core.scorers.metrics.broken_images import broken_beside
from srpo_core.training.betting import Floats
from srpo_core.training.early_stop import Bets, Evaluation
from srpo_core.training.job import TrainJob
from srpo_core.training.limits import BROKEN, Hypothesis, hypotheses
from srpo_core.training.micro_batches import images_per_call
from srpo_core.training.turns import gather_turns, own_turns

PURPOSE: Final = "early stop"  # of the noise; followed by the step, 0 for the base

Measured = Mapping[str, Tensor]


@dataclass(frozen=True)
class Images:
    """The prompts of early stop, and how their images are generated and measured by the ranks."""

    image_set: ImageSet
    generate: GenerateSettings
    metrics: Sequence[str]
    context: MetricContext
    rank: int
    world: int

    def measure(self, model: BaseModel, step: int, seeds: int) -> dict[str, Tensor]:
        """Generate and measure images of all prompts; returns the values of `measure_set`, equal on every rank.

        step: number of steps after which the model is evaluated. Every rank calls this, and every rank calls the model
        equally often, because it may be sharded.

        Raises:
            DivergenceError: the model generates NaN or infinity.
        """
        fresh = replace(self.image_set, purpose=f"{PURPOSE} {step}", seeds_per_prompt=seeds)
        places = fresh.places()
        mine = [places[turn] for turn in own_turns(len(places), self.rank, self.world)]
        pixels = generate_pixels(model, "the model", fresh, mine, generate=self.generate)
        everything = gather_turns(pixels, len(places), self.world, self.context.device)
        measured = measure_set(everything, fresh, metrics=self.metrics, context=self.context).measured
        return {name: self._of_first_rank(values) for name, values in measured.items()}

    def sizes(self, seeds: int) -> tuple[int, int]:
        """Return how many images every call of the model generates, and the last one of a rank: figures depend on it."""
        turns = len(own_turns(len(self.image_set.prompts) * seeds, self.rank, self.world))
        return min(
            turns, self.generate.batch_size
        ), turns % self.generate.batch_size or self.generate.batch_size

    def figures(self, measured: Measured, base: Measured) -> dict[str, Floats]:
        """Return the figures (N, K) of each metric by what `measure` has returned for these images and for the base's."""
        count = len(self.image_set.prompts)
        numbers, base_numbers = (
            torch.arange(count).repeat_interleave(len(one[BROKEN]) // count) for one in (measured, base)
        )
        found = {
            name: values.double().reshape(count, -1).numpy()
            for name, values in measured.items()
            if name != BROKEN
        }
        broken = broken_beside(measured[BROKEN], numbers, base[BROKEN], base_numbers)
        found[BROKEN] = broken.double().reshape(count, -1).numpy()
        for name, figures in found.items():
            if find_metric(name, {}).needs_seeds:  # the images of a prompt have no figures of their own
                found[name] = figures.mean(1, keepdims=True)
        return found

    def _of_first_rank(self, values: Tensor) -> Tensor:
        """Return the values of rank 0, because those of others may differ by rounding, and all must stop together."""
        if self.world == 1:
            return values
        shared = values.contiguous().to(self.context.device)
        dist.broadcast(shared, src=0)
        return shared.cpu()


@dataclass(frozen=True)
class Evaluator:
    """Compares the images of a checkpoint with the base's."""

    images: Images
    base: Measured
    tested: Sequence[Hypothesis]
    seeds: int

    def evaluate(self, model: BaseModel, step: int) -> Evaluation:
        """Generate images with the model as it is after `step` steps, and bet against each hypothesis.

        Raises:
            DivergenceError: an image or a figure is not finite.
        """
        figures = self.images.figures(self.images.measure(model, step, self.seeds), self.base)
        for name, values in figures.items():
            if not bool((abs(values) < float("inf")).all()):
                raise DivergenceError(
                    f"step {step}: {name} of an image of early stop is not finite: lower train.optimizer.learning_rate"
                )
        return Evaluation(step, tuple(_test(one, figures[one.metric]) for one in self.tested))


def make_evaluator(
    job: TrainJob,
    model: BaseModel,
    *,
    device: torch.device,
    reward: RewardModel | None = None,
    rank: int = 0,
    world: int = 1,
) -> Evaluator | None:
    """Return the evaluator that the settings ask for; None without early stop.

    model: the base itself, because its images are generated here unless the job's directory has a file of them; reward: the job's
    rewards on the device, which need not be loaded a second time.

    Raises:
        ConfigError, DataError: a metric cannot be computed for these prompts, or the base itself is beyond a limit.
        ArtifactError: the file of the base's figures is damaged.
    """
    rule = job.train.early_stop
    if rule is None:
        return None
    images = _images(job, rule, reward, device=device, rank=rank, world=world)
    base = base_figures(images, model, job.base_images, rule.base_seeds)
    figures = images.figures(base, base)
    ranges = {name: find_metric(name, {}).range_in(images.context) for name in figures}
    return Evaluator(images, base, hypotheses(rule, figures, ranges), rule.seeds_per_prompt)


def base_figures(images: Images, base: BaseModel, directory: Location, seeds: int) -> Measured:
    """Return what is measured of the base's images: from a file in the directory, written if it does not exist.

    Raises:
        ArtifactError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    each, last = images.sizes(seeds)
    file = directory / f"{each}-{last}.safetensors"
    if _agreed(images, known=file.exists()):
        try:
            known: Measured = load(file.read_bytes())
        except SafetensorError as error:
            raise ArtifactError(
                f"{file} is damaged ({error}): delete it, and it is generated again"
            ) from None
        return known
    measured = images.measure(base, 0, seeds)
    if images.rank == 0:
        file.write(save({name: values.contiguous() for name, values in measured.items()}))
    return measured


def _agreed(images: Images, *, known: bool) -> bool:
    """Return what rank 0 says: it may write the file while another rank looks for it."""
    if images.world == 1:
        return known
    answer = torch.tensor(int(known), device=images.context.device)
    dist.broadcast(answer, src=0)
    return bool(answer)


def _images(
    job: TrainJob, rule: EarlyStop, reward: RewardModel | None, *, device: torch.device, rank: int, world: int
) -> Images:
    texts, styles, condition = read_embeddings(ALARM)
    context = MetricContext(job.rewards, job.select_judge, job.control_words, device=device, loaded=reward)
    metrics = list(dict.fromkeys(limit.metric for limit in rule.limits.values()))
    check_metrics(metrics, context, texts, min(rule.seeds_per_prompt, rule.base_seeds))
    check_metrics([BROKEN], context, texts, rule.base_seeds, beside_base=True)
    roll = job.train.rollout
    generate = GenerateSettings(
        num_inference_steps=rule.num_inference_steps,
        guidance_scale=roll.guidance_scale,
        batch_size=images_per_call(job.train, world),
        autocast=job.train.compute.autocast,
        tf32=job.train.compute.tf32,
        decode="whole",
    )
    image_set = ImageSet(PURPOSE, texts, styles, condition, rule.seeds_per_prompt, job.seed)
    return Images(image_set, generate, [*metrics, BROKEN], context, rank, world)


def _test(one: Hypothesis, figures: Floats) -> Bets:
    return Bets(
        one.limit, one.name, one.growth(figures).tolist(), float(figures.mean()), float(one.bound.mean())
    )
