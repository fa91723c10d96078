"""The store: what is put comes back whole, whatever dies; processes share it; making room takes nothing that is in use."""
from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safelight import engine
from safelight.codec import encode, exact_key
from safelight.store import Input, Made, Missing, Record, Store, current, using
from safelight.sweep import parse_size, sweep
from safelight.values import VALUES, Blob, Caption, Cond, Dataset, Image, Latent, Mask, Model, Page, Patch, Row, Scores, Seen, Sigmas, Value
from tests.small_ops import SMALL

ROOT = Path(__file__).parents[2]
INFO = ({"prompt": "雨", "seed": 2**63}, {"size": [4, 3]})
PICTURES = Image(np.linspace(0, 1, 2 * 3 * 4 * 3, dtype=np.float32).reshape(2, 3, 4, 3), INFO)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def made(recipe: str, **inputs: Any) -> Made:
    return Made(f"{recipe:0<32}", "test", "v1", {"a": 1, "name": "雨"}, inputs, versions={"python": "3"})


def values(store: Store) -> dict[str, Value]:
    """One of each kind."""
    blob = store.blob(b"weights", ".safetensors")
    rows = (
        Row(blob, "a.png", 4, 3, (Caption("file", "x"), Caption("tagger", "y")), info={"laplace": 1.5}),
        Row(Blob("gone.png", ""), "gone.png", 0, 0, dropped="missing: not there", info={"$odd": [1, (2, 3)]}),
    )
    patch = Patch("lora", blob, 0.5, {"merged": True}, {"record.json": store.blob(b"{}", ".json")}, {"rank": 4})
    tensors = torch.arange(6, dtype=torch.bfloat16).reshape(1, 1, 2, 3)
    return {
        "image": PICTURES, "mask": Mask(np.ones((1, 2, 2), np.float32)), "patch": patch, "dataset": Dataset(rows, {"source": "p"}),
        "model": Model("sd", "mini", "f" * 32, (patch,)), "latent": Latent(tensors, "sd"), "page": Page(blob),
        "latent with mask": Latent(torch.zeros(1, 4, 2, 2), "sd", torch.ones(1, 1, 2, 2)),
        "scores": Scores({"clip": [0.25, float("inf")]}, PICTURES),
        "cond": Cond(torch.ones(1, 2, 3), {"pooled": torch.zeros(1, 3)}), "empty": Dataset(()),
        "seen": Seen(torch.ones(1, 4), torch.zeros(1, 3, 2), torch.ones(1, 3, 2)), "sigmas": Sigmas((14.5, 0.25, 0.0)),
    }


NAMES = ["image", "mask", "patch", "dataset", "model", "latent", "page", "latent with mask", "scores", "cond", "empty", "seen", "sigmas"]


def test_one_of_each_kind_is_tested(store: Store) -> None:
    assert list(values(store)) == NAMES and {type(v) for v in values(store).values()} == set(VALUES.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_value_comes_back(store: Store, name: str) -> None:
    value = values(store)[name]
    record = store.put(value, made("aa"))
    again = Store(store.root)
    found = again.get(made("aa").recipe)
    assert found == record and found is not None
    back = again.load(found)
    assert type(back) is type(value) and back.key == value.key == record.value
    assert exact_key(back) == exact_key(value) == record.exact
    assert encode(back).tree == encode(value).tree
    assert type(back.rows) is tuple if isinstance(back, Dataset) else True


def test_the_exact_key_sees_info_and_dropped_rows_but_not_places(store: Store, tmp_path: Path) -> None:
    data = values(store)["dataset"]
    assert isinstance(data, Dataset)
    other = Dataset((*data.rows[:1], Row(Blob("gone.png", ""), "gone.png", 0, 0, dropped="too small")), data.info)
    assert other.key == data.key and exact_key(other) != exact_key(data)
    moved = tmp_path / "moved.bin"
    moved.write_bytes(b"weights")
    assert exact_key(Page(Blob.of(moved))) == exact_key(values(store)["page"])
    stamped = Image(PICTURES.pixels, tuple({**row, "made": ["r", i]} for i, row in enumerate(PICTURES.info)))
    assert exact_key(stamped) == exact_key(PICTURES) != exact_key(Image(PICTURES.pixels))


def test_what_cannot_be_kept_is_named(store: Store) -> None:
    with pytest.raises(TypeError, match=r"Dataset\.info\['f'\]: cannot keep a function"):
        store.put(Dataset((), {"f": parse_size}), made("aa"))

    class Odd(Mask):
        """Not registered."""

    with pytest.raises(TypeError, match=r"Odd is not in values\.VALUES"):
        store.put(Odd(np.zeros((1, 1, 1), np.float32)), made("aa"))
    assert list(store.records()) == []


def test_a_record_is_found_by_what_it_made(store: Store) -> None:
    given = Input("Image", "k", "e", "r")
    record = store.put(PICTURES, made("bb", image=given, others=(given, given), none=None), seconds=1.5, about={"pictures": 2})
    for key in (record.value, record.exact):
        assert store.producer(key) == record
    assert store.producer("0" * 32) is None and store.get("0" * 32) is None
    assert Record.read(record.json()) == record and list(record.made.parents()) == [given] * 3
    newer = store.put(PICTURES, made("cc"))
    assert store.producer(record.value) == newer and store.get(record.made.recipe) == record


def test_damage_is_a_miss_and_not_a_crash(store: Store) -> None:
    record = store.put(PICTURES, made("aa"))
    fresh = Store(store.root)
    arrays = next(store.root.glob("values/*/*.arrays"))
    arrays.write_bytes(arrays.read_bytes()[:100])
    with pytest.raises(Missing):
        fresh.load(record)
    next(store.root.glob("values/*/*.json")).write_text("{")
    with pytest.raises(Missing):
        fresh.load(record)
    for text in ("", "[]", '{"format": 99}', '{"format": 1, "made": {}}'):
        next(store.root.glob("records/*/*.json")).write_text(text)
        assert fresh.get(record.made.recipe) is None and list(fresh.records()) == []
    assert fresh.load(store.put(PICTURES, made("aa"))).key == PICTURES.key and fresh.get(record.made.recipe) is not None


def test_pictures_outside_count_only_unchanged(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    record = store.put(Dataset((Row(Blob.of(file), "a.png", 1, 1),)), made("aa"))
    os.utime(file, (1, 1))  # another time, the same bytes
    assert Store(store.root).load(record)
    file.write_bytes(b"two")
    with pytest.raises(Missing, match=r"a\.png is gone or was changed"):
        Store(store.root).load(record)
    file.unlink()
    with pytest.raises(Missing):
        Store(store.root).load(record)


def test_the_store_may_be_moved(store: Store, tmp_path: Path) -> None:
    record = store.put(values(store)["patch"], made("aa"))
    store.root.rename(tmp_path / "elsewhere")
    patch = Store(tmp_path / "elsewhere").load(record)
    assert isinstance(patch, Patch) and Path(patch.weights.path).read_bytes() == b"weights"
    assert Path(patch.weights.path).is_relative_to(tmp_path / "elsewhere")


def test_blobs_are_named_by_content(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"abc" * 10**6)
    first, second = store.blob(file), store.blob(b"abc" * 10**6, ".safetensors")
    assert first == second == Blob.of(file) and first.path == second.path and first.path.endswith(".safetensors")
    with pytest.raises(FileNotFoundError):
        store.blob(tmp_path / "nothing")
    assert not any((store.root / "tmp").iterdir())


def test_memory_keeps_what_was_used_last(tmp_path: Path) -> None:
    store = Store(tmp_path, memory=3 * (4 * 4 * 3 * 4 + 1024 + 100))
    records = [store.put(Image(np.full((1, 4, 4, 3), i / 10, np.float32)), made(f"a{i}")) for i in range(3)]
    first = store.load(records[0])
    store.put(Image(np.full((1, 4, 4, 3), 0.9, np.float32)), made("a9"))
    assert store.load(records[0]) is first and store.load(records[1]) is not store.load(records[0])
    assert sum(size for _, size in store._values.values()) <= store.memory
    huge = store.put(Image(np.zeros((1, 64, 64, 3), np.float32)), made("aa"))
    assert store.load(huge) is store.load(huge)  # one value always fits


def test_the_default_store_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_HOME", str(tmp_path / "h"))
    assert current().root == tmp_path / "h"
    with using(Store(tmp_path / "other")) as _:
        assert current().root == tmp_path / "other"
    assert current() is current()


# Processes that die.

WRITER = """
import sys, numpy as np
from safelight.store import Store, Made
from safelight.values import Image, Page, Patch
store = Store(sys.argv[1])

def write(n):
    image = Image(np.full((1, 64, 64, 3), (n % 997) / 997, np.float32), ({"n": n},))
    store.put(image, Made(f"{n:032x}", "test", "v1", {"n": n}, {}))
    patch = Patch("test", store.blob(f"{n}".encode() * 5000, ".safetensors"), info={"n": n})
    store.put(patch, Made(f"{n:031x}f", "test", "v1", {"n": n}, {}))

print("ready", flush=True)
n = int(sys.argv[2])
while True:
    n += 1
    with store.pin():
        write(n)
"""


@contextmanager
def process(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process that has said one line; killed at the end."""
    with subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdout is not None
        assert other.stdout.readline(), "the process died early"
        try:
            yield other
        finally:
            other.kill()


def test_kill_9_at_any_moment_leaves_only_whole_results(store: Store) -> None:
    rng = random.Random(7)
    for start in range(0, 8_000_000, 1_000_000):
        with process(WRITER, store.root, start) as writer:
            time.sleep(0.02 + rng.random() * 0.15)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
    assert len(list(store.root.glob("records/*/*.json"))) == len(list(store.records())) > 8
    for record in store.records():
        value = Store(store.root).load(record)
        assert value.key == record.value and exact_key(value) == record.exact
        assert isinstance(value, Image | Patch)
        told = value.info[0] if isinstance(value, Image) else value.info
        assert told["n"] == record.made.settings["n"]
        if isinstance(value, Patch):
            assert Blob.of(value.weights.path).sha256 == value.weights.sha256
    sweep(store, 2**40)
    assert not any((store.root / "tmp").iterdir())


def test_two_processes_write_the_same_results(store: Store) -> None:
    with process(WRITER, store.root, 0), process(WRITER, store.root, 0):
        deadline = time.monotonic() + 20
        while store.get(f"{30:032x}") is None and time.monotonic() < deadline:
            time.sleep(0.01)
    for record in store.records():
        assert Store(store.root).load(record).key == record.value
    assert store.get(f"{30:032x}") is not None


def test_collecting_while_others_write(store: Store) -> None:
    """Writers pin what they use for a moment each; they never fail, and what is left is whole."""
    with process(WRITER, store.root, 0) as a, process(WRITER, store.root, 5_000_000) as b:
        for _ in range(20):
            sweep(store, 200_000)
            time.sleep(0.02)
        assert a.poll() is None and b.poll() is None
    for record in store.records():
        assert Store(store.root).load(record).key == record.value


# Making room.

HOLDER = """
import sys, time
from tests.small_ops import SMALL
from safelight import engine
from safelight.store import Store
store = Store(sys.argv[1])
graph = {"a": {"op": "grey", "level": "0.5"}, "b": {"op": "slow", "image": "$a", "seconds": 60}}
work = engine.run(graph, store, ops=SMALL)
for event in work:
    if type(event).__name__ == "Progress":
        print("running", flush=True)
        time.sleep(60)
"""


def fill(store: Store, levels: range) -> None:
    with using(store):
        for level in levels:
            SMALL["grey"](str(level / 100), side=32)


def sizes(store: Store) -> int:
    return sum(p.stat().st_size for kind in ("records", "values", "blobs", "work") for p in store.root.rglob(f"{kind}/**/*") if p.is_file())


@pytest.fixture
def aged(store: Store) -> Callable[[], None]:
    """Makes everything in the store a day old."""

    def age() -> None:
        old = time.time() - 86400
        for path in store.root.rglob("*"):
            if path.is_file() and "pins" not in path.parts:
                os.utime(path, (old, old))

    return age


def test_the_oldest_go_first(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    records = []
    for i in range(6):
        records.append(store.put(Image(np.full((1, 32, 32, 3), i / 10, np.float32)), made(f"a{i}")))
        stamp = time.time() - 1000 + i
        os.utime(store._path("records", records[-1].made.recipe, ".json"), (stamp, stamp))
    store.get(records[0].made.recipe)  # used just now
    each = sizes(store) // 6
    done = sweep(store, each * 3 + 500)
    assert done.removed >= 3 and done.kept <= each * 3 + 500 and done.freed > 0
    left = {r.made.recipe for r in store.records()}
    assert left == {records[i].made.recipe for i in (0, 4, 5)}
    assert all(Store(store.root).load(records[i]) for i in (0, 4, 5))
    assert sweep(store, 0).kept == 0 and sizes(store) == 0 and list(store.records()) == []
    assert not any(store.root.glob("by/*/*"))


def test_a_running_graph_keeps_what_it_uses(store: Store, aged: Callable[[], None]) -> None:
    with using(store):
        kept = SMALL["grey"]("0.5")
    fill(store, range(3))
    store.close()
    aged()
    with process(HOLDER, store.root):
        done = sweep(store, 0)
        assert done.living == 1
        left = list(store.records())
        assert [r.made.settings["level"] for r in left] == ["0.5"] and Store(store.root).load(left[0]).key == kept.key
    done = sweep(store, 0)
    assert done.living == 0 and list(store.records()) == [] and not any((store.root / "pins").iterdir())


def test_dead_processes_hold_nothing(store: Store, aged: Callable[[], None]) -> None:
    with process(HOLDER, store.root) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert len(list((store.root / "pins").iterdir())) == 1
    assert sweep(store, 0).living == 0 and list(store.records()) == [] and not any((store.root / "pins").iterdir())
    assert not any((store.root / "claims").iterdir())


def test_a_script_keeps_what_it_made(store: Store) -> None:
    """A Python program may use a value long after the call that made it."""
    with using(store):
        data = SMALL["grey"]("0.5")
        sweep(Store(store.root), 0)
        assert SMALL["add"](data).key and store._holding
    store.close()
    sweep(store, 0)
    assert list(store.records()) == []


def test_a_record_outlives_its_value_while_something_descends_from_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    parent = store.put(Image(np.zeros((1, 64, 64, 3), np.float32)), made("aa"))
    child = store.put(Image(np.ones((1, 2, 2, 3), np.float32)), made("bb", image=parent.as_input()))
    old = time.time() - 1000
    os.utime(store._path("records", parent.made.recipe, ".json"), (old, old))
    for path in store.root.glob("values/*/*"):
        os.utime(path, (old, old))
    sweep(store, 5_000)
    fresh = Store(store.root)
    assert fresh.get(parent.made.recipe) == parent and fresh.load(child)
    with pytest.raises(Missing):
        fresh.load(parent)


def test_work_folders_age_like_results(store: Store, aged: Callable[[], None]) -> None:
    (store.folder("train-x") / "state.bin").write_bytes(b"x" * 1000)
    assert store.folder("train-x") == store.folder("train-x")
    aged()
    os.utime(store.root / "work" / "train-x", (1, 1))
    with store.pin():
        (store.folder("train-y") / "state.bin").write_bytes(b"y" * 1000)
        sweep(Store(store.root), 0)
        assert (store.root / "work" / "train-y" / "state.bin").is_file() and not (store.root / "work" / "train-x").exists()


def test_a_claim_ends_with_its_process(store: Store) -> None:
    code = """
import sys, time
from safelight.store import Store
with Store(sys.argv[1]).claim("r") as mine:
    print(mine, flush=True)
    time.sleep(60)
"""
    with process(code, store.root) as holder:
        with store.claim("r") as mine:
            assert not mine
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with store.claim("r") as mine:
        assert mine
        with store.claim("r") as again:
            assert not again


@pytest.mark.parametrize(("text", "size"), [("10GB", 10 * 2**30), ("500 MB", 500 * 2**20), ("1.5k", 1536), ("0", 0), ("2tb", 2 * 2**40)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "10 apples", "GB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size such as 10GB"):
        parse_size(text)


def test_events_of_a_killed_run_continue(store: Store) -> None:
    """A graph whose process died goes on where it was."""
    with process(HOLDER, store.root) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    graph = {"a": {"op": "grey", "level": "0.5"}, "b": {"op": "slow", "image": "$a", "seconds": 0.01}}
    kinds = []
    work = engine.run(graph, store, ops=SMALL)
    for event in work:
        kinds.append((event.node, type(event).__name__))
    assert kinds[0] == ("a", "Cached") and kinds[-1] == ("b", "Done")
