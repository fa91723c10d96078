"""Values as files that say where they come from, and back from such a file to its history and to the same bytes."""
from __future__ import annotations

import csv
import dataclasses
import filecmp
import io
import json
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from safelight import embed, engine, parameters
from safelight.codec import ORIGIN
from safelight.computing import Computing, chosen, computing
from safelight.disk import place, put, sweep
from safelight.events import Note
from safelight.lineage import Lineage, trace, versions
from safelight.spec import Work
from safelight.store import Store, current
from safelight.values import Dataset, Image, Mask, Model, Page, Patch, Scores, Value
from safelight.workflow import workflow

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def save(value: Value, path: Path, store: Store | None = None) -> list[Path]:
    """Write a value with its lineage and return the paths.

    Pictures: a file name takes one picture (several become NAME-0, NAME-1, ...), a folder gets 0.png, 1.png, ... A dataset: a folder with
    the kept pictures, `metadata.jsonl` and what was dropped; or the table alone when the name ends in .jsonl. A patch: its .safetensors.
    Scores: .json or .csv. A page: its file. A model: whole, with its patches in it, in the layout it came in. ValueError for values that
    are nothing to look at.
    """
    write = next((w for kind, w in WRITERS.items() if isinstance(value, kind)), None)
    if write is None:
        kinds = ", ".join(k.__name__ for k in WRITERS)
        raise ValueError(f"save: got a {type(value).__name__}, expected one of {kinds}; save what is made from it")
    return write(value, path, store or current())


def _save_images(image: Image, path: Path, store: Store) -> list[Path]:
    if path.suffix.lower() in PICTURES:
        names = [path] if len(image) == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(len(image))]
    else:
        names = [path / f"{i}.png" for i in range(len(image))]
    histories: dict[str, Lineage] = {}
    for i, name in enumerate(names):
        recipe, index = image.info[i].get(ORIGIN, ("", 0)) if image.info else ("", 0)
        if recipe and recipe not in histories:
            histories[recipe] = trace(store, recipe)
        save_image(image, name, i, histories[recipe].of_picture(index) if recipe else None)
    return names


def save_image(image: Image, path: Path, i: int = 0, lineage: Lineage | None = None) -> None:
    """Write picture i of a batch as PNG, JPEG (quality 95, no chroma subsampling) or WebP (lossless), whole or not at all.

    With it go `parameters` (AUTOMATIC1111's text), and with a lineage `prompt` (the graph, API form), `workflow` (the same for an editor)
    and `safelight` (the lineage). The bytes depend on pixels, info and lineage only.
    """
    info = image.info[i] if image.info else {}
    texts = {"parameters": parameters.write(info, f"safelight {versions()['safelight']}")} | _texts(lineage)
    put(path, _encoded(image.bytes8()[i], path.suffix.lower(), {k: v for k, v in texts.items() if v}))


def _texts(lineage: Lineage | None) -> dict[str, str]:
    if lineage is None:
        return {}
    own = {embed.OURS: json.dumps(lineage.data, separators=(",", ":"))}
    if lineage.has_gaps:
        return own
    graph = lineage.graph()
    return {"prompt": json.dumps(graph), "workflow": json.dumps(workflow(graph))} | own


def _encoded(pixels: Any, suffix: str, texts: Mapping[str, str]) -> bytes:
    from PIL import Image as Pil

    out = io.BytesIO()
    picture = Pil.fromarray(pixels)
    if suffix in (".jpg", ".jpeg"):
        picture.save(out, "JPEG", quality=95, subsampling=0, **embed.save_options(texts, jpeg=True))
    elif suffix == ".webp":
        picture.save(out, "WEBP", lossless=True, **embed.save_options(texts, jpeg=False))
    else:
        picture.save(out, "PNG")
        return embed.png_with_texts(out.getvalue(), texts)
    return out.getvalue()


def _save_mask(mask: Mask, path: Path, store: Store) -> list[Path]:
    names = [path] if path.suffix.lower() == ".png" and len(mask.values) == 1 else [path / f"{i}.png" for i in range(len(mask.values))]
    own = _texts(trace(store, mask))
    for name, values in zip(names, mask.values, strict=True):
        put(name, _encoded(np.asarray(np.clip(values * 255, 0, 255), dtype=np.uint8), ".png", own))
    return names


def _save_dataset(data: Dataset, path: Path, store: Store) -> list[Path]:
    table_only = path.suffix.lower() == ".jsonl"
    folder, written = (path.parent if table_only else path), []
    rows = []
    for row in data:
        name = row.name
        if table_only:
            name = str(Path(row.picture.path).absolute())
        else:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(Path(row.picture.path), target)
            written.append(target)
        layers = [[c.by, c.text] for c in row.captions]
        said = {"file_name": name, "text": row.caption, "sha256": row.picture.sha256, "captions": layers}
        rows.append({**said, **row.info.get("origin", {})})
    table = path if table_only else folder / "metadata.jsonl"
    put(table, _json_lines(rows))
    if table_only:
        return [table]
    dropped = [{"name": r.name, "reason": r.dropped, "path": r.picture.path} for r in data.rows if r.dropped]
    put(folder / "dropped.json", json.dumps(dropped, ensure_ascii=False, indent=1).encode())
    put(folder / "lineage.json", json.dumps(trace(store, data).data, ensure_ascii=False).encode())
    sweep(folder)
    return [*written, table, folder / "dropped.json", folder / "lineage.json"]


def _json_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()


def _save_patch(patch: Patch, path: Path, store: Store) -> list[Path]:
    told = patch.files.get("config.json")  # of a network that diffusers reads from a folder
    single = path.suffix == ".safetensors"
    names = {path if single else path / f"{'diffusion_pytorch_model' if told else patch.kind}.safetensors": patch.weights}
    names |= {path / "config.json": told} if told and not single else {}
    (path.parent if single else path).mkdir(parents=True, exist_ok=True)
    for name, blob in names.items():
        _copy(Path(blob.path), name)
    return list(names)


def _save_scores(scores: Scores, path: Path, store: Store) -> list[Path]:
    rows = [{n: float(v[i]) for n, v in scores.values.items()} for i in range(len(scores.image))]
    said = [{k: v for k, v in info.items() if k != ORIGIN} for info in scores.image.info] or [{} for _ in rows]
    if path.suffix.lower() == ".csv":
        out = io.StringIO(newline="")
        table = csv.DictWriter(out, ["picture", *scores.values, "seed", "prompt"], extrasaction="ignore")
        table.writeheader()
        table.writerows({"picture": i} | info | row for i, (row, info) in enumerate(zip(rows, said, strict=True)))
        put(path, out.getvalue().encode("utf-8-sig"))
        return [path]
    name = path if path.suffix.lower() == ".json" else path / "scores.json"
    data = {"scores": rows, "pictures": said, "order": scores.order(), "lineage": trace(store, scores).data}
    put(name, json.dumps(data, ensure_ascii=False, indent=1).encode())
    return [name]


def _save_model(model: Model, path: Path, store: Store) -> list[Path]:
    whole = import_module("safelight.train.whole")  # by name: nothing here knows networks
    written: list[Path] = whole.write(model, path)
    return written


def _save_page(page: Page, path: Path, store: Store) -> list[Path]:
    suffix = {"text/html": ".html", "image/png": ".png"}.get(page.media, "")
    name = path if path.suffix else path / f"page{suffix}"
    content = Path(page.file.path).read_bytes()
    if page.media == "image/png":
        content = embed.png_with_texts(content, _texts(trace(store, page)))
    elif page.media == "text/html":
        content += b"\n<!-- safelight " + json.dumps(trace(store, page).data).replace("--", "-\\u002d").encode() + b" -->\n"
    put(name, content)
    return [name]


WRITERS: Mapping[type[Value], Callable[[Any, Path, Store], list[Path]]] = {
    Image: _save_images, Mask: _save_mask, Dataset: _save_dataset, Patch: _save_patch, Scores: _save_scores, Page: _save_page,
    Model: _save_model,
}


def _copy(source: Path, target: Path) -> None:
    if target.exists() and source.samefile(target):
        return
    place(target.parent, target, lambda tmp: shutil.copyfile(source, tmp))


# Back from a file.


def why(what: str | Path | Value, store: Store | None = None) -> Lineage:
    """Every op, setting and picture that a file (or a value) came from. A file is read alone: no store is asked.

    Reads PNG, JPEG, WebP, the .safetensors of a trained patch, an exported dataset's folder, scores and report pages. ValueError when the
    file says nothing.
    """
    if isinstance(what, Value):
        return trace(store or current(), what)
    path = Path(what).expanduser()
    try:
        data = _history(path / "lineage.json" if path.is_dir() else path)
    except json.JSONDecodeError as e:
        raise ValueError(f"why: {path}: its history is damaged ({e})") from e
    if not data:
        raise ValueError(f"why: {path}: no history in it; Safelight did not write it, or another program has dropped its metadata")
    return Lineage(data)


def _history(path: Path) -> dict[str, Any]:
    text = "{}"
    match path.suffix.lower():
        case ".safetensors":
            text = embed.safetensors_texts(path).get(embed.LINEAGE, text)
        case ".json":
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            inner: dict[str, Any] = data.get("lineage", data if "nodes" in data else {})
            return inner
        case ".html":
            found = path.read_text(encoding="utf-8").rpartition("<!-- safelight ")
            text = found[2].rpartition(" -->")[0] if found[1] else text
        case _:
            text = embed.texts_of(path).get(embed.OURS, text)
    history: dict[str, Any] = json.loads(text)
    return history


@dataclass(frozen=True)
class Reproduced:
    """What came of making a file again: whether the bytes are equal; and for pictures how far the pixels are apart (0 to 255)."""

    path: Path
    equal: bool
    largest: int | None = None
    share: float = 0.0
    versions: Mapping[str, tuple[str, str]] | None = None

    def __bool__(self) -> bool:
        return self.equal

    def __str__(self) -> str:
        if self.equal:
            return f"{self.path}: equal, byte for byte"
        how = "different" if self.largest is None else f"different: {self.share:.2%} of the values, by {self.largest} of 255 at most"
        if self.largest == 0:
            how = "the same pixels, other metadata"
        others = ", ".join(f"{name} was {old} and is {new}" for name, (old, new) in (self.versions or {}).items())
        return f"{self.path}: {how}" + (f" ({others})" if others else "")


def reproduction(path: Path, store: Store, *, cached: bool = False) -> Work[Reproduced]:
    """Run a file's graph again in an empty store and compare the bytes. `cached`: only its last op; the rest comes from the store."""
    history = why(path)
    graph = history.graph()
    steps = ", ".join(node["class_type"] for node in graph.values())
    yield Note(text=f"{path}: making it again: {steps}")
    with store.pin():
        scratch = store.folder(f"reproduce-{uuid.uuid4().hex}")
        try:
            at = store if cached else Store(scratch / "store")
            found = yield from engine.run(graph, at, [history.target], again=[history.target] if cached else ())
            again = _saved_again(found[history.target], scratch / f"again{path.suffix}", history, at)
            return _compared(path, again, history)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _saved_again(value: Value, path: Path, history: Lineage, store: Store) -> Path:
    if isinstance(value, Image):
        at = history.index
        save_image(value, path, at, trace(store, value.info[at][ORIGIN][0]).of_picture(at))
        return path
    return save(value, path, store)[0]


def _compared(path: Path, again: Path, history: Lineage) -> Reproduced:
    now = {**versions(), "computing": str(chosen())}
    others = {k: (v, now.get(k, "absent")) for k, v in history.data["versions"].items() if now.get(k) != v}
    if filecmp.cmp(path, again, shallow=False):
        return Reproduced(path, True)
    if path.suffix.lower() not in PICTURES:
        return Reproduced(path, False, versions=others)
    from PIL import Image as Pil

    with Pil.open(path) as a, Pil.open(again) as b:
        if a.size != b.size:
            return Reproduced(path, False, 255, 1.0, others)
        apart = np.abs(np.asarray(a.convert("RGB"), np.int16) - np.asarray(b.convert("RGB"), np.int16))
    return Reproduced(path, False, int(apart.max()), float((apart > 0).mean()), others)


def reproduce(path: str | Path, *, cached: bool = False) -> Reproduced:
    """Make a file again from what it says of itself, and compare. Everything runs anew, training too; with `cached` only the last op.

    A file that was made on a device or in a precision that somebody chose is made there and so again.
    """
    from safelight.progress import watch

    file = Path(path).expanduser()
    said = Computing.read(why(file).data["versions"].get("computing", ""))
    with computing(**dataclasses.asdict(said)):
        return watch(reproduction(file, current(), cached=cached))
