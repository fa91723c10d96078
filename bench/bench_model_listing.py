"""Listing a models folder of 500 files with families and sizes, against a bare walk over it: `python bench/bench_model_listing.py`.

The first listing reads every header; what follows reads none. Printed are milliseconds of wall and of processor time
(median of 21; the second is what an idle machine takes) and ratios to os.scandir and stat.
"""
from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

FILES, FOLDERS, TENSORS = 500, 20, 300


def write(root: Path) -> None:
    """Files with a LoRA's header and no data but a hole, in folders two deep, changed a minute ago."""
    places = {f"lora_unet_block_{i}.lora_down.weight": [64 * i, 64 * i + 64] for i in range(TENSORS)}
    raw = json.dumps({name: {"dtype": "F16", "shape": [4, 8], "data_offsets": at} for name, at in places.items()}).encode()
    raw += b" " * (-len(raw) % 8)
    then = time.time() - 60
    for i in range(FILES):
        path = root / "loras" / f"{i % FOLDERS}" / "more" / f"{i:03d}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as f:
            f.write(len(raw).to_bytes(8, "little") + raw)
            f.truncate(8 + len(raw) + 64 * TENSORS)
        os.utime(path, (then, then))


def walk(root: Path) -> int:
    """The floor: every entry's name and size."""
    total, todo = 0, [str(root)]
    while todo:
        for entry in os.scandir(todo.pop()):
            if entry.is_dir():
                todo.append(entry.path)
            else:
                total += entry.stat().st_size
    return total


def median(work: Callable[[], object], times: int = 21) -> tuple[float, float, float]:
    """Milliseconds by the clock and of the processor, and the fastest by the clock."""
    took = []
    for _ in range(times):
        start, busy = time.perf_counter(), time.process_time()
        work()
        took.append((1000 * (time.perf_counter() - start), 1000 * (time.process_time() - busy)))
    return statistics.median(t for t, _ in took), statistics.median(t for _, t in took), min(took)[0]


def main() -> None:
    """Print first time, later times, names alone, and the ratios."""
    from safelight import folders
    from safelight.families.listing import listed

    with tempfile.TemporaryDirectory() as place:
        os.environ["SAFELIGHT_HOME"] = str(Path(place, "home"))
        root = Path(place, "models")
        write(root)
        found = folders.roots(root)
        start = time.perf_counter()
        assert len(listed(found, "loras")) == FILES
        first = 1000 * (time.perf_counter() - start)
        floor = median(lambda: walk(root))
        again, names = median(lambda: listed(folders.roots(root), "loras")), median(lambda: folders.roots(root).names("loras"))
    print(f"first listing, with imports: {first:.0f} ms")
    for what, (clock, busy, fastest) in {"os.scandir and stat": floor, "listing again": again, "names alone": names}.items():
        print(f"{what}: {clock:.1f} ms, {clock / floor[0]:.1f} times the floor; processor {busy:.1f} ms, {busy / floor[1]:.1f} times;"
              f" the fastest {fastest:.1f} ms")
    if again[2] > 50:
        sys.exit("even the fastest listing takes more than 50 ms")


if __name__ == "__main__":
    main()
