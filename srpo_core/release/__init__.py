"""Releases: publish what a run made, take it back, list, verify, and draw with it.

A release is a version in a store (srpo_core/storage): a whole diffusers pipeline with the aligned
transformer in place, the other formats, the evidence (report, decision, proofs) and what reproduces it
(params.yaml, dvc.yaml, dvc.lock, git revision). Its name is `<release.name>-<12 digits of the hash of
dvc.lock>`, so the same run always gives the same version. An alias is a name that moves; every model (`release.name`) has its own.
"""

from srpo_core.release.moves import Cleaning, Move, collect, promote, pull, rollback, show
from srpo_core.release.publishing import CANDIDATE, PRODUCTION, Published, move_alias, publish, withdraw
from srpo_core.release.reading import Release, fetch, generate, list_releases, resolve, verify, verify_aliases

__all__ = [
    "CANDIDATE",
    "PRODUCTION",
    "Cleaning",
    "Move",
    "Published",
    "Release",
    "collect",
    "fetch",
    "generate",
    "list_releases",
    "move_alias",
    "promote",
    "publish",
    "pull",
    "resolve",
    "rollback",
    "show",
    "verify",
    "verify_aliases",
    "withdraw",
]
