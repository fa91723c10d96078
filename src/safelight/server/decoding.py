"""The process that opens pictures from outside: bounded in memory and time, and once it has begun it can open, start and connect nothing.

Run as `python -I -c ... WORK`; the pictures come on standard input, the answer (a line of JSON, then bytes) goes to standard output.
"""
from __future__ import annotations

import io
import json
import struct
import sys
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from safelight.limits import MAX_PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MEMORY, SECONDS = 3 * 2**29, 20
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, OverflowError, ZeroDivisionError, AttributeError,
           struct.error, zlib.error)


def main() -> int:
    """Do what the first argument (JSON) says with what comes in. Exit status 1: the picture was refused, the line says why."""
    from PIL import Image as Pil
    from PIL import PngImagePlugin, features

    Pil.init()  # all plugins are loaded before nothing can be opened any more
    features.check("webp")
    Pil.MAX_IMAGE_PIXELS = MAX_PIXELS
    PngImagePlugin.MAX_TEXT_CHUNK = 2**24
    work = json.loads(sys.argv[1])
    data = [sys.stdin.buffer.read(n) for n in work.pop("sizes")]
    _confine()
    try:
        told, made = WORK[work.pop("do")](*data, **work)
    except (*DAMAGED, MemoryError, Pil.DecompressionBombError) as e:
        told, made = {"error": str(e)[:300] or type(e).__name__}, b""
    sys.stdout.buffer.write(json.dumps(told).encode() + b"\n" + made)
    sys.stdout.buffer.flush()
    return int("error" in told)


def _confine() -> None:
    from safelight.weights.child import nothing_else

    if sys.platform != "win32":
        import resource

        for what, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_CORE, 0)):
            resource.setrlimit(what, (most, most))
    sys.addaudithook(nothing_else)


def _opened(data: bytes) -> Image:
    from PIL import Image as Pil

    picture = Pil.open(io.BytesIO(data), formats=FORMATS)
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(f"{picture.width} x {picture.height} pixels is over the limit of {MAX_PIXELS // 10**6} million")
    picture.load()
    return picture


def check(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Whether it is a picture: decoded to the end."""
    picture = _opened(data)
    return {"format": picture.format, "width": picture.width, "height": picture.height}, b""


def encode(data: bytes, *, form: str = "PNG", quality: int = 90, channel: str = "rgba") -> tuple[dict[str, Any], bytes]:
    """The picture anew, with nothing in it but pixels; `channel`: rgb without transparency, a with the transparency alone."""
    picture = _opened(data)
    shown = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    if channel == "rgb" or form == "JPEG":
        shown = shown.convert("RGB")
    elif channel == "a":
        from PIL import Image as Pil

        alpha = shown.getchannel("A") if shown.mode == "RGBA" else Pil.new("L", shown.size, 255)
        shown = Pil.new("RGBA", shown.size)
        shown.putalpha(alpha)
    out = io.BytesIO()
    shown.save(out, form, **({} if form == "PNG" else {"quality": quality}))
    return {"format": form, "width": shown.width, "height": shown.height}, out.getvalue()


def mask(original: bytes, drawn: bytes) -> tuple[dict[str, Any], bytes]:
    """The original's colours under the drawn picture's transparency, as a PNG that keeps the original's texts."""
    from PIL.PngImagePlugin import PngInfo

    below, above = _opened(original), _opened(drawn).convert("RGBA")
    made = below.convert("RGBA")
    made.putalpha(above.resize(made.size).getchannel("A"))
    texts = PngInfo()
    for key, value in getattr(below, "text", {}).items():
        texts.add_text(key, value)
    out = io.BytesIO()
    made.save(out, "PNG", compress_level=4, pnginfo=texts)
    return {"format": "PNG", "width": made.width, "height": made.height}, out.getvalue()


WORK: dict[str, Callable[..., tuple[dict[str, Any], bytes]]] = {"check": check, "encode": encode, "mask": mask}
