"""One picture from one set of attributes, and a whole training set in shards, drawn in parallel.

    python -m safelight.embedded.render OUT --icons icons.json --people 36000 --scenes 5000 --objects 15000
"""
from __future__ import annotations

import argparse
import io
import json
import logging
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from safelight.disk import place
from safelight.embedded import objects, people, scenes
from safelight.embedded import vocabulary as v

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

log = logging.getLogger(__name__)
SIDE = 128


def raster(svg: str, side: int = SIDE) -> Picture:
    """SVG text to an RGBA picture, drawn at twice the size and box-filtered (thin lines stay even)."""
    import resvg_py
    from PIL import Image

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * side, height=2 * side, skip_system_fonts=True))
    return Image.open(io.BytesIO(png), formats=("PNG",)).convert("RGBA").resize((side, side), Image.Resampling.BOX)


def draw(kind: str, rng: Random) -> dict[str, str]:
    """Attributes of one picture of `kind` (person, scene, object)."""
    if kind == "person":
        return people.draw_attributes(rng)
    if kind == "scene":
        return {"kind": kind, "scene": rng.choice(list(v.SCENES)), "time": rng.choice(list(v.TIMES))}
    name = rng.choice(list(v.OBJECTS))
    return {"kind": "object", "object": name, "background": rng.choice(list(v.BACKGROUNDS))}


def picture(a: dict[str, str], rng: Random, icons: Path | None = None) -> Picture:
    """(SIDE, SIDE) RGB picture of the attributes. ValueError when an object is asked for without the icon file."""
    from PIL import Image

    if "scene" in a:
        ground = raster(scenes.svg(a["scene"], a["time"], rng))
    else:
        ground = Image.new("RGBA", (SIDE, SIDE), v.BACKGROUND_HEX[a["background"]])
    if a["kind"] == "person":
        ground.alpha_composite(raster(people.svg(a, rng)))
    elif a["kind"] == "object":
        if icons is None:
            raise ValueError("render: an object needs the icon file of @iconify-json/fluent-emoji-flat; pass icons=PATH/icons.json")
        ground.alpha_composite(raster(objects.svg(a["object"], icons, rng)))
    return ground.convert("RGB")


def _shard(job: tuple[str, int, int], out: Path, icons: Path, seed: int) -> tuple[str, int]:
    import numpy as np

    kind, number, count = job
    name = f"{kind}-{number:03}"
    if (out / f"{name}.json").exists():
        return name, count
    pixels = np.empty((count, SIDE, SIDE, 3), np.uint8)
    rows = []
    for i in range(count):
        rng = Random(f"{seed}/{name}/{i}")
        rows.append(draw(kind, rng))
        pixels[i] = np.asarray(picture(rows[-1], rng, icons))

    def save(new: Path) -> None:
        with open(new, "wb") as f:
            np.save(f, pixels)

    place(out, out / f"{name}.npy", save)
    place(out, out / f"{name}.json", lambda new: new.write_text(json.dumps(rows, ensure_ascii=False)))
    return name, count


def build(out: Path, counts: dict[str, int], icons: Path, *, seed: int = 0, shard: int = 1000, workers: int = 2) -> None:
    """Draw `counts[kind]` pictures a kind into shards `KIND-NNN.npy`, (N, SIDE, SIDE, 3) uint8, and `KIND-NNN.json`; finished ones stay."""
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(kind, i, min(shard, n - i * shard)) for kind, n in counts.items() for i in range((n + shard - 1) // shard)]
    jobs.sort(key=lambda job: job[1])
    with ProcessPoolExecutor(workers) as pool:
        for done in [pool.submit(_shard, job, out, icons, seed) for job in jobs]:
            log.info("drew %s: %d pictures", *done.result())


def main() -> None:
    """The command above."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path)
    p.add_argument("--icons", type=Path, required=True, help="icons.json of @iconify-json/fluent-emoji-flat (npm pack)")
    p.add_argument("--people", type=int, default=36000)
    p.add_argument("--scenes", type=int, default=5000)
    p.add_argument("--objects", type=int, default=15000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    a = p.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build(a.out, {"person": a.people, "scene": a.scenes, "object": a.objects}, a.icons, seed=a.seed, workers=a.workers)


if __name__ == "__main__":
    main()
