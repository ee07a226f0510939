"""Check the settings against each other and against the registries, before a run starts."""

from collections.abc import Iterator
from importlib.util import find_spec

from srpo_core.algorithm import method_of
from srpo_core.config import Settings, rewards_by_name
from srpo_core.errors import ConfigError, pick
from srpo_core.gates.bootstrap import Sample, per_rule_confidence, why_no_interval
from srpo_core.gates.comparisons import require_valid_rules
from srpo_core.gates.effect import require_effect
from srpo_core.gates.people import is_people
from srpo_core.gates.rules import BY_PROOF_OF_BREACH
from srpo_core.gates.spending import Stage, stage_sizes
from srpo_core.models import BASES
from srpo_core.preflight.data_needs import require_data
from srpo_core.quantizers import released_formats
from srpo_core.scorers import SCORERS
from srpo_core.scorers.metrics import METRICS, metric_names, require_fitting_judge, require_free_names


def require_consistent(settings: Settings) -> None:
    """Check every name of a registry, the judges of the metrics, and settings that depend on each other.

    Raises:
        ConfigError: a name is unknown, a metric is used but not measured, or two settings contradict each other. The
            message names the keys.
    """
    _require_known(settings)
    require_data(settings)
    _require_workers(settings)
    _require_kernel(settings)
    _require_loggers(settings)
    for key, name in _registered_metrics(settings):
        try:
            pick(METRICS, name, "metric")
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from None
    released_formats(settings.quantize.formats)
    require_valid_rules(settings.gate.rules)
    require_effect(settings.gate.rules)
    _require_measured(settings)
    _require_images(settings)
    _require_single(settings)
    _require_judges(settings)
    _require_comparable(settings)
    _require_interval(settings)
    if not settings.ingest.validation_share:
        raise ConfigError(
            "ingest.validation_share is 0, but select compares the checkpoints on validation prompts: set it above 0"
        )
    evaluated, compared = settings.evaluate.num_prompts, settings.quantize.num_prompts
    if compared > evaluated:
        raise ConfigError(
            f"quantize.num_prompts is {compared}, but evaluate.num_prompts is {evaluated}: lower it, because quantize "
            "compares formats on prompts of evaluate"
        )


def _require_known(settings: Settings) -> None:
    """Check that base, method and scorers are known, and that the reward and further scorers are differentiable."""
    pick(BASES, settings.model.base, "base model")
    method_of(settings.train)
    require_free_names(settings.evaluate.scorers)
    for name in sorted(settings.evaluate.scorers.keys() & rewards_by_name(settings.rewards).keys()):
        raise ConfigError(f"evaluate.scorers: {name!r} is the name of one of the rewards: rename the scorer")
    rewards = {f"rewards[{index}]": one for index, one in enumerate(settings.rewards)}
    scorers = rewards | {"judge": settings.judge, "select_judge": settings.select_judge}
    further = {f"evaluate.scorers.{name}": one for name, one in settings.evaluate.scorers.items()}
    for key, one in (scorers | further).items():
        try:
            entry = pick(SCORERS, one.scorer, "scorer")
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from None
        if not entry.differentiable and key not in ("judge", "select_judge"):
            known = ", ".join(name for name, other in SCORERS.items() if other.differentiable)
            raise ConfigError(
                f"{key}: {one.scorer!r} does not score images against a text, which this key needs: choose one of {known}"
            )


def _require_workers(settings: Settings) -> None:
    """Require that every training worker has an image in each step and calls a sharded model as often as the others."""
    workers, batch_size = settings.resources.train_workers, settings.train.batch_size
    if workers > batch_size:
        raise ConfigError(
            f"resources.train_workers {workers} is more than train.batch_size {batch_size}: every worker needs at "
            "least one image per step"
        )
    if settings.resources.shard and settings.train.rollout.source == "hybrid":
        raise ConfigError(
            "resources.shard is true and train.rollout.source is hybrid: a worker that has only real images in a step "
            "would not call the model, and the others would wait for its shard. Choose online or offline, or shard: "
            "false"
        )
    if settings.resources.shard and settings.train.optimizer.kind == "adamw_8bit":
        raise ConfigError(
            "resources.shard is true and train.optimizer.kind is adamw_8bit: its blocks of 256 values cannot be divided "
            "among workers. Choose adamw, or shard: false"
        )
    train = settings.train
    if settings.resources.shard and train.tune == "lora" and train.lora.frozen == "nf4":
        raise ConfigError(
            "resources.shard is true and train.lora.frozen is nf4: a base in 4 bits is not divided among workers. Choose "
            "bfloat16, or shard: false"
        )


def _require_loggers(settings: Settings) -> None:
    """Require the package of a logger that is not among the project's own."""
    if "wandb" in settings.resources.loggers and find_spec("wandb") is None:
        raise ConfigError(
            "resources.loggers has wandb, whose package is not installed: pip install '.[wandb]' in the checkout, or drop it"
        )


def _require_kernel(settings: Settings) -> None:
    """Require that the kernel that train.compute.attention names exists on the device and for the type of the values."""
    chosen, on_gpu = settings.train.compute.attention, settings.resources.use_gpu
    if chosen in ("_native_cudnn", "_native_efficient") and not on_gpu:
        raise ConfigError(
            f"train.compute.attention {chosen} needs a GPU and resources.use_gpu is false: choose native, "
            "_native_flash or _native_math"
        )
    if chosen in ("_native_cudnn", "_native_flash") and on_gpu and not settings.train.compute.autocast:
        raise ConfigError(
            f"train.compute.attention {chosen} computes on a GPU only in bfloat16 and train.compute.autocast is false: "
            "choose native, _native_efficient or _native_math, or autocast: true"
        )


def _require_judges(settings: Settings) -> None:
    """Check that each metric gets the kind of judge that it needs."""
    for key, name in _registered_metrics(settings):
        role = "judge" if key.startswith("evaluate.") else "select_judge"
        try:
            require_fitting_judge(name, METRICS[name], getattr(settings, role).scorer)
        except ConfigError as error:
            raise ConfigError(f"{key}, {role}: {error}") from None


def _require_interval(settings: Settings) -> None:
    """Check that there are enough prompts and resamples for an interval; without one every model is refused."""
    gate = settings.gate
    vetoes = sum(rule.severity in BY_PROOF_OF_BREACH for rule in gate.rules.values())
    sizes = stage_sizes(settings.evaluate.num_prompts, settings.evaluate.stages)
    last = Stage(len(sizes) - 1, sizes)
    why = why_no_interval(
        Sample(settings.evaluate.num_prompts, 1),
        resamples=gate.resamples,
        confidence=last.confidence(per_rule_confidence(gate.confidence, vetoes)),
    )
    if why:
        raise ConfigError(f"the gate would refuse every model: {why}")


def _registered_metrics(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield each key whose value is a name in the registry `metrics`, with the name."""
    yield "select.maximize", settings.select.maximize
    yield from (("select.keep", name) for name in settings.select.keep)
    yield from (("evaluate.metrics", name) for name in settings.evaluate.metrics)
    if (early := settings.train.early_stop) is not None:
        yield from ((f"train.early_stop.limits.{name}", limit.metric) for name, limit in early.limits.items())


def _require_comparable(settings: Settings) -> None:
    """Check that halving compares figures that further prompts do not change."""
    if settings.select.halving is None:
        return
    for name in (settings.select.maximize, *settings.select.keep):
        if METRICS[name].over_all is not None:
            raise ConfigError(
                f"select.halving compares checkpoints on parts of the prompts, but {name!r} is defined over all images of a "
                "model: set select.halving to null, or choose another metric"
            )


def _require_measured(settings: Settings) -> None:
    """Check that evaluate measures the metrics of gate and quantize."""
    measured = metric_names(settings.evaluate.metrics, list(settings.evaluate.scorers))
    asked = {f"gate.rules.{name}": rule.metric for name, rule in settings.gate.rules.items()}
    asked |= {"gate.objective": settings.gate.objective, "quantize.gain": settings.quantize.gain}
    for key, metric in asked.items():
        if metric not in measured and not (is_people(metric) and key.startswith("gate.rules.")):
            raise ConfigError(
                f"{key} asks for {metric!r}, which evaluate does not measure: add it to evaluate.metrics, or choose one of "
                f"{', '.join(sorted(measured))}"
            )


def _require_images(settings: Settings) -> None:
    """Check that a metric over several images, or one that needs real images, gets them."""
    for place, seeds in _seeds_per_prompt(settings).items():
        for name in (name for key, name in _registered_metrics(settings) if key.startswith(f"{place}.")):
            if METRICS[name].needs_seeds and seeds == 1:
                raise ConfigError(
                    f"{place}.seeds_per_prompt is 1, but {name!r} compares the images of a prompt: set it to 2 or "
                    "more, or drop the metric"
                )
            if METRICS[name].needs_real_images and place != "evaluate":
                raise ConfigError(
                    f"{place} asks for {name!r}, which compares with real images that only evaluate reads: drop it"
                )
            if METRICS[name].beside_base is not None and place != "evaluate":
                raise ConfigError(
                    f"{place} asks for {name!r}, which compares with the base's images as only evaluate does: drop it"
                )
    _require_alarm(settings)


def _require_alarm(settings: Settings) -> None:
    """Check that early stop has enough images of the base to compare with."""
    if (early := settings.train.early_stop) is None:
        return
    for key, least in (("num_prompts", 2), ("base_seeds", 2)):
        if (found := getattr(early, key)) < least:
            raise ConfigError(
                f"train.early_stop.{key} is {found}, but an image is compared with other images of the base, of its own "
                f"prompt and of others: set it to {least} or more"
            )


def _seeds_per_prompt(settings: Settings) -> dict[str, int]:
    """Return the number of images per prompt of each part that names metrics."""
    seeds = {part: getattr(settings, part).seeds_per_prompt for part in ("select", "evaluate")}
    early = settings.train.early_stop
    return seeds if early is None else seeds | {"train.early_stop": early.seeds_per_prompt}


def _require_single(settings: Settings) -> None:
    """Check that the metric of quantize.gain is defined for a single image."""
    gain = settings.quantize.gain
    if gain not in METRICS or not METRICS[gain].measures_single_images:
        raise ConfigError(
            f"quantize.gain is {gain!r}, which is not defined for a single image of a prompt: choose another metric, "
            "such as relative_reward"
        )
