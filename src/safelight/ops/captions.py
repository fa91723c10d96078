"""What captions are made of after somebody wrote them: which layer is in use, words, tags, length."""
from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from safelight.op import Knob, Work, op
from safelight.values import Blob, Dataset, Model


def _table(given: Mapping[str, Any]) -> str:
    return Blob.of(Path(given["path"]).expanduser()).sha256


@op(group="data", exact=True, fingerprint=_table)
def take_captions(data: Dataset, *, path: Path) -> Work[Dataset]:
    """Lay captions from a table on the pictures it names: a table that was exported, corrected by a person, and comes back.

    Rows are found by their name below the folder. The captions they had stay as layers below; other pictures are left alone.

    Args:
        path: a .csv, .jsonl or .parquet with the columns file_name and text, in UTF-8
    """
    from safelight.data.captions import take

    return (yield from take(data, Path(path).expanduser()))


@op(group="data", exact=True)
def choose_caption(data: Dataset, *, order: Sequence[str] = ("human", "machine", "source")) -> Work[Dataset]:
    """Take up one of the captions a picture has: the newest of the first kind that it has.

    Layers stay as they are; the chosen one is laid on top of them. Captions changed by an op count as the kind they were changed from.

    Args:
        order: kinds, the preferred first: human, machine, source (what came with the picture), or who wrote it, such as wd14 or file
    """
    from safelight.data.captions import choose

    return (yield from choose(data, list(order)))


@op(group="data", exact=True)
def reword(
    data: Dataset, *,
    find: str = "",
    replace: str = "",
    regex: bool = False,
    trigger: str = "",
    place: Literal["end", "start"] = "end",
) -> Dataset:
    """Replace words in every caption, and add a trigger word. The caption before stays as the layer below.

    Args:
        find: what to replace, everywhere; empty: nothing
        replace: with what; empty takes it out, with the comma that would be left over
        regex: `find` is a regular expression, and \\1 in `replace` its first group
        trigger: words added to every caption that does not have them
        place: where the trigger goes
    """
    from safelight.data.captions import edit, with_trigger
    from safelight.data.wording import replacer

    change = replacer(find, replace, regex=regex)
    return edit(data, "reword", lambda text, row: with_trigger(change(text), trigger, place))


@op(group="data", exact=True)
def edit_tags(
    data: Dataset, *,
    undesired: Sequence[str] = (),
    first: Sequence[str] = (),
    keep_first: Annotated[int, Knob(0, 1000)] = 0,
    drop: Annotated[float, Knob(0.0, 1.0, step=0.05)] = 0.0,
    shuffle: bool = False,
    seed: Annotated[int, Knob(0, 2**53, draw=True)] = 0,
) -> Dataset:
    """Take tags out of captions, put some first, drop a share of the others, shuffle them. What is between commas is a tag.

    What is drawn depends on the seed, the picture and the tag alone: more pictures, or their order, change nothing.

    Args:
        undesired: tags to take out, whatever their case
        first: tags to put first where they are found, in this order
        keep_first: so many tags after those stay where they are and are never dropped: a trigger word, a character's name
        drop: how likely each of the others is left out
        shuffle: put the others in a drawn order
        seed: of what is dropped and shuffled; -1 draws one
    """
    from safelight.data.captions import edit
    from safelight.data.wording import TagEdit

    change = TagEdit(tuple(undesired), tuple(first), keep_first, drop, shuffle, seed)
    return edit(data, "edit_tags", lambda text, row: change(text, row.picture.sha256))


@op(group="data", exact=True)
def count_tokens(model: Model, data: Dataset, *, room: Annotated[int, Knob(0, 100000)] = 0) -> Work[Dataset]:
    """Count the tokens of every caption, and warn of those that are longer than what the model reads at once.

    The count is written into the rows. No caption is changed: most trainers cut a long one, Safelight reads it in several windows.

    Args:
        model: whose tokenizer counts; its network is not loaded
        room: how many tokens fit; 0: as many as the model reads at once, without begin and end marks
    """
    from safelight.data.tokens import ruler
    from safelight.events import Note

    measure = ruler(model)
    limit = room or measure.room
    rows = tuple(r if r.dropped else dataclasses.replace(r, info={**r.info, "tokens": measure.count(r.caption)}) for r in data.rows)
    kept = [r for r in rows if not r.dropped]
    long = sorted((r for r in kept if r.info["tokens"] > limit), key=lambda r: -r.info["tokens"])
    if long:
        named = ", ".join(f"{r.name} ({r.info['tokens']})" for r in long[:5])
        what = f"{len(long)} of {len(kept)} captions have more than {limit} tokens, and what is beyond is cut where one window is read"
        yield Note(text=f"count_tokens: {what}: {named}", level="warning")
    return dataclasses.replace(data, rows=rows)
