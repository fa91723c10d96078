"""Runs a prompt and writes its pictures as ComfyUI names them."""
from __future__ import annotations

import dataclasses
import io
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safelight import embed, engine, parameters
from safelight.codec import ORIGIN
from safelight.comfy.building import Saved
from safelight.comfy.check import Ops
from safelight.comfy.data import SAYS, bytes8
from safelight.comfy.node import Places
from safelight.comfy.plugins import plugin_ops
from safelight.comfy.saving import write
from safelight.comfy.translate import Translation, translate, with_settings
from safelight.disk import put
from safelight.events import Event
from safelight.graph import GraphError, Problem
from safelight.lineage import trace, versions
from safelight.op import load_ops
from safelight.spec import Work
from safelight.store import Store, current
from safelight.values import Image, Model, Value

TEMPORARY = "temp"
"""The folder below the results for pictures that are only looked at."""


Keep = Callable[[Value, Saved, Mapping[str, str], Store], list[Path]]
"""What is done with a value that is to be saved, given the texts for its files."""


def run(
    prompt: Mapping[str, Any], places: Places, *, sets: Sequence[str] = (), store: Store | None = None, workflow: str = "",
    keep: Keep | None = None, look: Callable[[Mapping[str, Any]], None] | None = None,
) -> Work[dict[str, list[Path]]]:
    """Run a prompt and save what its SaveImage and PreviewImage nodes are given; the files by node id.

    Events and errors name ComfyUI's nodes. PromptError when it cannot run. `workflow` is the editor's graph as JSON, kept in the files.
    `keep` saves in another way than into the folder for results. `look` sees each graph of ours before it runs, and raises to refuse it: a
    prompt with a size or text that is known only late becomes several, one after the other.
    """
    told, ops, said = with_settings(prompt, sets), known_ops(places), dict[str, Any]()
    at = store or current()
    with at.pin():
        while True:
            translation = translate(told, places, ops, said)
            if look is not None:
                look(translation.graph)
            values = yield from _renamed(engine.run(translation.graph, at, translation.targets, ops=ops), translation)
            if not translation.first:
                break
            said[translation.first] = values[translation.first].data
        texts = {"prompt": json.dumps(told), "workflow": workflow}
        if keep is None:
            return {s.node: save(values[s.value.id], s, places.output, texts, at) for s in translation.saved}
        return {s.node: keep(values[s.value.id], s, texts, at) for s in translation.saved}


def problems(prompt: Mapping[str, Any], places: Places, sets: Sequence[str] = ()) -> list[Problem]:
    """What our engine finds wrong with the graph that a prompt becomes. PromptError for what is wrong with the prompt itself."""
    ops = known_ops(places)
    translation = translate(with_settings(prompt, sets), places, ops)
    return [dataclasses.replace(p, node=translation.origin.get(p.node, p.node)) for p in engine.check(translation.graph, ops)]


def known_ops(places: Places) -> Ops:
    """Every op that a translated prompt may have: ours, those that say what a prompt goes on with, and other people's classes."""
    return {**load_ops(), **SAYS, **(plugin_ops(places.nodes) if places.nodes else {})}


def _renamed(work: Work[Any], translation: Translation) -> Work[Any]:
    """The same work with events and errors that name ComfyUI's nodes."""
    origin, answer = translation.origin, None
    try:
        while True:
            event, found = _step(work, answer, origin)
            if event is None:
                return found
            answer = yield dataclasses.replace(event, node=origin.get(event.node, event.node))
    finally:
        work.close()


def _step(work: Work[Any], answer: Any, origin: Mapping[str, str]) -> tuple[Event | None, Any]:
    """The next event; or None and what the work returned."""
    try:
        return work.send(answer), None
    except StopIteration as stop:
        return None, stop.value
    except GraphError as e:
        raise GraphError([dataclasses.replace(p, node=origin.get(p.node, p.node)) for p in e.problems]) from e


def save(value: Value, saved: Saved, output: Path, texts: Mapping[str, str], store: Store) -> list[Path]:
    """Save below `output` under the next free names."""
    if saved.form:
        size = value.pixels.shape[2:0:-1] if isinstance(value, Image) else (0, 0)
        folder, name, counter = next_name(output, saved.prefix, size)
        return write(value, saved.form, folder / f"{name}_{counter:05}_", texts)
    if isinstance(value, Model):
        folder, name, counter = next_name(output, saved.prefix, (0, 0))
        return value.save(folder / f"{name}_{counter:05}_{'.safetensors' if Path(value.source).is_file() else ''}")
    if not isinstance(value, Image):
        return value.save((output if saved.kept else output / TEMPORARY) / saved.prefix)
    high, wide = value.pixels.shape[1:3]
    root = output if saved.kept else output / TEMPORARY
    folder, name, counter = next_name(root, saved.prefix, (wide, high))
    out = []
    for i in range(len(value)):
        path = folder / f"{name.replace('%batch_num%', str(i))}_{counter + i:05}_.png"
        _write(value, i, path, texts, store)
        out.append(path)
    return out


def next_name(root: Path, prefix: str, size: tuple[int, int]) -> tuple[Path, str, int]:
    """Folder, name and number of the next picture: one more than the highest there. `%width%`, `%height%` and the time's parts are put
    into the prefix. ValueError when the prefix leads out of the folder."""
    now = time.localtime()
    date = {"year": "%Y", "month": "%m", "day": "%d", "hour": "%H", "minute": "%M", "second": "%S"}
    parts = {"width": str(size[0]), "height": str(size[1])} | {k: time.strftime(v, now) for k, v in date.items()}
    for word, value in parts.items():
        prefix = prefix.replace(f"%{word}%", value)
    plain = os.path.normpath(prefix.replace("\\", "/"))
    folder = root / os.path.dirname(plain)
    if not folder.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"SaveImage: filename_prefix: got {prefix!r}, which leads out of {root}; expected a name below it")
    folder.mkdir(parents=True, exist_ok=True)
    name = os.path.basename(plain)
    taken = [p.name[len(name) + 1 :].split("_")[0] for p in folder.iterdir() if p.name.lower().startswith(f"{name}_".lower())]
    return folder, name, max((int(t) for t in taken if t.isdecimal()), default=0) + 1


def _write(image: Image, i: int, path: Path, texts: Mapping[str, str], store: Store) -> None:
    """A PNG with ComfyUI's texts (`prompt`, `workflow`) and ours: `parameters` and the lineage."""
    from PIL import Image as Pil

    info = image.info[i] if image.info else {}
    recipe, index = info.get(ORIGIN, ("", 0))
    own = {"parameters": parameters.write(info, f"safelight {versions()['safelight']}")}
    if recipe:
        own[embed.OURS] = json.dumps(trace(store, recipe).of_picture(index).data, separators=(",", ":"))
    raw = io.BytesIO()
    Pil.fromarray(bytes8(image)[i]).save(raw, "PNG")
    content = embed.png_with_texts(raw.getvalue(), {k: v for k, v in {**texts, **own}.items() if v})
    put(path, content)
