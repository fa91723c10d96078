"""Collecting pictures, against a real server on this machine that speaks the APIs and breaks, lies and refuses when it is told to."""
from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import itertools
import json
import os
import re
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import yaml
from huggingface_hub import constants
from PIL import Image as Pil

from safelight import engine
from safelight.cli import cli
from safelight.data.request import Fetch, Pick
from safelight.data.sources import FACTS, SOURCES, Item, origin, pexels, safe, unsplash, urls
from safelight.data.sources.collecting import collect
from safelight.data.sources.fetching import Crew
from safelight.data.sources.journal import Facts
from safelight.events import Cached, Note, Progress
from safelight.op import load_ops
from safelight.pictures import read
from safelight.pulling import http as fetching
from safelight.pulling.http import Http, Refused, UsedUp
from safelight.store import Store, current
from safelight.values import Dataset
from tests.hubs import Hub, Reply, sha256

HERE = Fetch(allow_private=True, tries=3, seconds=20)


def picture(seed: int, *, size: tuple[int, int] = (24, 16), kind: str = "PNG", orientation: int = 0) -> bytes:
    """A picture whose bytes are those of the seed alone."""
    rng, out = np.random.default_rng(seed), io.BytesIO()
    exif = Pil.Exif()
    if orientation:
        exif[0x0112] = orientation
    Pil.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(out, kind, exif=exif)
    return out.getvalue()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub({}) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("SAFELIGHT_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("MODELSCOPE_DOMAIN", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setenv("UNSPLASH_ACCESS_KEY", "key-u")
        monkeypatch.setenv("PEXELS_API_KEY", "key-p")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(fetching, "PAUSE", 0.0)
        monkeypatch.setattr(unsplash, "ENDPOINT", server.url)
        monkeypatch.setattr(pexels, "ENDPOINT", server.url)
        monkeypatch.chdir(tmp_path)
        yield server
        huggingface_hub.close_session()
        server.shutdown()
        thread.join()


def run(text: str, **options: Any) -> tuple[Dataset, list[Any]]:
    """All of it, without the engine, and its events."""
    events = []
    with closing(collect(text, current().blob, **{"fetch": HERE, **options})) as work:
        while True:
            try:
                events.append(next(work))
            except StopIteration as stop:
                return stop.value, events


def asked(hub: Hub) -> list[str]:
    """Paths that were asked for, without what follows the question mark."""
    return [path.partition("?")[0] for _, path, _ in hub.seen]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    """A .csv or .jsonl of the rows."""
    if path.suffix == ".csv":
        with open(path, "w", encoding="utf-8-sig", newline="") as out:
            table = csv.DictWriter(out, list(dict.fromkeys(k for r in rows for k in r)))
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return str(path)


# Lists of addresses.


def test_a_list_with_captions_licences_and_hashes(hub: Hub, tmp_path: Path) -> None:
    turned = picture(1, size=(40, 10), kind="JPEG", orientation=6)
    hub.replies = {"/a.jpg": [Reply(turned)], "/ü b": [Reply(picture(2))], "/c": [Reply(picture(3, kind="WEBP"))]}
    rows = [
        {"url": f"{hub.url}/a.jpg", "text": "雨中的 狐狸", "licence": "CC0", "author": "A", "sha256": sha256(turned), "score": "7"},
        {"url": f"{hub.url}/ü b", "text": "", "license": "CC BY 4.0", "md5": hashlib.md5(picture(2), usedforsecurity=False).hexdigest()},
        {"url": f"{hub.url}/c", "text": "c"},
    ]
    data, events = run(written(tmp_path / "list.csv", rows), licence="all rights reserved")
    a, _, c = data.kept
    assert (a.width, a.height) == (10, 40), "as it is to be seen"
    assert a.picture.sha256 == sha256(turned) and Path(a.picture.path).read_bytes() == turned
    assert [r.caption for r in data] == ["雨中的 狐狸", "", "c"] and a.captions[0].by == "source"
    assert [r.name for r in data] == ["00000000.jpg", "00000001.png", "00000002.webp"], "by what they are, whatever the address says"
    assert all(tuple(r.info["origin"]) == FACTS for r in data)
    assert [r.info["origin"]["licence"] for r in data] == ["CC0", "CC BY 4.0", "all rights reserved"]
    assert a.info["origin"] | {"author": "A", "url": f"{hub.url}/a.jpg", "source": str(tmp_path / "list.csv")} == a.info["origin"]
    assert a.info["metadata"]["score"] == "7" and c.info["format"] == "webp" and c.info["bytes"] == len(picture(3, kind="WEBP"))
    assert events[-1] == Progress(step=3, total=3, what="collecting pictures", unit="picture")


def test_what_does_not_come_is_listed_and_the_rest_comes(hub: Hub, tmp_path: Path) -> None:
    whole = picture(1)
    hub.replies = {
        "/good": [Reply(whole)], "/breaks": [Reply(whole[:50], promised=len(whole)), Reply(whole)],
        "/busy": [Reply(code=429, headers={"Retry-After": "0"}), Reply(code=503), Reply(whole)], "/gone": [Reply(code=404)],
        "/page": [Reply(b"<html>" + b" " * 9000, headers={"Content-Type": "text/html"})], "/short": [Reply(whole[:-20])],
        "/endless": [Reply(itertools.repeat(whole + b"\0" * 4096))], "/large": [Reply(whole + b"\0" * 2**20)], "/empty": [Reply(b"")],
        "/later": [Reply(code=429, headers={"Retry-After": "9000"})], "/never": [Reply(whole)],
        "/broken": [Reply(whole[:50], promised=len(whole))],
        "/lies": [Reply(whole)], "/marked": [Reply(whole, headers={"X-Robots-Tag": "otherbot: all, noai"})],
        "/ftp": [Reply(code=302, headers={"Location": "ftp://h/x"})],
    }
    other = f"http://localhost:{hub.server_port}"  # asks for more patience than there is, so the rest there is not asked for
    rows = [{"url": f"{other if path in ('/later', '/never') else hub.url}{path}", "sha256": "0" * 64 if path == "/lies" else ""}
            for path in hub.replies]
    source = written(tmp_path / "list.jsonl", [*rows, {"url": "http://["}])
    data, events = run(source, fetch=dataclasses.replace(HERE, max_mb=0.5, per_host=1))
    why = {r.picture.path.removeprefix(hub.url).removeprefix(other): r.dropped for r in data.rows if r.dropped}
    expected = {
        "/gone": "not fetched: .*404", "/page": "not fetched: .*is no picture; the server calls it text/html",
        "/short": "unreadable: truncated",
        "/endless": "not fetched: .*more than max_mb = 0.5", "/large": "not fetched: .* has 1 MiB, more than max_mb = 0.5",
        "/empty": "unreadable: the file is empty", "/later": "not fetched yet: .*asks to wait 9000 seconds",
        "/never": "not fetched yet: .*asks to wait 9000 seconds",
        "/broken": "not fetched yet: the connection ended after 50 of", "/lies": f"unreadable: its sha256 hash is {sha256(whole)}",
        "/marked": "not fetched: its server marks it as noai", "/ftp": "not fetched: .*only http and https", "http://[": "not fetched: .*",
    }
    assert why.keys() == expected.keys()
    for path, pattern in expected.items():
        assert re.match(pattern, why[path]), (path, why[path])
    assert [r.dropped for r in data.rows if r.picture.sha256] == ["", "", ""] and len(data) == 3
    assert [r.info["origin"]["url"].removeprefix(hub.url) for r in data] == ["/good", "/breaks", "/busy"], "in the list's order"
    assert asked(hub).count("/later") == 1 and "/never" not in asked(hub)
    assert asked(hub).count("/broken") == 3 and asked(hub).count("/gone") == 1
    (note,) = [e for e in events if isinstance(e, Note)]
    assert "7 not fetched, 3 unreadable, 3 not fetched yet of 16 pictures" in note.text and "Run it again" in note.text
    assert not list(tmp_path.rglob("*.part")) and sum(len(p.read_bytes()) for p in (tmp_path / "home/blobs").rglob("*.*")) == len(whole)


def test_running_again_tries_what_was_not_answered(hub: Hub, tmp_path: Path) -> None:
    collect_op, store = load_ops()["collect"], Store(tmp_path / "home")
    hub.replies = {"/a": [Reply(picture(1))], "/b": [Reply(code=503)], "/c": [Reply(code=404)]}
    source = written(tmp_path / "list.csv", [{"url": f"{hub.url}{p}"} for p in hub.replies])

    def call(**more: Any) -> tuple[Dataset, bool, list[str]]:
        hub.seen.clear()
        events = []
        work = engine.call(collect_op, {"source": source, "tries": 1, "allow_private": True, **more}, store)
        while True:
            try:
                events.append(next(work))
            except StopIteration as stop:
                return stop.value, any(isinstance(e, Cached) for e in events), asked(hub)

    first, _, paths = call()
    assert len(first) == 1 and sorted(paths) == ["/a", "/b", "/c"]
    hub.replies["/b"] = [Reply(picture(2))]
    second, cached, paths = call()
    assert len(second) == 2 and not cached and paths == ["/b"], "neither what came nor what was refused is asked again"
    for _ in range(2):
        third, cached, paths = call()
        assert third == second and cached and not paths, "a finished request is not looked at again"
    hub.replies["/c"], hub.replies["/a"] = [Reply(picture(3))], [Reply(picture(4))]
    fourth, _, paths = call(again="failed")
    assert len(fourth) == 3 and paths == ["/c"]
    fifth, _, paths = call()
    assert fifth == fourth and not paths, "what was asked anew counts from then on"
    sixth, _, paths = call(again="all")
    assert sorted(paths) == ["/a", "/b", "/c"] and sixth.kept[0].picture.sha256 == sha256(picture(4))
    assert call()[0] == sixth
    hub.replies |= {p: [Reply(picture(5 + i))] for i, p in enumerate(("/a", "/b", "/c"))}
    work = engine.call(collect_op, {"source": source, "at_once": 1, "allow_private": True, "again": "all"}, store)
    while not (isinstance(event := next(work), Progress) and event.step == 1):
        pass
    work.close()
    seventh, _, paths = call(again="all")
    assert len(set(paths)) < 3 and [r.picture.sha256 for r in seventh] == [sha256(picture(5 + i)) for i in range(3)], "asked anew once"
    assert call()[0] == seventh


def test_a_stopped_run_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.replies = {f"/{i}": [Reply(picture(i))] for i in range(12)}
    (tmp_path / "list.txt").write_text("# mine\n" + "".join(f"{hub.url}/{i}\tnumber {i}\n" for i in range(12)), "utf-8")
    limits = dataclasses.replace(HERE, at_once=1)
    work = collect(str(tmp_path / "list.txt"), current().blob, fetch=limits)
    while not (isinstance(event := next(work), Progress) and event.step == 5):
        pass
    work.close()
    (journal,) = (tmp_path / "home/collected").rglob("journal.jsonl")
    with open(journal, "a") as out:
        out.write('{"key": "half a li')  # where a killed process left it
    before = set(asked(hub))
    hub.seen.clear()
    data, _ = run(str(tmp_path / "list.txt"))
    assert [r.caption for r in data] == [f"number {i}" for i in range(12)]
    assert len(before) >= 5 and len(set(asked(hub)) & before) <= 1, "only the one that was on its way"
    Path(data.kept[3].picture.path).unlink()  # as the store's sweep does
    hub.seen.clear()
    assert run(str(tmp_path / "list.txt"))[0] == data and asked(hub) == ["/3"]


def test_a_longer_limit_takes_up_a_shorter_one_and_captions_follow_the_list(hub: Hub, tmp_path: Path) -> None:
    hub.replies = {f"/{i}": [Reply(picture(i))] for i in range(4)}
    rows = [{"url": f"{hub.url}/{i}", "caption": f"old {i}"} for i in (0, 1, 2, 3, 0)]
    source = written(tmp_path / "list.jsonl", rows)
    assert [r.caption for r in run(source, limit=2)[0]] == ["old 0", "old 1"]
    written(tmp_path / "list.jsonl", [r | {"caption": "new"} for r in rows])
    data, _ = run(source)
    assert sorted(asked(hub)) == ["/0", "/0", "/1", "/2", "/3"], "twice in the list is two rows"
    assert {r.caption for r in data} == {"new"} and len(data) == 5 and len({r.name for r in data}) == 5


def test_addresses_inside_a_network_are_refused(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.replies = {"/to": [Reply(code=302, headers={"Location": f"http://localhost:{hub.server_port}/a"})], "/a": [Reply(picture(1))]}
    closed = dataclasses.replace(HERE, allow_private=False)
    inside = [f"{hub.url}/a", f"http://localhost:{hub.server_port}/a", "http://169.254.169.254/a", "http://[::1]:9/a", "http://10.0.0.1/a",
              "http://[::ffff:127.0.0.1]:9/a", "http://2130706433/a", "http://0.0.0.0:9/a"]
    (tmp_path / "list.txt").write_text("\n".join(inside))
    data, _ = run(str(tmp_path / "list.txt"), fetch=closed)
    assert not len(data) and all("an address inside a network" in r.dropped for r in data.rows), [r.dropped for r in data.rows]
    assert not hub.seen
    strange = Http(hub.url, private=False)
    strange._named = "127.0.0.1"  # as if the first host were a public one
    assert "leads to localhost, an address inside" in brought(Item("k", "n", f"{hub.url}/to", http=strange))["lost"]
    assert asked(hub) == ["/to"]
    answers = iter([("93.184.216.34", 80), ("127.0.0.1", hub.server_port)])  # looked at: public; a moment later: this machine
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", next(answers))])
    with pytest.raises(Refused, match=r"rebinds.test is an address inside a network"):
        Http("http://rebinds.test", private=False).open("http://rebinds.test/a")
    assert asked(hub) == ["/to"]


def brought(item: Item, limits: Fetch = HERE) -> Facts:
    """What becomes of one item."""
    with closing(Crew(limits, current().blob)) as crew:
        crew.add(item)
        while crew.busy:
            for _, found in crew.done():
                return found
    raise AssertionError("nothing came")


def test_no_more_at_once_than_a_host_is_sent(hub: Hub, tmp_path: Path) -> None:
    now, most, lock = [0], [0], threading.Lock()

    def slow() -> Iterator[bytes]:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        yield picture(1)
        with lock:
            now[0] -= 1

    hub.replies = {f"/{i}": [Reply(slow())] for i in range(12)}
    (tmp_path / "list.txt").write_text("\n".join(f"{hub.url}/{i}" for i in range(12)))
    data, _ = run(str(tmp_path / "list.txt"), fetch=dataclasses.replace(HERE, at_once=8, per_host=2))
    assert len(data) == 12 and most[0] <= 2


@pytest.mark.parametrize(("name", "text", "found"), [
    ("a.txt", "# no\nhttp://h/a b\tsaid\n\nHTTPS://h/ü\n", [("http://h/a%20b", "said"), ("https://h/%C3%BC", "")]),
    ("a.tsv", "URL\tTEXT\nhttp://h/a\tsaid\n", [("http://h/a", "said")]),
    ("a.csv", "alt,picture\nsaid,http://h/a?x=1&y=%20\n", [("http://h/a?x=1&y=%20", "said")]),
    ("a.jsonl", '{"image": ["http://h/a", "http://h/b"], "text": "<__dj__image> said"}\n{"no": 1}\nno\n',
     [("http://h/a", "said"), ("http://h/b", "said")]),
])
def test_lists_are_read(tmp_path: Path, name: str, text: str, found: list[tuple[str, str]]) -> None:
    from safelight.data.sources import Asked

    (tmp_path / name).write_text(text, "utf-8")
    items = [i for i in urls.addresses(Asked(str(tmp_path / name), tmp_path)) if isinstance(i, Item)]
    assert [(i.url, i.captions[0].text if i.captions else "") for i in items] == found
    assert urls.names_addresses(tmp_path / name)


def test_columns_can_be_chosen_and_what_is_no_list_is_said(hub: Hub, tmp_path: Path) -> None:
    hub.replies = {"/a": [Reply(picture(1))]}
    source = written(tmp_path / "t.csv", [{"url": "http://other/x", "thumb": f"{hub.url}/a", "text": "no", "zh": "是"}])
    data, _ = run(source, pick=Pick(picture="thumb", text="zh"))
    assert [r.caption for r in data] == ["是"]
    with pytest.raises(ValueError, match="there is no 'hh:o/m'; expected a folder, a table"):
        run("hh:o/m")
    with pytest.raises(ValueError, match="says nothing after hf:"):
        run("hf:")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="has no pictures"):
        run(str(tmp_path / "empty.txt"))


def test_the_case_of_a_chosen_column_does_not_matter(hub: Hub, tmp_path: Path) -> None:
    hub.replies = {"/a": [Reply(picture(1))]}
    source = written(tmp_path / "t.csv", [{"URL": "http://other/x", "Thumb": f"{hub.url}/a", "Caption": "no", "ZH": "是"}])
    assert [r.caption for r in run(source, pick=Pick(picture="Thumb", text="ZH"))[0]] == ["是"]


@pytest.mark.parametrize(("name", "content", "why"), [
    ("a.csv", b"url,text\nhttp://h/a," + b"x" * 200_000, "field larger than field limit"),
    ("a.csv", b"url,text\nhttp://h/a,\xff", "is not UTF-8"), ("a.png", picture(1), "is no folder and no table"),
])
def test_a_list_that_cannot_be_read_is_named(hub: Hub, tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=why):
        run(str(tmp_path / name))


def test_texts_that_are_no_unicode_do_not_stop_a_run(hub: Hub, tmp_path: Path) -> None:
    hub.replies = {"/a": [Reply(picture(1))]}
    (tmp_path / "l.jsonl").write_text(json.dumps({"url": f"{hub.url}/a", "text": "a \ud83d fox", "score": float("nan"), "tag": "\udc00"}))
    [row] = run(str(tmp_path / "l.jsonl"))[0]
    assert row.caption == "a ? fox" and row.info["metadata"] == {"tag": "?"}, "what is no number is left out"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo(os.fsdecode(b"\xffa.png"))
        member.size = len(picture(2))
        tar.addfile(member, io.BytesIO(picture(2)))
    hub.files = {"train-0.tar": out.getvalue()}
    [row] = run("hf:o/m")[0]
    assert row.name == "train-0/?a.png".replace("?", "_")


def test_hosts_in_other_scripts() -> None:
    assert urls._written("http://me@例子.测试:8080/图") == "http://me@xn--fsqu00a.xn--0zwm56d:8080/%E5%9B%BE"


def test_another_limit_is_another_question(hub: Hub, tmp_path: Path) -> None:
    hub.replies = {"/a": [Reply(picture(1))], "/gone": [Reply(code=404)]}
    source = written(tmp_path / "t.csv", [{"url": f"{hub.url}{p}"} for p in hub.replies])
    data, events = run(source, fetch=dataclasses.replace(HERE, allow_private=False))
    assert not len(data) and "allow_private" in events[-1].text, "the way on is named"
    assert len(run(source)[0]) == 1 and sorted(asked(hub)) == ["/a", "/gone"]
    assert len(run(source)[0]) == 1 and sorted(asked(hub)) == ["/a", "/gone"], "the same question has its answer"


def item(url: str, key: str = "", before: Any = None) -> Item:
    return Item(key or url, "n", url, origin=origin(url=url), before=before)


def test_a_source_that_breaks_off_leaves_what_it_named(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(asked: Any) -> Iterator[Item]:
        yield from (item(f"{hub.url}/{i}") for i in range(8))
        raise UsedUp("no more")

    hub.replies = {f"/{i}": [Reply(picture(i))] for i in range(8)}
    monkeypatch.setitem(SOURCES, "breaks", breaks)
    with pytest.raises(UsedUp):
        run("breaks:x")
    monkeypatch.setitem(SOURCES, "breaks", lambda asked: (item(f"{hub.url}/{i}") for i in range(8)))
    hub.seen.clear()
    assert len(run("breaks:x")[0]) == 8 and not hub.seen


def test_pages_that_cost_are_asked_for_as_pictures_come(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota that is spent on pages alone brings nothing, however often one comes back."""
    hub.replies = {"/now": [Reply(b"{}")], "/p": [Reply(picture(1))]}
    api, pages = Http(hub.url), []

    def paged(asked: Any) -> Iterator[Item]:
        for page in range(4):
            pages.append(hub_calls("/now"))
            yield from (item(f"{hub.url}/p", f"{page} {i}", partial(api.json, f"{hub.url}/now")) for i in range(6))

    def hub_calls(path: str) -> int:
        return asked(hub).count(path)

    monkeypatch.setitem(SOURCES, "paged", paged)
    assert len(run("paged:x", fetch=dataclasses.replace(HERE, per_host=2))[0]) == 24
    assert all(had >= 6 * page - 3 for page, had in enumerate(pages)), pages


def test_a_slow_source_does_not_keep_the_workers_waiting(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.replies = {f"/{i}": [Reply(picture(i))] for i in range(2)}
    early = []

    def slow(question: Any) -> Iterator[Item]:
        yield item(f"{hub.url}/0")
        for _ in range(500):
            if not asked(hub):
                time.sleep(0.01)
        early.extend(asked(hub))
        yield item(f"{hub.url}/1")

    monkeypatch.setitem(SOURCES, "slow", slow)
    assert len(run("slow:x")[0]) == 2 and early == ["/0"], "the first is on its way before the second is named"


def test_many_hosts_are_not_kept(hub: Hub) -> None:
    with closing(Crew(dataclasses.replace(HERE, tries=1), current().blob)) as crew:
        for i in range(1, 201):
            crew.add(Item(str(i), "n", f"http://127.0.0.1:{i}/x"))
        while crew.busy:
            list(crew.done())
        held = {name: len(v) for name, v in vars(crew).items() if isinstance(v, dict | list)}
    assert all(n <= 1 for n in held.values()), held


def test_a_folder_is_a_source_too(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for i in range(3):
        (tmp_path / "mine" / f"{i}.png").write_bytes(picture(i))
    written(tmp_path / "mine" / "metadata.jsonl", [{"file_name": "0.png", "text": "said", "licence": "CC0", "author": "A"}])
    data, _ = run(str(tmp_path / "mine"), licence="mine", limit=2)
    assert [r.info["origin"]["licence"] for r in data.rows] == ["CC0", "mine"] and data.rows[0].info["origin"]["author"] == "A"


def test_names_lead_nowhere() -> None:
    assert safe("../../etc/passwd") == "etc/passwd" and safe("a\\..\\b:c") == "a/b_c" and safe("...") == "picture"
    assert len(safe("狐" * 200).encode()) <= 200 and safe("狐" * 200).endswith("狐狐"), "file systems count bytes"
    assert safe("a." + "b" * 300)[0] == "b" and safe("a\udcff") == "a_"


# Datasets of the hubs.


LOOSE = {
    "README.md": b"# data", "train/metadata.csv": "file_name,text\na.png,甲\n".encode(), "train/a.png": picture(1),
    "train/b.png": picture(2), "train/b.txt": b"beside it",
    "train/red fox/c.jpg": picture(3, kind="JPEG"), "test/d.png": picture(4), ".gitattributes": b"x",
}
NAMES = ["hf:o/m", "ms:o/m"]


@pytest.mark.parametrize("name", NAMES)
def test_loose_pictures_of_a_hub(hub: Hub, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.pulling.hubs.PAGE", 3)
    hub.files, hub.card = dict(LOOSE), {"license": "cc-by-4.0"}
    data, _ = run(name)
    assert [(r.name, r.caption) for r in data] == [("train/a.png", "甲"), ("train/b.png", "beside it"), ("train/red fox/c.jpg", "red fox")]
    assert {r.info["origin"]["licence"] for r in data} == {"cc-by-4.0"} and {r.info["origin"]["source"] for r in data} == {name}
    assert data.kept[0].picture.sha256 == sha256(LOOSE["train/a.png"])
    assert [r.name for r in run(name, pick=Pick(split="test"))[0]] == ["test/d.png"] and len(run(name, pick=Pick(split="all"))[0]) == 4
    with pytest.raises(ValueError, match="no split 'validation'; it has test, train"):
        run(name, pick=Pick(split="validation"))
    with pytest.raises(ValueError, match="no subset 'big'; it has test, train"):
        run(name, pick=Pick(subset="big"))
    hub.lies["train/a.png"] = picture(9)  # not what the hub announced
    lied, _ = run(name, again="all")
    assert "hash is" in lied.rows[0].dropped and len(lied) == 2


def shard(samples: dict[str, bytes]) -> bytes:
    """A tar of the files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in samples.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


SAMPLES = {
    "000.jpg": picture(1, kind="JPEG"), "000.txt": b"zero", "../001.png": picture(2),
    "../001.json": b'{"caption": "one", "license": "CC0"}', "notes.txt": b"no picture",
    "002.jpg": b"not one", "003.webp": picture(4, kind="WEBP"), "003.cls": b"7",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_pictures_in_archives_are_streamed(hub: Hub, tmp_path: Path, name: str, kind: str) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, content in SAMPLES.items():
            archive.writestr(path, content)
    hub.files = {"README.md": b"", f"data/train-0.{kind}": shard(SAMPLES) if kind == "tar" else packed.getvalue()}
    hub.breaks[f"data/train-0.{kind}"] = [700]
    data, _ = run(name)
    by_caption = {r.caption: r for r in data}
    assert by_caption.keys() == {"zero", "one", ""} and len(data.rows) == 4
    assert by_caption["one"].name == "train-0/001.png" and by_caption["one"].info["origin"]["licence"] == "CC0"
    assert [r.dropped for r in data.rows if r.dropped] == ["unreadable: not a picture in any known format"]
    assert not [p for p in (tmp_path / "home").rglob("*") if p.suffix in (".tar", ".zip")]
    hub.seen.clear()
    assert run(name)[0] == data and not [p for _, p, _ in hub.seen if "train-0" in p], "a whole shard is not opened again"


def test_a_stream_that_breaks_for_good_keeps_what_came(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"a.tar": shard({f"{i:03}.png": picture(i, size=(64, 64)) for i in range(40)})}
    hub.breaks["a.tar"] = [2**18, *[0] * 10]
    with pytest.raises(OSError, match=r"at byte 262144 of \d+"):
        run("ms:o/m")
    kept = len(list((tmp_path / "home/blobs").rglob("*.png")))
    assert 0 < kept < 40
    hub.breaks.clear()
    assert len(run("ms:o/m", limit=30)[0]) == 30 and len(run("ms:o/m")[0]) == 40


def test_what_an_archive_cannot_give_is_listed(hub: Hub) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for i in range(3):
            archive.writestr(f"{i}.png", picture(i, size=(90, 90) if i == 1 else (24, 16)))
    damaged = bytearray(out.getvalue())
    damaged[damaged.index(b"IDAT") + 20] ^= 1  # in the first picture
    hub.files = {"a.zip": bytes(damaged)}
    data, _ = run("ms:o/m", fetch=dataclasses.replace(HERE, max_mb=0.01))
    bad, large, good = (r.dropped for r in data.rows)
    assert bad == "unreadable: Bad CRC-32 for file '0.png'" and re.fullmatch(r"not fetched: 0.02\d+ MiB, more than max_mb = 0.01", large)
    assert not good
    hub.files = {"a.tar": b"no archive" * 100}
    with pytest.raises(ValueError, match=r"a.tar is damaged or locked"):
        run("ms:o/m")


@pytest.mark.parametrize("raw", [t.encode(e) for t, e in (("一只狐狸", "utf-8-sig"), ("一只狐狸", "gbk"), ("一只狐狸", "utf-16"))])
def test_captions_in_other_encodings(hub: Hub, raw: bytes) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        packed.writestr("a.png", picture(1))
        packed.writestr("a.txt", raw)
    hub.files = {"train/a.png": picture(1), "train/a.txt": raw}
    assert [r.caption for r in run("hf:o/m")[0]] == ["一只狐狸"]
    hub.files = {"train.zip": out.getvalue()}
    assert [r.caption for r in run("ms:o/m")[0]] == ["一只狐狸"]


def test_a_table_is_read_without_the_pictures_in_it(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"url": ["http://h/a"], "thumb": [b"x" * 9], "image": [{"bytes": b"y"}], "n": [1]})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert list(urls._records(tmp_path / "t.parquet")) == [{"url": "http://h/a", "n": 1}]


def test_files_of_one_name_stay_apart(hub: Hub) -> None:
    hub.files = {"a.tar": shard({"x.png": picture(1), "../X.png": picture(2), "y.png": picture(3)})}
    assert [r.name for r in run("ms:o/m")[0]] == ["a/x.png", "a/X~2.png", "a/y.png"]


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_a_subset_is(hub: Hub, name: str) -> None:
    named = ("x/one.tar", "a.png"), ("x/two.tar", "b.png"), ("y/three.tar", "c.png")
    hub.files = {path: shard({inside: picture(i)}) for i, (path, inside) in enumerate(named)}
    hub.card = {"license": ["mit", "cc0-1.0"], "configs": [
        {"config_name": "small", "data_files": [{"split": "train", "path": "x/one*"}, {"split": "extra", "path": ["**/two.tar"]}]},
        {"config_name": "other", "default": True, "data_dir": "y"},
    ]}
    hub.files["README.md"] = f"---\n{yaml.safe_dump(hub.card)}---\n# words".encode()  # where ModelScope has it
    assert [r.name for r in run(name)[0]] == ["three/c.png"]
    assert [r.name for r in run(name, pick=Pick(subset="small"))[0]] == ["one/a.png"]
    data, _ = run(name, pick=Pick(subset="small", split="extra"))
    assert [r.name for r in data] == ["two/b.png"] and data.kept[0].info["origin"]["licence"] == "mit, cc0-1.0"
    with pytest.raises(ValueError, match="no subset 'tiny'; it has other, small"):
        run(name, pick=Pick(subset="tiny"))


def test_parquet(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"default/train-00000-of-00001.parquet": b"PAR1"}
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        with pytest.raises(ValueError, match=r"needs pyarrow; `pip install 'safelight\[parquet\]'`"):
            run("ms:o/m", pick=Pick(subset="default"))
        return
    hub.replies = {"/7": [Reply(picture(7))]}
    rows = [{"image": {"bytes": picture(i), "path": None}, "text": f"二次元 {i}", "license": "CC0" if i == 1 else None} for i in range(6)]
    links = [{"image_url": f"{hub.url}/7", "caption": "linked"}]
    for name, table in (("default/train-00000-of-00001.parquet", rows), ("links/train.parquet", links)):
        out = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(table), out, row_group_size=2)
        hub.files[name] = out.getvalue()
    data, _ = run("ms:o/m", pick=Pick(subset="default"), limit=4)
    assert [r.caption for r in data] == [f"二次元 {i}" for i in range(4)] and data.kept[1].info["origin"]["licence"] == "CC0"
    assert [r.name for r in data][:2] == ["train-00000-of-00001/000000.png", "train-00000-of-00001/000001.png"]
    assert len(run("ms:o/m", pick=Pick(subset="default"))[0]) == 6
    assert [(r.caption, r.info["origin"]["url"]) for r in run("hf:o/m", pick=Pick(subset="links"))[0]] == [("linked", f"{hub.url}/7")]
    with pytest.raises(ValueError, match="no column 'nope'; it has image, text, license"):
        run("ms:o/m", pick=Pick(subset="default", picture="nope"))


def test_a_hub_that_has_it_not(hub: Hub) -> None:
    hub.status["/api"] = 404
    with pytest.raises(ValueError, match="hf:o/m at main: there is no such repository"):
        run("hf:o/m")
    with pytest.raises(ValueError, match="ms:o/m at master: not there, or private"):
        run("ms:o/m")
    with pytest.raises(ValueError, match="expected ms:owner/name"):
        run("ms:lowres_anime")


# Picture services.


def on_unsplash(hub: Hub, n: int) -> list[dict[str, Any]]:
    return [{
        "id": f"p{i}", "description": None, "alt_description": f"a fox {i}", "urls": {"full": f"{hub.url}/pics/{i}", "raw": ""},
        "links": {"html": f"https://unsplash.com/photos/p{i}", "download_location": f"{hub.url}/photos/p{i}/download?ixid=1"},
        "user": {"name": "Ann", "links": {"html": "https://unsplash.com/@ann"}},
    } for i in range(n)]


def test_unsplash(hub: Hub) -> None:
    found = on_unsplash(hub, 3)
    hub.replies = {
        "/search/photos": [Reply(json.dumps({"total_pages": 2, "results": part}).encode()) for part in (found[:2], found[2:])],
        **{f"/pics/{i}": [Reply(picture(i, kind="JPEG"))] for i in range(3)},
        **{f"/photos/p{i}/download": [Reply(b"{}")] for i in range(3)},
    }
    data, _ = run("unsplash:red fox")
    assert [r.name for r in data] == [f"unsplash-p{i}.jpg" for i in range(3)] and data.kept[0].caption == "a fox 0"
    told = data.kept[0].info["origin"]
    assert told["author"] == "Ann" and "Unsplash License" in told["licence"] and told["page"].startswith("https://unsplash.com/photos/p0?utm_")
    assert told["attribution"].startswith("Photo by Ann (https://unsplash.com/@ann?utm_source=safelight&utm_medium=referral) on Unsplash")
    login = {p: h.get("authorization") for _, p, h in hub.seen}
    assert login["/search/photos?query=red%20fox&page=1&per_page=30"] == "Client-ID key-u" == login["/photos/p0/download?ixid=1"]
    assert login["/pics/0"] is None, "the key goes to the API alone"
    assert sorted(p for p in asked(hub) if "download" in p) == [f"/photos/p{i}/download" for i in range(3)], "each picture is told once"


def test_a_quota_that_is_used_up_keeps_what_came(hub: Hub) -> None:
    hub.replies = {
        "/search/photos": [Reply(json.dumps({"total_pages": 1, "results": on_unsplash(hub, 3)}).encode())],
        **{f"/pics/{i}": [Reply(picture(i))] for i in range(3)},
        "/photos/p0/download": [Reply(b"{}")], "/photos/p1/download": [Reply(b"{}")],
        "/photos/p2/download": [Reply(b"Rate Limit Exceeded", code=403, headers={"X-Ratelimit-Remaining": "0"})],
    }
    with pytest.raises(UsedUp, match=r"403.*ask again in 60 minutes"):
        run("unsplash:fox", fetch=dataclasses.replace(HERE, at_once=1))
    hub.replies["/photos/p2/download"] = [Reply(b"{}")]
    hub.seen.clear()
    assert len(run("unsplash:fox")[0]) == 3
    assert sorted(p for p in asked(hub) if p != "/search/photos") == ["/photos/p2/download", "/pics/2"]


def test_pexels(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = [{"id": i, "url": f"https://www.pexels.com/photo/{i}/", "photographer": "Bo", "photographer_url": "https://www.pexels.com/@bo",
               "alt": f"sea {i}", "src": {"original": f"{hub.url}/pics/{i}"}} for i in range(3)]
    hub.replies = {f"/pics/{i}": [Reply(picture(i))] for i in range(3)}
    hub.replies["/v1/search"] = [Reply(json.dumps({"photos": photos[:2], "next_page": "more"}).encode()), Reply(code=429),
                                 Reply(json.dumps({"photos": photos[2:]}).encode())]
    data, _ = run("pexels:海")
    assert [r.caption for r in data] == ["sea 0", "sea 1", "sea 2"]
    assert data.kept[0].info["origin"]["attribution"] == "Photo by Bo (https://www.pexels.com/@bo) on Pexels (https://www.pexels.com)"
    assert {h.get("authorization") for _, p, h in hub.seen if "/v1/" in p} == {"key-p"}
    assert not [h for _, p, h in hub.seen if "/pics/" in p and "authorization" in h]
    hub.replies["/v1/search"] = [Reply(code=401)]
    with pytest.raises(ValueError, match=r"the key in \$PEXELS_API_KEY is not taken"):
        run("pexels:sea")
    monkeypatch.delenv("PEXELS_API_KEY")
    with pytest.raises(ValueError, match=r"no key in \$PEXELS_API_KEY"):
        run("pexels:sea")


# Our own pictures.


def test_rendered_pictures_are_the_same_everywhere(hub: Hub) -> None:
    few, _ = run("render:person", limit=2)
    more, _ = run("render:person", limit=3)
    chinese, _ = run("render:person:zh", limit=2)
    assert more.rows[:2] == few.rows and [r.picture for r in chinese] == [r.picture for r in few]
    row = few.kept[0]
    assert row.info["metadata"]["background" if "background" in row.info["metadata"] else "scene"] and "person" in row.name
    assert row.info["origin"]["licence"] == "CC BY 4.0" and row.caption.isascii() and not chinese.kept[0].caption.isascii()
    assert (row.width, row.height) == (128, 128) == read(row.picture.path).shape[:2]
    with pytest.raises(ValueError, match="expected person or scene"):
        run("render:cat")


# The command.


def test_the_command_writes_folders(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turned = picture(1, size=(40, 10), kind="JPEG", orientation=6)
    hub.replies = {"/a": [Reply(turned)], "/b": [Reply(picture(2))], "/c": [Reply(code=404)]}
    rows = [{"url": f"{hub.url}{p}", "text": "二次元", "author": "A"} for p in hub.replies]
    words = ["collect", written(tmp_path / "list.csv", rows), "--allow-private", "--licence", "CC0"]
    cli([*words, "--out", "plain"], standalone_mode=False)
    assert "2 pictures; dropped: 1 not fetched" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "plain/metadata.jsonl").read_text("utf-8").splitlines()]
    assert [(r["file_name"], r["text"], r["licence"], r["author"], r["sha256"]) for r in lines] == [
        ("00000000.jpg", "二次元", "CC0", "A", sha256(turned)), ("00000001.png", "二次元", "CC0", "A", sha256(picture(2)))]
    assert (tmp_path / "plain/00000000.jpg").read_bytes() == turned
    assert "404" in json.loads((tmp_path / "plain/dropped.json").read_text())[0]["reason"]
    hub.seen.clear()
    cli([*words, "--out", "numbered", "--layout", "numbered"], standalone_mode=False)
    assert not hub.seen
    with Pil.open(tmp_path / "numbered/train/0.jpg") as again:
        assert again.format == "JPEG" and again.mode == "RGB" and again.size == (10, 40)
    table = (tmp_path / "numbered/train/metadata.csv").read_bytes()
    assert table == b"\xef\xbb\xbf" + "file_name,text\n0.jpg,二次元\n1.jpg,二次元\n".encode()
    last = (tmp_path / "numbered/metadata.jsonl").read_text("utf-8").splitlines()[-1]
    assert last == '{"text": "二次元", "image": ["train/1.jpg"]}'
    back = load_ops()["folder"](tmp_path / "plain")
    assert isinstance(back, Dataset) and back.kept[0].info["metadata"]["licence"] == "CC0"
