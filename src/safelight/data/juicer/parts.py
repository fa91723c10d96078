"""Running a recipe in parts, in this process or in any on any machine: each reads its slice of the rows and leaves a file and a manifest.

A part whose manifest is there is not done again, so a run that was killed goes on where it stopped; at the end the parts are joined in
order. What comes out is the same wherever they are done. Machines share a file system. A part is known by the recipe, the
rows' files (path, length, time of change) and the code; that a picture changed between two attempts is not seen.
"""
from __future__ import annotations

import io
import json
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import chdir
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from safelight.data.juicer.packing import code, packed, shape_named, shape_text, unpacked
from safelight.data.juicer.recipe import Recipe, groups
from safelight.data.juicer.registry import STATS, Sample
from safelight.data.juicer.results import Outcome, appearing, drop_lines, empty_outcome, removed
from safelight.data.juicer.rows import Alike, Shape, Uneven, encoder, merged, parse, shape_among, source
from safelight.data.juicer.shard import Drop, Stage, run_shard, stages
from safelight.data.juicer.tables import lined
from safelight.disk import place
from safelight.events import Event, Note, Progress
from safelight.locks import acquire, release
from safelight.values import digest

SHARD = 2000
"""Rows at a time: what is in memory."""
TRIES = 5
"""Processes that may be lost over one part."""
Execute = Callable[[Callable[[str], str], Sequence[str]], Iterator[str]]
"""Calls a function (plain data itself) with each of the texts, on whatever machines there are; what it answers, in any order."""


class Run(NamedTuple):
    """What all parts have in common: the recipe, the folder for their files, how rows are made alike, the driver's folder and code.

    `known`: the file of kept measures, when all parts are done by one machine.
    """

    recipe: Recipe
    folder: Path
    alike: Alike
    here: str
    code: str
    known: Path | None

    def key(self, piece: str) -> str:
        """Another for other rows, and when rows are made alike in another way."""
        return digest(piece, shape_text(self.alike.shape) if self.alike.given else "")

    @property
    def plan(self) -> list[Stage]:
        """The stages; the last one never picks, so that it can write the results."""
        found = stages(self.recipe, self.known)
        return [*found, Stage((), None)] if found[-1].pick else found


class Slice(NamedTuple):
    """Lines of a file: where they begin, their length in bytes, the number of the first. `of`: the file that their paths start from."""

    path: str
    of: str
    at: int
    length: int
    first: int


class Manifest(NamedTuple):
    """What a part's file holds: `sections` by name with their lengths in bytes, in order. Rows read and kept; drops by operator.

    `shape`: of the rows up to the end of this part, as text, when that of all was not known.
    """

    key: str
    sections: dict[str, int]
    read: int
    kept: int
    faults: int
    dropped: dict[str, int]
    shape: str


def run_recipe(recipe: Recipe, *, known: Path | None = None, shard: int = SHARD) -> Outcome:
    """`run_parts` in this process, without its events."""
    work = run_parts(recipe, known=known, shard=shard)
    while True:
        try:
            next(work)
        except StopIteration as stop:
            outcome: Outcome = stop.value
            return outcome


def run_parts(
    recipe: Recipe, execute: Execute | None = None, *, known: Path | None = None, shard: int = SHARD,
) -> Generator[Event, None, Outcome]:
    """Run a checked recipe by way of `execute`, else in this process; yields Progress. `known` is the file of kept measures.

    A row that cannot be read, or whose files cannot, is dropped and listed. ValueError when the data are not there or the result is being
    written.
    """
    found, result = groups(recipe), recipe.result
    work = result.with_name(f".{result.stem}.parts")
    work.mkdir(parents=True, exist_ok=True)
    lock = acquire(work / "lock", wait=False)
    if lock is None:
        raise ValueError(f"export_path: {result}: another run is writing it; wait for it, or give another path")
    try:
        folder = work / _identity(recipe, [f for g in found for f in g.files], shard)
        for other in work.iterdir():
            if other.is_dir() and other != folder:  # of another recipe, or of other rows
                removed(other)
        folder.mkdir(exist_ok=True)
        run = Run(recipe, folder, Alike(), str(Path.cwd()), code(), known)
        outcome = yield from _run(run, [json.dumps(s) for s in slices(lined(found, recipe, folder), shard)], execute)
    finally:
        release(lock)
    removed(work)
    return outcome


def _run(run: Run, pieces: Sequence[str], execute: Execute | None) -> Generator[Event, None, Outcome]:
    told = run.folder / "shape"
    if execute is None and not told.exists():
        try:
            return (yield from _stages(run, pieces, map))  # rows are nearly always alike; to look at all first would take a third more
        except Uneven:
            run = run._replace(alike=Alike())
    if not told.exists():
        tasks = [json.dumps(t) for t in enumerate(pieces)]
        shapes = yield from _watched("looking at columns", execute or map, partial(shape_of_slice, run), tasks)
        shape: Shape = None
        for _, text in sorted(json.loads(t) for t in shapes):  # columns come in the order of the rows
            shape = merged(shape, shape_named(text))
        place(run.folder, told, lambda to: to.write_text(shape_text(shape)))
    run = run._replace(alike=Alike(shape_named(told.read_text())))
    return (yield from _stages(run, pieces, execute or map))


def _stages(run: Run, pieces: Sequence[str], execute: Execute) -> Generator[Event, None, Outcome]:
    done, left = list[list[Manifest]](), list[list[Drop]]()
    for number, stage in enumerate(run.plan):
        done.append((yield from _stage(run, number, pieces, execute)))
        if stage.pick is not None:
            pieces, rest = _picked(run, number, stage, done[-1])
            left.append(rest)
    return _joined(run, done, left)


def _watched(
    what: str, execute: Execute, work: Callable[[str], str], texts: Sequence[str], before: int = 0,
) -> Generator[Event, None, list[str]]:
    told = []
    for i, answer in enumerate(execute(work, texts) if texts else (), before):
        yield Progress(step=i, total=before + len(texts), what=what, unit="shard")
        told.append(answer)
    return told


def _identity(recipe: Recipe, files: Sequence[Path], shard: int) -> str:
    named = [Path(v) for s in recipe.steps for v in s.settings.values() if isinstance(v, str) and v and Path(v).is_file()]
    told = [code(), repr((dict(recipe.keys), recipe.steps, shard))]
    for file in (*files, *named):
        stat = file.stat()
        told += [repr(file), f"{stat.st_size} {stat.st_mtime_ns}"]
    return digest(*told)


def slices(files: Sequence[tuple[Path, Path]], size: int) -> Iterator[Slice]:
    """The files, as `lined` gives them, cut behind every `size` lines that are not empty; numbers run on from file to file."""
    first = 1
    for path, of in files:
        places = _places(path, first)
        while taken := list(islice(places, size)):
            number, begin, _ = taken[0]
            last, _, end = taken[-1]
            yield Slice(str(path), str(of), begin, end - begin, number)
            first = last + 1


def _places(path: Path, first: int) -> Iterator[tuple[int, int, int]]:
    """(number, begin, end) of every line that is not empty."""
    at = 0
    with open(path, "rb") as f:
        for number, line in enumerate(f, start=first):
            if line.strip():
                yield number, at, at + len(line)
            at += len(line)


def _lines(piece: str) -> Iterator[tuple[int, bytes]]:
    cut = Slice(*json.loads(piece))
    with open(cut.path, "rb") as f:
        f.seek(cut.at)
        for number, line in enumerate(io.BytesIO(f.read(cut.length)), start=cut.first):
            if line.strip():
                yield number, line


def shape_of_slice(run: Run, task: str) -> str:
    """The shape of a slice's rows, as text, behind the slice's number. ImportError when this process has other code than the driver."""
    if code() != run.code:
        import platform

        raise ImportError(f"{platform.node()} has another version of Safelight or Pillow; install the same on every machine")
    number, piece = json.loads(task)
    return json.dumps([number, shape_text(shape_among(_lines(piece)))])


def _stage(run: Run, stage: int, pieces: Sequence[str], execute: Execute) -> Generator[Event, None, list[Manifest]]:
    """Do the parts of a stage that are not done; the manifests of all."""
    tasks = [(stage, part, piece) for part, piece in enumerate(pieces)]
    before = [made(run, *t) for t in tasks]
    todo = [json.dumps(t) for t, manifest in zip(tasks, before, strict=True) if manifest is None]
    if len(todo) < len(tasks):
        yield Note(text=f"{len(tasks) - len(todo)} of {len(tasks)} shards were done before")
    for manifest in before:
        if manifest is not None:
            run.alike.shape = merged(run.alike.shape, shape_named(manifest.shape))
    for tries in run.folder.glob("*.tries"):
        tries.unlink()
    past, what = len(tasks) - len(todo), f"stage {stage + 1} of {len(run.plan)}"
    for told in (yield from _watched(what, execute, partial(do, run), todo, past)):
        if told:
            raise RuntimeError(told)
    manifests = [made(run, *t) for t in tasks]
    found = [m for m in manifests if m is not None]
    if len(found) < len(manifests):
        raise ValueError(f"{run.folder}: shards are missing that were done; the machines must share the folder of the result")
    return found


def _at(run: Run, stage: int, part: int) -> Path:
    return run.folder / f"{stage}-{part:06d}.jsonl"


def made(run: Run, stage: int, part: int, piece: str) -> Manifest | None:
    """The manifest of a part, or None when it is not done, or not of this piece."""
    path = _at(run, stage, part)
    try:
        manifest = Manifest(**json.loads(path.with_suffix(".json").read_bytes()))
        whole = path.stat().st_size == sum(manifest.sections.values())
    except (OSError, ValueError, TypeError):
        return None
    return manifest if whole and manifest.key == run.key(piece) else None


def do(run: Run, task: str) -> str:
    """Do one part and write its file, then its manifest; nothing when both are there. What it says, if anything, ends the run."""
    number, part, piece = json.loads(task)
    path = _at(run, number, part)
    if made(run, number, part, piece) is not None:
        return ""
    with open(path.with_suffix(".tries"), "ab") as f:
        if f.tell() >= TRIES:
            return f"shard {part} of stage {number + 1} ended {TRIES} processes that worked on it; a picture or too little memory does that"
        f.write(b"x")
    stage, faults = run.plan[number], list[Drop]()
    with chdir(run.here):
        if number:
            samples = list(_fetched(run, number - 1, piece))
            read = len(samples)
        else:
            numbered = list(_lines(piece))
            samples, found = parse(numbered, source(Path(Slice(*json.loads(piece)).of), run.recipe), run.alike)
            faults, read = [Drop(f.number, "reading", f.reason, fault=True) for f in found], len(numbered)
        done = run_shard(samples, stage)
    drops = [*faults, *done.drops]
    counted = {by: sum(d.by == by for d in drops) for by in dict.fromkeys(d.by for d in drops)}
    written = {k: v.encode() for k, v in _written(run.recipe, stage, done.kept, done.keys).items()}
    written["dropped"] = "".join(drop_lines(drops)).encode()
    lengths = {k: len(v) for k, v in written.items()}
    shape = "null" if run.alike.given or number else shape_text(run.alike.shape)
    manifest = Manifest(run.key(piece), lengths, read, len(done.kept), sum(d.fault for d in drops), counted, shape)
    place(run.folder, path, lambda to: to.write_bytes(b"".join(written.values())))
    place(run.folder, path.with_suffix(".json"), lambda to: to.write_text(json.dumps(manifest._asdict())))
    return ""


def _written(recipe: Recipe, stage: Stage, kept: Sequence[Sample], keys: Sequence[Any]) -> dict[str, str]:
    """The sections of a part's file: rows to go on with and their keys, or what the results are made of."""
    if stage.pick is not None:
        rows = [json.dumps([s.row, s.stats]) + "\n" for s in kept]
        told = {"numbers": [s.number for s in kept], "lengths": [len(r) for r in rows], "keys": [packed(k) for k in keys]}
        return {"rows": "".join(rows), "keys": json.dumps(told)}
    encode, with_stats = encoder(), empty_outcome(recipe).stats is not None and recipe.keys["keep_stats_in_res_ds"]
    return {"result": "".join([encode({**s.row, STATS: s.stats} if with_stats else s.row) + "\n" for s in kept]),
            "stats": "".join([encode({STATS: s.stats}) + "\n" for s in kept])}


def _section(run: Run, stage: int, part: int, manifest: Manifest, name: str) -> bytes:
    before = list(manifest.sections).index(name)
    with open(_at(run, stage, part), "rb") as f:
        f.seek(sum(list(manifest.sections.values())[:before]))
        return f.read(manifest.sections[name])


def _picked(run: Run, number: int, stage: Stage, manifests: Sequence[Manifest]) -> tuple[list[str], list[Drop]]:
    """The pieces of the next stage, and the rows that were not chosen. In memory are only keys and places."""
    assert stage.pick is not None and stage.pick.operator.choose is not None
    keys = list[Any]()
    parts, places, lengths, numbers = array("q"), array("q"), array("q"), array("q")
    for part, manifest in enumerate(manifests):
        told = json.loads(_section(run, number, part, manifest, "keys"))
        keys += [unpacked(k) for k in told["keys"]]
        at = 0
        for length in told["lengths"]:
            parts.append(part)
            places.append(at)
            at += length
        lengths.extend(told["lengths"])
        numbers.extend(told["numbers"])
    order = list(stage.pick.operator.choose(keys, stage.pick.settings))
    chosen = set(order)
    left = [Drop(numbers[i], stage.pick.name, "not chosen") for i in range(len(keys)) if i not in chosen]
    cut = [order[i:i + SHARD] for i in range(0, len(order), SHARD)]
    return [json.dumps([[parts[i], places[i], lengths[i], numbers[i]] for i in some]) for some in cut], left


def _fetched(run: Run, stage: int, piece: str) -> Iterator[Sample]:
    """The rows that a piece names, in its order; each file is opened once."""
    wanted = list(enumerate(json.loads(piece)))
    found: dict[int, Sample] = {}
    for part, some in groupby(sorted(wanted, key=itemgetter(1)), key=lambda w: int(w[1][0])):
        with open(_at(run, stage, part), "rb") as f:
            for i, (_, at, length, number) in some:
                f.seek(at)
                found[i] = Sample(number, *json.loads(f.read(length)))
    return (found[i] for i, _ in wanted)


def _joined(run: Run, done: Sequence[Sequence[Manifest]], left: Sequence[Sequence[Drop]]) -> Outcome:
    """The results, from the parts in order; they appear together."""
    outcome = empty_outcome(run.recipe)
    outcome.read, outcome.kept = sum(m.read for m in done[0]), sum(m.kept for m in done[-1])
    plain = outcome.result.suffix == ".jsonl" and not run.recipe.keys["export_shard_size"]
    rows = outcome.result if plain else run.folder / "result.jsonl"
    results = {k: p for k, p in (("result", rows), ("stats", outcome.stats)) if p}
    with appearing([*results.values(), outcome.dropped_list]) as (*told, dropped):
        for number, manifests in enumerate(done):
            for part, manifest in enumerate(manifests):
                outcome.dropped.update(manifest.dropped)
                outcome.faults += manifest.faults
                dropped.write(_section(run, number, part, manifest, "dropped"))
            if number < len(left):
                outcome.dropped.update(d.by for d in left[number])
                dropped.write("".join(drop_lines(left[number])).encode())
        for part, manifest in enumerate(done[-1]):
            for name, file in zip(results, told, strict=True):
                file.write(_section(run, len(done) - 1, part, manifest, name))
    if not plain:
        from safelight.data.juicer.exports import export

        outcome.result = export(rows, run.recipe)[0]
    return outcome
