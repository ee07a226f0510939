"""The errors that are reported to the user, as one tree.

SrpoError                exit code 1   base class; the command line prints the message as one line
├── ConfigError          exit code 2   a setting is unknown, missing or out of range
├── DataError            exit code 2   an input file or record breaks a rule
│   └── AnswerError      exit code 2   a rater's answer cannot be taken
├── ArtifactError        exit code 1   an output of an earlier stage is missing or damaged
├── DivergenceError      exit code 1   training produced a NaN or an infinity
├── GateError            exit code 3   a gate refused the model, or a check refused a scorer
├── BudgetError          exit code 3   a run would cost more than resources.max_cost
├── StageError           the stage's   a stage of dvc.yaml failed in a flow; the message is the stage's
└── StoreError           exit code 1   the release store is full, read-only, unreachable or inconsistent
    └── DamageError      exit code 1   it holds something else than what was published

A message names what is wrong, where, the allowed values and the next step, in one or two sentences. Credentials in it
are masked.
"""

from collections.abc import Mapping
from typing import ClassVar, TypeVar

from srpo_core.credentials import mask_credentials

T = TypeVar("T")


class SrpoError(Exception):
    """Base class of all errors that are reported to the user as one line, with credentials masked."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(mask_credentials(message))


class ConfigError(SrpoError):
    """A setting is unknown, missing or out of range."""

    exit_code = 2


class DataError(SrpoError):
    """An input file or record breaks a rule; the message names file, record and rule."""

    exit_code = 2


class AnswerError(DataError):
    """A rater's answer cannot be taken: it is none of the item's, another one is stored, or the task is finished."""


class ArtifactError(SrpoError):
    """An output of an earlier stage is missing or damaged."""


class DivergenceError(SrpoError):
    """Training produced a NaN or an infinity; the message names the step and the tensor."""


class GateError(SrpoError):
    """A gate refused the model, or a check refused a scorer."""

    exit_code = 3


class BudgetError(SrpoError):
    """A run would cost more than resources.max_cost with its next stage, which was not started."""

    exit_code = 3


class StageError(SrpoError):
    """A stage of dvc.yaml failed in a flow: its error message and its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # the exit code of the stage, not of the class


class StoreError(SrpoError):
    """The release store is full, read-only, unreachable or inconsistent."""


class DamageError(StoreError):
    """The release store holds something else than what was published: a part was lost or altered."""


def pick(registry: Mapping[str, T], name: str, what: str) -> T:
    """Look up a name in a registry.

    Raises:
        ConfigError: the name is unknown; the message lists the known names.
    """
    try:
        return registry[name]
    except KeyError:
        known = ", ".join(sorted(registry))
        raise ConfigError(f"unknown {what} {name!r}: known are {known}") from None
