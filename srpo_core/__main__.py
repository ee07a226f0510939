"""The command `srpo`: one line per error, exit codes as in srpo_core/errors.py."""

import importlib
import inspect
import logging
import os
import pkgutil
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any, Final

try:
    import typer

    from srpo_core import artifacts, errors
    from srpo_core.telemetry import quiet_environment
except ModuleNotFoundError as missing:
    sys.exit(
        f"srpo: error: {sys.executable} has no {missing.name}: "
        "run 'make setup', then 'source .venv/bin/activate'"
    )

app = typer.Typer(
    name="srpo",
    help="Align a text-to-image model with human preference by SRPO, and ship it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

REFUSED: Final = errors.GateError.exit_code
INTERRUPTED: Final = 130
USAGE_ERROR: Final[Any] = typer.BadParameter.__base__  # typer keeps this class of click's to itself
OURS: Final = ("srpo_core", "flows")

ReleaseName = Annotated[
    str, typer.Option("--release", help="a version or an alias, such as candidate or tiny/candidate")
]


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="show the whole trace of an error")] = False,
) -> None:
    """Set up what every command needs."""
    context.obj = debug  # read from the arguments by `main`, where the errors arrive
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith(OURS))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    os.environ.update(quiet_environment())
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of loading, gone in a blink
    warnings.filterwarnings("ignore", category=FutureWarning, module="google")  # Python 3.11's end of life


@app.command(rich_help_panel="The road")
def align(
    profile: Annotated[
        str | None, typer.Option(help="preset in profiles/; default: params.yaml as it stands")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="a setting, for instance train.steps=20; a mapping is added to"
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="commit, branch or tag to run; default: the checkout as it is")
    ] = None,
    publish: Annotated[bool, typer.Option(help="publish a model that the gate lets through")] = True,
) -> None:
    """Run the whole road as a Prefect flow, from data to release.

    Exit code 3: the gate refused the model.
    """
    from flows.terminal import run_align

    result = run_align(profile=profile, patch=_patch(change or []), revision=revision, publish=publish)
    _show_verdict(passed=result.passed, reason=result.reason)
    typer.echo(f"report   {_shortest(result.report)}")
    where = "runs" if result.home else f"{_shortest(result.workspace)}/runs"
    reason = "" if result.home or revision else f" ({_why_elsewhere(result.champion)})"
    typer.echo(f"results  {where}{reason}")
    typer.echo(f"release  {_shortest(Path(result.release)) if result.release else 'none'}")
    if not result.passed:
        raise typer.Exit(REFUSED)


def _why_elsewhere(champion: str | None) -> str:
    if champion:
        return f"drawn beside {champion}, which is in production: with 'champion: {champion}' in params.yaml, 'srpo align' brings them to runs/"
    return "the checkout holds other settings or files"


@app.command(rich_help_panel="The road")
def stage(name: Annotated[str, typer.Argument(help="a stage of dvc.yaml")]) -> None:
    """Run one stage on params.yaml in this directory; 'dvc repro' calls this."""
    from srpo_core import config
    from srpo_core.processes import die_with_parent
    from srpo_core.resume import discard_recorded
    from srpo_core.timings import note_stage

    die_with_parent()
    _assert_code_of(Path.cwd())
    settings = config.load_settings()
    # before torch is imported: sums depend on the number of threads
    os.environ["OMP_NUM_THREADS"] = str(settings.resources.threads_per_worker)
    run = _stage_function(name)
    discard_recorded(name)
    started = time.monotonic()
    run(**{part: getattr(settings, part) for part in inspect.signature(run).parameters})
    note_stage(name, time.monotonic() - started, settings.resources)


@app.command(rich_help_panel="The road")
def data(
    source: Annotated[str, typer.Argument(help="directory in HPDv2's layout")],
    name: Annotated[str, typer.Option(help="name of the data set, a directory below data/")] = "hpd",
) -> None:
    """Make a new version of the data: check it, version it with DVC, tag it, push it."""
    from flows.terminal import run_data

    tag = run_data(source=source, name=name)
    typer.echo(f"tag   {tag}")
    typer.echo(f"next  srpo align --revision {tag} --set ingest.source=data/{name}")


@app.command(rich_help_panel="The road")
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="directory of a transformer's weights")],
    output: Annotated[
        Path | None, typer.Option(help="directory to write; default: below .srpo/evaluations")
    ] = None,
) -> None:
    """Draw any checkpoint beside base and champion on the test prompts, measure it, and say what the gate thinks of it.

    Exit code 3: the gate would refuse it.
    """
    from srpo_core import config

    _assert_code_of(Path.cwd())
    settings = config.load_settings()
    os.environ["OMP_NUM_THREADS"] = str(settings.resources.threads_per_worker)
    from srpo_core.evaluation import evaluate_checkpoint, rule_table

    target = output or artifacts.home() / "evaluations" / checkpoint.name
    decision = evaluate_checkpoint(settings, checkpoint, target)
    for line in rule_table(decision):
        typer.echo(line)
    _show_verdict(passed=decision["passed"], reason=decision["reason"])
    typer.echo(f"figures  {_shortest(target)}")
    if not decision["passed"]:
        raise typer.Exit(REFUSED)


@app.command(rich_help_panel="The road")
def report() -> None:
    """Say what the last run here came to, and write its report with its formats and what it cost."""
    from srpo_core.report.whole import write_whole

    decision = artifacts.read_json(artifacts.DECISION)
    whole = artifacts.home() / artifacts.REPORT.name
    rows = write_whole(whole, root=Path.cwd(), home=artifacts.home())
    _show_verdict(passed=decision["passed"], reason=decision["reason"])
    typer.echo(f"report   {_shortest(whole)}")
    if rows:
        hours = sum(row["device_hours"] for row in rows)
        typer.echo(f"cost     {hours:.3f} device hours in {len(rows)} stages timed here")


@app.command(rich_help_panel="Models")
def quantize(
    source: Annotated[
        Path, typer.Argument(help="diffusers directory or .safetensors file of a FLUX transformer")
    ],
    formats: Annotated[
        list[str], typer.Option("--format", help="a format, such as Q8_0; may be given several times")
    ],
    out: Annotated[Path, typer.Option(help="directory to write to")],
    name: Annotated[
        str | None, typer.Option(help="what the files are called; default: as the source")
    ] = None,
) -> None:
    """Write any FLUX checkpoint in other formats. Formats that are there already are kept."""
    from srpo_core.progress import progress_bar
    from srpo_core.quantizers.standalone import quantize_checkpoint

    for line in quantize_checkpoint(source, formats, out, stem=name, bar=progress_bar):
        typer.echo(line)


@app.command(rich_help_panel="Settings and machine")
def profile(
    name: Annotated[str | None, typer.Argument(help="a preset; without it the known ones are listed")] = None,
) -> None:
    """Print a preset of the settings: srpo profile NAME > params.yaml."""
    from srpo_core import config

    if name is None:
        typer.echo("\n".join(config.profile_names()))
        return
    typer.echo(config.profile_path(name).read_text(encoding="utf-8"), nl=False)


@app.command(rich_help_panel="Settings and machine")
def doctor(
    profile: Annotated[str | None, typer.Option(help="preset to examine; default: params.yaml")] = None,
) -> None:
    """Check line by line what a run here needs."""
    from srpo_core import config
    from srpo_core.doctor import examine

    settings = config.load_settings(config.profile_path(profile) if profile else config.PARAMS_FILE)
    findings = list(examine(settings))
    for finding in findings:
        mark = typer.style("✓", fg="green") if finding.good else typer.style("✗", fg="red")
        typer.echo(f"{mark} {finding.what:<10}{finding.detail}")
    if not all(finding.good for finding in findings):
        raise typer.Exit(errors.SrpoError.exit_code)


@app.command(rich_help_panel="Settings and machine")
def plan(
    gpus: Annotated[int, typer.Option(min=1, help="devices, one per worker")],
    gpu_memory: Annotated[float, typer.Option(min=0.001, help="of each, in GB (1e9 bytes)")],
    profile: Annotated[str | None, typer.Option(help="preset to plan; default: params.yaml")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="a setting, as for align")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="of one device for an hour")] = None,
    mfu: Annotated[
        float, typer.Option(min=0.001, max=1, help="share of the peak that training reaches")
    ] = 0.4,
    tflops: Annotated[
        float, typer.Option(min=0.001, help="peak of a device in bfloat16, in TFLOP/s")
    ] = 989.0,
    bandwidth: Annotated[float, typer.Option(min=0.001, help="of a device to the others, in GB/s")] = 300.0,
) -> None:
    """Say what a run needs: bytes, FLOPs, time and money, counted from the settings without any weights."""
    from rich.console import Console

    from srpo_core import config
    from srpo_core.plan import GB, TERA, Cluster, make_plan
    from srpo_core.plan.table import show

    path = config.profile_path(profile) if profile else config.PARAMS_FILE
    settings = config.parse_settings(
        config.patched(config.read_values(path), _patch(change or [])), str(path)
    )
    cluster = Cluster(gpus, gpu_memory * GB, price, mfu, tflops * TERA, bandwidth * GB)
    Console().print(show(make_plan(settings, cluster)))


@app.command(rich_help_panel="Settings and machine")
def fetch(
    profile: Annotated[str | None, typer.Option(help="preset to fetch for; default: params.yaml")] = None,
) -> None:
    """Get the weights that a run needs from the hub, as models.lock names them, and check each file."""
    from srpo_core import config
    from srpo_core.doctor import weight_paths
    from srpo_core.models_lock import fetch as fetch_entry
    from srpo_core.models_lock import read_lock

    settings = config.load_settings(config.profile_path(profile) if profile else config.PARAMS_FILE)
    locked = read_lock()
    for path in weight_paths(settings):
        if path not in locked:
            typer.echo(f"{path}: not from a hub (no entry of models.lock)")
            continue
        for line in fetch_entry(path):
            typer.echo(line)


@app.command(rich_help_panel="Releases")
def releases() -> None:
    """List the releases in the store (SRPO_STORE, default store/)."""
    from srpo_core.release import list_releases
    from srpo_core.storage import open_store

    store = open_store()
    found = list_releases(store)
    if not found:
        typer.echo(f"no release in {store.uri}")
    for release in found:
        names = f"  ({', '.join(release.aliases)})" if release.aliases else ""
        typer.echo(f"{release.version}  {release.created_at}{names}")


@app.command(rich_help_panel="Releases")
def show(release: Annotated[str, typer.Argument(help="a version or an alias")] = "candidate") -> None:
    """Show a release: verdict, formats with their errors, files, and which aliases moved to and from it."""
    from srpo_core.release.describing import describe
    from srpo_core.storage import open_store

    for line in describe(open_store(), release):
        typer.echo(line)


@app.command(rich_help_panel="Releases")
def promote(
    release: Annotated[str, typer.Argument(help="a version or an alias")],
    reason: Annotated[str, typer.Option(help="kept in the history of production")] = "",
    override: Annotated[
        bool, typer.Option("--override", help="although the gate refused it; needs --reason")
    ] = False,
) -> None:
    """Make a release its model's production; what was that becomes `previous`. A flow, so the server knows it."""
    from flows.terminal import run_promote

    typer.echo(run_promote(version=release, reason=reason, override=override))


@app.command(rich_help_panel="Releases")
def rollback(
    model: Annotated[
        str | None, typer.Argument(help="whose production; needed where the store has several")
    ] = None,
    reason: Annotated[str, typer.Option(help="kept in the history of production")] = "",
) -> None:
    """Make the release production again that was before the last promotion; given again it moves nothing."""
    from flows.terminal import run_rollback

    typer.echo(run_rollback(model=model, reason=reason))


@app.command(rich_help_panel="Releases")
def pull(
    release: Annotated[str, typer.Argument(help="a version or an alias")],
    to: Annotated[Path, typer.Option(help="directory to write to")],
    format_name: Annotated[
        str | None, typer.Option("--format", help="one of the release's formats; default: all files")
    ] = None,
) -> None:
    """Bring a release's files here, each held to its SHA-256; an interrupted one goes on."""
    from srpo_core.release import pull as pull_release
    from srpo_core.storage import open_store

    for path in pull_release(open_store(), release, format_name=format_name, target=to):
        typer.echo(path)


@app.command(rich_help_panel="Releases")
def verify(
    release: Annotated[str, typer.Argument(help="a version or an alias")] = "candidate",
    every: Annotated[bool, typer.Option("--all", help="every version and alias of the store")] = False,
) -> None:
    """Read a release's files and compare each with its digest."""
    from srpo_core.release import verify as verify_release
    from srpo_core.release import verify_aliases
    from srpo_core.storage import open_store

    store = open_store()
    faults = verify_aliases(store) if every else []
    if every and not store.versions():
        typer.echo(f"no release in {store.uri}")
    for version in store.versions() if every else [release]:
        try:
            manifest = verify_release(store, version)
        except errors.StoreError as fault:
            if not every:
                raise
            faults.append(str(fault))
        else:
            typer.echo(f"{manifest['version']}: {len(manifest['files'])} files are as they were published")
    if faults:
        raise errors.StoreError("; ".join(faults))


@app.command(rich_help_panel="Releases")
def gc(
    keep: Annotated[int, typer.Option(min=0, help="so many of the newest versions of each model stay")],
    delete: Annotated[bool, typer.Option("--delete", help="without it only what would go is listed")] = False,
) -> None:
    """Remove old releases; never one that an alias points to or that production has ever been."""
    from flows.terminal import run_clean

    cleaning = run_clean(keep=keep, delete=delete)
    word = "removed" if cleaning.done else "would remove"
    for name in (*cleaning.versions, *cleaning.leftovers):
        typer.echo(f"{word}  {name}")
    if not cleaning.versions and not cleaning.leftovers:
        typer.echo("nothing to remove")
    elif not cleaning.done:
        typer.echo("next     the same with --delete")


@app.command(rich_help_panel="Releases")
def draw(
    prompt: Annotated[str, typer.Argument(help="what to draw")],
    release: ReleaseName = "candidate",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="another seed, another picture")] = 0,
    weights: Annotated[str, typer.Option(help="one of the release's formats")] = "bf16",
    output: Annotated[Path, typer.Option(help="PNG file to write")] = Path("picture.png"),
) -> None:
    """Draw a picture with a release, as its model card does; of a damaged store 'srpo verify' tells."""
    from srpo_core.release import draw as draw_picture
    from srpo_core.storage import open_store

    typer.echo(draw_picture(open_store(), release, prompt, output=output, seed=seed, weights=weights))


def main() -> None:
    """Run the command line; a `SrpoError` is printed as one line and becomes the exit code."""
    try:
        code = app(prog_name="srpo", standalone_mode=False)
    except errors.SrpoError as error:
        if "--debug" in sys.argv:
            raise
        _fail(str(error), error.exit_code)
    except OSError as error:  # the disk, a path that cannot be written
        if "--debug" in sys.argv:
            raise
        _fail(" ".join(str(error).split()), errors.SrpoError.exit_code)
    except USAGE_ERROR as error:
        command = error.ctx.command_path if error.ctx else "srpo"
        _fail(f"{error.format_message().rstrip('.')}: see '{command} --help'", error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted; the same command goes on from here", INTERRUPTED)
    sys.exit(code or 0)


def _fail(line: str, exit_code: int) -> None:
    typer.echo(f"srpo: error: {line}", err=True)
    sys.exit(exit_code)


def _show_verdict(*, passed: bool, reason: str) -> None:
    verdict = (
        typer.style("passed", fg="green", bold=True)
        if passed
        else typer.style("refused", fg="red", bold=True)
    )
    typer.echo(f"verdict  {verdict}: {reason}")


def _shortest(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _patch(changes: list[str]) -> dict[str, Any]:
    """`a.b=1` as {"a": {"b": 1}}; values are YAML."""
    from srpo_core import config

    patch: dict[str, Any] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise errors.ConfigError(f"--set {change}: write KEY=VALUE, for instance train.steps=20")
        nested = _value(change, value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        patch = config.patched(patch, nested)
    return patch


def _value(change: str, text: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise errors.ConfigError(f"--set {change}: {text!r} is not a YAML value") from None
    if value is None:
        raise errors.ConfigError(f"--set {change}: there is no value after '='")
    return value


def _stage_function(name: str) -> Any:
    """The `run` of srpo_core/stages/<name>.py; an unknown name is a `ConfigError`."""
    from srpo_core import stages

    known = {module.name: module.name for module in pkgutil.iter_modules(stages.__path__)}
    errors.pick(known, name, "stage")
    return importlib.import_module(f"srpo_core.stages.{name}").run


def _assert_code_of(directory: Path) -> None:
    """A run uses the code that lies beside its settings, never another checkout's."""
    here = directory / "srpo_core"
    if here.is_dir() and not Path(errors.__file__).parent.samefile(here):
        raise errors.ConfigError(
            f"{directory} has code of its own, but {Path(errors.__file__).parent} was imported: "
            f"start it as 'python -m srpo_core' in that directory, or with PYTHONPATH={directory}"
        )


if __name__ == "__main__":
    main()
