"""A plan as tables for the terminal."""

from collections.abc import Mapping

from rich.console import Group
from rich.table import Table
from rich.text import Text

from srpo_core.algorithm import METHODS
from srpo_core.plan.counting import Counted
from srpo_core.plan.estimates import GB, TERA, Plan
from srpo_core.plan.making import make_plan
from srpo_core.plan.remedies import changed, remedies
from srpo_core.preflight.disk import bytes_of_run


def show(plan: Plan) -> Group:
    """Show memory, work, time and money of a plan, what makes it fit if it does not, and what other settings save."""
    return Group(
        _memory(plan),
        _verdict(plan),
        _generation(plan),
        _work(plan),
        _time(plan),
        _disk(plan),
        _savings(plan),
    )


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
    table.add_row("[bold]all[/bold]", f"[bold]{plan.peak / GB:.2f}[/bold]")
    return table


def _verdict(plan: Plan) -> Text:
    room = f"{plan.cluster.memory / GB:.3g} GB"
    if plan.fits:
        return Text(f"It fits into {room}.", style="green")
    done, better = remedies(plan.settings, plan.cluster)
    text = f"It does not fit into {room}: {plan.peak / GB:.3g} GB are needed."
    if better.fits:
        return Text(f"{text} With {', '.join(done)} it does: {better.peak / GB:.3g} GB.", style="yellow")
    least = f" Even with {', '.join(done)} it needs {better.peak / GB:.3g} GB:" if done else ""
    return Text(f"{text}{least} use more devices, or a smaller train.batch_size.", style="red")


def _generation(plan: Plan) -> Text:
    size, batch = sum(plan.generation.values()), plan.settings.generate.batch_size
    parts = ", ".join(f"{part} {found / GB:.3g}" for part, found in plan.generation.items() if found)
    text = (
        f"Generating {batch} images at once needs {size / GB:.3g} GB ({parts}; each scorer is assumed to be as large "
        "as the reward)"
    )
    if size <= plan.cluster.memory:
        return Text(f"{text}: it fits.", style="green")
    one_at_once = size - (1 - 1 / batch) * plan.generation["passing tensors"]
    smaller = one_at_once <= plan.cluster.memory
    advice = "Lower generate.batch_size." if smaller else "Use devices with more memory."
    return Text(f"{text}: it does not fit. {advice}", style="red")


def _work(plan: Plan) -> Table:
    table = _table(f"\nOne step of one device, {plan.images} images", "phase", "TFLOP", "share")
    every = sum(plan.flops.values())
    for phase, flops in plan.flops.items():
        table.add_row(phase, f"{flops / TERA:.4g}", f"{100 * flops / every:.2f} %")
    table.add_row("[bold]all[/bold]", f"[bold]{every / TERA:.4g}[/bold]", "")
    return table


def _time(plan: Plan) -> Table:
    cluster, train = plan.cluster, plan.settings.train
    table = _table("\nTime and money", "", "")
    assumed = f"{100 * cluster.mfu:.0f} % of {cluster.peak_flops / TERA:.0f} TFLOP/s"
    table.add_row(f"computing a step, at {assumed}", f"{plan.compute_seconds:.2f} s")
    table.add_row(
        f"exchanging {plan.traffic / GB:.0f} GB a step at {cluster.bandwidth / GB:.0f} GB/s, without overlap",
        f"{plan.traffic_seconds:.2f} s",
    )
    table.add_row(f"{train.steps} steps, without overlap, samples and checkpoints", _duration(plan.hours))
    for what, generated in plan.watched.items():
        share = 100 * generated.hours / plan.hours
        table.add_row(
            f"early stop generates {generated.num_images:,} images {what} ({share:.1f} % of training)",
            _duration(generated.hours),
        )
    precision = "" if plan.settings.generate.autocast else ", in float32 (generate.autocast is false)"
    for stage, generated in plan.generated.items():
        where = "one device" if generated.devices == 1 else f"{generated.devices} devices"
        table.add_row(
            f"{stage} generates {generated.num_images:,} images on {where}{precision}",
            _duration(generated.hours),
        )
    table.add_row("device hours of training and of these images", f"{plan.device_hours:.1f}")
    if plan.cost is not None:
        table.add_row(f"at {cluster.price} an hour", f"{plan.cost:.2f}")
    return table


def _disk(plan: Plan) -> Table:
    table = _table(
        "\nPeak disk usage of the machine that drives the run, without data and earlier runs", "what", "GB"
    )
    found = bytes_of_run(plan.settings, plan.sizes.all)
    for what, size in found.items():
        table.add_row(what, f"{size / GB:.0f}")
    table.add_row("[bold]all[/bold]", f"[bold]{sum(found.values()) / GB:.0f}[/bold]")
    return table


def _duration(hours: float) -> str:
    return f"{hours:.2f} h" if hours >= 1 else f"{60 * hours:.2f} min"


def _savings(plan: Plan) -> Table:
    table = _table("\nWhat other settings would save", "setting", "TFLOP per trained pair", "saved", "GB")
    for name, other in alternatives(plan).items():
        saved = 100 * (1 - per_pair(other) / per_pair(plan))
        table.add_row(name, f"{per_pair(other) / TERA:.4g}", f"{saved:.0f} %", f"{other.peak / GB:.1f}")
    return table


def per_pair(plan: Plan) -> float:
    """Return the FLOPs of a device per image and noise level that is trained."""
    return sum(plan.flops.values()) / (plan.images * plan.cost_of_method.noise_levels)


def alternatives(plan: Plan) -> Mapping[str, Plan]:
    """Return the plan itself, and plans with several pairs per rollout, real images, and adapters.

    Settings that the method does not use are left out.
    """
    found = {"these settings": plan}
    for pairs in (2, 4, 8):
        other = _recounted(plan, {"pairs_per_rollout": pairs})
        if other.cost_of_method != plan.cost_of_method:
            found[f"train.pairs_per_rollout={pairs}"] = other
    if METHODS[plan.settings.train.method].real_images:
        rollout = plan.settings.train.rollout.model_copy(update={"source": "offline"})
        found["train.rollout.source=offline"] = _recounted(plan, {"rollout": rollout})
    if plan.settings.train.tune == "full":
        found["train.tune=lora"] = make_plan(
            changed(plan.settings, lambda train: train.model_copy(update={"tune": "lora"})), plan.cluster
        )
    return found


def _recounted(plan: Plan, changes: Mapping[str, object]) -> Plan:
    """Plan settings that change only how often each call happens."""
    counted: Counted = plan.counted
    settings = changed(plan.settings, lambda train: train.model_copy(update=changes))
    return Plan(settings, plan.cluster, plan.sizes, counted)
