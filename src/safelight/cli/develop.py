"""`develop`: the whole way in one command, from a folder of pictures to a LoRA, its pictures, their scores and a report."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from safelight.cli.compute import compute
from safelight.cli.show import follow
from safelight.op import load_ops
from safelight.store import current
from safelight.values import Dataset, Image, Page, Patch, Value

METRICS = ["style", "clip"]

SMALL = {"lr": 2e-3, "towards_noise": 1.0}
"""How the embedded model takes a style in 400 steps. What decides over it is high noise; with half the rate and every level alike three
pictures in eight keep the old one."""


def data_flow(pictures: Path, trigger: str, by: str) -> dict[str, Any]:
    """Nodes from the folder to a captioned dataset."""
    return {
        "pictures": {"op": "folder", "path": str(pictures)},
        "good": {"op": "curate", "data": "$pictures"},
        "said": {"op": "caption", "data": "$good", "by": by, "trigger": trigger},
    }


def whole_flow(data: dict[str, Any], *, model: str, steps: int, prompts: Path, title: str) -> dict[str, Any]:
    """The data's nodes and all that follow: the LoRA, pictures without and with it, scores, sheets, the report."""
    drawn = {
        side: {
            f"{side}": {"op": "storyboard", "model": who, "path": str(prompts)},
            f"{side}_scores": {"op": "score", "image": f"${side}", "data": "$said", "by": METRICS},
            f"{side}_sheet": {"op": "sheet", "image": f"${side}", "title": f"{title}: {side}"},
        }
        for side, who in (("before", "$base"), ("after", "$tuned"))
    }
    return {
        **data,
        "base": {"op": "model", "name": model},
        "lora": {"op": "train_lora", "model": "$base", "data": "$said", "steps": steps, **(SMALL if model == "mini" else {})},
        "tuned": {"op": "with_lora", "model": "$base", "lora": "$lora"},
        **drawn["before"], **drawn["after"],
        "report": {
            "op": "report", "data": "$said", "patch": "$lora", "before": "$before_scores", "after": "$after_scores", "title": title,
        },
    }


def own_prompts(data: Dataset, out: Path, count: int = 8) -> Path:
    """A storyboard of captions spread over the dataset, written to `out`. ValueError when there is no caption."""
    captions = list(dict.fromkeys(row.caption for row in data if row.caption))
    if not captions:
        raise ValueError(f"develop: none of the {len(data)} pictures has a caption; give --prompts FILE, or --by tagger")
    chosen = [captions[i * len(captions) // count] for i in range(count)] if len(captions) > count else captions
    out.mkdir(parents=True, exist_ok=True)
    path = out / "prompts.txt"
    path.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return path


@click.command("develop")
@click.argument("pictures", type=click.Path(path_type=Path))
@click.option("--trigger", default="", metavar="WORDS", help="Added to every caption; calls the style later, as in `in ukiyo style`.")
@click.option("--by", default="file", show_default=True, help="Where captions come from: file, template or tagger.")
@click.option("--prompts", type=click.Path(path_type=Path), metavar="FILE", help="What to draw, one a line. Default: some captions.")
@click.option("--model", default="mini", show_default=True, help="What to teach.")
@click.option("--steps", default=400, show_default=True, help="Training steps.")
@click.option("--title", default="", help="Heading of the report. Default: the folder's name.")
@click.option("--out", "-o", type=click.Path(path_type=Path), default=Path("out"), show_default=True, metavar="DIR")
@compute
@click.option("--events", type=click.Choice(["jsonl"]), help="Print every event as a line of JSON.")
def develop_command(pictures: Path, out: Path, events: str | None, prompts: Path | None, **asked: Any) -> int:
    """The whole way: curate a folder of pictures, caption it, train a LoRA, draw with it, score, report.

    Started again after it was stopped, it goes on where it was. The last three lines say where the sheet, the LoRA and the report are.
    """
    store, title = current(), asked["title"] or pictures.name
    data = data_flow(pictures, asked["trigger"], asked["by"])
    with store.pin():
        if prompts is None:
            said = _run(data, ["said"], events)["said"]
            prompts = own_prompts(said, out) if isinstance(said, Dataset) else out
        flow = whole_flow(data, model=asked["model"], steps=asked["steps"], prompts=prompts, title=title)
        made = _run(flow, ["lora", "before", "after", "before_sheet", "after_sheet", "report"], events)
        places = save(made, out)
    for name, path in places.items():
        click.echo(f"{name}: {path}")
    return 0


def _run(flow: dict[str, Any], targets: list[str], events: str | None) -> dict[str, Value]:
    from safelight import engine

    return follow(engine.run(flow, current(), targets, ops=load_ops()), events)


def save(made: dict[str, Value], out: Path) -> dict[str, Path]:
    """Everything as files below `out`; where the three that matter are."""
    names = {
        "before": "before", "after": "after", "before_sheet": "before.png", "after_sheet": "sheet.png", "lora": "lora.safetensors",
        "report": "report.html",
    }
    for node, name in names.items():
        value = made[node]
        if isinstance(value, Image | Page | Patch):
            value.save(out / name)
    return {"sheet": out / "sheet.png", "lora": out / "lora.safetensors", "report": out / "report.html"}
