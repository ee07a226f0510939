"""Commands for releases and for files of weights."""

from pathlib import Path
from typing import Annotated, Final

import typer

from srpo_core import errors
from srpo_core.cli.app import app

PANEL: Final = "Releases"

ReleaseName = Annotated[
    str, typer.Option("--release", help="a version or an alias, such as candidate or tiny/candidate")
]


@app.command(rich_help_panel=PANEL)
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
    from srpo_core.quantizers.standalone import quantize_checkpoint
    from srpo_core.runtime.progress import progress_bar

    for line in quantize_checkpoint(source, formats, out, stem=name, bar=progress_bar):
        typer.echo(line)


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
def show(release: Annotated[str, typer.Argument(help="a version or an alias")] = "candidate") -> None:
    """Show a release: verdict, formats with their errors, files, and which aliases moved to and from it."""
    from srpo_core.release.summary import describe
    from srpo_core.storage import open_store

    for line in describe(open_store(), release):
        typer.echo(line)


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
def rollback(
    model: Annotated[
        str | None, typer.Argument(help="whose production; needed where the store has several")
    ] = None,
    reason: Annotated[str, typer.Option(help="kept in the history of production")] = "",
) -> None:
    """Make the release production again that was before the last promotion; given again it moves nothing."""
    from flows.terminal import run_rollback

    typer.echo(run_rollback(model=model, reason=reason))


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
def generate(
    prompt: Annotated[str, typer.Argument(help="what to draw")],
    release: ReleaseName = "candidate",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="another seed, another image")] = 0,
    weights: Annotated[str, typer.Option(help="one of the release's formats")] = "bf16",
    output: Annotated[Path, typer.Option(help="PNG file to write")] = Path("image.png"),
) -> None:
    """Draw an image with a release, as its model card does; of a damaged store 'srpo verify' tells."""
    from srpo_core.release import generate as draw_image
    from srpo_core.storage import open_store

    typer.echo(draw_image(open_store(), release, prompt, output=output, seed=seed, weights=weights))
