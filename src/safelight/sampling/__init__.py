"""From noise to latents: samplers, schedules, guidance, and the driver that answers what samplers ask.

The registries here import no torch, so that a surface can list names; what works on tensors is in `driver`, `noise` and `preview`.
"""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safelight.sampling.guidance import GUIDANCES
    from safelight.sampling.samplers import SAMPLERS
    from safelight.sampling.schedules import SCHEDULES

__all__ = ["GUIDANCES", "SAMPLERS", "SCHEDULES"]
_PLACES = {"GUIDANCES": "guidance", "SAMPLERS": "samplers", "SCHEDULES": "schedules"}


def __getattr__(name: str) -> Any:
    """The registries, imported when asked for: `safelight --help` needs the knobs of this package and none of its numbers."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
