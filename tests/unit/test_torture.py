"""Files and rows that break readers: each has one outcome, and it is that of docs/data.md; nothing stops the run."""
from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from safelight.data.juicer import read_recipe, run_recipe
from safelight.data.juicer.parts import run_parts
from safelight.progress import watch
from tests import torture

ROOT = Path(__file__).parents[2]


def test_every_file_has_its_outcome(tmp_path: Path) -> None:
    cases = torture.write(tmp_path / "set", 3 * len(torture.KINDS))
    assert torture.wrong_in_curate(cases, tmp_path / "set") == []
    assert torture.wrong_in_dj(cases, tmp_path) == []


@pytest.mark.slow
def test_ten_thousand_files_in_bounded_memory(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-m", "tests.torture", str(tmp_path), "10000"], env=env, cwd=ROOT, stdout=subprocess.PIPE)
    assert child.stdout is not None
    told = child.stdout.read().decode()
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stdout.close()
    assert (child.returncode, told) == (0, "")
    assert used.ru_maxrss < 400 * 1024


def test_the_page_states_the_outcomes() -> None:
    table = (ROOT / "docs" / "data.md").read_text("utf-8").partition("## Broken files")[2]
    cells = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][2:]
    stated = {name: [c.partition(":")[0] for c in said] for names, *said in cells for name in names.split(", ")}
    expected = {
        name: ["no row" if kind.curate is None else "dropped" if kind.curate else "stays", "dropped" if kind.dj else "stays"]
        for name, kind in torture.KINDS.items()
    }
    assert stated == {"not ours to read": ["dropped", "dropped"], **expected}


ROWS = [
    b'{"text": "a", "meta": {"a": 1}}', b'{"text": "b", "meta": "x"}', b'{"text": "c", "meta": [1]}', b'{"text": "d", "meta": {"a": [{}]}}',
    b'{"text": 1.5}', b'{"text": ["x"]}', b'{"text": {"y": 1}}', b'{"text": null}', b"null", b'"text"', b"\xff", b"", b"[" * 10**5,
    b'{"text": "n", "image": ' + b"[" * 300 + b"]" * 300 + b"}", b'{"a":' * 10**5, b'{"text": "v", "v": NaN}', b'{"text": "v", "v": 1e999}',
    b'{"text": "v", "v": ' + b"9" * 5000 + b"}", b'{"text": "\\ud83d"}', b'{"text": "\\ud83d\\ude00"}', b'{"text": "\x00"}',
    b'{"text": "p", "image": "a.jpg"}', b'{"text": "p", "image": {"a": 1}}', b'{"text": "p", "image": ["\\u0000"]}',
    b'{"text": "p", "image": [""]}', b'{"text": "p", "image": ["' + b"a" * 9999 + b'"]}', b'{"text": "p", "image": ["http://a.b/c.jpg"]}',
]


def test_any_two_rows_are_read_or_listed(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    (tmp_path / "r.yaml").write_text(f"dataset_path: {data}\nimage_key: image\nexport_path: {tmp_path}/out/result.jsonl\n"
                                     "process: [text_length_filter: {min_len: 0}, image_shape_filter, document_deduplicator]", "utf-8")
    recipe = read_recipe(tmp_path / "r.yaml")
    for pair in [*itertools.permutations(ROWS[:4], 2), *([row, b'{"text": "fine", "image": []}'] for row in ROWS[4:]), ROWS]:
        data.write_bytes(b"\n".join(pair) + b"\n")
        done = run_recipe(recipe)
        found = [p.read_bytes() for p in (done.result, done.dropped_list)]
        assert done.read == sum(bool(row) for row in pair) == sum(f.count(b"\n") for f in found)
        assert all(d["reason"] for d in map(json.loads, found[1].splitlines()))
    again = watch(run_parts(recipe, map))
    assert [p.read_bytes() for p in (again.result, again.dropped_list)] == found
