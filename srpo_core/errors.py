"""The errors that a user can meet, as one tree.

SrpoError                exit code 1   anything below; the command line prints it as one line
├── ConfigError          exit code 2   a setting is unknown, missing or out of range
├── DataError            exit code 2   an input file or record breaks a rule
├── ArtifactError        exit code 1   a file that a stage should have left is missing or damaged
├── DivergenceError      exit code 1   training met a NaN or an infinity
├── GateError            exit code 3   an evaluation gate refused the model
├── StageError           the stage's    a stage of dvc.yaml failed under a flow; the line is the stage's own
└── StoreError           exit code 1   the release store is full, read-only, unreachable or inconsistent

Every message says what is wrong, where, which values are known, and the next step.
"""

from collections.abc import Mapping
from typing import ClassVar, TypeVar

T = TypeVar("T")


class SrpoError(Exception):
    """Base of all errors that are reported to the user as one line."""

    exit_code: ClassVar[int] = 1


class ConfigError(SrpoError):
    """A setting is unknown, missing or out of range."""

    exit_code = 2


class DataError(SrpoError):
    """An input file or record breaks a rule; the message names file, record and rule."""

    exit_code = 2


class ArtifactError(SrpoError):
    """A file that an earlier stage should have left is missing or damaged."""


class DivergenceError(SrpoError):
    """Training met a NaN or an infinity; the message names the step and the tensor."""


class GateError(SrpoError):
    """An evaluation gate refused the model, so it may not go further."""

    exit_code = 3


class StageError(SrpoError):
    """A stage of dvc.yaml failed under a flow: the line that it printed, and its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # that of the stage, not of the class


class StoreError(SrpoError):
    """The release store is full, read-only, unreachable or inconsistent."""


def pick(registry: Mapping[str, T], name: str, what: str) -> T:
    """Look `name` up in a registry; an unknown name is a `ConfigError` that lists the known ones."""
    try:
        return registry[name]
    except KeyError:
        known = ", ".join(sorted(registry))
        raise ConfigError(f"unknown {what} {name!r}: known are {known}") from None
