"""Commands for releases and for weight files."""

from pathlib import Path
from typing import Annotated, Final

import typer

from srpo_core import errors
from srpo_core.cli.app import app
from srpo_core.cli.output import notify, shortest
from srpo_core.quantizers import REFERENCE

PANEL: Final = "Releases"

Release = Annotated[str, typer.Argument(help="A version or an alias.")]


@app.command(rich_help_panel=PANEL)
def quantize(
    source: Annotated[
        Path, typer.Argument(help="FLUX transformer: a diffusers directory, or a .safetensors or .gguf file.")
    ],
    formats: Annotated[
        list[str], typer.Option("--format", help="A format, such as Q8_0; can be given several times.")
    ],
    out: Annotated[Path, typer.Option(help="Directory to write to.")],
    name: Annotated[
        str | None, typer.Option(help="Base name of the files; default: name of the source.")
    ] = None,
) -> None:
    """Convert a FLUX checkpoint to other formats. Formats that exist already are kept."""
    from srpo_core.quantizers.standalone import quantize_checkpoint
    from srpo_core.runtime.progress import progress_bar

    for line in quantize_checkpoint(source, formats, out, stem=name, bar=progress_bar):
        typer.echo(line)


@app.command(rich_help_panel=PANEL)
def releases(
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write a page of all releases; the store has one, index.html."
        ),
    ] = None,
) -> None:
    """List the releases in the store (SRPO_STORE, default store/)."""
    from srpo_core.release.store_page import write_page
    from srpo_core.release.summary import list_releases
    from srpo_core.storage import open_store

    store = open_store()
    manifests = dict(store.manifests(store.versions()))
    found = list_releases(store, signatures=True, manifests=manifests)
    if html is not None:
        write_page(store, html, manifests=manifests)
    if not found:
        typer.echo(f"no release in {store.uri}")
    for release in found:
        names = f"  ({', '.join(release.aliases)})" if release.aliases else ""
        readable = f"{release.created_at}  {release.signature}"
        state = readable if release.fault is None else f"unreadable: {release.fault}"
        typer.echo(f"{release.version}  {state}{names}")
    if html is not None:
        typer.echo(f"page  {shortest(html)}")


@app.command(rich_help_panel=PANEL)
def show(release: Release = "candidate") -> None:
    """Show a release: its verdict, signature, formats with their errors, and the moves of its aliases."""
    from srpo_core.release.summary import describe
    from srpo_core.storage import open_store

    for line in describe(open_store(), release):
        typer.echo(line)


@app.command(rich_help_panel=PANEL)
def pull(
    release: Release,
    to: Annotated[Path, typer.Option(help="Directory to write to.")],
    format_name: Annotated[
        str | None, typer.Option("--format", help="One of the release's formats; default: all files.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also replace files that are not from an earlier pull.")
    ] = False,
) -> None:
    """Download a release's files and verify each SHA-256. Repeat it to resume an interrupted download."""
    from srpo_core.release.download import pull as pull_files
    from srpo_core.storage import open_store

    for path in pull_files(open_store(), release, format_name=format_name, target=to, force=force):
        typer.echo(path)


@app.command(rich_help_panel=PANEL)
def verify(
    release: Release = "candidate",
    every: Annotated[
        bool, typer.Option("--all", help="Verify every version and alias in the store.")
    ] = False,
) -> None:
    """Read a release's files back, compare each with its SHA-256, and check the signature."""
    from srpo_core.release.notices import damage_message
    from srpo_core.release.trust import trust_here
    from srpo_core.release.verify import inspect, joined, verify_aliases
    from srpo_core.storage import open_store

    store, trust = open_store(), trust_here()
    faults = verify_aliases(store) if every else []
    if every and not store.versions():
        typer.echo(f"no release in {store.uri}")
    for version in store.versions() if every else [release]:
        try:
            manifest, state = inspect(store, version, trust)
        except errors.StoreError as fault:
            faults.append(fault)
        else:
            typer.echo(f"{manifest['version']}: {len(manifest['files'])} files are intact, {state}")
    if faults:
        error = joined(faults)
        if isinstance(error, errors.DamageError):
            notify(damage_message(store, [str(error)]))
        raise error


@app.command(rich_help_panel=PANEL)
def sign(release: Release = "candidate") -> None:
    """Sign a published release with the SSH key that SRPO_SIGNING_KEY names. A release can have several signatures."""
    from srpo_core.release.references import resolve
    from srpo_core.release.signing import KEY_VARIABLE, sign_release
    from srpo_core.release.trust import release_state, trust_here
    from srpo_core.storage import open_store

    store = open_store()
    version = resolve(store, release)
    if not sign_release(store, version):
        raise errors.ConfigError(f"{KEY_VARIABLE} is not set: set it to the path of an SSH key")
    typer.echo(f"{version}: {release_state(store, version, store.manifest(version), trust_here())}")


@app.command(rich_help_panel=PANEL)
def reproduce(release: Release = "candidate") -> None:
    """Run a release's stages again from its revision, settings and data, and compare the results.

    Exit code 0: same bytes, or on another kind of machine figures within bounds. Exit code 1: something differs.
    """
    from srpo_core.release.reproduce import reproduce as run_again
    from srpo_core.storage import open_store

    comparison, workspace = run_again(
        open_store(), release, checkout=Path.cwd(), on_line=lambda line: typer.echo(line, err=True)
    )
    typer.echo(f"outcome  {comparison.outcome}: {comparison.reason}")
    for name in comparison.other_bytes:
        typer.echo(f"bytes    {name} has other bytes")
    for figure in comparison.figures:
        numbers = " ".join("none" if one is None else f"{one:.4g}" for one in (figure.released, figure.again))
        state = "agrees " if figure.agrees else "differs"
        typer.echo(f"{state}  {figure.name}: {numbers.replace(' ', ' → ')} ({figure.bound})")
    typer.echo(f"results  {shortest(workspace)}/runs")
    if comparison.outcome == "different":
        raise typer.Exit(errors.SrpoError.exit_code)


@app.command(rich_help_panel=PANEL)
def gc(
    keep: Annotated[int, typer.Option(min=0, help="Number of newest versions to keep of each model.")],
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove the releases instead of listing them.")
    ] = False,
) -> None:
    """List old releases, or remove them with --delete. Those with an alias or once in production are kept."""
    from srpo_core.release.gc import collect_garbage
    from srpo_core.release.notices import damage_message
    from srpo_core.storage import open_store

    store = open_store()
    garbage = collect_garbage(store, keep=keep, delete=delete)
    state = "removed" if garbage.deleted else "would remove"
    for name in (*garbage.versions, *garbage.leftovers):
        typer.echo(f"{state}  {name}")
    for fault in garbage.unreadable:
        typer.echo(f"kept  {fault}")
    if not garbage.versions and not garbage.leftovers:
        typer.echo("nothing to remove")
    elif not garbage.deleted:
        typer.echo("next     repeat it with --delete")
    if garbage.unreadable:
        notify(damage_message(store, garbage.unreadable))


@app.command(rich_help_panel=PANEL)
def generate(
    prompt: Annotated[str, typer.Argument(help="Text prompt.")],
    release: Annotated[
        str, typer.Option("--release", help="A version or an alias, such as candidate or tiny/candidate.")
    ] = "candidate",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the initial noise.")] = 0,
    weights: Annotated[str, typer.Option(help="One of the release's formats.")] = REFERENCE,
    output: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("image.png"),
) -> None:
    """Generate an image with a release, with the settings of its model card."""
    from srpo_core.release.generate import generate as generate_image
    from srpo_core.storage import open_store

    typer.echo(generate_image(open_store(), release, prompt, output=output, seed=seed, weights=weights))


@app.command(
    rich_help_panel=PANEL,
    hidden=True,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def draw() -> None:
    """Report the new name of this command."""
    raise errors.ConfigError("'srpo draw' was renamed: use 'srpo generate', which has the same options")
