"""Line charts as inline SVG that stay readable at any width: lines stretch with the page, labels are text beside them and do not."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from safelight.reporting.html import Markup, el, number

MOST = 500  # points drawn a line; more are averaged in groups
Point = tuple[float, float]
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Line:
    """One curve: `name` in the legend, `style` a class of the style sheet, points (x, y) by rising x, and optionally a band (low, high)."""

    name: str
    style: str
    points: tuple[Point, ...]
    band: tuple[tuple[float, float], ...] = ()
    dots: bool = False


def thinned(points: Sequence[Point], most: int = MOST) -> tuple[Point, ...]:
    """At most `most` points, each the mean of a group of neighbours; non-finite ones are left out."""
    sound = [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]
    group = -(-len(sound) // most) if sound else 1
    parts = [sound[i:i + group] for i in range(0, len(sound), group)]
    return tuple((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts)


def smoothed(points: Sequence[Point], share: float = 0.04) -> tuple[Point, ...]:
    """Exponential mean over about `share` of the points, started without bias."""
    keep = 1 - 1 / max(1.0, share * len(points))
    total = weight = 0.0
    out = []
    for x, y in points:
        total, weight = keep * total + y, keep * weight + 1
        out.append((x, total / weight))
    return tuple(out)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round((first + i) * step, 12) for i in range(int((high - first * step) / step + 1e-9) + 1)]


def _range(lines: Sequence[Line]) -> tuple[float, float, float, float]:
    """x from the least to the greatest; y without the highest hundredth of the first curve, which is often the very start."""
    xs = [x for line in lines for x, _ in line.points]
    ys = sorted(y for line in lines for y in ([v for low_high in line.band for v in low_high] + [y for _, y in line.points]))
    low, high = ys[0], ys[min(len(ys) - 1, int(len(ys) * 0.99))]
    margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return min(xs), max(xs), (0.0 if 0 <= low < margin * 2 else low - margin), high + margin


def chart(title: str, lines: Sequence[Line], *, x_name: str, mark: tuple[float, str] | None = None) -> Markup:
    """The chart with legend and a table of its values for those who cannot see it. `mark`: a vertical line at x, with its words."""
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup("")
    left, right, low, high = _range(lines)
    right = right if right > left else left + 1

    def across(x: float) -> float:
        return 100 * (x - left) / (right - left)

    def down(y: float) -> float:
        return min(100.0, max(0.0, 100 * (high - y) / (high - low)))

    drawn = [shape for line in lines for shape in _shapes(line, across, down)]
    grid = [el("line", x1=0, x2=100, y1=f"{down(y):.2f}", y2=f"{down(y):.2f}", cls="grid") for y in ticks(low, high)]
    if mark:
        drawn.append(el("line", x1=f"{across(mark[0]):.2f}", x2=f"{across(mark[0]):.2f}", y1=0, y2=100, cls="mark"))
    plot = el("svg", grid, drawn, viewBox="0 0 100 100", preserveAspectRatio="none", aria_hidden="true", focusable="false")
    labels = [el("span", number(y), cls="y", style=f"top:{down(y):.2f}%") for y in ticks(low, high)]
    labels += [el("span", number(x), cls="x", style=f"left:{across(x):.2f}%") for x in ticks(left, right)]
    labels += [el("i", cls=f"dot {line.style}", style=f"left:{across(x):.2f}%;top:{down(y):.2f}%") for line in lines if line.dots
               for x, y in line.points]
    if mark:
        side = "left" if across(mark[0]) < 60 else "right"
        labels.append(el("span", mark[1], cls=f"flag {side}", style=f"left:{across(mark[0]):.2f}%"))
    legend = el("ul", [el("li", el("i", cls=f"key {line.style}"), line.name) for line in lines], cls="legend")
    plotted = el("div", plot, labels, cls="plot", role="img", aria_label=_said(title, lines))
    axes = el("p", x_name, cls="axes")
    return el("figure", el("figcaption", el("strong", title), legend), plotted, axes, _table(lines, x_name), cls="chart")


def _shapes(line: Line, across: Scale, down: Scale) -> list[Markup]:
    xs = [across(x) for x, _ in line.points]
    shapes = []
    if line.band:
        edge = [(x, down(high)) for x, (_, high) in zip(xs, line.band, strict=True)]
        edge += reversed([(x, down(low)) for x, (low, _) in zip(xs, line.band, strict=True)])
        shapes.append(el("polygon", points=" ".join(f"{x:.2f},{y:.2f}" for x, y in edge), cls=f"band {line.style}"))
    points = " ".join(f"{x:.2f},{down(y):.2f}" for x, (_, y) in zip(xs, line.points, strict=True))
    return [*shapes, el("polyline", points=points, cls=f"curve {line.style}")]


def _said(title: str, lines: Sequence[Line]) -> str:
    return f"{title}: " + "; ".join(f"{line.name} from {number(line.points[0][1])} to {number(line.points[-1][1])}" for line in lines)


def _table(lines: Sequence[Line], x_name: str) -> Markup:
    shown = [(line.name, x, y) for line in lines for x, y in thinned(line.points, 12)]
    head = el("tr", el("th", "curve", scope="col"), el("th", x_name, scope="col"), el("th", "value", scope="col"))
    body = [el("tr", el("td", name), el("td", number(x, 4)), el("td", number(y))) for name, x, y in shown]
    return el("details", el("summary", "numbers"), el("div", el("table", el("thead", head), el("tbody", body)), cls="scroll"))


def interval(low: float, value: float, high: float, reach: float) -> Markup:
    """A difference with its interval on a line whose middle is zero and whose ends are -reach and reach."""
    def at(v: float) -> float:
        return 50 + 50 * max(-1.0, min(1.0, v / reach)) if reach else 50.0

    style = "up" if low > 0 else "down" if high < 0 else "flat"
    return el("span", el("i", cls="zero"), el("i", cls="reach", style=f"left:{at(low):.1f}%;width:{at(high) - at(low):.1f}%"),
              el("i", cls="point", style=f"left:{at(value):.1f}%"), cls=f"interval {style}", aria_hidden="true")
