"""What running work yields: small, frozen, serialisable. `Ask` is the one event that never leaves the process."""
from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from safelight.families import Family
    from safelight.values import Cond


@dataclass(frozen=True)
class Event:
    """Base of all events. `node` is filled in by the engine; an op leaves it empty."""

    node: str = ""

    def json(self) -> dict[str, Any]:
        """Plain data with the event's name under `event`."""
        return {"event": type(self).__name__.lower(), **asdict(self)}


@dataclass(frozen=True)
class Progress(Event):
    """`step` of `total` units are done (total 0: unknown). `what` names the work, `unit` what is counted, `values` live numbers."""

    step: int = 0
    total: int = 0
    what: str = ""
    unit: str = "step"
    values: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Preview(Event):
    """A small picture of work in progress: base64 of a JPEG or PNG."""

    data: str = ""
    media: str = "image/jpeg"
    index: int = 0


@dataclass(frozen=True)
class Note(Event):
    """Something the user should read: `level` is `info` or `warning`."""

    text: str = ""
    level: str = "info"


@dataclass(frozen=True)
class Started(Event):
    """An op begins to run."""

    op: str = ""
    key: str = ""


@dataclass(frozen=True)
class Cached(Event):
    """An op's result was in the store; it did not run."""

    op: str = ""
    key: str = ""


@dataclass(frozen=True)
class Done(Event):
    """An op finished; `value` is its value's content key, `seconds` the wall time."""

    op: str = ""
    key: str = ""
    value: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Query:
    """One question to a network: the denoised latent of `x` (B, C, h, w) at `sigma` under `cond` (batch of 1 or B)."""

    x: Tensor
    sigma: float
    cond: Cond


@dataclass(frozen=True)
class Result(Event):
    """A value that was asked for: its type, its content key, and the files it was saved to."""

    type: str = ""
    value: str = ""
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer(Event):
    """What work found that was asked for nothing else: in words, and as numbers by name. Nothing was made."""

    text: str = ""
    values: tuple[tuple[str, float], ...] = ()


class Answered(Exception):
    """Ends work that was asked for an answer alone, and has it: there is no value, and no error either."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.text)
        self.answer = answer


@dataclass(frozen=True)
class Failed(Event):
    """The work ended early: with an error (`kind` is the exception's name), or because it was stopped (`kind` is `stopped`)."""

    text: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Ask(Event):
    """Samplers ask for denoised latents, all of one loaded model. In-process only; answered by `send([x0, ...])`, one x0 a query."""

    family: Family | None = None
    queries: tuple[Query, ...] = ()
