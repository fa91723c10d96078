"""Judging pictures and laying them out: scores, the contact sheet, the report of a run."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from safelight.op import Knob, OneOf, op
from safelight.values import Dataset, Image, Page, Patch, Scores

if TYPE_CHECKING:
    from safelight.reporting.story import Compared, Sample, Step


def _metrics() -> Iterable[str]:
    from safelight.scoring import METRICS

    return sorted(METRICS)


def _eyes(given: Mapping[str, Any]) -> str:
    """Which encoders judge, when any do."""
    from safelight.scoring.clip import stamp

    return stamp() if "clip" in given["by"] else ""


@op(group="score", version=2, exact=True, fingerprint=_eyes)
def score(
    image: Image, data: Dataset | None = None, *,
    by: Annotated[Sequence[str], OneOf(_metrics)] = ("clip",),
    prompts: Sequence[str] = (),
) -> Scores:
    """Give every picture a number by each metric; larger is better in all of them.

    Args:
        data: the pictures whose style the metric `style` compares with
        by: `clip` is how well the picture fits its prompt, `style` how much it is drawn like the dataset, `sharpness` and `colourfulness`
            are what they say; only `clip` needs a model
        prompts: one for all pictures or one each; without any, the prompts that the pictures were made from
    """
    from safelight.scoring import score as judge

    return judge(image, by, prompts=prompts, against=data)


@op(group="score", version=1, exact=True)
def sheet(
    image: Image, *,
    columns: Annotated[int, Knob(1, 32)] = 4,
    labels: Sequence[str] = (),
    title: str = "",
    lines: Annotated[int, Knob(0, 12)] = 3,
) -> Image:
    """Lay pictures out on one labelled contact sheet, 2 x 4 for eight of them.

    Small pictures are enlarged by a whole factor to 256 pixels or more, large ones brought to 512. Chinese labels need no font of the
    system. The result is a batch of one picture.

    Args:
        columns: pictures in a row
        labels: one each, instead of prompt and seed
        title: a line above
        lines: a longer label ends in an ellipsis
    """
    from safelight.reporting.sheet import contact_sheet

    return contact_sheet(image, columns=columns, labels=labels, title=title, most=lines)


@op(group="score", version=2, exact=True)
def report(
    data: Dataset | None = None, patch: Patch | None = None, *,
    before: Image | Scores | None = None,
    after: Image | Scores | None = None,
    title: str = "",
) -> Page:
    """Write a run down as one HTML page that needs nothing else: pictures, captions, curves, samples, scores, lineage and times.

    Args:
        data: the dataset, with what was left out of it and why
        patch: what was trained; its curves, samples and settings come from the record that training left with it
        before: pictures of the model as it was, or their scores
        after: pictures of the trained model from the same prompts and seeds, or their scores
        title: the page's heading
    """
    from safelight.lineage import versions
    from safelight.reporting.page import page
    from safelight.reporting.story import Story
    from safelight.store import current

    if data is None and patch is None and after is None:
        raise ValueError("report: got nothing to report on; give data=, patch= or after=")
    record = _record(patch)
    training = _bytes(patch), record, _samples(patch, record)
    outcome = _image(before), _image(after), _compared(before, after)
    story = Story(title or "A run", data, patch, *training, *outcome, _steps(), versions())
    return Page(current().blob(page(story).encode(), ".html"))


def _image(given: Image | Scores | None) -> Image | None:
    return given.image if isinstance(given, Scores) else given


def _bytes(patch: Patch | None) -> int:
    from pathlib import Path

    return Path(patch.weights.path).stat().st_size if patch is not None else 0


def _record(patch: Patch | None) -> Mapping[str, Any]:
    import json
    from pathlib import Path

    if patch is None or "record.json" not in patch.files:
        return {}
    record: dict[str, Any] = json.loads(Path(patch.files["record.json"].path).read_text("utf-8"))
    return record


def _samples(patch: Patch | None, record: Mapping[str, Any]) -> tuple[Sample, ...]:
    from safelight.pictures import read
    from safelight.reporting.story import Sample

    files = patch.files if patch is not None else {}
    listed = [s for s in record.get("samples", ()) if s["file"] in files]
    return tuple(Sample(int(s["step"]), str(s["prompt"]), read(files[s["file"]].path)) for s in listed)


def _compared(before: Image | Scores | None, after: Image | Scores | None) -> tuple[Compared, ...]:
    from safelight.reporting.story import Compared
    from safelight.scoring import METRICS
    from safelight.scoring.compare import compare

    if not isinstance(after, Scores):
        return ()
    words = {name: (m.label, m.doc.split(". ")[0].split("\n\n")[0].replace("\n", " ")) for name, m in METRICS.items()}
    if isinstance(before, Scores) and len(before.image) == len(after.image):
        return tuple(Compared(words[c.metric][0], c.before, c.after, c.low, c.high, c.wins, c.pairs, words[c.metric][1])
                     for c in compare(before, after))
    return tuple(Compared(words[n][0], None, sum(v) / len(v), doc=words[n][1]) for n, v in after.values.items() if n in words)


def _steps() -> tuple[Step, ...]:
    """The ops on the way here, those that others need first."""
    from safelight.reporting.story import Step
    from safelight.store import Record, current, making

    made = making()
    if made is None:
        return ()
    store = current()
    found: dict[str, Record] = {}
    stack = [(parent.recipe, False) for parent in reversed(list(made.parents()))]
    while stack:
        recipe, done = stack.pop()
        record = store.get(recipe) if recipe and recipe not in found else None
        if record is None:
            continue
        if done:
            found[recipe] = record
        else:
            stack.append((recipe, True))
            stack += [(parent.recipe, False) for parent in reversed(list(record.made.parents()))]
    return tuple(Step(r.made.op, r.made.settings, tuple(found[p.recipe].made.op for p in r.made.parents() if p.recipe in found), _output(r),
                      r.value, r.seconds) for r in found.values())


def _output(record: Any) -> str:
    """What came out, in a few words."""
    about = record.about
    match record.type:
        case "Dataset":
            return f"{about['kept']} pictures" + (f", {about['dropped']} left out" if about["dropped"] else "")
        case "Image":
            return f"{about['pictures']} pictures, {about['width']} × {about['height']}"
        case "Model":
            patches = len(about["patches"])
            return f"{about['family']} model" + (f" with {patches} patch{'es' if patches > 1 else ''}" if patches else "")
        case "Scores":
            return f"{', '.join(about['metrics'])} of {about['pictures']} pictures"
    return str(record.type).lower()
