"""Families x ways of loading, drawing and adapting: how far is what Safelight says from what diffusers and peft say? Prints Markdown.

    OMP_NUM_THREADS=1 python -m bench.parity.matrix

Each number is the largest absolute difference that was measured, in float32 on the CPU, on tiny networks with random weights that the
script makes; nothing is downloaded. Pictures are in [0, 1]; how large other numbers were is said below the tables. `refused` means that
Safelight was asked and said no, a dash that no such thing is in use and nothing was measured; the footnotes say why.
"""
from __future__ import annotations

import argparse
import platform
import sys
import time
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import diffusers
import torch

from bench.parity.cells import CELLS, ROWS, Absent, Bench

PACKAGES = ("safelight", "torch", "diffusers", "transformers", "peft")
TABLES = {
    "Loading and drawing": ["load folder", "load single file", "text to image", "image to image", "inpaint", "ControlNet, diffusers",
                            "ControlNet, original"],
    "LoRA, by whose names": ["kohya, diffusers' blocks", "kohya, original blocks", "diffusers", "diffusers, peft", "peft", "ComfyUI",
                             "OneTrainer", "LyCORIS", "DiffSynth", "attn_procs"],
    "LoRA and its relatives, by kind": ["LoCon", "LoHa", "LoKr", "DoRA"],
}


@dataclass
class Notes:
    """Footnotes, each once."""

    texts: list[str]

    def mark(self, text: str) -> str:
        """The sign of a note."""
        if text not in self.texts:
            self.texts.append(text)
        return f"<sup>{self.texts.index(text) + 1}</sup>"


JOINT = "ControlNets of SD 3 are other networks, copies of transformer blocks, and not read yet; one of SD 1.x was tried"
SDXL_ON_KOLORS = "by diffusers' pipeline of SDXL, given Kolors' networks: its own one drops the pooled text, or is missing"
REMARKS = {
    ("Taiyi", "load single file"): "U-Net from the file, the rest from folders: words of BERT are in no such file",
    ("Kolors", "load single file"): "U-Net from the file, the rest from folders: Kolors' files hold one network each",
    ("SD 3.5", "load single file"): "transformer from the file, the rest from folders",
    ("Kolors", "image to image"): SDXL_ON_KOLORS, ("Kolors", "inpaint"): SDXL_ON_KOLORS,
    ("SD 3.5", "inpaint"): "latents compared, decoded alike: diffusers' pipeline decodes without the autoencoder's shift",
    ("Kolors", "ControlNet, original"):
        "the original layout has no place for Kolors' projection of the text, and its ControlNets come in diffusers'",
    ("SD 3.5", "ControlNet, diffusers"): JOINT, ("SD 3.5", "ControlNet, original"): JOINT,
    ("SD 3.5", "kohya, original blocks"): "weights compared, in SD 3's own layout",
}


def measured(b: Bench, title: str, notes: Notes) -> str:
    """A cell's text."""
    remark = REMARKS.get((b.row.title, title), "")
    try:
        found = CELLS[title](b)
    except Absent as e:
        return "–" + notes.mark(str(e))
    except ValueError as e:
        said = str(e).replace(f"{b.place}/", "").splitlines()[0]
        return "refused" + notes.mark(f"{remark}; the error: {said}" if remark else said)
    return (f"{found:.1e}" if found else "0") + (notes.mark(remark) if remark else "")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="", help="only rows with this in their name")
    parser.add_argument("--only", default="", help="only columns with this in their name")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    diffusers.utils.logging.disable_progress_bar()
    torch.set_grad_enabled(False)
    started, notes, sizes = time.perf_counter(), Notes([]), dict[str, float]()
    rows: dict[str, dict[str, str]] = {}
    with TemporaryDirectory() as place:
        for i, row in enumerate(r for r in ROWS if given.family.lower() in r.title.lower()):
            b = Bench(row, Path(place) / str(i))
            rows[row.title] = {t: measured(b, t, notes) for table in TABLES.values() for t in table if given.only.lower() in t.lower()}
            sizes[row.title] = b.size
            print(f"{row.title}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    for table, columns in TABLES.items():
        shown = [c for c in columns if given.only.lower() in c.lower()]
        if shown:
            print(f"## {table}\n\n| family | {' | '.join(shown)} |\n| --- {'| --- ' * len(shown)}|")
            print("\n".join(f"| {title} | {' | '.join(cells[c] for c in shown)} |" for title, cells in rows.items()), end="\n\n")
    print("\n".join(f"{i}. {text}" for i, text in enumerate(notes.texts, 1)))
    print("\nThe largest number that was compared: " + "; ".join(f"{title} {size:.0f}" for title, size in sizes.items()) + ".")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    print(f"\nMeasured with {versions}, Python {platform.python_version()} on {platform.machine()}, {torch.get_num_threads()} threads.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
