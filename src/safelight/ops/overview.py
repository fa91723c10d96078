"""A dataset at a glance."""
from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from safelight.op import Knob, op
from safelight.values import Dataset, Model, Page

if TYPE_CHECKING:
    from safelight.reporting.overview import Overview


@op(group="data", version=2, exact=True)
def overview(
    data: Dataset, model: Model | None = None, *,
    title: str = "",
    media: Literal["html", "png"] = "html",
    size: Annotated[int, Knob(64, 4096)] = 512,
) -> Page:
    """Show a dataset: its pictures with the captions in use, histograms of size, shape and caption length, tags, buckets and sources.

    Args:
        data: the pictures; what was dropped is listed with the reason
        model: captions are counted in its tokens instead of words
        title: the heading
        media: a page that needs nothing else, or one picture
        size: for the aspect buckets: side of a square of the area that pictures are trained at
    """
    from safelight.reporting import overview as show
    from safelight.store import current

    story = _story(data, model, title, size)
    if media == "html":
        return Page(current().blob(show.page(story).encode(), ".html"))
    import io

    from PIL import Image as Pil

    from safelight.reporting.overview_sheet import sheet

    out = io.BytesIO()
    Pil.fromarray(sheet(story).bytes8()[0]).save(out, "PNG")
    return Page(current().blob(out.getvalue(), ".png"), "image/png")


def _story(data: Dataset, model: Model | None, title: str, size: int) -> Overview:
    from safelight.data import summary
    from safelight.data.buckets import preview, table
    from safelight.data.tokens import ruler
    from safelight.lineage import versions
    from safelight.reporting.overview import Histogram, Overview

    rows = [r for r in data.kept if r.width and r.height]
    measure = None if model is None else ruler(model)
    unit = "words" if measure is None else "tokens"
    note = "" if measure is None else f"{measure.room} are read at once"
    histograms = (
        Histogram("Shorter side, pixels", summary.sides(rows)), Histogram("Width to height", summary.shapes(rows)),
        Histogram(f"Caption length, {unit}", summary.lengths(rows, measure.count if measure else lambda t: len(t.split())), note),
    )
    counts = {"Captions in use are from": summary.writers(rows)}
    told = {name: summary.origins(rows, what) for name, what in (("Sources", "source"), ("Licences", "licence"), ("Authors", "author"))}
    counts |= {name: found for name, found in told.items() if [label for label, _ in found] != [summary.UNKNOWN]}
    return Overview(title or "A dataset", data, histograms, preview(rows, table(size)),
                    summary.tags(rows), counts, versions())
