"""The work on a shard of rows: `run_shard(samples, stage)` is a pure function of plain data, so any process on any machine can call it.

A recipe is cut into stages: what is decided row by row, then what needs all rows (duplicates, selections), and so on. Within a stage
operators run in order of cost (text, file status, header, pixels, network) as far as none passes a mapper; what a row costs ends where it
is dropped. A picture is decoded once, at the smallest scale that serves all operators.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from safelight.data.juicer.known import Known
from safelight.data.juicer.pictures import Picture, Size, sizes
from safelight.data.juicer.recipe import Recipe, Step
from safelight.data.juicer.registry import COST, Operator, Sample, images, settle, within

Act = Callable[[Sample, list[Picture]], str]
"""One operator at work on a row: the reason to drop it, or ""."""

FAULTS = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, MemoryError, RuntimeError, SyntaxError,
          NameError, AssertionError)
"""What may be wrong with one row, its files or a recipe's own code on it. The row is dropped and listed; the others go on."""


class Stage(NamedTuple):
    """Steps that look at one row at a time, then perhaps one that chooses among all. `known`: the file of kept measures, or None."""

    steps: tuple[Step, ...]
    pick: Step | None
    known: Path | None = None


class Drop(NamedTuple):
    """A row that does not stay: the operator that dropped it and why; `fault`: something is wrong with it."""

    number: int
    by: str
    reason: str
    fault: bool = False


class Done(NamedTuple):
    """What became of a shard: the rows with their stats, in order; what was dropped; for a stage with a pick a key for every row."""

    kept: list[Sample]
    drops: list[Drop]
    keys: list[Any]


def stages(recipe: Recipe, known: Path | None) -> list[Stage]:
    """The recipe in stages; at least one."""
    found, steps = list[Stage](), list[Step]()
    for step in recipe.steps:
        if step.operator.kind == "pick":
            found.append(Stage(tuple(steps), step, known))
            steps = []
        else:
            steps.append(step)
    return found + ([Stage(tuple(steps), None, known)] if steps or not found else [])


def run_shard(samples: Sequence[Sample], stage: Stage) -> Done:
    """Run a stage on rows. A fault drops its own row; nothing is raised for it."""
    kept, drops = list(samples), list[Drop]()
    ordered = list(_ordered(stage.steps))
    for needs, steps in groupby(ordered, key=lambda s: s.operator.needs):
        kept = _pass(kept, list(steps), stage.known if needs != "text" else None, drops)
    if tuple(ordered) != stage.steps:
        _in_order(kept, [n for s in stage.steps for n in stat_names(s)])
    keys: list[Any] = []
    if stage.pick is not None:
        kept = _pass(kept, [stage.pick], stage.known, drops, keys)
    return Done(kept, sorted(drops, key=lambda d: d.number), keys)


def _in_order(samples: Sequence[Sample], names: Sequence[str]) -> None:
    """Stats as the recipe has their operators, not as they were run."""
    for sample in samples:
        before = sample.stats
        sample.stats = {k: v for k, v in before.items() if k not in names}
        sample.stats.update((k, before[k]) for k in names if k in before)


def stat_names(step: Step) -> tuple[str, ...]:
    """The stats that a step writes."""
    if "field_key" in step.settings:
        return (step.settings["field_key"],)
    return tuple(step.operator.stats)


def _ordered(steps: Sequence[Step]) -> Iterator[Step]:
    """Cheapest first; nothing passes a mapper, nor a filter by a column, which may read a stat."""
    for fixed, run in groupby(steps, key=lambda s: s.operator.changes or s.operator.kind == "row"):
        together = list(run)
        yield from together if fixed else sorted(together, key=lambda s: COST.index(s.operator.needs))


def _pass(
    samples: list[Sample], steps: list[Step], file: Path | None, drops: list[Drop], keys: list[Any] | None = None,
) -> list[Sample]:
    """Take every row through the steps; the rows that stay."""
    acts = [(s.name, _act(s, keys)) for s in steps]
    needs = {s.operator.needs for s in steps}
    key = steps[0].settings["image_key"]
    least = 0 if any(s.operator.least == 0 for s in steps) else max(s.operator.least for s in steps)
    known, paths = Known(None), [] if needs == {"text"} else _paths(samples, key)
    if file is not None and needs & {"header", "pixels", "model"}:
        known = Known(file, paths)
    ahead = sizes(paths, known) if "header" in needs else {}
    look = None if needs == {"text"} else (key, known, least, ahead)
    kept = []
    for sample in samples:
        drop = _through(sample, acts, look)
        if drop is None:
            kept.append(sample)
        else:
            drops.append(drop)
    known.keep()
    return kept


def _paths(samples: Sequence[Sample], key: str) -> list[str]:
    return list(dict.fromkeys([p for s in samples for p in s.row.get(key) or () if p.__class__ is str]))


def _through(sample: Sample, acts: list[tuple[str, Act]], look: tuple[str, Known, int, Mapping[str, Size]] | None) -> Drop | None:
    """Take one row through steps; its pictures live no longer than this."""
    name = acts[0][0]
    pictures: list[Picture] = []
    try:
        if look:
            key, known, least, ahead = look
            pictures = [Picture(p, known, least, ahead.get(p)) for p in images(sample, key)]
        for name, act in acts:
            reason = act(sample, pictures)
            if reason:
                return Drop(sample.number, name, reason)
    except FAULTS as error:
        told = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError | OSError) else str(error)
        return Drop(sample.number, name, told, fault=True)
    return None


def _question(step: Step) -> str:
    """Under which name a measure is kept: it changes with the operator's version and the settings that are no bounds."""
    bounds = {name for pair in step.operator.stats.values() for name in pair} | {"any_or_all"}
    shown = [f"{k}={step.settings[k]}" for k in sorted(step.operator.settings) if k not in bounds]
    return " ".join([step.name, str(step.operator.version), *shown, *_looked_with(step)])


def _looked_with(step: Step) -> list[str]:
    """Changes when a file of the network or of the cascade does that the operator looks with."""
    named = [str(v) for k, v in step.settings.items() if v and (k.startswith("hf_") or k == "cv_classifier")]
    if not named:
        return []
    from safelight import index
    from safelight.values import digest

    if step.operator.needs == "model":
        from safelight.data.juicer.networks import place

        looked = [f for name in named for f in sorted(place(name).rglob("*")) if f.is_file()]
    else:
        looked = [Path(name) for name in named]
    return [digest(*[part for f in looked for part in (f.name, index.sha256(f))])]


def _act(step: Step, keys: list[Any] | None) -> Act:
    """The step bound to its settings."""
    operator, s = step.operator, step.settings
    match operator.kind:
        case "text":
            return _text(operator, step)
        case "picture" | "pair":
            return _listed(operator, step)
        case "row":
            return lambda sample, pictures: str(operator.run(sample, pictures, s))
        case "mapper" if operator.needs == "text":
            return lambda sample, _: _mapped(sample, s["text_key"], operator.run(sample.row[s["text_key"]], s))
        case "mapper":
            return lambda sample, pictures: operator.run(sample, pictures, s) or ""
    assert keys is not None
    found = keys

    def act(sample: Sample, pictures: list[Picture]) -> str:
        found.append(operator.run(sample, pictures, s))
        return ""

    return act


def _mapped(sample: Sample, key: str, text: str) -> str:
    sample.row[key] = text
    return ""


def _text(operator: Operator, step: Step) -> Act:
    s, names = step.settings, tuple(operator.stats)
    checks = [within(s.get(low), s.get(high), s) for low, high in operator.stats.values()]
    key = s["text_key"]

    def act(sample: Sample, _: list[Picture]) -> str:
        if names[0] not in sample.stats:
            sample.stats.update(zip(names, map(settle, operator.run(sample.row[key], s)), strict=True))
        for name, fits in zip(names, checks, strict=True):
            if not fits(sample.stats[name]):
                return f"{name} is {sample.stats[name]:.6g}"
        return ""

    return act


def _listed(operator: Operator, step: Step) -> Act:
    """A filter whose stats are lists: of pictures, or of parts of the text with their pictures."""
    s, names = step.settings, tuple(operator.stats)
    checked = [(name, within(s.get(low), s.get(high), s), i) for i, (name, (low, high)) in enumerate(operator.stats.items())]
    enough = any if s["any_or_all"] == "any" else all
    at_once, run, measure = operator.needs in ("stat", "header"), operator.run, _measure(operator, step)

    def act(sample: Sample, pictures: list[Picture]) -> str:
        stats = sample.stats
        if names[0] not in stats:
            found = [run(p, s) for p in pictures] if at_once else measure(sample, pictures)
            if len(found) == 1:  # nearly always, and in one pass; `settle` leaves whole numbers as they are
                good = True
                for name, fits, i in checked:
                    value = found[0][i]
                    value = value if value.__class__ is int else settle(value)
                    stats[name] = [value]
                    good = fits(value) and good
                return "" if good else _outside(stats, names)
            for i, name in enumerate(names):
                stats[name] = [settle(v[i]) for v in found]
        count = len(stats[names[0]])
        if not count or enough(all(check(stats[name][i]) for name, check, _ in checked) for i in range(count)):
            return ""
        return _outside(stats, names)

    return act


def _outside(stats: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join([f"{name} is {' '.join([f'{v:.6g}' for v in stats[name]])}" for name in names])


def _measure(operator: Operator, step: Step) -> Callable[[Sample, list[Picture]], list[Any]]:
    s = step.settings
    if operator.kind == "pair":
        return lambda sample, pictures: [(v,) for v in operator.run(sample.row[s["text_key"]], pictures, s)] if pictures else []
    question = cache(lambda: _question(step))
    return lambda _, pictures: [p.known.answer(p, question() if p.known.file else "", lambda p: operator.run(p, s)) for p in pictures]
