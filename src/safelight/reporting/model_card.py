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
USE = """## Use

In ComfyUI or AUTOMATIC1111's web UI put the file among the LoRAs. In diffusers:

```python
pipeline.load_lora_weights("FOLDER OR HUB NAME", weight_name="{}")
```
"""


@dataclass(frozen=True)
class Card:
    """What a card is made of: the file, what it says of itself, the training's record and samples (prompt, picture) where they are known,
    the base's name on a hub, the licence by the hub's identifier."""

    file: Path
    notes: Mapping[str, str]
    record: Mapping[str, Any] = field(default_factory=dict)
    samples: Sequence[tuple[str, Path]] = ()
    base: str = ""
    licence: str = "other"

    def write(self, folder: Path) -> list[Path]:
        """The files, whole: the adapter, images/, held-out.png, README.md. Nothing else in the folder is touched."""
        written, judged = [folder / self.file.name], self.record.get("held_out", ())
        folder.mkdir(parents=True, exist_ok=True)
        if written[0].resolve() != self.file.resolve():
            place(folder, written[0], partial(shutil.copyfile, self.file))
        made = {f"images/{i}.png": picture.read_bytes() for i, (_, picture) in enumerate(self.samples[:PICTURES])}
        made |= ({"held-out.png": curve(judged)} if len(judged) > 1 else {}) | {"README.md": self.text(judged=len(judged) > 1).encode()}
        for name, content in made.items():
            put(folder / name, content)
            written.append(folder / name)
        return written

    def text(self, *, judged: bool) -> str:
        """README.md; `judged`: there is a held-out curve."""
        trigger, shown = self.notes.get("modelspec.trigger_phrase", ""), self.samples[:PICTURES]
        base, kind = self.base or self.notes.get("safelight.base", ""), self.notes.get("modelspec.architecture", "").partition("/")[0]
        tags = ["text-to-image", "lora", "diffusers", "template:sd-lora", *([kind] if kind else []), "safelight"]
        widget = [{"text": prompt, "output": {"url": f"images/{i}.png"}} for i, (prompt, _) in enumerate(shown)]
        head = {"base_model": base, "base_model_relation": "adapter" if base else "", "library_name": "diffusers", "pipeline_tag":
                "text-to-image", "license": self.licence, "instance_prompt": trigger, "tags": tags, "widget": widget}
        said = yaml.safe_dump({k: v for k, v in head.items() if v}, sort_keys=False, allow_unicode=True)
        proof = [(r["reader"], r["problem"] or f"{r['matched']} of {r['total']} keys, outputs differ by {r['max_difference']:.1e}, "
                  f"pictures by {r['pictures']:.1e}") for r in json.loads(self.notes.get("safelight.proof", "[]"))]
        parts = [f"---\n{said}---\n\n# {self.notes.get('modelspec.title') or self.file.stem}\n"]
        parts += [f"Write `{trigger}` in the prompt to call it.\n"] if trigger else []
        parts += [f"![{_plain(prompt)}](images/{i}.png)\n\n{_plain(prompt)}\n" for i, (prompt, _) in enumerate(shown)]
        parts += [USE.format(self.file.name), _table("Settings", [(w, self.notes[k]) for k, w in SETTINGS.items() if self.notes.get(k)])]
        parts.append(_table("Read back after training, by program", proof))
        parts.append(_table("Licences of the pictures", [(name, f"{n} pictures") for name, n in self.record.get("licences", ())]))
        parts += ["## Held-out loss\n\n![Loss of the pictures kept out of training](held-out.png)\n"] if judged else []
        return "\n".join(p for p in parts if p)


def hub_name(source: str) -> str:
    """`owner/name` of a model in the Hugging Face cache; nothing for one elsewhere."""
    found = re.search(r"models--([^/\s]+?)--([^/\s]+)", source)
    return f"{found[1]}/{found[2]}" if found else ""


def curve(readings: Sequence[Sequence[float]], title: str = "held-out loss by step, with its 95 % band") -> bytes:
    """PNG of (step, loss, low, high) rows: the line and its band."""
    first, last, low, high = readings[0][0], readings[-1][0], min(r[2] for r in readings), max(r[3] for r in readings)
    high = high if high > low else low + 1

    def at(step: float, loss: float) -> tuple[float, float]:
        across, down = SIZE[0] - EDGE[0] - EDGE[2], SIZE[1] - EDGE[1] - EDGE[3]
        return EDGE[0] + across * (step - first) / max(last - first, 1), EDGE[1] + down * (high - loss) / (high - low)

    picture, held = Pil.new("RGB", SIZE, PAPER), io.BytesIO()
    draw = ImageDraw.Draw(picture)
    draw.polygon([at(r[0], r[3]) for r in readings] + [at(r[0], r[2]) for r in reversed(readings)], fill=RULE)
    for loss in ticks(low, high):
        draw.line([at(first, loss), at(last, loss)], fill=RULE)
        write(draw, (6, at(first, loss)[1] + 5), f"{loss:g}", 15, DIM)
    for step in ticks(first, last):
        write(draw, (at(step, low)[0] - 10, SIZE[1] - EDGE[3] + 24), f"{step:g}", 15, DIM)
    draw.line([at(r[0], r[1]) for r in readings], fill=LAMP, width=3)
    write(draw, (EDGE[0], 26), title, 17, INK)
    picture.save(held, "PNG")
    return held.getvalue()


def _table(heading: str, rows: Sequence[tuple[str, str]]) -> str:
    lines = "\n".join(f"| {a} | {_plain(b)} |" for a, b in rows)
    return f"## {heading}\n\n| | |\n| --- | --- |\n{lines}\n" if rows else ""


def _plain(text: str) -> str:
    """Text that is no Markdown and stays in its cell."""
    return re.sub(r"([\[\]|<>`*])", r"\\\1", " ".join(text.split()))
