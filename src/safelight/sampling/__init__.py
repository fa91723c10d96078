"""From noise to latents: samplers, schedules, guidance, and the driver that answers what samplers ask.

The registries here import no torch, so that a surface can list names; what works on tensors is in `driver`, `noise` and `preview`.
"""
from __future__ import annotations

from safelight.sampling.guidance import GUIDANCES
from safelight.sampling.samplers import SAMPLERS
from safelight.sampling.schedules import SCHEDULES

__all__ = ["GUIDANCES", "SAMPLERS", "SCHEDULES"]
