"""Data-Juicer's recipes, run as they are: `read_recipe` checks one, `run_recipe` runs it. Without weights, no torch, pandas or Arrow."""
from __future__ import annotations

from safelight.data.juicer.recipe import Recipe, read_recipe
from safelight.data.juicer.run import Outcome, run_recipe

__all__ = ["Outcome", "Recipe", "read_recipe", "run_recipe"]
