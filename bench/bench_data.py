"""A recipe on 10,000 JPEGs, whole process, against the floor and Data-Juicer: `python bench/bench_data.py [--dj DJ_PROCESS] [--pixels]`.

The recipe is the usual one: image_shape_filter and image_aspect_ratio_filter. The floor is a bare Python that stats, opens and reads the
first 64 KB of every file. Printed are processor and wall seconds (best of five; Data-Juicer runs once, on two processes) and ratios.
Ours is run without what it knows of the pictures, then knowing them, then with another threshold. Files go to out/bench-data.

--pixels: the perceptual hash, sharpness, brightness and entropy of a picture as `curate` takes them, against one decode by Pillow at the
smallest scale that keeps the same pixels, in colour and in grey; processor milliseconds a picture on one thread, taken in turn, medians.
"""
from __future__ import annotations

import argparse
import io
import json
import math
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACE = ROOT / "out" / "bench-data"
KINDS = 200  # different pictures; each file has its own end
FLOOR = """
import os, sys
for path in open(sys.argv[1]).read().splitlines():
    os.stat(path)
    with open(path, "rb", buffering=0) as f:
        f.read(65536)
"""
RECIPE = """
project_name: bench
dataset_path: '{data}'
np: 2
text_keys: 'text'
image_key: 'image'
image_special_token: '<__dj__image>'
export_path: '{out}/result.jsonl'
process:
  - image_shape_filter: {{min_width: {side}, min_height: {side}, any_or_all: any}}
  - image_aspect_ratio_filter: {{min_ratio: 0.5, max_ratio: 2.0, any_or_all: any}}
"""


def pictures(noise: float = 0.0) -> list[bytes]:
    """JPEGs of 256 to 2048 pixels a side, 1.3 megapixels and 77 KB in the mean, every eighth turned by EXIF; noise makes more."""
    import numpy as np
    from PIL import Image

    draw, made = np.random.default_rng(0), []
    for i in range(KINDS):
        width, height = (int(v) for v in draw.integers(256, 2049, 2))
        coarse = draw.integers(0, 256, (max(2, height // 64), max(2, width // 64), 3)).astype(np.uint8)
        exif, out = Image.Exif(), io.BytesIO()
        exif[0x0112] = 6 if i % 8 == 0 else 1
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        grain = draw.standard_normal((height, width, 1), np.float32) * noise if noise else 0
        Image.fromarray((np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=80, exif=exif)
        made.append(out.getvalue())
    return made


def write(count: int) -> Path:
    """The files and data.jsonl, once."""
    data = PLACE / f"data-{count}.jsonl"
    if data.exists():
        return data
    (PLACE / "pictures").mkdir(parents=True, exist_ok=True)
    kinds, chance, rows = pictures(), random.Random(0), []
    for i in range(count):
        name = f"pictures/{i:05d}.jpg"
        (PLACE / name).write_bytes(chance.choice(kinds) + i.to_bytes(4, "big"))
        rows.append(json.dumps({"text": f"二次元 {i}", "image": [name]}, ensure_ascii=False))
    os.sync()
    data.write_text("\n".join(rows) + "\n", "utf-8")
    return data


def timed(command: Sequence[str], **env: str) -> tuple[float, float]:
    """Processor and wall seconds of a whole process with its children. Byte code is kept as an installed package has it."""
    kept = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(PLACE / "pycache")}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    ran = subprocess.run(command, env={**os.environ, **kept, **env}, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ran.returncode:
        raise SystemExit(f"{command[0]}: exit status {ran.returncode}\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def recipe(data: Path, name: str, side: int) -> Path:
    """A recipe whose result goes to a folder of its own."""
    out = PLACE / name
    shutil.rmtree(out, ignore_errors=True)
    path = PLACE / f"{name}.yaml"
    path.write_text(RECIPE.format(data=data, out=out, side=side), "utf-8")
    return path


def headers(data: Path, rounds: int) -> dict[str, tuple[float, float]]:
    """The floor, then `safelight dj` keeping nothing, keeping measures, knowing them, knowing them with another threshold.

    Taken in turn, as other work on the machine is not the same from minute to minute; the least of each.
    """
    program, home, listed = str(Path(sys.executable).parent / "safelight"), PLACE / "home", PLACE / "files.txt"
    listed.write_text("\n".join(str(PLACE / json.loads(line)["image"][0]) for line in data.read_text("utf-8").splitlines()))
    plain, other = ([program, "dj", "--config", str(recipe(data, f"ours-{side}", side))] for side in (512, 640))
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        shutil.rmtree(home, ignore_errors=True)
        for name, command in {
            "floor: stat, open, read 64 KB": [sys.executable, "-c", FLOOR, str(listed)],
            "safelight dj, keeping nothing": [*plain, "--measure-again"], "safelight dj, first time": plain,
            "safelight dj, other threshold": other,
        }.items():
            found.setdefault(name, []).append(timed(command, SAFELIGHT_HOME=str(home)))
    return {name: (min(c for c, _ in took), min(w for _, w in took)) for name, took in found.items()}


def pixels(noise: float, rounds: int) -> dict[str, float]:
    """Milliseconds a picture."""
    from PIL import Image

    from safelight.data.duplicates import phash
    from safelight.data.measures import Picture, find
    from safelight.pictures import REFERENCE_SIDE
    from safelight.values import Blob, Row

    folder = PLACE / f"pixels-{noise:g}"
    folder.mkdir(parents=True, exist_ok=True)
    for i, content in enumerate(pictures(noise)):
        (folder / f"{i}.jpg").write_bytes(content)
    paths = sorted(folder.iterdir())

    def decode(path: Path, mode: str) -> None:
        with Image.open(path) as picture:
            scale = min(1.0, REFERENCE_SIDE / min(picture.size))
            picture.draft(mode, (math.ceil(picture.width * scale), math.ceil(picture.height * scale)))
            picture.load()

    def measure(path: Path) -> None:
        picture = Picture(Row(Blob(str(path), ""), path.name, 1, 1))
        for name in ("sharpness", "brightness", "entropy"):
            find(name).take(picture)
        phash(picture.grey)

    works: dict[str, Callable[[Path], None]] = {
        "one decode, colour": lambda p: decode(p, "RGB"), "one decode, grey": lambda p: decode(p, "L"), "hash and three measures": measure}
    took: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.thread_time()
            for path in paths:
                work(path)
            took[name].append((time.thread_time() - start) / len(paths) * 1000)
    return {name: statistics.median(some) for name, some in took.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dj", metavar="DJ_PROCESS")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pixels", action="store_true")
    asked = parser.parse_args()
    if asked.pixels:
        for noise in (0.0, 8.0):
            found = pixels(noise, asked.rounds)
            print(f"{'smooth' if not noise else 'with noise'}, {sum(map(len, pictures(noise))) // KINDS // 1000} KB a picture")
            for name, took in found.items():
                print(f"{name:<34}{took:8.2f} ms{took / found['one decode, colour']:8.2f}{took / found['one decode, grey']:8.2f}")
        return
    data = write(asked.files)
    found = headers(data, asked.rounds)
    if asked.dj:
        shutil.rmtree(PLACE / "hf", ignore_errors=True)
        path = recipe(data, "dj", 512)
        found["dj-process"] = timed([asked.dj, "--config", str(path)], HF_HOME=str(PLACE / "hf"), HF_HUB_OFFLINE="1")
        for name in ("result.jsonl", "result_stats.jsonl"):
            same = (PLACE / "dj" / name).read_bytes() == (PLACE / "ours-512" / name).read_bytes()
            print(f"{name}: {'the same bytes' if same else 'DIFFERENT'}")
    floor, dj = found["floor: stat, open, read 64 KB"], found.get("dj-process")
    heads = ["CPU s", "wall s", "CPU/floor", "wall/floor", *(["DJ/CPU", "DJ/wall"] if dj else [])]
    print(" " * 34 + "".join(f"{h:>11}" for h in heads))
    for name, (cpu, wall) in found.items():
        against = f"{dj[0] / cpu:11.0f}{dj[1] / wall:11.0f}" if dj else ""
        print(f"{name:<34}{cpu:11.3f}{wall:11.2f}{cpu / floor[0]:11.2f}{wall / floor[1]:11.2f}{against}")


if __name__ == "__main__":
    main()
