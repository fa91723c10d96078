"""A recipe on a million rows: `python bench/bench_data_scale.py [--rows N]`. Memory must not grow with the rows.

A few pictures are named again and again under names of their own (hard links, a thousand a folder). Printed are rows, processor and wall
seconds and the peak memory of the whole process, for a tenth of the rows and for all. Files go to out/bench-scale.
"""
from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bench_data import pictures

PLACE = Path(__file__).parents[1] / "out" / "bench-scale"
LINKS = 50_000  # a file takes no more hard links than 65,000; rows go round
RECIPES = {
    "header": "image_shape_filter: {min_width: 512, min_height: 512}\n  - image_aspect_ratio_filter: {min_ratio: 0.5, max_ratio: 2.0}",
    "header, text duplicates": "image_shape_filter: {min_width: 512, min_height: 512}\n  - document_deduplicator:",
}


def write(rows: int) -> Path:
    """The links and the table, once."""
    data = PLACE / f"data-{rows}.jsonl"
    if data.exists():
        return data
    made = pictures()
    (PLACE / "kinds").mkdir(parents=True, exist_ok=True)
    for i, content in enumerate(made):
        (PLACE / "kinds" / f"{i}.jpg").write_bytes(content)
    for i in range(min(rows, LINKS)):
        link = PLACE / "links" / f"{i // 1000}" / f"{i}.jpg"
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            os.link(PLACE / "kinds" / f"{i % len(made)}.jpg", link)
    with open(data, "w", encoding="utf-8") as f:
        for i in range(rows):
            of = i % LINKS
            f.write(f'{{"text": "一张图片 number {i}", "image": ["links/{of // 1000}/{of}.jpg"], "likes": {i % 97}}}\n')
    return data


def run(data: Path, name: str, process: str) -> tuple[float, float, float]:
    """Processor seconds, wall seconds, and peak memory in MB of `safelight dj` as a whole process."""
    out = PLACE / "out"
    shutil.rmtree(out, ignore_errors=True)
    recipe = PLACE / "recipe.yaml"
    recipe.write_text(f"dataset_path: '{data}'\nimage_key: image\nexport_path: '{out}/result.jsonl'\nprocess:\n  - {process}\n", "utf-8")
    began = time.perf_counter()
    program = [str(Path(sys.executable).parent / "safelight"), "dj", "--config", str(recipe), "--measure-again"]
    child = subprocess.Popen(program, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{name}: exit status {child.returncode}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - began, used.ru_maxrss / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    asked = parser.parse_args()
    print(f"{'recipe':<26}{'rows':>10}{'CPU s':>9}{'wall s':>9}{'rows/CPU s':>12}{'peak MB':>9}")
    for name, process in RECIPES.items():
        for rows in (asked.rows // 10, asked.rows):
            cpu, wall, memory = run(write(rows), name, process)
            print(f"{name:<26}{rows:>10,}{cpu:>9.1f}{wall:>9.1f}{rows / cpu:>12,.0f}{memory:>9.0f}")


if __name__ == "__main__":
    main()
