"""A few real ops with a registry of their own, that tests of the core run; `RAN` says what ran in this process."""
from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import safetensors.numpy

from safelight.events import Ask, Note, Preview, Progress, Query
from safelight.lineage import here
from safelight.op import Knob, OneOf, Op, Work, op
from safelight.store import current
from safelight.values import Blob, Caption, Dataset, Image, Knobs, Model, Page, Patch, Row, Scores

SMALL: dict[str, Op[..., Any]] = {}
RAN: list[str] = []
NAMES_ASKED: list[int] = []


def _styles() -> list[str]:
    NAMES_ASKED.append(1)
    return ["plain", "bold"]


@dataclass(frozen=True)
class Rate(Knobs):
    """How fast.

    Args:
        lr: size of a step
    """

    lr: Annotated[float, Knob(0, 1)] = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    warm: Annotated[int, Knob(0, 100, help="steps before full speed")] = 0

    def __post_init__(self) -> None:
        if self.warm and self.lr > 0.5:
            raise ValueError("lr at most 0.5 when warm is set")


@op("test", registry=SMALL, loads=True)
def grey(level: str, *, count: Annotated[int, Knob(1, 64)] = 2, side: int = 4) -> Image:
    """Grey pictures of one level.

    Args:
        level: 0 to 1
        count: how many
    """
    RAN.append("grey")
    info = tuple({"prompt": f"grey {level}", "seed": i} for i in range(count))
    return Image(np.full((count, side, side, 3), float(level), np.float32), info)


@op("test", registry=SMALL)
def add(
    image: Image, other: Image | None = None, *, by: float = 0.1, style: Annotated[str, OneOf(_styles)] = "plain",
    mode: Literal["sum", "mean"] = "sum", steps: Annotated[int, Knob(1, 1000)] = 3, rate: Rate = Rate(),
) -> Work[Image]:
    """Add a number, and another picture.

    Args:
        image: what to add to
        by: the number, in
            units of full white
    """
    pixels = image.pixels + np.float32(by)
    if other is not None:
        pixels = pixels + other.pixels
    try:
        for i in range(steps):
            yield Progress(step=i + 1, total=steps, values=(("lr", rate.lr),))
        yield Preview(data="AA==")
        yield Note(text="added")
    finally:
        RAN.append("add closed")
    RAN.append("add")
    return Image(np.clip(pixels, 0, 1).astype(np.float32), image.info)


@op("test", registry=SMALL)
def stack(images: Sequence[Image], *, seeds: Annotated[Sequence[int], Knob(0, 2**64 - 1, draw=True)] = (-1,)) -> Image:
    """Put batches one after another."""
    RAN.append("stack")
    pixels = np.concatenate([i.pixels for i in images])
    return Image(pixels, tuple({"seed": seeds[n % len(seeds)]} for n in range(len(pixels))))


@op("test", registry=SMALL)
def fail(image: Image, *, text: str = "no luck") -> Work[Image]:
    """Always goes wrong, after a step."""
    RAN.append("fail")
    yield Progress(step=1, total=2)
    raise RuntimeError(text)


@op("test", registry=SMALL)
def asks(image: Image) -> Work[Image]:
    """Asks twice; halves what nobody answers."""
    x = image.pixels
    for sigma in (2.0, 1.0):
        answer = yield Ask(queries=(Query(x, sigma, None),))  # type: ignore[arg-type]
        x = x / 2 if answer is None else answer[0]
    return Image(x, image.info)


def _listing(given: Mapping[str, Any]) -> str:
    files = sorted(Path(given["path"]).glob("*.png"))
    return hashlib.sha256("".join(f"{p.name}{p.stat().st_mtime_ns}" for p in files).encode()).hexdigest()


@op("test", registry=SMALL, loads=True, fingerprint=_listing)
def album(path: Path) -> Dataset:
    """The files of a folder."""
    RAN.append("album")
    files = sorted(Path(path).glob("*.png"))
    return Dataset(tuple(Row(Blob.of(p), p.name, 4, 4, (Caption("file", p.stem),)) for p in files), {"source": str(path)})


@op("test", registry=SMALL, exact=True)
def keep(data: Dataset, *, least: int = 0) -> Dataset:
    """Drop files whose size is below a number of bytes, with the number in the reason."""
    RAN.append("keep")
    small = {r.name for r in data.rows if Path(r.picture.path).stat().st_size < least}
    rows = (Row(r.picture, r.name, 4, 4, r.captions, f"below {least} bytes" if r.name in small else "") for r in data.rows)
    return Dataset(tuple(rows), data.info)


@op("test", registry=SMALL)
def learn(data: Dataset, *, steps: int = 2, seed: Annotated[int, Knob(0, 2**64 - 1, draw=True)] = 0) -> Work[Patch]:
    """Weights made of the captions."""
    RAN.append("learn")
    work = current().folder("learn")
    for i in range(steps):
        (work / "state").write_text(str(i))
        yield Progress(step=i + 1, total=steps, what="learn")
    numbers = np.frombuffer(f"{[r.caption for r in data]} {steps} {seed}".encode(), np.uint8)
    weights = current().blob(safetensors.numpy.save({"w": numbers}, {"safelight.lineage": json.dumps(here().data)}), ".safetensors")
    shutil.rmtree(work)
    return Patch("test", weights, files={"record.json": current().blob(b"{}", ".json")}, info={"steps": steps})


def _content(given: Mapping[str, Any]) -> str:
    return Blob.of(given["path"]).sha256


@op("test", registry=SMALL, loads=True, fingerprint=_content)
def load_patch(path: Path) -> Patch:
    """Weights from a file."""
    RAN.append("load_patch")
    return Patch("test", current().blob(path))


@op("test", registry=SMALL, store=False, loads=True)
def net(name: str = "small") -> Model:
    """A model by name; made anew in every process."""
    RAN.append("net")
    return Model("test", name, hashlib.sha256(name.encode()).hexdigest())


@op("test", registry=SMALL, store=False)
def wear(model: Model, patch: Patch, *, strength: float = 1.0) -> Model:
    """Put a patch on a model."""
    RAN.append("wear")
    return model.with_patch(patch)


@op("test", registry=SMALL)
def paint(
    model: Model, prompt: str, *, seeds: Annotated[Sequence[int], Knob(0, 2**64 - 1, draw=True)] = (-1,), side: int = 8,
) -> Work[Image]:
    """Noise, one picture a seed, that depends on the model and the prompt."""
    RAN.append("paint")
    pictures = []
    for i, seed in enumerate(seeds):
        yield Progress(step=i, total=len(seeds), what="paint")
        start = int.from_bytes(hashlib.sha256(f"{model.key}{prompt}{seed}".encode()).digest()[:8], "big")
        pictures.append(np.random.default_rng(start).random((side, side, 3), np.float32))
    info = tuple({"prompt": prompt, "negative": "", "seed": s, "steps": 20, "sampler": "euler_ancestral", "schedule": "karras",
                  "cfg": 4.0, "size": [side, side], "model": model.source} for s in seeds)
    return Image(np.stack(pictures), info)


@op("test", registry=SMALL, exact=True)
def pick(image: Image, indices: Sequence[int]) -> Image:
    """Choose pictures."""
    RAN.append("pick")
    return Image(image.pixels[list(indices)], tuple(image.info[i] for i in indices))


@op("test", registry=SMALL, exact=True)
def rank(image: Image) -> Scores:
    """Mean brightness."""
    RAN.append("rank")
    return Scores({"bright": [float(p.mean()) for p in image.pixels]}, image)


@op("test", registry=SMALL, exact=True)
def tell(data: Dataset) -> Page:
    """What was dropped, as a page."""
    RAN.append("tell")
    text = "\n".join(f"{r.name}: {r.dropped or 'kept'}" for r in data.rows)
    return Page(current().blob(f"<pre>{text}</pre>".encode(), ".html"))


@op("test", registry=SMALL)
def slow(image: Image, *, seconds: float = 0.5) -> Work[Image]:
    """Takes its time."""
    RAN.append("slow")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield Progress(what="slow")
        time.sleep(0.01)
    return Image(image.pixels * np.float32(0.5), image.info)
