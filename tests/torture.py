"""Files that break picture readers, each with the outcome that is stated for it in docs/data.md.

`python -m tests.torture FOLDER COUNT` writes so many and says which met another outcome.
"""
from __future__ import annotations

import io
import json
import os
import random
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as Pil

from safelight.data.curation import Rule, curate
from safelight.data.folder import read_folder
from safelight.data.juicer import read_recipe, run_recipe
from safelight.progress import watch

SIZE = (48, 32)  # width and height of nearly all
Bytes = Callable[[random.Random], bytes]


class Kind(NamedTuple):
    """`name` has {} for the number. `curate`: the beginning of the reason, "" when it stays, None when there is no row; `dj`: a part of the
    reason, or "". `size` as it is to be seen."""

    name: str
    make: Bytes | Callable[[Path], None]
    curate: str | None = ""
    dj: str = ""
    size: tuple[int, int] = SIZE


def noise(chance: random.Random, size: tuple[int, int] = SIZE, mode: str = "RGB") -> Pil.Image:
    """Blocks of random colours, so that no two look alike."""
    bands = np.frombuffer(chance.randbytes(6 * 4 * 3), dtype=np.uint8).reshape(4, 6, 3)
    return Pil.fromarray(bands).resize(size, Pil.Resampling.NEAREST).convert(mode)


def saved(kind: str, mode: str = "RGB", size: tuple[int, int] = SIZE, **options: Any) -> Bytes:
    """A file of a format and mode."""
    def make(chance: random.Random) -> bytes:
        out = io.BytesIO()
        noise(chance, size, mode).save(out, kind, **options)
        return out.getvalue()

    return make


def turned(kind: str) -> Bytes:
    """EXIF says that it is to be turned by 90 degrees."""
    exif = Pil.Exif()
    exif[0x0112] = 6
    return saved(kind, size=SIZE[::-1], exif=exif)


def cut(make: Bytes, share: float) -> Bytes:
    """A download that broke off."""
    def shorter(chance: random.Random) -> bytes:
        whole = make(chance)
        return whole[:max(1, int(len(whole) * share))]

    return shorter


def moving(kind: str) -> Bytes:
    """Three frames."""
    def make(chance: random.Random) -> bytes:
        out, frames = io.BytesIO(), [noise(chance) for _ in range(3)]
        frames[0].save(out, kind, save_all=True, append_images=frames[1:], duration=50)
        return out.getvalue()

    return make


def deep(chance: random.Random) -> bytes:
    """16 bits a pixel."""
    out = io.BytesIO()
    Pil.fromarray(np.asarray(noise(chance, mode="L")).astype(np.uint16) * 257).save(out, "PNG")
    return out.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int, *, real: bool) -> Bytes:
    """A PNG of so many pixels of 1 bit: with all of its rows (a few KB), or with none."""
    rows = zlib.compress(b"\0" * (height * (1 + width // 8)), 9) if real else zlib.compress(b"\0")
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    whole = b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")
    return lambda chance: whole + chance.randbytes(8)


def text_bomb(chance: random.Random) -> bytes:
    """A PNG with a comment of 200 MB in 200 KB."""
    whole, comment = saved("PNG")(chance), _chunk(b"zTXt", b"a\0\0" + TEXT)
    return whole[:33] + comment + whole[33:]


TEXT = zlib.compress(b"a" * 200_000_000, 9)


def damaged(chance: random.Random) -> bytes:
    """A PNG whose pixels are overwritten in a place, as by a bad disk."""
    whole = saved("PNG")(chance)
    at = whole.index(b"IDAT") + 4
    return whole[:at] + b"\xff" * 16 + whole[at + 16:]


def words(text: str) -> Bytes:
    """No picture."""
    return lambda chance: f"{text} {chance.random()}".encode()


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _nowhere(path: Path) -> None:
    path.symlink_to("there is no such file")


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "back").symlink_to("..")  # a loop of folders


def _locked(path: Path) -> None:
    path.write_bytes(saved("PNG")(random.Random(str(path))))
    path.chmod(0)


ABSENT, OVER = "[Errno 2] No such file", "pixels is over the limit of"
KINDS = {
    "JPEG": Kind("{}.jpg", saved("JPEG")),
    "progressive JPEG": Kind("{}.jpg", saved("JPEG", progressive=True)),
    "CMYK": Kind("{}.jpg", saved("JPEG", "CMYK")),
    "grey JPEG": Kind("{}.jpeg", saved("JPEG", "L")),
    "bytes behind the end": Kind("{}.jpg", lambda chance: saved("JPEG")(chance) + b"\0" * 5000),
    "16 bit": Kind("{}.png", deep),
    "palette": Kind("{}.png", saved("PNG", "P")),
    "palette with transparency": Kind("{}.png", saved("PNG", "P", transparency=0)),
    "1 bit": Kind("{}.png", saved("PNG", "1")),
    "grey with alpha": Kind("{}.png", saved("PNG", "LA")),
    "RGBA": Kind("{}.webp", saved("WEBP", "RGBA")),
    "lossless WebP": Kind("{}.webp", saved("WEBP", lossless=True)),
    "float TIFF": Kind("{}.tiff", saved("TIFF", "F")),
    "CMYK TIFF": Kind("{}.tif", saved("TIFF", "CMYK")),
    "BMP": Kind("{}.bmp", saved("BMP")),
    "AVIF": Kind("{}.avif", saved("AVIF")),
    "animated GIF": Kind("{}.gif", moving("GIF")),
    "animated WebP": Kind("{}.webp", moving("WEBP")),
    "animated PNG": Kind("{}.png", moving("PNG")),
    "turned JPEG": Kind("{}.jpg", turned("JPEG")),
    "turned PNG": Kind("{}.png", turned("PNG")),
    "turned WebP": Kind("{}.webp", turned("WEBP")),
    "one pixel": Kind("{}.png", saved("PNG", size=(1, 1)), size=(1, 1)),
    "a line": Kind("{}.png", saved("PNG", size=(3000, 1)), size=(3000, 1)),
    "PNG called .jpg": Kind("{}.jpg", saved("PNG")),
    "JPEG called .png": Kind("{}.png", saved("JPEG")),
    "no extension": Kind("{}", saved("JPEG")),
    "JPEG called .dat": Kind("{}.dat", saved("JPEG")),
    "JPEG called .md": Kind("{}.md", saved("JPEG"), None),
    "any Unicode": Kind("{} 猫\n😀 'q\" #%.jpg", saved("JPEG")),
    "JPEG cut in its pixels": Kind("{}.jpg", cut(saved("JPEG", quality=95), 0.9), "unreadable: truncated jpeg"),
    "PNG cut in its pixels": Kind("{}.png", cut(saved("PNG", compress_level=0), 0.5), "unreadable: truncated png"),
    "WebP cut in its pixels": Kind("{}.webp", cut(saved("WEBP", lossless=True), 0.8), "unreadable: truncated webp", "decoder"),
    "GIF cut in its pixels": Kind("{}.gif", cut(saved("GIF"), 0.95), "unreadable: truncated gif"),
    "JPEG cut in its header": Kind("{}.jpg", cut(saved("JPEG"), 0.1), "unreadable: truncated jpeg", "truncated jpeg"),
    "PNG cut in its header": Kind("{}.png", lambda chance: saved("PNG")(chance)[:20], "unreadable: truncated png", "truncated png"),
    "zero bytes": Kind("{}.png", lambda _: b"", "unreadable: the file is empty", "the file is empty"),
    "text called .jpg": Kind("{}.jpg", words("no picture"), "unreadable: not a picture", "not a picture"),
    "page called .png": Kind("{}.png", words("<!DOCTYPE html><p>404"), "unreadable: not a picture", "not a picture"),
    "SVG called .png": Kind("{}.png", words("<svg xmlns='http://www.w3.org/2000/svg'/>"), "unreadable: not a picture", "not a picture"),
    "bomb of pixels": Kind("{}.png", bomb(20000, 20000, real=True), "unreadable: 20000 x 20000 " + OVER, OVER),
    "bomb in its header": Kind("{}.png", bomb(2**31 - 1, 2**31 - 1, real=False), "unreadable: 2147483647 x 2147483647 " + OVER, OVER),
    "no pixels": Kind("{}.png", bomb(0, 5, real=False), "unreadable: png header says 0 x 5", "png header says 0 x 5"),
    "bomb of text": Kind("{}.png", text_bomb, "unreadable: Decompressed data too large"),
    "damaged pixels": Kind("{}.png", damaged, "unreadable: "),
    "link to itself": Kind("{}.jpg", _loop, "unreadable: Too many levels of symbolic links", "[Errno 40]"),
    "link to nothing": Kind("{}.jpg", _nowhere, "unreadable: No such file", ABSENT),
    "folder called .jpg": Kind("{}.jpg", _folder, None, "Is a directory"),
    "pipe": Kind("{}.jpg", os.mkfifo, "unreadable: not a file", "not a file"),
    "pipe without extension": Kind("{}", os.mkfifo, None, "not a file"),
    "name that is not UTF-8": Kind("{}\udcff.jpg", saved("JPEG"), "unreadable: the file's name is not UTF-8", "not Unicode"),
}
if os.geteuid():
    KINDS["not ours to read"] = Kind("{}.png", _locked, "unreadable: Permission denied", "Permission denied")


class Case(NamedTuple):
    """A file that was written."""

    path: Path
    kind: Kind

    @property
    def name(self) -> str:
        """Of the kind."""
        return next(name for name, kind in KINDS.items() if kind is self.kind)


def write(folder: Path, count: int, only: tuple[str, ...] = ()) -> list[Case]:
    """So many files, of all kinds in turn, in folders of 500."""
    kinds, cases = [KINDS[k] for k in only] or list(KINDS.values()), []
    for i in range(count):
        kind = kinds[i % len(kinds)]
        path = folder / f"{i // 500}" / kind.name.format(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind.make in (_loop, _nowhere, _folder, os.mkfifo, _locked):
            kind.make(path)  # type: ignore[arg-type]
        else:
            path.write_bytes(kind.make(random.Random(i)))  # type: ignore[arg-type, operator]
        cases.append(Case(path, kind))
    return cases


def wrong_in_curate(cases: list[Case], root: Path) -> list[str]:
    """Read the folder and curate it; what became of a file otherwise than stated."""
    measured = [Rule("sharpness", "blurred", low=-1)]  # keeps all that can be decoded
    found = {r.name: r for r in watch(curate(watch(read_folder(root)), measured, distance=-1)).rows}
    wrong = []
    for case in cases:
        row = found.pop(os.fsencode(case.path.relative_to(root)).decode("utf-8", "replace"), None)
        got = None if row is None else row.dropped
        fits = got == case.kind.curate if got is None or not case.kind.curate else got.startswith(case.kind.curate)
        if not fits or (row is not None and not got and (row.width, row.height) != case.kind.size):
            wrong.append(f"curate: {case.name}: {got!r} {row and (row.width, row.height)}")
    return wrong + [f"curate: {name}: not written by us" for name in found]


def wrong_in_dj(cases: list[Case], work: Path) -> list[str]:
    """Run a recipe that reads headers and pixels; what became of a row otherwise than stated."""
    listed = [json.dumps({"text": f"row {i}", "image": [str(c.path)]}) for i, c in enumerate(cases)]
    (work / "data.jsonl").write_text("\n".join(listed) + "\n", "utf-8")
    keys = f"dataset_path: {work}/data.jsonl\nimage_key: image\nexport_path: {work}/result.jsonl\n"
    (work / "r.yaml").write_text(keys + "process: [image_shape_filter, image_deduplicator: {consider_text: true}]", "utf-8")
    done = run_recipe(read_recipe(work / "r.yaml"))
    assert done.stats is not None
    kept, stats, dropped = (_read(p) for p in (done.result, done.stats, done.dropped_list))
    assert done.read == len(cases) == len(kept) + len(dropped)
    sizes = {int(r["text"].split()[1]): (s["__dj__stats__"]["image_width"], s["__dj__stats__"]["image_height"])
             for r, s in zip(kept, stats, strict=True)}
    reasons = {d["line"] - 1: d["reason"] for d in dropped}
    wrong = []
    for i, case in enumerate(cases):
        got = reasons.get(i, "")
        fits = case.kind.dj in got and bool(got) == bool(case.kind.dj)
        if not fits or (not got and sizes[i] != ([case.kind.size[0]], [case.kind.size[1]])):
            wrong.append(f"dj: {case.name}: {got!r} {sizes.get(i)}")
    return wrong


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def main() -> None:
    """Exit status 1 when an outcome is another than stated."""
    work = Path(sys.argv[1])
    cases = write(work / "set", int(sys.argv[2]))
    wrong = wrong_in_curate(cases, work / "set") + wrong_in_dj(cases, work)
    sys.stdout.write("".join(f"{line}\n" for line in wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
