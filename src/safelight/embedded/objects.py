"""Named objects from Microsoft's Fluent emoji (flat, MIT), read from the npm package `@iconify-json/fluent-emoji-flat`."""
from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random

NAMES = {"apple": "red-apple", "cake": "birthday-cake", "cat": "cat-face", "dog": "dog-face", "pig": "pig-face", "pine": "evergreen-tree",
         "moon": "crescent-moon", "heart": "red-heart", "car": "automobile", "snowman": "snowman-without-snow"}


@cache
def _icons(path: str) -> dict[str, dict[str, str]]:
    icons: dict[str, dict[str, str]] = json.loads(Path(path).read_text())["icons"]
    return icons


def svg(name: str, icons: Path, rng: Random) -> str:
    """The object on a transparent ground, a little shifted and scaled, from the package's icons.json. KeyError for an unknown name."""
    body = _icons(str(icons))[NAMES.get(name, name)]["body"]
    side = rng.uniform(36.0, 44.0)
    x, y = (rng.uniform(-(side - 32) * 0.8, -(side - 32) * 0.2) for _ in range(2))
    flip = ' transform="translate(32 0) scale(-1 1)"' if rng.random() < 0.5 else ""
    box = f"{x:.2f} {y:.2f} {side:.2f} {side:.2f}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}"><g{flip}>{body}</g></svg>'
