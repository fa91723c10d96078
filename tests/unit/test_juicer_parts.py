"""Recipes in parts: what comes out is what one pass makes, byte for byte; parts that are done are not done again."""
from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from safelight.cli import cli
from safelight.data.juicer import Outcome, read_recipe, run_recipe
from safelight.data.juicer.cluster import run_on_ray
from safelight.data.juicer.packing import packed, shape_named, shape_text, unpacked
from safelight.data.juicer.parts import run_parts, slices
from safelight.data.juicer.recipe import Recipe
from safelight.data.juicer.rows import shape_among
from safelight.events import Note
from tests.juicer import HEADER, RECIPES, numbered, write

Execute = Callable[[Callable[[str], str], Sequence[str]], Iterator[str]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows")
    write(path)
    (path / "more.jsonl").write_text('\n{"text": "b", "image": [], "extra": 1}\n\nno json\n{"text": "c", "extra": 0.5}\n\n\n', "utf-8")
    return path


def recipe(root: Path, out: Path, process: str, *, data: str = "data.jsonl") -> Recipe:
    text = HEADER.replace("{root}/data.jsonl", f"{root}/{data}".rstrip("/")).replace("{root}", str(out)).replace("{name}", "one")
    out.mkdir(exist_ok=True)
    (out / "one.yaml").write_text(text + process, "utf-8")
    return read_recipe(out / "one.yaml", allow_code=True)


def backwards(work: Callable[[str], str], texts: Sequence[str]) -> Iterator[str]:
    return map(work, reversed(texts))


def run(made: Recipe, execute: Execute = backwards, shard: int = 37) -> tuple[Outcome, list[str]]:
    """The outcome and what was noted on the way."""
    notes, work = list[str](), run_parts(made, execute, shard=shard)
    try:
        while True:
            event = next(work)
            notes += [event.text] if isinstance(event, Note) else []
    except StopIteration as stop:
        return stop.value, notes


def same(a: Outcome, b: Outcome) -> bool:
    one, other = ([p.read_bytes() if p else None for p in (x.result, x.stats, x.dropped_list)] for x in (a, b))
    return one == other


@pytest.mark.parametrize(("name", "data"), [*((n, "data.jsonl") for n in RECIPES), ("mission", "")])
def test_parts_make_what_one_pass_makes(name: str, data: str, root: Path, tmp_path: Path) -> None:
    whole = run_recipe(recipe(root, tmp_path / "a", RECIPES[name], data=data), shard=37)
    parts, _ = run(recipe(root, tmp_path / "b", RECIPES[name], data=data))
    assert same(whole, parts)
    assert (whole.read, whole.kept, whole.faults, whole.dropped) == (parts.read, parts.kept, parts.faults, parts.dropped)
    assert {p.name for p in parts.result.parent.iterdir()} <= {"result.jsonl", "result_stats.jsonl", "result_dropped.jsonl"}


def of_stage(text: str) -> bool:
    """Whether it asks for a part to be done; what comes before asks for the shape of rows."""
    return len(json.loads(text)) == 3


class Lost(Exception):
    """A driver that dies."""


def test_what_was_done_is_not_done_again(root: Path, tmp_path: Path) -> None:
    process = RECIPES["dedup"]
    whole = run_recipe(recipe(root, tmp_path / "a", process), shard=20)
    made, ran = recipe(root, tmp_path / "b", process), list[str]()

    def dying(work: Callable[[str], str], texts: Sequence[str]) -> Iterator[str]:
        for n, text in enumerate(texts):
            if n == 5 and of_stage(text):
                raise Lost
            yield work(text)

    def counting(work: Callable[[str], str], texts: Sequence[str]) -> Iterator[str]:
        ran.extend(t for t in texts if of_stage(t))
        return map(work, texts)

    with pytest.raises(Lost):
        run(made, dying, shard=20)
    assert not made.result.exists()
    broken = sorted(made.result.parent.glob(".result.parts/*/0-*.jsonl"))
    assert len(broken) == 5
    broken[2].write_bytes(broken[2].read_bytes()[:-1])
    broken[4].with_suffix(".json").unlink()
    again, notes = run(made, counting, shard=20)
    assert same(whole, again) and notes == ["3 of 8 shards were done before"]
    assert sorted(json.loads(t)[:2] for t in ran) == [[0, 2], [0, 4], [0, 5], [0, 6], [0, 7], [1, 0]]


KILLS_ITSELF = """
import os, signal
from pathlib import Path

def process_single(row):
    log = Path("LOG")
    seen = log.read_text().split() if log.exists() else []
    with open(log, "a") as f:
        f.write(f"{row['n']} ")
    if row["n"] == 83 and "83" not in seen:
        os.kill(os.getpid(), signal.SIGKILL)
    return row
"""


@pytest.mark.parametrize("extra", ["", '"more": 1.5, '])
def test_a_killed_run_goes_on_where_it_stopped(extra: str, tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text(KILLS_ITSELF.replace("LOG", str(tmp_path / "log")))
    lines = [f'{{"text": "row {n % 90}", {extra if n == 60 else ""}"n": {n}}}' for n in range(120)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    process = f"process: [python_file_mapper: {{file_path: '{tmp_path}/f.py'}}, document_deduplicator: ]"
    made = recipe(tmp_path, tmp_path / "killed", process)
    code = ("import sys; from safelight.data.juicer import read_recipe, run_recipe; "
            "run_recipe(read_recipe(sys.argv[1], allow_code=True), shard=10)")
    command = [sys.executable, "-c", code, str(tmp_path / "killed" / "one.yaml")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not made.result.exists()
    assert subprocess.run(command, check=False).returncode == 0
    seen = (tmp_path / "log").read_text().split()
    twice = {int(n) for n in seen if seen.count(n) == 2}
    assert twice == set(range(80, 84)) | set(range(60 if extra else 0))  # row 60 has a column that those before it lack
    assert same(run_recipe(made), run_recipe(recipe(tmp_path, tmp_path / "calm", process)))
    assert made.result.read_text().count("\n") == 90


def test_another_recipe_or_other_rows_begin_anew(root: Path, tmp_path: Path) -> None:
    def nothing(work: Callable[[str], str], texts: Sequence[str]) -> Iterator[str]:
        yield from map(work, texts)
        if of_stage(texts[0]):
            raise Lost

    (tmp_path / "data.jsonl").write_bytes((root / "data.jsonl").read_bytes())
    process = "process: [image_shape_filter: {min_width: 90}]"
    for change in (process, process.replace("90", "91"), process.replace("90", "91") + "\n# rows"):
        if change.endswith("rows"):
            with open(tmp_path / "data.jsonl", "a") as f:
                f.write('{"text": "more"}\n')
        with pytest.raises(Lost):
            run(recipe(tmp_path, tmp_path / "out", change), nothing)
        assert len(list(tmp_path.glob("out/one/.result.parts/*/"))) == 1  # the other one's are gone
    last = recipe(tmp_path, tmp_path / "out", process)
    assert run(last)[1] == []


def test_a_part_that_ends_its_processes_ends_the_run(root: Path, tmp_path: Path) -> None:
    def again_and_again(work: Callable[[str], str], texts: Sequence[str]) -> Iterator[str]:
        for text in texts:
            for _ in range(5 if of_stage(text) else 0):  # as when the process is killed and the task begun anew
                with pytest.raises(SystemExit):
                    work(text)
            yield work(text)

    made = recipe(root, tmp_path, "process: [python_lambda_mapper: {lambda_str: 'lambda row: exit()'}]")
    with pytest.raises(RuntimeError, match="shard 0 of stage 1 ended 5 processes"):
        run(made, again_and_again)


def test_two_runs_do_not_write_one_result(root: Path, tmp_path: Path) -> None:
    made = recipe(root, tmp_path, RECIPES["mission"])
    first = run_parts(made, backwards)
    next(first)
    with pytest.raises(ValueError, match="another run is writing it"):
        run(made)
    first.close()
    assert run(made)[0].kept


def test_slices_are_the_lines(root: Path) -> None:
    files = [root / "more.jsonl", root / "data.jsonl"]
    cut = list(slices([(f, f) for f in files], 3))
    found = []
    for s in cut:
        data = Path(s.path).read_bytes()[s.at:s.at + s.length]
        found += [(s.first + i, line) for i, line in enumerate(data.splitlines(keepends=True)) if line.strip()]
    assert found == [*numbered(files[0]), *numbered(files[1], 6)]


@pytest.mark.parametrize("key", ["a", None, 1.5, True, (1, b"\0\xff"), [b"a", [1]], {"bytes": ["list", 1]}, ("hash", "text"), []])
def test_keys_come_back(key: object) -> None:
    back = unpacked(json.loads(json.dumps(packed(key))))
    assert back == key and type(back) is type(key)


def test_shapes_come_back(root: Path) -> None:
    shape = shape_among([*numbered(root / "data.jsonl"), *numbered(root / "more.jsonl")])
    assert shape_named(shape_text(shape)) == shape
    assert shape["extra"] is float and shape_named(shape_text({"a": ("list", object), "b": None})) == {"a": ("list", object), "b": None}


def test_what_is_missing_is_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.setenv(name, "")  # put back afterwards
    monkeypatch.setitem(sys.modules, "ray", None)
    recipe(root, tmp_path, RECIPES["mission"])
    ran = CliRunner().invoke(cli, ["dj", "--config", str(tmp_path / "one.yaml"), "--engine", "ray"])
    assert ran.exit_code == 1 and "pip install 'safelight[ray]'" in ran.output
    for address in ("127.0.0.1:1", "nonsense"):
        with pytest.raises(ValueError, match="nothing answers at"):
            list(run_on_ray(read_recipe(tmp_path / "one.yaml"), address=address))
    ran = CliRunner().invoke(cli, ["dj", "--config", str(tmp_path / "one.yaml"), "--address", "a:1"])
    assert ran.exit_code == 2 and "--address is for --engine ray" in ran.output
