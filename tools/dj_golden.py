"""Run Data-Juicer itself on the rows and recipes of tests/juicer.py and keep what it wrote: `python tools/dj_golden.py DJ_PROCESS`.

DJ_PROCESS is the `dj-process` of an environment of its own: py-data-juicer 1.6.1, aiohttp, torch, ray, selectolax, and for
image_deduplicator imagededup; opencv-contrib-python-headless for `seen`, simhash-pybind for simhash.
The outputs go to tests/golden/juicer/NAME.jsonl, NAME_stats.jsonl and so on with the working folder written as {ROOT}.
"""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.juicer import FORMATS, FORMATS_HEADER, HEADER, RECIPES, SEEN, SIMHASH, write, write_alike, write_formats, write_seen

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "juicer"


def main() -> None:
    """Every recipe, or those named after the program."""
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        for do in (write, write_formats, write_alike, write_seen):
            do(root)
        recipes = {name: HEADER + text for name, text in RECIPES.items()}
        recipes |= {name: HEADER.replace("data.jsonl", "alike.jsonl") + text for name, text in SIMHASH.items()}
        recipes["seen"] = HEADER.replace("data.jsonl", "seen.jsonl") + SEEN
        for name, (suffix, keys) in FORMATS.items():
            recipes[name] = FORMATS_HEADER.replace("{suffix}", suffix) + keys + "\n"
        GOLDEN.mkdir(parents=True, exist_ok=True)
        for name in sys.argv[2:] or recipes:
            run(sys.argv[1], name, recipes[name], root)


def run(program: str, name: str, text: str, root: Path) -> None:
    """One recipe; its outputs become golden files."""
    recipe = root / f"{name}.yaml"
    recipe.write_text(text.replace("{root}", str(root)).replace("{name}", name), "utf-8")
    env = {**os.environ, "HF_HOME": str(root / "hf"), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([program, "--config", str(recipe)], env=env, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{name}: exit status {ran.returncode}\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}")
    for found in sorted((root / name).glob("result*")):
        golden = GOLDEN / found.name.replace("result", name, 1)
        golden.write_bytes(found.read_bytes().replace(str(root).encode(), b"{ROOT}"))
        print(golden.name, golden.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
