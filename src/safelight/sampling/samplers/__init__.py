"""The samplers, a family of methods a file. Importing this package imports every file in it, and each registers what it has in SAMPLERS."""
from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from safelight.sampling.core import SAMPLERS, Sampler

__all__ = ["SAMPLERS", "Sampler"]

for _found in iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")
