"""Running ops and graphs: what runs and what does not, what a key sees, errors, and stopping at any event."""
from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safelight import engine
from safelight.events import Ask, Cached, Done, Event, Note, Preview, Progress, Started
from safelight.graph import GraphError, with_settings
from safelight.op import InputError, Op, Work, op
from safelight.store import Missing, Store, current, making, using
from safelight.values import Blob, Dataset, Image, Row, Scores
from tests.small_ops import RAN, SMALL, Rate

ROOT = Path(__file__).parents[2]
GRAPH: dict[str, Any] = {
    "a": {"op": "grey", "level": "0.25"},
    "b": {"op": "add", "image": "$a", "by": 0.5},
    "c": {"class_type": "add", "inputs": {"image": ["b", 0], "other": ["a", 0], "by": 0.125}},
}


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What survives a power cut is not tested here, and flushing hundreds of files takes long."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    at = Store(tmp_path / "store")
    RAN.clear()
    with using(at):
        yield at


def listen(work: Work[Any]) -> tuple[list[Event], Any]:
    """All events, and the value."""
    events: list[Event] = []
    while True:
        try:
            events.append(next(work))
        except StopIteration as stop:
            return events, stop.value


def run(graph: dict[str, Any], store: Store, **kwargs: Any) -> tuple[list[Event], dict[str, Any]]:
    return listen(engine.run(graph, store, ops=SMALL, **kwargs))


def ran() -> list[str]:
    """What ran since the last look."""
    out = [r for r in RAN if "closed" not in r]
    RAN.clear()
    return out


def pictures(folder: Path, *names: str) -> Path:
    from PIL import Image as Pil

    folder.mkdir(exist_ok=True)
    for name in names:
        rng = np.random.default_rng(len(name))
        side = 4 + len(name)
        Pil.fromarray(rng.integers(0, 255, (side, side, 3), np.uint8)).save(folder / f"{name}.png")
    return folder


# One op.


def test_a_call_runs_once(store: Store) -> None:
    first = SMALL["add"]("0.25", by=0.5)
    assert ran() == ["grey", "add"]
    second = SMALL["add"]("0.25", by=0.5)
    assert ran() == [] and second.key == first.key and second.info == first.info
    assert float(first.pixels[0, 0, 0, 0]) == 0.75


def test_results_outlive_the_process(store: Store) -> None:
    SMALL["add"]("0.25", by=0.5)
    ran()
    with using(Store(store.root)):
        assert float(SMALL["add"]("0.25", by=0.5).pixels.max()) == 0.75
    assert ran() == []


def test_every_literal_and_default_is_in_the_key(store: Store) -> None:
    for kwargs in ({}, {"by": 0.2}, {"mode": "mean"}, {"lr": 0.2}, {"rate": Rate(warm=1)}, {"count": 1}):
        image = SMALL["grey"]("0.25", count=kwargs.pop("count", 2))
        ran()
        SMALL["add"](image, **kwargs)
        assert ran() == ["add"]
    SMALL["add"](SMALL["grey"]("0.25"), by=0.1, style="plain", betas=[0.9, 0.99])
    assert ran() == []


def test_keys_see_content_not_the_way_to_it(store: Store) -> None:
    one, other = SMALL["grey"]("0.5"), SMALL["grey"]("0.50")
    assert ran() == ["grey", "grey"] and one.info != other.info
    SMALL["add"](one)
    SMALL["add"](other)
    assert ran() == ["add"]


def test_what_dropped_rows_change(store: Store, tmp_path: Path) -> None:
    """A setting that changes no kept row does not learn again, but what is said of the dropped rows does."""
    album = SMALL["album"](str(pictures(tmp_path / "p", "a", "bb", "cccccccccccccccccccc")))
    sizes = sorted(Path(r.picture.path).stat().st_size for r in album.rows)
    first, second = SMALL["keep"](album, least=sizes[-1]), SMALL["keep"](album, least=sizes[-1] - 1)
    assert len(first) == 1 and first.key == second.key
    ran()
    for data in (first, second):
        SMALL["learn"](data)
        SMALL["tell"](data)
    assert ran() == ["learn", "tell", "tell"]
    assert Path(SMALL["tell"](second).file.path).read_text().count(f"below {sizes[-1] - 1} bytes") == 2


def test_a_fingerprint_sees_what_lies_outside(store: Store, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p", "a")
    assert len(SMALL["album"](folder)) == 1
    SMALL["album"](str(folder))
    assert ran() == ["album"]
    pictures(folder, "bb")
    assert len(SMALL["album"](folder)) == 2


def test_a_cheap_op_has_its_source_as_version(store: Store) -> None:
    registry: dict[str, Op[..., Any]] = {}

    def twice(image: Image) -> Image:
        """Double."""
        RAN.append("twice")
        return Image(image.pixels * np.float32(2))

    cheap = op("test", cheap=True, registry=registry)(twice)
    versioned = op("test", version=3, registry=registry)(twice)
    assert cheap.spec.tag.startswith("s") and len(cheap.spec.tag) == 33 and versioned.spec.tag == "v3"
    image = SMALL["grey"]("0.1")
    ran()
    cheap(image)
    cheap(image)
    versioned(image)
    assert ran() == ["twice", "twice"]
    assert op("test", version=4, registry=registry)(twice)(image).key
    assert ran() == ["twice"]


def test_drawn_seeds_are_recorded_and_not_cached(store: Store) -> None:
    one, two = SMALL["paint"]("small", "x"), SMALL["paint"]("small", "x")
    assert one.key != two.key
    seed = one.info[0]["seed"]
    assert seed >= 0
    ran()
    assert SMALL["paint"]("small", "x", seeds=[seed]).key == one.key
    assert "paint" not in ran()


def test_text_at_a_port_is_loaded_or_refused(store: Store) -> None:
    assert SMALL["stack"](["0.1", SMALL["grey"]("0.2")]).pixels.shape[0] == 4
    with pytest.raises(InputError, match=r"tell: data: got an Image, expected a DATASET"):
        SMALL["tell"](SMALL["grey"]("0.5"))
    with pytest.raises(InputError, match="listens: scores: got 'x', expected a SCORES"):
        op("test", registry=dict(SMALL))(listens)("x")
    with pytest.raises(InputError, match="add: image: got a Model, expected an IMAGE"):
        SMALL["add"](SMALL["net"]())
    with pytest.raises(InputError, match="add: image: got 3, expected an IMAGE"):
        SMALL["add"](3)


def listens(scores: Scores) -> Image:
    """Takes what nothing loads from text."""
    return scores.image


def test_a_value_that_is_not_kept_is_made_again_when_needed(store: Store) -> None:
    SMALL["net"]("small")
    SMALL["net"]("small")
    assert ran() == ["net"]  # memory has it
    with using(Store(store.root)):
        SMALL["net"]("small")
        assert ran() == ["net"]


def test_events_of_a_call(store: Store) -> None:
    events, value = listen(engine.call(SMALL["add"], {"image": SMALL["grey"]("0.25"), "steps": 2}, store))
    assert [type(e) for e in events] == [Started, Progress, Progress, Preview, Note, Done]
    assert events[-1] == Done("", "add", events[0].key, value.key, events[-1].seconds)  # type: ignore[attr-defined]
    assert all(e.json()["event"] == type(e).__name__.lower() for e in events)
    again, _ = listen(engine.call(SMALL["add"], {"image": SMALL["grey"]("0.25"), "steps": 2}, store))
    assert [type(e) for e in again] == [Cached]


def test_a_wrong_result_is_an_error_of_the_op(store: Store) -> None:
    @op("test", registry={})
    def liar() -> Image:
        """Says it makes a picture."""
        return Dataset(())  # type: ignore[return-value]

    with pytest.raises(TypeError, match="liar: its body returned a Dataset, its signature says Image"):
        liar()


def answering(work: Work[Any]) -> tuple[Any, list[float]]:
    """Answer every ask with a tenth; the value, and the sigmas that were asked for."""
    asked: list[float] = []
    answer: Any = None
    while True:
        try:
            event = work.send(answer)
        except StopIteration as stop:
            return stop.value, asked
        answer = None
        if isinstance(event, Ask):
            asked.append(event.queries[0].sigma)
            answer = [event.queries[0].x * np.float32(0.1)]


def test_asks_go_up_and_answers_down(store: Store) -> None:
    image = SMALL["grey"]("0.8", count=1)
    alone = SMALL["asks"](image)
    assert float(alone.pixels.max()) == pytest.approx(0.2)
    graph = {"x": {"op": "asks", "image": "$g"}, "g": {"op": "grey", "level": "0.8", "count": 1, "side": 3}}
    called, asked = answering(engine.call(SMALL["asks"], {"image": SMALL["grey"]("0.8", count=1, side=2)}, store))
    assert asked == [2.0, 1.0] and float(called.pixels.max()) == pytest.approx(0.008)
    drawn, asked = answering(engine.run(graph, store, ops=SMALL))
    assert asked == [2.0, 1.0] and float(drawn["x"].pixels.max()) == pytest.approx(0.008)


def test_the_store_in_use_is_the_bodys_only_while_it_runs(store: Store, tmp_path: Path) -> None:
    seen: list[tuple[Path, str]] = []

    @op("test", registry={})
    def looks() -> Work[Image]:
        """Looks at the store in use."""
        made = making()
        seen.append((current().root, "" if made is None else made.op))
        yield Note()
        seen.append((current().root, ""))
        return Image(np.zeros((1, 1, 1, 3), np.float32))

    other = Store(tmp_path / "other")
    for event in engine.call(looks, {}, other):
        assert current() is store and making() is None, event
    assert seen == [(other.root, "looks"), (other.root, "")]


def test_an_op_inside_an_op(store: Store) -> None:
    @op("test", registry={})
    def outer() -> Image:
        """Calls another op."""
        return SMALL["grey"]("0.7", count=1)  # type: ignore[no-any-return]

    assert float(outer().pixels.max()) == pytest.approx(0.7)
    assert store.producer(outer().key) is not None


# Graphs.


def test_a_graph_runs_once_and_equals_the_calls(store: Store) -> None:
    events, values = run(GRAPH, store)
    assert ran() == ["grey", "add", "add"] and list(values) == ["c"]
    assert {e.node for e in events} == {"a", "b", "c"}
    assert [type(e) for e in run(GRAPH, store)[0]] == [Cached] * 3 and ran() == []
    a = SMALL["grey"]("0.25")
    c = SMALL["add"](SMALL["add"](a, by=0.5), a, by=0.125)
    assert ran() == [] and c.key == values["c"].key and c.info == values["c"].info


def test_a_second_process_runs_no_op(store: Store) -> None:
    run(GRAPH, store)
    code = f"""
from pathlib import Path
from tests.small_ops import RAN, SMALL
from safelight import engine
from safelight.store import Store
value = engine.finish(engine.run({GRAPH!r}, Store({str(store.root)!r}), ops=SMALL))["c"]
print(RAN, value.key)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["[]", run(GRAPH, store)[1]["c"].key]


def test_a_changed_setting_runs_what_depends_on_it(store: Store) -> None:
    run(GRAPH, store)
    ran()
    run(with_settings(GRAPH, ["c.by=0.25"], SMALL), store)
    assert ran() == ["add"]
    run(with_settings(GRAPH, ["grey.level=0.250"], SMALL), store)
    assert ran() == ["grey"]


def test_models_that_are_not_kept_do_not_run_for_a_hit(store: Store, tmp_path: Path) -> None:
    graph = {
        "p": {"op": "learn", "data": str(pictures(tmp_path / "p", "a", "bb"))},
        "m": {"op": "wear", "model": "small", "patch": "$p", "strength": 0.5},
        "i": {"op": "paint", "model": "$m", "prompt": "x", "seeds": [1]},
    }
    run(graph, store)
    assert ran() == ["net", "album", "learn", "wear", "paint"] or ran() == []
    events, _ = run(graph, Store(store.root))
    assert ran() == [] and {type(e) for e in events} == {Cached}
    run(with_settings(graph, ["i.seeds=2"], SMALL), Store(store.root))
    assert ran() == ["net", "wear", "paint"]


def test_targets_and_only_what_they_need(store: Store) -> None:
    graph = GRAPH | {"z": {"op": "fail", "image": "$a"}}
    assert list(run(graph, store, targets=["b"])[1]) == ["b"]
    assert ran() == ["grey", "add"]


def test_lists_of_links_and_text(store: Store) -> None:
    graph = {
        "a": {"op": "grey", "level": "0.1", "count": 1},
        "s": {"class_type": "stack", "inputs": {"images": [["a", 0], "0.3", "$a"], "seeds": "1..3"}},
        "t": {"op": "stack", "images": "$a", "seeds": 5},
    }
    values = run(graph, store)[1]
    assert values["s"].pixels.shape[0] == 4 and [i["seed"] for i in values["s"].info] == [1, 2, 3, 1]
    assert values["t"].pixels.shape[0] == 1


def test_a_missing_value_is_made_again_from_what_it_needs(store: Store) -> None:
    run(GRAPH, store)
    ran()
    for path in store.root.glob("values/*/*"):
        path.unlink()
    fresh = Store(store.root)
    assert run(GRAPH, fresh)[1]["c"].key and ran() == ["grey", "add", "add"]


def test_again_runs_a_node_that_is_kept(store: Store) -> None:
    run(GRAPH, store)
    ran()
    run(GRAPH, store, again=["c"])
    assert ran() == ["add"]


def test_a_deep_graph_needs_no_deep_stack(store: Store) -> None:
    graph: dict[str, Any] = {"0": {"op": "grey", "level": "0", "count": 1, "side": 1}}
    for i in range(1, 400):
        graph[str(i)] = {"op": "add", "image": f"${i - 1}", "by": 0.0001, "steps": 1}
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(250)
    try:
        value = run(graph, store)[1]["399"]
        for path in store.root.glob("values/*/*"):
            path.unlink()
        store._values.clear()
        ran()
        again = run(graph, store)[1]["399"]
    finally:
        sys.setrecursionlimit(limit)
    assert value.key == again.key and len(ran()) == 400


def test_all_problems_are_told_at_once(store: Store) -> None:
    graph = {
        "a": {"op": "gray", "level": "0.5"},
        "b": {"op": "add", "img": "$c", "by": "much"},
        "c": {"class_type": "add", "inputs": {"image": ["nowhere", 0], "steps": 0}},
        "d": {"op": "wear", "model": "small", "patch": "$e"},
        "e": {"op": "grey", "level": "0.5"},
        "f": {"level": 3},
        "g": {"op": "add", "image": ["e", 1]},
        "h": {"op": "add", "image": 5, "betas": "0.1,x"},
    }
    problems = engine.check(graph, SMALL)
    told = {(p.node, p.input, p.kind) for p in problems}
    assert told == {
        ("a", "gray", "no_such_op"), ("b", "img", "unknown_input"), ("b", "image", "missing"), ("b", "by", "wrong_type"),
        ("c", "image", "bad_link"), ("c", "steps", "too_small"), ("d", "patch", "wrong_type"), ("f", "", "no_such_op"),
        ("g", "image", "bad_link"), ("h", "image", "wrong_type"), ("h", "betas", "wrong_type"),
    }
    text = "\n".join(str(p) for p in problems)
    for words in ("did you mean 'grey'?", "did you mean 'image'?", "node d: wear: patch: got IMAGE (from grey, node e), expected PATCH"):
        assert words in text
    with pytest.raises(GraphError) as caught:
        run(graph, store)
    assert len(caught.value.problems) == len(problems) and ran() == []


def test_a_circle_is_no_graph(store: Store) -> None:
    graph = {"a": {"op": "add", "image": "$b"}, "b": {"op": "add", "image": "$a"}}
    assert [(p.node, p.kind) for p in engine.check(graph, SMALL)] == [("a", "cycle")]
    with pytest.raises(GraphError, match="cut one link"):
        run(graph, store)


def test_an_unknown_target(store: Store) -> None:
    with pytest.raises(GraphError, match="target bb: no such node; did you mean 'b'"):
        run(GRAPH, store, targets=["bb"])


@pytest.mark.parametrize(("text", "message"), [
    ("b.by", "expected NODE.KNOB=VALUE"), ("q.by=1", "no node or op 'q'"), ("add.by=1", "2 nodes with the op add, expected one of b, c"),
    ("b.bye=1", "add: bye: got an unknown input.*did you mean 'by'"), ("b.steps=x", "add: steps: got 'x', expected int"),
])
def test_settings_that_fit_nothing(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_settings(GRAPH, [text], SMALL)


def test_settings_leave_the_graph_alone() -> None:
    changed = with_settings(GRAPH, ["c.by=1", "b.image=0.7"], SMALL)
    assert changed["c"]["inputs"]["by"] == 1.0 and changed["b"]["image"] == "0.7"
    assert GRAPH["c"]["inputs"]["by"] == 0.125 and GRAPH["b"]["image"] == "$a"


def test_a_failing_op_says_where_and_leaves_the_finished_ones(store: Store) -> None:
    graph = GRAPH | {"z": {"op": "fail", "image": "$c", "text": "out of paint"}}
    with pytest.raises(RuntimeError, match="out of paint") as caught:
        run(graph, store)
    assert caught.value.__notes__ == ["in op fail", "in node z"]
    ran()
    run(GRAPH, store)
    assert ran() == []
    assert not any(store.root.joinpath("pins").iterdir()) and not any(store.root.joinpath("tmp").iterdir())


# Stopping.


def stops(graph: dict[str, Any], at: Path) -> int:
    """How many events a fresh run has."""
    return len(run(graph, Store(at))[0])


def whole(store: Store) -> None:
    """Every record has its value, nothing is held, nothing is half written."""
    for record in store.records():
        if SMALL[record.made.op].spec.store:
            assert Store(store.root).load(record).key == record.value
    for folder in ("pins", "tmp"):
        assert not any((store.root / folder).iterdir()), folder


def test_close_at_every_event_leaves_everything_clean(tmp_path: Path) -> None:
    graph: dict[str, Any] = GRAPH | {
        "p": {"op": "learn", "data": str(pictures(tmp_path / "p", "a", "bb"))},
        "i": {"op": "paint", "model": "small", "prompt": "x", "seeds": [1]},
    }
    total = stops(graph, tmp_path / "count")
    assert total > 20
    for n in range(total):
        store = Store(tmp_path / f"s{n}")
        RAN.clear()
        work = engine.run(graph, store, ops=SMALL)
        finished: set[str] = set()
        opened = 0
        for _ in range(n + 1):
            event = next(work)
            opened += isinstance(event, Progress) and event.node in ("b", "c") and event.step == 1
            if isinstance(event, Done):
                finished.add(event.key)
        work.close()
        assert RAN.count("add closed") == opened, n
        assert finished <= {r.made.recipe for r in store.records()}, n
        whole(store)
        assert making() is None
        assert run(graph, store)[1].keys() == {"c", "p", "i"}


def test_ctrl_c_in_a_body(store: Store) -> None:
    @op("test", registry=SMALL)
    def interrupted(image: Image) -> Work[Image]:
        """A body in which somebody presses Ctrl-C."""
        yield Progress(step=1, total=2)
        raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            run(GRAPH | {"k": {"op": "interrupted", "image": "$c"}}, store)
    finally:
        del SMALL["interrupted"]
    whole(store)
    ran()
    run(GRAPH, store)
    assert ran() == []


# Sharing.


def test_what_another_process_makes_is_waited_for(store: Store) -> None:
    """Two runs of one slow op at the same time: one makes it, the other takes the result."""
    code = f"""
import sys
from tests.small_ops import RAN, SMALL
from safelight import engine
from safelight.store import Store
store = Store({str(store.root)!r})
image = engine.finish(engine.call(SMALL["grey"], {{"level": "0.5"}}, store))
work = engine.call(SMALL["slow"], {{"image": image, "seconds": 0.6}}, store)
next(work); print("started", flush=True)
engine.finish(work)
print(RAN.count("slow"), flush=True)
"""
    image = SMALL["grey"]("0.5")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdout is not None and other.stdout.readline() == "started\n"
        events, value = listen(engine.call(SMALL["slow"], {"image": image, "seconds": 0.6}, store))
        assert other.stdout.readline() == "1\n"
    assert float(value.pixels.max()) == 0.25 and "slow" not in RAN
    assert isinstance(events[-1], Cached)
    assert all(isinstance(e, Progress) and "another process" in e.what for e in events[:-1])


def test_work_that_its_maker_dropped_is_taken_over(store: Store) -> None:
    image = SMALL["grey"]("0.5")
    given = {"image": image, "seconds": 0.05}
    first = engine.call(SMALL["slow"], given, store)
    next(first)
    second = engine.call(SMALL["slow"], given, store)
    assert "another process" in next(second).what  # type: ignore[attr-defined]
    first.close()
    events, value = listen(second)
    assert float(value.pixels.max()) == 0.25 and isinstance(events[-1], Done)


def test_threads_share_a_store(store: Store) -> None:
    values: list[str] = []

    def work() -> None:
        with using(store):
            values.append(SMALL["add"](SMALL["grey"]("0.5", side=32), by=0.25).key)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(values) == 8 and len(set(values)) == 1 and ran().count("add") == 1


def test_moved_pictures_do_not_spoil_a_hit(store: Store, tmp_path: Path) -> None:
    """The same pictures in another folder: what was kept names files that are gone, so it is made again with those that are there."""
    folder = pictures(tmp_path / "p", "a", "bb")
    first = SMALL["keep"](str(folder))
    folder.rename(tmp_path / "q")
    store._values.clear()
    second = SMALL["keep"](str(tmp_path / "q"))
    assert second.key == first.key and all(Path(r.picture.path).is_file() for r in second)


def test_missing_files_are_named(store: Store, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p", "a")
    data = Dataset((Row(Blob.of(folder / "a.png"), "a.png", 4, 4), Row(Blob("nowhere.png", ""), "b.png", 0, 0, dropped="missing")))

    @op("test", registry={})
    def listed() -> Dataset:
        """A table that names a file which is not there."""
        return data

    assert listed() == data
    record = store.producer(engine.as_input(store, data).exact)
    store._values.clear()
    assert record is not None and store.load(record) == data
    (folder / "a.png").write_bytes(b"other")
    store._values.clear()
    with pytest.raises(Missing, match=r"a\.png is gone or was changed"):
        store.load(record)


def test_a_run_started_in_the_store_in_use(store: Store) -> None:
    assert engine.finish(engine.run(GRAPH, ops=SMALL))["c"].key == run(GRAPH, store)[1]["c"].key
    assert ran() == ["grey", "add", "add"]
