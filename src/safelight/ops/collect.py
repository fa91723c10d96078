"""Pictures and captions from anywhere: the network, our own renderer, our own models."""
from __future__ import annotations

import dataclasses
import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from safelight.data.request import FETCH, PICK, Fetch, Pick
from safelight.events import Progress
from safelight.op import Knob, Work, op
from safelight.ops.generate import _lines, draw_lines, read_lines
from safelight.sampling.settings import GUIDANCE, SAMPLING, SIZE, Guidance, Sampling, Size
from safelight.values import Caption, Dataset, Image, Model

if TYPE_CHECKING:
    from safelight.data.sources import Item

TOGETHER = 8  # pictures drawn between two that are kept


def _outside(given: Mapping[str, Any]) -> str:
    from safelight.data.sources.collecting import outside

    return outside(given["source"], given["pick"])


@op(group="data", version=1, fingerprint=_outside)
def collect(
    source: str, *,
    limit: Annotated[int, Knob(0, 10**9)] = 0,
    pick: Pick = PICK,
    fetch: Fetch = FETCH,
    licence: str = "",
    again: Literal["no", "failed", "all"] = "no",
) -> Work[Dataset]:
    """Collect pictures from anywhere into a dataset: a list of addresses, a hub, a picture service, the renderer, a folder.

    `list.csv` (.txt, .tsv, .jsonl, .parquet) brings the addresses it names; `hf:owner/name` and `ms:owner/name` are datasets of Hugging
    Face and ModelScope; `unsplash:red fox` and `pexels:red fox` search there (keys in UNSPLASH_ACCESS_KEY, PEXELS_API_KEY);
    `render:person` and `render:scene` are drawn here. Pictures are kept in the store; where each is from, its licence and author stay with
    it. What did not come is listed with the reason. Stopped and started again, it goes on where it was; what came is not brought again.

    Args:
        source: where from
        limit: take only the first pictures; 0: all, of the renderer a hundred
        licence: said of pictures whose source tells no licence
        again: ask anew for what was refused or is missing (failed), or for everything (all); no: only for what was not answered yet
    """
    from safelight.data.sources import collecting
    from safelight.store import current

    return (yield from collecting.collect(source, current().blob, pick=pick, fetch=fetch, limit=limit, licence=licence, again=again))


@op(group="data", version=1, fingerprint=_lines)
def synthesize(
    model: Model, path: Path, *,
    pictures: Annotated[int, Knob(1, 10000)] = 1,
    licence: str = "",
    size: Size = SIZE,
    sampling: Sampling = SAMPLING,
    guidance: Guidance = GUIDANCE,
) -> Work[Dataset]:
    """Draw a dataset: pictures of every prompt in a file, with the prompt as caption, and the model and seed as origin.

    The file is as for storyboard. Pictures are kept while others are drawn: stopped and started again, it goes on where it was.

    Args:
        path: the file of prompts
        pictures: of each prompt; their seeds count up from the line's own
        licence: under which they may be used, as the model's licence allows
    """
    from safelight.data.sources.fetching import facts
    from safelight.data.sources.journal import opened
    from safelight.store import current, making

    wishes = [dataclasses.replace(line, seed=line.seed + i) for line in read_lines("synthesize", path) for i in range(pictures)]
    made, store = making(), current()
    assert made is not None
    place = store.folder(made.recipe)
    with opened(place) as journal:
        missing = [i for i in range(len(wishes)) if not journal.had(str(i))]
        for some in (missing[i:i + TOGETHER] for i in range(0, len(missing), TOGETHER)):
            drawn = yield from draw_lines("synthesize", model, [wishes[i] for i in some], (size, sampling, guidance))
            for n, i in enumerate(some):
                item = _synthetic(i, drawn, n, model, licence)
                journal.add(item, facts(item.data or b"", "", store.blob))
            yield Progress(step=some[-1] + 1, total=len(wishes), what="drawing a dataset", unit="picture")
        rows = tuple(journal.row(str(i)) for i in range(len(wishes)))
    shutil.rmtree(place)
    return Dataset(rows, {"source": "synthesize"})


def _synthetic(number: int, drawn: Image, n: int, model: Model, licence: str) -> Item:
    """Picture n of a batch, with where it is from."""
    from PIL import Image as Pil

    from safelight import folders
    from safelight.data.sources import Item, origin

    out, told = io.BytesIO(), drawn.info[n]
    Pil.fromarray(drawn.bytes8()[n]).save(out, "PNG")
    name = folders.shown(Path(model.source))
    credit = f"drawn by {name} ({model.fingerprint[:10]}) with Safelight, seed {told['seed']}"
    known = origin(source=f"model:{name}", licence=licence, attribution=credit)
    return Item(str(number), f"{number:06}", data=out.getvalue(), captions=(Caption("prompt", told["prompt"]),), origin=known, extra=told)
