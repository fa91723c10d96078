"""`dataset`: look at a folder of pictures before it is trained on."""
from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safelight.cli.show import follow
from safelight.disk import put
from safelight.op import load_ops
from safelight.store import current
from safelight.values import Dataset, Value

if TYPE_CHECKING:
    from safelight.data.doctor import Examined, Limits

SHOWN = 20  # findings of a kind on the terminal
FOLDER = click.argument("folder", type=click.Path(path_type=Path))


@click.group("dataset")
def dataset_group() -> None:
    """Look at a folder of pictures: what is wrong with it, what is in it, what training would cut it to, its card."""


@dataset_group.command("check")
@FOLDER
@click.option("--held-out", type=click.Path(path_type=Path), metavar="DIR", help="Pictures not trained on, besides test/, val/, ...")
@click.option("--model", "name", default="mini", show_default=True, metavar="NAME", help="Whose tokens captions are counted in.")
@click.option("--room", type=int, default=0, metavar="N", help="Most tokens of a caption. Default: what the model reads at once.")
@click.option("--min-side", type=int, metavar="N", help="Least pixels of the shorter side. Default: 64 for mini, 256 for others.")
@click.option("--max-aspect", default=3.0, show_default=True, metavar="X", help="Greatest ratio of the sides.")
@click.option("--near-duplicates", "distance", default=6, show_default=True, metavar="BITS", help="Hashes differ by so many; -1: none.")
@click.option("--ignore", multiple=True, metavar="KIND", help="Do not report this kind; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Findings as JSON.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page with thumbnails too.")
def check_command(folder: Path, *, as_json: bool, html: Path | None, held_out: Path | None, ignore: tuple[str, ...], **asked: Any) -> int:
    """Find what spoils a training.

    Missing, empty, long, misencoded captions, files that are not read, corrupt, tiny, rotated or odd
    pictures, copies, and copies across train and held-out. Exit status 1 when something is found.
    """
    from safelight.data.doctor import KINDS, Examined, examine
    from safelight.index import home
    from safelight.spec import near

    unknown = next((k for k in ignore if k not in KINDS), None)
    if unknown is not None:
        raise click.UsageError(f"--ignore {unknown}: expected one of {', '.join(KINDS)}; {near(unknown, list(KINDS))}".rstrip("; "))
    limits = _limits(**asked)
    found = follow(examine(folder, limits, held_out, home() / "measures.sqlite"), None)
    found = Examined(found.rows, tuple(f for f in found.findings if f.kind not in ignore), found.files)
    looked = {"Pictures": str(len(found.rows)), "Files": str(found.files), "Shorter side": f"{limits.min_side} px or more",
              "Caption": f"{limits.room} tokens of {asked['name']} or less"}
    if html is not None:
        put(html, _page(folder, found, looked).encode())
    if as_json:
        rows = [{"kind": f.kind, "file": f.file, "text": f.text} for f in found.findings]
        click.echo(json.dumps({"folder": str(folder), "pictures": len(found.rows), "findings": rows}, ensure_ascii=False, indent=1))
    else:
        click.echo("\n".join(_lines(found)))
    return 1 if found.findings else 0


def _limits(name: str, room: int, min_side: int | None, max_aspect: float, distance: int) -> Limits:
    from safelight.data.doctor import Limits
    from safelight.data.tokens import ruler

    model = load_ops()["model"](name)
    measure = ruler(model)
    least = (64 if name == "mini" else 256) if min_side is None else min_side
    return Limits(least, max_aspect, distance, room or measure.room, measure.count)


def _lines(found: Examined) -> Iterable[str]:
    from safelight.data.doctor import KINDS, by_kind

    for kind, some in by_kind(found.findings):
        heading, advice = KINDS[kind]
        yield f"{heading} ({len(some)}, {kind}): {advice}"
        wide = min(48, max(len(f.file) for f in some[:SHOWN]))
        yield from (f"  {f.file:<{wide}}  {f.text}" for f in some[:SHOWN])
        yield f"  and {len(some) - SHOWN} more; --json lists all\n" if len(some) > SHOWN else ""
    total = len(found.findings)
    said = f"{total} finding{'s' if total != 1 else ''}" if total else "nothing found"
    yield f"{len(found.rows)} pictures in {found.files} files: {said}"


def _page(folder: Path, found: Examined, looked: dict[str, str]) -> str:
    from safelight.data.doctor import KINDS, by_kind
    from safelight.lineage import versions
    from safelight.reporting.overview import Found, findings

    kinds = [Found(*KINDS[kind], [(f.file, f.text, f.rows) for f in some]) for kind, some in by_kind(found.findings)]
    return findings(f"Check of {folder.resolve().name}", looked, kinds, versions())


@dataset_group.command("show")
@FOLDER
@click.option("--out", "-o", type=click.Path(path_type=Path), default=Path("out/dataset.html"), show_default=True, metavar="FILE",
              help="Ends in .html (a page that needs nothing else) or .png (one picture).")
@click.option("--title", default="", help="Default: the folder's name.")
@click.option("--model", "name", metavar="NAME", help="Count captions in this model's tokens instead of words.")
@click.option("--size", default=512, show_default=True, metavar="N", help="For the aspect buckets: side of a square of the trained area.")
@click.option("--curate/--no-curate", "fit", default=False, help="Sort out first, as `curate` does, and show what is left out and why.")
@click.option("--similar", type=click.FloatRange(0, 1), metavar="X", help="Drop similar pictures first, as `drop-similar`; try 0.95.")
def show_command(folder: Path, *, out: Path, title: str, name: str | None, size: int, fit: bool, similar: float | None) -> None:
    """Make a contact sheet with histograms.

    Size, shape and caption length, tags, aspect buckets, sources and licences, and every picture with its caption. What is left out
    comes by reason, copies beside the picture that is kept.
    """
    media = {".html": "html", ".htm": "html", ".png": "png"}.get(out.suffix.lower())
    if media is None:
        raise click.UsageError(f"--out {out}: expected a name that ends in .html or .png")
    asked = {"title": title or folder.resolve().name, "media": media, "size": size, **({"model": name} if name else {})}
    steps: dict[str, dict[str, Any]] = {"fit": {"op": "curate"}} if fit else {}
    steps |= {"thinned": {"op": "drop_similar", "similarity": similar}} if similar is not None else {}
    steps["page"] = {"op": "overview", **asked}
    flow = {step: {**what, "data": f"${before}"} for before, (step, what) in zip(["data", *steps], steps.items(), strict=False)}
    for path in _made(folder, flow, "page").save(out):
        click.echo(str(path))


@dataset_group.command("buckets")
@FOLDER
@click.option("--size", default=512, show_default=True, metavar="N", help="A bucket has at most the area of a square of this side.")
@click.option("--least", default=0, metavar="N", help="Shortest side of a bucket. Default: 256, or half of --size where that is less.")
@click.option("--most", default=0, metavar="N", help="Longest side of a bucket. Default: 1024, or twice --size where that is more.")
@click.option("--step", default=64, show_default=True, metavar="N", help="Sides are multiples of this.")
@click.option("--upscale/--no-upscale", default=True, show_default=True, help="Enlarge pictures that are smaller than their bucket.")
def buckets_command(folder: Path, *, size: int, least: int, most: int, step: int, upscale: bool) -> None:
    """Say which aspect buckets would be used.

    How many pictures go into each, how much of them is cut off, and how many are enlarged. The table is sd-scripts'.
    """
    from safelight.data.buckets import preview, table

    data = _made(folder, {}, "data")
    assert isinstance(data, Dataset)
    click.echo(f"{'bucket':>11}  {'pictures':>8}  {'cut off':>7}  {'enlarged':>8}")
    for f in preview(data.kept, table(size, least=least, most=most, step=step), upscale=upscale, step=step):
        click.echo(f"{f.bucket[0]:>5} x {f.bucket[1]:<3}  {f.count:>8}  {f.cut:>7.1%}  {f.enlarged:>8}")


@dataset_group.command("card")
@FOLDER
@click.option("--out", "-o", type=click.Path(path_type=Path), metavar="FILE", help="Default: README.md in the folder; - prints it.")
@click.option("--title", default="", help="Default: the folder's name.")
@click.option("--licence", default="", metavar="NAME", help="Of pictures that state none.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def card_command(folder: Path, *, out: Path | None, title: str, licence: str, force: bool) -> None:
    """Write a dataset card, README.md.

    Counts, licences, sources and how the pictures were captioned, with the header of the Hugging Face hub.
    """
    from safelight.data.card import card

    data = _made(folder, {}, "data")
    assert isinstance(data, Dataset)
    text = card(data, title or folder.resolve().name, licence)
    if str(out) == "-":
        click.echo(text)
        return
    path = out or (folder if folder.is_dir() else folder.parent) / "README.md"
    if path.exists() and not force:
        raise ValueError(f"dataset card: {path} is there already; --force writes over it, --out - prints the card")
    put(path, text.encode())
    click.echo(str(path))


def _made(folder: Path, more: dict[str, Any], target: str) -> Value:
    from safelight import engine

    store = current()
    with store.pin():
        flow = {"data": {"op": "folder", "path": str(folder)}, **more}
        return follow(engine.run(flow, store, [target], ops=load_ops()), None)[target]
