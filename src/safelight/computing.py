"""On which device and in which precision networks run, where the user has said it. No torch: a surface sets it, the runtime reads it.

What was said enters the recipe keys, so that a result computed in float32 is never taken for one in bfloat16.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

DTYPES = ("float32", "bfloat16", "float16")
COMPILED = "compiled:"


@dataclass(frozen=True)
class Computing:
    """A device by torch's name (`cpu`, `cuda:1`, `mps`), a precision, and torch.compile's backend for the denoiser; empty: chosen by the
    runtime, and not compiled."""

    device: str = ""
    dtype: str = ""
    compile: str = ""

    @staticmethod
    def read(text: str) -> Computing:
        """Back from its text."""
        words = text.split()
        compiled = [w for w in words if w.startswith(COMPILED)]
        device = "".join(w for w in words if w not in DTYPES and w not in compiled)
        return Computing(device, "".join(w for w in words if w in DTYPES), "".join(w.removeprefix(COMPILED) for w in compiled))

    def __str__(self) -> str:
        return " ".join(word for word in (self.device, self.dtype, self.compile and COMPILED + self.compile) if word)


NOTHING = Computing()
_said: ContextVar[Computing | None] = ContextVar("computing", default=None)


def chosen() -> Computing:
    """What was said here."""
    return _said.get() or NOTHING


@contextmanager
def computing(device: str = "", dtype: str = "", compile: str = "") -> Iterator[None]:
    """Run networks there and so, for as long as the `with` lasts; what is empty stays as it was. `compile` is a backend of torch.compile,
    such as `inductor`: the first picture of a size then takes minutes, the later ones less. ValueError for an unknown precision."""
    if dtype and dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
    was = chosen()
    before = _said.set(Computing(device or was.device, dtype or was.dtype, compile or was.compile))
    try:
        yield
    finally:
        _said.reset(before)
