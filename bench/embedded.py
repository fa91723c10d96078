"""Does the embedded model draw what the prompt says? Attributes are read off its pictures by a judge trained on real renders.

    python bench/embedded.py [--count 500] [--icons icons.json]

The prompts are held out: their attributes are drawn from seeds that no training picture used. Each set is asked for in English and in
Chinese. `real` is the same judge on true renders of the same attributes (objects only with --icons, the file `render` was given).
"""
from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Generator
from pathlib import Path
from random import Random

import numpy as np
import torch
from embedded_classifier import HEADS, Classifier, labels, load, predict

import safelight as sl
from safelight import runtime
from safelight.embedded.captions import caption
from safelight.embedded.render import draw as attributes_of
from safelight.embedded.render import picture
from safelight.events import Event
from safelight.sampling.draw import Shot, draw, starts
from safelight.sampling.settings import Guidance, Sampling, Size

log = logging.getLogger("bench")
JUDGE = Path(__file__).parent / "assets" / "attributes.safetensors"
SHARES = {"person": 0.6, "scene": 0.14, "object": 0.26}
BARS = {"hair colour": 0.85, "background": 0.95, "glasses": 0.9, "expression": 0.7, "scene": 0.95, "object": 0.7}


def held_out(count: int) -> list[dict[str, str]]:
    """`count` attribute sets: people, scenes, objects."""
    return [attributes_of(kind, Random(f"held-out/{kind}/{i}")) for kind, share in SHARES.items() for i in range(round(count * share))]


def generated(model: sl.Model, prompts: list[str], steps: int, batch: int = 20) -> tuple[np.ndarray, float]:
    """(N, 128, 128, 3) uint8 and seconds a picture; the seed is the prompt's number."""
    out, start = [], time.perf_counter()
    with runtime.lease(model, holder="bench") as family:
        for i in range(0, len(prompts), batch):
            part = prompts[i:i + batch]
            first = starts(family, Size(), len(part), None, None)
            shots = [Shot(p, i + j, Sampling(steps=steps), Guidance(), first[j][0]) for j, p in enumerate(part)]
            out.append(finish(draw(family, shots, previews=False)).bytes8())
            log.info("%d of %d pictures", i + len(part), len(prompts))
    return np.concatenate(out), (time.perf_counter() - start) / len(prompts)


def finish(work: Generator[Event, None, sl.Image]) -> sl.Image:
    """Run to the end, listening to nothing."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            image: sl.Image = end.value
            return image


def right(judge: Classifier, pixels: np.ndarray, rows: list[dict[str, str]]) -> dict[str, tuple[float, int]]:
    """(share right, how many pictures have the attribute) a head."""
    got, wanted = predict(judge, pixels), labels(rows)
    return {n: (float((got[n] == wanted[n])[wanted[n] >= 0].float().mean()), int((wanted[n] >= 0).sum())) for n in HEADS}


def main() -> None:
    """Print the table and write it, with the seconds a picture, to `--out`."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--count", type=int, default=500)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--model", default="mini")
    p.add_argument("--icons", type=Path)
    p.add_argument("--out", type=Path, default=Path("out/bench-embedded"))
    a = p.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    judge, model, rows = load(JUDGE), sl.model(a.model), held_out(a.count)
    a.out.mkdir(parents=True, exist_ok=True)
    table: dict[str, dict[str, tuple[float, int]]] = {}
    seconds = {}
    for language in ("en", "zh"):
        prompts = [caption(r, Random(i), language=language, full=True) for i, r in enumerate(rows)]
        pixels, seconds[language] = generated(model, prompts, a.steps)
        np.save(a.out / f"{language}.npy", pixels)
        (a.out / f"{language}.json").write_text(json.dumps(prompts, ensure_ascii=False, indent=0))
        table[language] = right(judge, pixels, rows)
    known = [(i, r) for i, r in enumerate(rows) if a.icons or r["kind"] != "object"]
    real = np.stack([np.asarray(picture(r, Random(f"real/{i}"), a.icons)) for i, r in known])
    table["real"] = right(judge, real, [r for _, r in known])
    lines = ["| attribute | pictures | English | Chinese | real renders | bar |", "|---|---|---|---|---|---|"]
    for n in HEADS:
        cells = [f"{100 * table[c][n][0]:.1f} %" if table[c][n][1] else "-" for c in ("en", "zh", "real")]
        lines.append(f"| {n} | {table['en'][n][1]} | {' | '.join(cells)} | {f'{100 * BARS[n]:.0f} %' if n in BARS else ''} |")
    text = "\n".join(lines)
    (a.out / "table.md").write_text(text + "\n")
    pace = {k: round(s, 3) for k, s in seconds.items()}
    log.info("%s\n%s seconds a picture at %d steps on %d threads", text, pace, a.steps, torch.get_num_threads())


if __name__ == "__main__":
    main()
