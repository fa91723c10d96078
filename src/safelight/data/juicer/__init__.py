"""Data-Juicer's recipes, run as they are: `read_recipe` checks one, `run_recipe` runs it. Without weights, no torch, pandas or Arrow."""
from __future__ import annotations

from safelight.data.juicer.parts import run_recipe
from safelight.data.juicer.recipe import Recipe, read_recipe
from safelight.data.juicer.results import Outcome

__all__ = ["Outcome", "Recipe", "read_recipe", "run_recipe"]
