"""A plan as tables for the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from srpo_core.algorithm import METHODS
from srpo_core.plan.cluster import GB, TERA
from srpo_core.plan.estimates import Plan
from srpo_core.plan.making import make_plan
from srpo_core.plan.memory import Parts
from srpo_core.plan.presets import Preset
from srpo_core.plan.remedies import changed, remedies
from srpo_core.plan.rollouts import num_pairs
from srpo_core.preflight.disk import bytes_of_run

STAGES: Final = ("embed", "rollouts", "check_reward", "train", "select", "evaluate", "quantize")
PETA: Final = 1e15
JUDGING: Final = ("select", "evaluate")


def show(plan: Plan) -> Group:
    """Show memory, work, time and money of a plan, what makes it fit if it does not, and what other settings save."""
    return Group(
        _stages(plan),
        _memory(plan),
        _hosts(plan),
        _verdict(plan),
        _work(plan),
        _whole_work(plan),
        _step(plan),
        _time(plan),
        _disk(plan),
        _savings(plan),
    )


def show_presets(planned: Sequence[tuple[Preset, Plan]]) -> Table:
    """Show peak memory by stage, time and cost of every preset on its hardware."""
    peaks = [peaks_of_stages(plan) for _, plan in planned]
    stages = [stage for stage in STAGES if any(stage in one for one in peaks)]
    table = _table(
        "\nPeak memory of one GPU by stage in GB, hours of the run, and its cost",
        "profile", "GPUs", *stages, "fits", "training", "judging", "run", "cost",
    )  # fmt: skip
    for (preset, plan), own in zip(planned, peaks, strict=True):
        cluster = plan.cluster
        memory = (_short(own[stage]) if stage in own else "" for stage in stages)
        hours = (plan.hours_of("train"), plan.hours_of(*JUDGING), plan.run_hours)
        table.add_row(
            preset.profile,
            f"{cluster.gpus} x {cluster.memory / GB:.0f} GB ({preset.card})",
            *memory,
            "yes" if plan.fits else "no",
            *(f"{hour:.2f} h" for hour in hours),
            "" if plan.cost is None else f"{plan.cost:.2f}",
        )
    return table


def peaks_of_stages(plan: Plan) -> Mapping[str, float]:
    """Return the highest peak of each stage that the run has, in bytes; training has several phases."""
    found: dict[str, float] = {}
    for name, peak in plan.peaks.items():
        stage = name.partition(":")[0]
        found[stage] = max(peak, found.get(stage, 0.0))
    return {stage: found[stage] for stage in STAGES if stage in found}


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column(columns[0])
    for name in columns[1:]:
        table.add_column(name, justify="right")
    return table


def _memory(plan: Plan) -> Table:
    cluster = plan.cluster
    table = _table(f"\nMemory of one of {cluster.gpus} devices at the peak of a step", "part", "GB")
    for part, size in plan.memory.items():
        table.add_row(part, f"{size / GB:.2f}")
    table.add_row("[bold]all[/bold]", f"[bold]{plan.step_peak / GB:.2f}[/bold]")
    return table


def _stages(plan: Plan) -> Table:
    table = _peaks("\nPeak memory of one device by stage", plan.stages)
    table.add_row(
        "[bold]highest[/bold]", f"[bold]{_short(plan.peak)}[/bold]", "each scorer as large as the reward"
    )
    return table


def _hosts(plan: Plan) -> Table:
    return _peaks("\nPeak memory of one host by stage, without Python and the file cache", plan.hosts)


def _peaks(title: str, stages: Mapping[str, Parts]) -> Table:
    table = _table(title, "stage", "GB", "of which")
    for stage, parts in stages.items():
        largest = sorted((part for part in parts.items() if part[1]), key=lambda part: -part[1])
        shown = ", ".join(f"{part} {_short(size)}" for part, size in largest)
        table.add_row(stage, _short(sum(parts.values())), shown)
    table.columns[-1].justify = "left"
    return table


def _verdict(plan: Plan) -> Text:
    room = f"{plan.cluster.memory / GB:.3g} GB"
    if plan.fits:
        return Text(
            f"Every stage fits into {room}: the highest peak is {plan.peak / GB:.3g} GB.", style="green"
        )
    done, better = remedies(plan.settings, plan.cluster)
    text = f"It does not fit into {room}: {_too_much(plan)}."
    if better.fits:
        return Text(f"{text} With {', '.join(done)} it does: {better.peak / GB:.3g} GB.", style="yellow")
    least = f" Even with {', '.join(done)} {_too_much(better)}:" if done else ""
    return Text(f"{text}{least} use devices with more memory, or more of them.", style="red")


def _too_much(plan: Plan) -> str:
    peaks = {stage: peak for stage, peak in plan.peaks.items() if peak > plan.cluster.memory}
    return ", ".join(f"{stage} needs {peak / GB:.3g} GB" for stage, peak in peaks.items())


def _work(plan: Plan) -> Table:
    table = _table(f"\nOne step of one device, {plan.case.images} images", "phase", "TFLOP", "share")
    every = sum(plan.flops.values())
    for phase, flops in plan.flops.items():
        table.add_row(phase, f"{flops / TERA:.4g}", f"{100 * flops / every:.2f} %")
    table.add_row("[bold]all[/bold]", f"[bold]{every / TERA:.4g}[/bold]", "")
    return table


def _whole_work(plan: Plan) -> Table:
    """All FLOPs of training, with and without the pairs of cached rollouts."""
    table = _table("\nAll steps of all devices", "what", "PFLOP")
    first, later = plan.flops_of_first_run / PETA, plan.flops_of_later_runs / PETA
    if num_pairs(plan.settings.train):
        table.add_row("first run, with the stage rollouts", f"{first:.4g}")
        table.add_row("each later run, which finds all pairs", f"{later:.4g}")
    else:
        table.add_row("training", f"{later:.4g}")
    return table


def _step(plan: Plan) -> Table:
    cluster = plan.cluster
    table = _table("\nTime of a step", "", "")
    assumed = f"{100 * cluster.mfu:.0f} % of {cluster.peak_flops / TERA:.0f} TFLOP/s"
    table.add_row(f"computing, at {assumed}", f"{plan.compute_seconds:.2f} s")
    rates = f"{cluster.bandwidth / GB:.0f} GB/s"
    if cluster.gpus > cluster.node_gpus:
        rates += f", {cluster.node_bandwidth / GB:.3g} GB/s between nodes"
    table.add_row(
        f"exchanging {plan.traffic / GB:.0f} GB at {rates}, without overlap", f"{plan.traffic_seconds:.2f} s"
    )
    return table


def _time(plan: Plan) -> Table:
    cluster = plan.cluster
    table = _table("\nTime and money of the run", "stage", "what", "", "time", "share")
    for column in table.columns[1:3]:
        column.justify = "left"
    for spent in plan.spending:
        hours = spent.seconds / 3600
        table.add_row(spent.stage, spent.what, spent.detail, _duration(hours), _share(plan, spent.seconds))
    for what, seconds in kinds(plan).items():
        table.add_row("[bold]all stages[/bold]", what, "", _duration(seconds / 3600), _share(plan, seconds))
    table.add_row("[bold]run[/bold]", "", "", f"[bold]{_duration(plan.run_hours)}[/bold]", "")
    rented = f"{plan.device_hours:.1f} device hours, {cluster.gpus} rented for the whole run"
    price = "" if plan.cost is None else f"{plan.cost:.2f}"
    table.add_row("cost", "" if plan.cost is None else f"{cluster.price} an hour", rented, price, "")
    return table


def kinds(plan: Plan) -> Mapping[str, float]:
    """Return the seconds of each kind of work, over all stages."""
    found: dict[str, float] = {}
    for spent in plan.spending:
        found[spent.what] = found.get(spent.what, 0.0) + spent.seconds
    return found


def _share(plan: Plan, seconds: float) -> str:
    return f"{100 * seconds / (3600 * plan.run_hours):.1f} %"


def _short(size: float) -> str:
    return f"{size / GB:.3g}"


def _disk(plan: Plan) -> Table:
    table = _table(
        "\nPeak disk usage of the machine that drives the run, without data and earlier runs", "what", "GB"
    )
    found = bytes_of_run(plan.settings, plan.case.base)
    for what, size in found.items():
        table.add_row(what, f"{size / GB:.0f}")
    table.add_row("[bold]all[/bold]", f"[bold]{sum(found.values()) / GB:.0f}[/bold]")
    return table


def _duration(hours: float) -> str:
    return f"{hours:.2f} h" if hours >= 1 else f"{60 * hours:.2f} min"


def _savings(plan: Plan) -> Table:
    table = _table(
        "\nWhat other settings would save in training", "setting", "TFLOP per trained pair", "saved", "GB"
    )
    for name, other in alternatives(plan).items():
        saved = 100 * (1 - per_pair(other) / per_pair(plan))
        table.add_row(name, f"{per_pair(other) / TERA:.4g}", f"{saved:.0f} %", f"{other.step_peak / GB:.1f}")
    return table


def per_pair(plan: Plan) -> float:
    """Return the FLOPs of a device per image and noise level that is trained."""
    return sum(plan.flops.values()) / (plan.case.images * plan.case.cost_of_method.noise_levels)


def alternatives(plan: Plan) -> Mapping[str, Plan]:
    """Return the plan itself, and plans with several pairs per rollout, real or cached images, and adapters.

    Settings that the method does not use are left out.
    """
    found = {"these settings": plan}
    for pairs in (2, 4, 8):
        other = _recounted(plan, {"pairs_per_rollout": pairs})
        if other.case.cost_of_method != plan.case.cost_of_method:
            found[f"train.pairs_per_rollout={pairs}"] = other
    if METHODS[plan.settings.train.method].real_images:
        for source in ("offline", "cached"):
            rollout = plan.settings.train.rollout.model_copy(update={"source": source})
            found[f"train.rollout.source={source}"] = _recounted(plan, {"rollout": rollout})
    if plan.settings.train.tune == "full":
        found["train.tune=lora"] = make_plan(
            changed(plan.settings, lambda train: train.model_copy(update={"tune": "lora"})), plan.cluster
        )
    return found


def _recounted(plan: Plan, changes: Mapping[str, object]) -> Plan:
    """Plan settings that change only how often each call happens."""
    settings = changed(plan.settings, lambda train: train.model_copy(update=changes))
    return Plan(replace(plan.case, settings=settings))
