"""Near duplicates by embedding: planted copies that a hash does not find, exact search, clusters, and what is remembered."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil
from PIL import ImageOps

import safelight as sl
from safelight.cli import cli, status
from safelight.data.similar import CHUNK, FEW, Exact, drop_similar, index, nearest
from safelight.engine import finish
from safelight.reporting.overview import Overview, page
from safelight.scoring.clip import ClipTowers
from safelight.values import Dataset
from tests.unit.test_report import Reader

EXAMPLES = Path(__file__).parents[2] / "examples" / "pixel-people"


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six people, one of them mirrored and one a little cut: the hash takes both for new."""
    root = tmp_path_factory.mktemp("copies")
    for i in (1, 4, 9, 13, 18, 20):
        Pil.open(EXAMPLES / f"person-{i:02}.png").convert("RGB").save(root / f"{i:02}.png")
    ImageOps.mirror(Pil.open(root / "04.png")).resize((200, 200)).save(root / "04-mirrored.jpg", quality=70)
    Pil.open(root / "09.png").crop((6, 6, 252, 252)).save(root / "09-cut.jpg", quality=70)
    Pil.open(root / "09.png").resize((180, 180)).save(root / "09-small.jpg")
    (root / "broken.png").write_bytes((root / "01.png").read_bytes()[:-300])
    return root


def test_copies_that_the_hash_does_not_find(copies: Path) -> None:
    data = sl.folder(copies)
    assert "04-mirrored.jpg" in [r.name for r in sl.curate(data)], "the hash takes it for new"
    found = sl.drop_similar(data, similarity=0.9)
    assert [r.name for r in found] == ["01.png", "04.png", "09.png", "13.png", "18.png", "20.png"]
    rows = {r.name: r for r in found.rows}
    mirrored = rows["04-mirrored.jpg"]
    assert mirrored.dropped == f"near duplicate: looks like 04.png (similarity {mirrored.info['like']['similarity']:.3f})"
    assert rows["04.png"].info["like"] == {"cluster": 1, "kept": "04.png", "similarity": 1.0}
    assert {rows[n].info["like"]["cluster"] for n in ("09.png", "09-cut.jpg", "09-small.jpg")} == {2}
    assert "like" not in rows["13.png"].info and rows["broken.png"].dropped.startswith("unreadable: ")
    again = sl.drop_similar(found, similarity=0.9)
    assert again.rows == found.rows, "what is sorted out stays so"


def test_what_is_known_opens_no_picture_and_no_network(copies: Path, tmp_path: Path) -> None:
    data = sl.curate(sl.folder(copies), near_duplicates=-1)
    known: dict[tuple[str, str], Any] = {}
    wanted = finish(drop_similar(data, 0.9, ClipTowers.load, stamp="a", known=known))
    assert len(known) == len(data)
    found = finish(drop_similar(data, 0.9, lambda: pytest.fail("the network was asked for"), stamp="a", known=known))
    assert found.rows == wanted.rows
    assert len(finish(drop_similar(data, 1.0, lambda: pytest.fail("asked for"), stamp="a", known=known))) == len(data)


def test_nothing_left_to_compare() -> None:
    assert finish(drop_similar(Dataset(()), 0.9, lambda: pytest.fail("asked for"))).rows == ()


def vectors(n: int, width: int = 16) -> Any:
    """Random directions; every third is close to the one before."""
    rng = np.random.default_rng(n)
    v = rng.normal(size=(n, width)).astype(np.float32)
    v[2::3] = v[1:-1:3] + 0.1 * rng.normal(size=v[2::3].shape)
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def test_the_graph_is_for_very_many_and_finds_what_is_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(index(16, FEW), Exact)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "faiss", None)
        assert isinstance(index(16, FEW + 1), Exact)
    pytest.importorskip("faiss")
    v, graph = vectors(3000), index(16, FEW + 1)
    found, wanted = finish(nearest(v, 0.9, graph)), finish(nearest(v, 0.9, Exact(16)))
    assert not isinstance(graph, Exact) and len(found.keys() & wanted.keys()) >= 0.99 * len(wanted) > 900


def test_the_search_is_exact() -> None:
    """As comparing one after another with all that were kept, across the borders of blocks."""
    v = vectors(1500)
    kept: list[int] = []
    wanted: dict[int, tuple[int, float]] = {}
    for i, one in enumerate(v):
        cosines = v[kept] @ one
        if len(kept) and cosines.max() >= 0.9:
            wanted[i] = kept[int(cosines.argmax())], float(cosines.max())
        else:
            kept.append(i)
    found = finish(nearest(v, 0.9, index(16, len(v))))
    assert len(wanted) > 400 and {i: first for i, (first, _) in found.items()} == {i: first for i, (first, _) in wanted.items()}
    assert max(abs(found[i][1] - wanted[i][1]) for i in wanted) < 1e-6


def test_the_index_across_chunks() -> None:
    v = vectors(CHUNK + 700, 4)
    one = Exact(4)
    for some in (v[:5], v[5:CHUNK + 100], v[CHUNK + 100:]):
        one.add(some)
    asked = vectors(40, 4)
    cosines, which = one.search(asked)
    assert one.ntotal == len(v) and (which[:, 0] == (asked @ v.T).argmax(axis=1)).all()
    assert np.abs(cosines[:, 0] - (asked @ v.T).max(axis=1)).max() < 1e-6


def test_no_chains() -> None:
    """b is like a, c like b but not like a: c stays."""
    turn = np.radians([0, 15, 30])
    v = np.stack([np.cos(turn), np.sin(turn)], axis=1).astype(np.float32)
    found = finish(nearest(v, 0.95, Exact(2)))
    assert found == {1: (0, pytest.approx(np.cos(np.radians(15)), abs=1e-6))}


def test_a_network_that_is_not_there(copies: Path) -> None:
    with pytest.raises(ValueError, match=r"drop_similar: models: nobody/nothing is not in"):
        sl.drop_similar(sl.folder(copies), network="nobody/nothing")


def test_the_page_shows_copies_beside_the_kept_one(copies: Path) -> None:
    found = sl.drop_similar(sl.curate(sl.folder(copies)), similarity=0.9)
    read = Reader(page(Overview("x", found)))
    text = " ".join(read.said)
    assert all(said in text for said in ("Near duplicate", "04-mirrored.jpg", "of 64 bits differ", "180 × 180"))
    assert f"{next(r for r in found.rows if r.name == '04-mirrored.jpg').info['like']['similarity']:.3f} alike" in text
    assert len(read.images) == len(found) + 3 + 2, "the kept, three copies, and beside them the two that they are copies of"


def test_the_command_shows_what_it_leaves_out(copies: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    words = ["dataset", "show", str(copies), "--curate", "--similar", "0.9", "-o", str(out)]
    assert status(lambda: cli(words, standalone_mode=False)) == 0
    text = " ".join(Reader(out.read_text()).said)
    assert "6 pictures" in text and "4 left out" in text and "04-mirrored.jpg" in text
