"""Simple landscapes as SVG, drawn from a scene, a time of day and a seed. Own drawings; no source."""
from __future__ import annotations

from collections.abc import Callable
from random import Random

_SKY = {"day": ("#6db9f2", "#cfeafc"), "sunset": ("#5b3b8c", "#ff9d5c"), "night": ("#0c1433", "#2c3a6e")}
_SHADE = {"day": 1.0, "sunset": 0.78, "night": 0.42}
SIDE = 128


def _shade(colour: str, time: str) -> str:
    k = _SHADE[time]
    r, g, b = (int(colour[i:i + 2], 16) for i in (1, 3, 5))
    warm = (1.12, 0.92, 0.88) if time == "sunset" else (1.0, 1.0, 1.25) if time == "night" else (1.0, 1.0, 1.0)
    return "#" + "".join(f"{min(255, int(c * k * w)):02x}" for c, w in zip((r, g, b), warm, strict=True))


def _sky(rng: Random, time: str) -> str:
    top, low = _SKY[time]
    stops = f'<stop offset="0" stop-color="{top}"/><stop offset="0.75" stop-color="{low}"/>'
    parts = [f'<defs><linearGradient id="s" x1="0" y1="0" x2="0" y2="1">{stops}</linearGradient></defs>', '<rect width="128" height="128" fill="url(#s)"/>']
    x = rng.uniform(16, 112)
    if time == "day":
        parts.append(f'<circle cx="{x:.0f}" cy="{rng.uniform(16, 28):.0f}" r="10" fill="#ffe066"/>')
        for _ in range(2):
            cx, cy = rng.uniform(10, 118), rng.uniform(14, 44)
            parts += [f'<ellipse cx="{cx + dx:.0f}" cy="{cy + dy:.0f}" rx="{rx}" ry="6" fill="#ffffff"/>' for dx, dy, rx in ((-8, 0, 9), (0, -4, 9), (8, 0, 9))]
    elif time == "sunset":
        parts.append(f'<circle cx="{x:.0f}" cy="{rng.uniform(56, 68):.0f}" r="14" fill="#ffd36b"/>')
    else:
        parts.append(f'<circle cx="{x:.0f}" cy="22" r="9" fill="#f4f1d0"/>')
        parts += [f'<circle cx="{rng.uniform(2, 126):.0f}" cy="{rng.uniform(2, 60):.0f}" r="1" fill="#ffffff"/>' for _ in range(18)]
    return "".join(parts)


def _ridge(rng: Random, base: float, height: float, colour: str, peaks: int = 3) -> str:
    step = 128 / peaks
    points = [(-10.0, 128.0)]
    for i in range(peaks + 1):
        points += [(i * step + rng.uniform(-6, 6), base - height * rng.uniform(0.75, 1.1)), ((i + 0.5) * step, base)]
    points.append((140.0, 128.0))
    return f'<polygon points="{" ".join(f"{x:.0f},{y:.0f}" for x, y in points)}" fill="{colour}"/>'


def _mound(cx: float, cy: float, rx: float, ry: float, colour: str) -> str:
    return f'<ellipse cx="{cx:.0f}" cy="{cy:.0f}" rx="{rx:.0f}" ry="{ry:.0f}" fill="{colour}"/>'


def _ground(y: float, colour: str) -> str:
    return f'<rect y="{y:.0f}" width="128" height="{128 - y:.0f}" fill="{colour}"/>'


def _waves(rng: Random, top: float, colour: str) -> str:
    lines = []
    for y in range(int(top) + 8, 126, 12):
        x = rng.uniform(-10, 10)
        lines += [f'<path d="M{x + i * 42:.0f} {y} q8 -6 16 0" stroke="{colour}" stroke-width="2" fill="none"/>' for i in range(4)]
    return "".join(lines)


def _beach(rng: Random, time: str) -> str:
    y = rng.uniform(62, 70)
    x = rng.choice((16, 108)) + rng.uniform(-5, 5)
    leaves = "".join(f'<ellipse cx="{x + dx:.0f}" cy="{54 + dy}" rx="15" ry="4" transform="rotate({a} {x:.0f} 54)" fill="{_shade("#2f9e4d", time)}"/>'
                     for dx, dy, a in ((-9, 0, 25), (9, 0, -25), (-6, -3, -30), (6, -3, 30)))
    return (_ground(y, _shade("#2f8fd0", time)) + f'<path d="M0 96 Q40 84 80 92 T128 88 V128 H0Z" fill="{_shade("#f2d79b", time)}"/>'
            + f'<path d="M{x:.0f} 102 Q{x + 4:.0f} 78 {x:.0f} 54" stroke="{_shade("#8a5a33", time)}" stroke-width="5" fill="none"/>' + leaves)


def _city(rng: Random, time: str) -> str:
    lit = "#ffe58a" if time != "day" else "#e8f4ff"
    parts, x = [], -4.0
    while x < 128:
        w, h = rng.uniform(16, 24), rng.uniform(44, 86)
        parts.append(f'<rect x="{x:.0f}" y="{118 - h:.0f}" width="{w:.0f}" height="{h:.0f}" fill="{_shade(rng.choice(("#7c8aa5", "#9a8f9e", "#66758f", "#8fa3b5")), time)}"/>')
        parts += [f'<rect x="{x + 4 + i * 7:.0f}" y="{124 - h + j * 11:.0f}" width="4" height="5" fill="{lit}"/>'
                  for i in range(2) for j in range(int((h - 10) // 11)) if rng.random() < 0.8]
        x += w + rng.uniform(0, 3)
    return "".join(parts) + _ground(116, _shade("#5a5f69", time))


def _forest(rng: Random, time: str) -> str:
    parts = [_ground(92, _shade("#5d9c4a", time))]
    for i in range(7):
        x, h = i * 21 + rng.uniform(-6, 6), rng.uniform(48, 66)
        y = 104 + rng.uniform(-6, 8)
        parts.append(f'<rect x="{x - 2:.0f}" y="{y - 8:.0f}" width="5" height="12" fill="{_shade("#6f4a2f", time)}"/>')
        parts += [f'<polygon points="{x - w:.0f},{y - b:.0f} {x:.0f},{y - b - h * 0.5:.0f} {x + w:.0f},{y - b:.0f}" fill="{_shade("#1f7a43", time)}"/>'
                  for w, b in ((14, 6), (11, 6 + h * 0.28), (8, 6 + h * 0.55))]
    return "".join(parts)


def _snow(rng: Random, time: str) -> str:
    back = _ridge(rng, 92, 52, _shade("#8fa6c4", time))
    caps = _ridge(rng, 100, 34, _shade("#eef4fb", time), 4)
    return back + caps + _mound(30, 128, 90, 22, _shade("#ffffff", time)) + _mound(110, 130, 80, 26, _shade("#e4eef8", time))


def _hills(rng: Random, time: str) -> str:
    return (_mound(rng.uniform(10, 50), 116, 80, 46, _shade("#8fcf6a", time)) + _mound(rng.uniform(80, 120), 122, 80, 48, _shade("#6cbb50", time))
            + _mound(64 + rng.uniform(-20, 20), 136, 110, 36, _shade("#4fa23c", time)))


def _desert(rng: Random, time: str) -> str:
    c = _shade("#3d8f4f", time)
    x = rng.choice((20, 104)) + rng.uniform(-5, 5)
    cactus = (f'<rect x="{x - 4:.0f}" y="66" width="8" height="36" rx="4" fill="{c}"/><rect x="{x - 14:.0f}" y="74" width="6" height="14" rx="3" fill="{c}"/>'
              f'<rect x="{x - 14:.0f}" y="84" width="12" height="5" fill="{c}"/><rect x="{x + 8:.0f}" y="70" width="6" height="14" rx="3" fill="{c}"/>'
              f'<rect x="{x + 2:.0f}" y="80" width="12" height="5" fill="{c}"/>')
    return (_mound(rng.uniform(0, 40), 118, 90, 36, _shade("#e9b872", time)) + _mound(rng.uniform(90, 128), 124, 80, 40, _shade("#dca35a", time))
            + cactus + _mound(64, 138, 120, 32, _shade("#f0c986", time)))


def _sea(rng: Random, time: str) -> str:
    y = rng.uniform(66, 74)
    return _ground(y, _shade("#2277bd", time)) + _ground(y + 24, _shade("#1b64a6", time)) + _waves(rng, y, _shade("#bfe3fa", time))


_DRAW: dict[str, Callable[[Random, str], str]] = {
    "beach": _beach, "city": _city, "forest": _forest, "snow": _snow, "hills": _hills, "desert": _desert, "sea": _sea}


def svg(scene: str, time: str, rng: Random) -> str:
    """The scene as an SVG document, 128 x 128 units."""
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128">{_sky(rng, time)}{_DRAW[scene](rng, time)}</svg>'
