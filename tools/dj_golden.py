"""Run Data-Juicer itself on the rows and recipes of tests/juicer.py and keep what it wrote: `python tools/dj_golden.py DJ_PROCESS`.

DJ_PROCESS is the `dj-process` of an environment of its own: py-data-juicer 1.6.1, aiohttp, torch, ray, selectolax, and for
image_deduplicator imagededup.
The outputs go to tests/golden/juicer/NAME.jsonl and NAME_stats.jsonl with the working folder written as {ROOT}.
"""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.juicer import HEADER, RECIPES, write

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "juicer"


def main() -> None:
    """Every recipe, or those named after the program."""
    program, chosen = sys.argv[1], sys.argv[2:] or list(RECIPES)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        write(Path(made))
        for name in chosen:
            run(program, name, Path(made))


def run(program: str, name: str, root: Path) -> None:
    """One recipe; its outputs become golden files."""
    recipe = root / f"{name}.yaml"
    recipe.write_text(HEADER.replace("{root}", str(root)).replace("{name}", name) + RECIPES[name], "utf-8")
    env = {**os.environ, "HF_HOME": str(root / "hf"), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([program, "--config", str(recipe)], env=env, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{name}: exit status {ran.returncode}\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}")
    for suffix in ("", "_stats"):
        found = root / name / f"result{suffix}.jsonl"
        if found.exists():
            text = found.read_text("utf-8").replace(str(root), "{ROOT}")
            (GOLDEN / f"{name}{suffix}.jsonl").write_text(text, "utf-8")
            print(found.name, name, text.count("\n"), "rows")


if __name__ == "__main__":
    main()
