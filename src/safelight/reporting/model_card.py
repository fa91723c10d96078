"""A model card: README.md as the hubs read it, with sample pictures, the held-out curve and the settings, in a folder with the file."""
from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from PIL import Image as Pil
from PIL import ImageDraw

from safelight.disk import place, put
from safelight.reporting.charts import ticks
from safelight.reporting.lettering import write
from safelight.reporting.sheet import DIM, INK, LAMP, PAPER, RULE

PICTURES = 4
SIZE, EDGE = (960, 480), (70, 40, 30, 60)  # left, top, right, bottom
SETTINGS = {
    "ss_network_dim": "rank", "ss_network_alpha": "alpha", "ss_learning_rate": "learning rate", "ss_optimizer": "optimizer",
    "ss_lr_scheduler": "schedule", "ss_steps": "steps", "ss_total_batch_size": "batch", "ss_num_train_images": "pictures",
    "ss_resolution": "resolution", "ss_seed": "seed", "ss_sd_model_name": "trained on", "safelight.data_root": "pictures and captions",
}
HUB_FOLDER = re.compile(r"models--([^/\s]+?)--([^/\s]+)")


@dataclass(frozen=True)
class Card:
    """What a card is made of: the file, what it says of itself, the training's record and sample pictures where they are known, the base's
    name on a hub, the licence by the hub's identifier, the title."""

    file: Path
    notes: Mapping[str, str]
    record: Mapping[str, Any] = field(default_factory=dict)
    samples: Sequence[tuple[str, Path]] = ()
    base: str = ""
    licence: str = "other"
    title: str = ""

    def write(self, folder: Path) -> list[Path]:
        """The files, whole: the adapter, images/, held-out.png, README.md. Nothing else in the folder is touched."""
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / self.file.name]
        if written[0].resolve() != self.file.resolve():
            place(folder, written[0], partial(shutil.copyfile, self.file))
        for i, (_, picture) in enumerate(self.samples[:PICTURES]):
            put(folder / "images" / f"{i}.png", picture.read_bytes())
            written.append(folder / "images" / f"{i}.png")
        if len(self.record.get("held_out", ())) > 1:
            put(folder / "held-out.png", curve(self.record["held_out"]))
            written.append(folder / "held-out.png")
        put(folder / "README.md", self.text([p.relative_to(folder).as_posix() for p in written]).encode())
        return [*written, folder / "README.md"]

    def text(self, files: Sequence[str]) -> str:
        """README.md; `files` are the names beside it."""
        trigger = self.notes.get("modelspec.trigger_phrase", "")
        title = self.title or self.notes.get("modelspec.title") or self.file.stem
        parts = [f"---\n{yaml.safe_dump(self._head(trigger), sort_keys=False, allow_unicode=True)}---\n\n# {title}\n"]
        parts += [f"Write `{trigger}` in the prompt to call it.\n"] if trigger else []
        parts += [f"![{_plain(prompt)}](images/{i}.png)\n\n{_plain(prompt)}\n" for i, (prompt, _) in enumerate(self.samples[:PICTURES])]
        parts.append("## Use\n\nIn ComfyUI or AUTOMATIC1111's web UI put the file among the LoRAs. In diffusers:\n\n```python\n"
                     f"pipeline.load_lora_weights(\"FOLDER OR HUB NAME\", weight_name=\"{self.file.name}\")\n```\n")
        parts.append(_table("## Settings", "setting", [(words, self.notes[k]) for k, words in SETTINGS.items() if self.notes.get(k)]))
        parts.append(_table("## Read back after training", "program", [(str(r["reader"]), _read(r)) for r in _proof(self.notes)]))
        licences = [(name, f"{n} pictures") for name, n in self.record.get("licences", ())]
        parts.append(_table("## Licences of the pictures", "licence", licences))
        if "held-out.png" in files:
            parts.append("## Held-out loss\n\n![Loss of the pictures kept out of training, with its 95 % band](held-out.png)\n")
        return "\n".join(p for p in parts if p)

    def _head(self, trigger: str) -> dict[str, Any]:
        architecture = self.notes.get("modelspec.architecture", "").partition("/")[0]
        base = self.base or self.notes.get("safelight.base", "")
        head = {"base_model": base, "base_model_relation": "adapter" if base else "", "library_name": "diffusers",
                "pipeline_tag": "text-to-image", "license": self.licence, "instance_prompt": trigger}
        tags = ["text-to-image", "lora", "diffusers", "template:sd-lora", *([architecture] if architecture else []), "safelight"]
        widget = [{"text": prompt, "output": {"url": f"images/{i}.png"}} for i, (prompt, _) in enumerate(self.samples[:PICTURES])]
        return {k: v for k, v in (head | {"tags": tags, "widget": widget}).items() if v}


def hub_name(source: str) -> str:
    """`owner/name` of a model in the Hugging Face cache; nothing for one elsewhere."""
    found = HUB_FOLDER.search(source)
    return f"{found[1]}/{found[2]}" if found else ""


def curve(readings: Sequence[Sequence[float]]) -> bytes:
    """PNG of (step, loss, low, high) rows: the line and its band."""
    steps, lows, highs = ([r[i] for r in readings] for i in (0, 2, 3))
    low, high = min(lows), max(highs)
    room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    low, high = low - room, high + room

    def at(step: float, loss: float) -> tuple[float, float]:
        across, down = SIZE[0] - EDGE[0] - EDGE[2], SIZE[1] - EDGE[1] - EDGE[3]
        return EDGE[0] + across * (step - steps[0]) / max(steps[-1] - steps[0], 1), EDGE[1] + down * (high - loss) / (high - low)

    picture = Pil.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(picture)
    draw.polygon([at(r[0], r[3]) for r in readings] + [at(r[0], r[2]) for r in reversed(readings)], fill=RULE)
    for loss in ticks(low, high):
        draw.line([at(steps[0], loss), at(steps[-1], loss)], fill=RULE)
        write(draw, (6, at(0, loss)[1] + 5), f"{loss:g}", 15, DIM)
    for step in ticks(steps[0], steps[-1]):
        write(draw, (at(step, low)[0] - 10, SIZE[1] - EDGE[3] + 24), f"{step:g}", 15, DIM)
    draw.line([at(r[0], r[1]) for r in readings], fill=LAMP, width=3)
    write(draw, (EDGE[0], 26), "held-out loss by step, with its 95 % band", 17, INK)
    held = io.BytesIO()
    picture.save(held, "PNG")
    return held.getvalue()


def _proof(notes: Mapping[str, str]) -> list[dict[str, Any]]:
    found = json.loads(notes.get("safelight.proof", "[]"))
    return found if isinstance(found, list) else []


def _read(r: Mapping[str, Any]) -> str:
    if r.get("problem"):
        return f"cannot read it: {_plain(str(r['problem']))}"
    return f"{r['matched']} of {r['total']} keys, outputs differ by {r['max_difference']:.1e}, pictures by {r['pictures']:.1e}"


def _table(heading: str, name: str, rows: Sequence[tuple[str, str]]) -> str:
    lines = "\n".join(f"| {a} | {_plain(b)} |" for a, b in rows)
    return f"{heading}\n\n| {name} | |\n| --- | --- |\n{lines}\n" if rows else ""


def _plain(text: str) -> str:
    """Text that is no Markdown and stays in its cell."""
    return re.sub(r"([\[\]|<>`*])", r"\\\1", " ".join(text.split()))
