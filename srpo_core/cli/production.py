"""Commands that decide which release is production."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from srpo_core.cli.app import app
from srpo_core.cli.output import notify

if TYPE_CHECKING:
    from srpo_core.release.aliases import Move

PANEL: Final = "Production"

Release = Annotated[str, typer.Argument(help="A version or an alias.")]
Candidate = Annotated[str, typer.Argument(help="A version, or an alias such as <model>/candidate.")]
Reason = Annotated[str, typer.Option(help="Recorded in the history of the alias production.")]
Why = Annotated[str, typer.Option(help="Recorded in the history of the release; required.")]


@app.command(rich_help_panel=PANEL)
def promote(
    release: Release,
    reason: Reason = "",
    override: Annotated[
        bool, typer.Option("--override", help="Promote although the gate refused it; requires --reason.")
    ] = False,
) -> None:
    """Point the alias `production` of its model to a release; `previous` then points to the former one."""
    from srpo_core.release import aliases
    from srpo_core.release.guard import guarded_store
    from srpo_core.release.notices import move_message
    from srpo_core.runtime.notifications import Kind

    store = guarded_store()
    move = aliases.promote(store, release, reason=reason, override=override)
    typer.echo(_move_line(move))
    notify(move_message(Kind.PROMOTED, store, move, reason))


@app.command(rich_help_panel=PANEL)
def approve(release: Candidate = "candidate", why: Why = "") -> None:
    """Approve the candidate of its model: it becomes production, as with 'srpo promote', and the reason is recorded."""
    from srpo_core.release import approval
    from srpo_core.release.guard import guarded_store
    from srpo_core.release.notices import move_message
    from srpo_core.runtime.notifications import Kind

    store = guarded_store()
    move = approval.approve(store, release, why=why)
    typer.echo(_move_line(move))
    notify(move_message(Kind.PROMOTED, store, move, why))


@app.command(rich_help_panel=PANEL)
def reject(release: Candidate = "candidate", why: Why = "") -> None:
    """Reject a release: the reason is recorded in its history, and no alias moves."""
    from srpo_core.release import approval
    from srpo_core.release.guard import guarded_store

    store = guarded_store()
    typer.echo(f"{approval.reject(store, release, why=why)}  rejected")


@app.command(rich_help_panel=PANEL)
def rollback(
    model: Annotated[
        str | None,
        typer.Argument(help="Model whose alias production moves; required if the store has several models."),
    ] = None,
    reason: Reason = "",
) -> None:
    """Move the alias production back to the previous release. Safe to repeat."""
    from srpo_core.release import aliases
    from srpo_core.release.guard import guarded_store
    from srpo_core.release.notices import move_message
    from srpo_core.runtime.notifications import Kind

    store = guarded_store()
    move = aliases.rollback(store, model=model, reason=reason)
    typer.echo(_move_line(move))
    notify(move_message(Kind.ROLLED_BACK, store, move, reason))


def _move_line(move: "Move") -> str:
    """Describe a move of production in one line."""
    if move.before == move.after:
        return (
            f"{move.alias}  already points to {move.after}: see its history with 'srpo show {move.after}', or move it "
            "with 'srpo promote VERSION'"
        )
    return f"{move.alias}  {move.before or 'nothing'} → {move.after}"
