"""The model that ships with the package (`weights/`), and what it was made from: a renderer of captioned pictures.

Pictures are drawn from exact attributes (`vocabulary`), so captions in English and Chinese (`captions`) are true by construction.
"""
from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
