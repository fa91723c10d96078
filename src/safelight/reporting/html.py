"""Writing HTML so that nothing unescaped can slip in: text is escaped, only what these functions made counts as markup."""
from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Pil

if TYPE_CHECKING:
    from numpy.typing import NDArray

VOID = frozenset({"img", "meta", "br", "hr", "col"})  # SVG has none: there every element is closed


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def el(tag: str, /, *children: str | Iterable[str], **attributes: str | int | float | bool | None) -> Markup:
    """One element. Children are text (escaped), Markup, or lists of these. `cls` and `for_` are class and for; `_` in names becomes `-`;
    None and False leave an attribute out, True writes it bare."""
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = "class" if key == "cls" else key.rstrip("_").replace("_", "-")
        written.append(f" {attribute}" if value is True else f' {attribute}="{html.escape(str(value))}"')
    start = f"<{tag}{''.join(written)}>"
    return Markup(start) if tag in VOID else Markup(f"{start}{join(children)}</{tag}>")


def join(children: Iterable[str | Iterable[str]]) -> Markup:
    """Several pieces as one; text is escaped."""
    out = []
    for child in children:
        if isinstance(child, str):
            out.append(child if isinstance(child, Markup) else html.escape(child, quote=False))
        else:
            out.append(join(child))
    return Markup("".join(out))


def picture(pixels: NDArray[np.uint8], alt: str, *, longest: int = 512, lazy: bool = True) -> Markup:
    """(H, W, 3) uint8 as an <img> with the picture inside it (WebP), its longer side at most `longest` pixels."""
    image = Pil.fromarray(pixels)
    image.thumbnail((longest, longest), Pil.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90, method=4)
    data = base64.b64encode(buffer.getvalue()).decode()
    return el("img", src=f"data:image/webp;base64,{data}", alt=alt, width=image.width, height=image.height,
              loading="lazy" if lazy else None, decoding="async")


def number(value: float, digits: int = 3) -> str:
    """For people: 0.0312, 12.3, 1,234; never 1e-05 for what is plainly zero."""
    if value < 0:
        return f"−{number(-value, digits)}"
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) >= 0.0001 else f"{value:.1e}"


def signed(value: float) -> str:
    """A difference: `number` with its sign."""
    return f"{'+' if value >= 0 else '−'}{number(abs(value))}"


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: int) -> str:
    """Bytes in decimal units."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} bytes"
