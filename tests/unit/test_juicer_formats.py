"""Other kinds of input and output than JSON lines, and mixing: as Data-Juicer reads and writes them."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safelight.data.juicer import Outcome, read_recipe, run_recipe
from tests.juicer import FORMATS, FORMATS_HEADER, HEADER, SEEN, SIMHASH, write_alike, write_formats, write_seen

GOLDEN = Path(__file__).parents[1] / "golden" / "juicer"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows")
    write_formats(path)
    write_alike(path)
    return path


def run(root: Path, out: Path, text: str, name: str, *, shard: int = 7) -> Outcome:
    text = text.replace("'{root}/{name}/", f"'{out}/").replace("{root}", str(root)).replace("{name}", name)
    (out / "recipe.yaml").write_text(text, "utf-8")
    return run_recipe(read_recipe(out / "recipe.yaml"), shard=shard)


def read(path: Path) -> list[Any]:
    if path.suffix == ".parquet":
        return list(pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist())
    return list(json.loads(path.read_text("utf-8"))) if path.suffix == ".json" else [json.loads(x) for x in path.read_bytes().splitlines()]


@pytest.mark.parametrize("name", FORMATS)
def test_kinds_of_files_are_data_juicers(name: str, root: Path, tmp_path: Path) -> None:
    suffix, keys = FORMATS[name]
    if "parquet" in name:
        pytest.importorskip("pyarrow")
    done = run(root, tmp_path, FORMATS_HEADER.replace("{suffix}", suffix) + keys + "\n", name)
    assert done.stats is not None
    assert done.stats.read_bytes() == (GOLDEN / f"{name}_stats.jsonl").read_bytes()
    if suffix == "jsonl" and name != "shards":
        assert done.result.read_bytes() == (GOLDEN / f"{name}.jsonl").read_bytes()
    elif name != "shards":
        assert read(done.result) == read(GOLDEN / f"{name}.{suffix}")
    assert done.read == done.kept + sum(done.dropped.values())
    assert not list(tmp_path.glob(".*"))


def test_shards_are_named_and_cut_as_data_juicers(root: Path, tmp_path: Path) -> None:
    done = run(root, tmp_path, FORMATS_HEADER.replace("{suffix}", "jsonl") + FORMATS["shards"][1] + "\n", "shards")
    ours = sorted(tmp_path.glob("result-*"))
    theirs = sorted(GOLDEN.glob("shards-*"))
    assert b"".join(p.read_bytes() for p in ours) == b"".join(p.read_bytes() for p in theirs)
    assert done.result == ours[0] and not (tmp_path / "result.jsonl").exists()
    counts = [p.read_bytes().count(b"\n") for p in ours]
    assert len(ours) > 1 and max(counts) - min(counts) <= 1 and sum(counts) == done.kept
    assert [p.name for p in ours] == [f"result-{i:02}-of-{len(ours):02}.jsonl" for i in range(len(ours))]
    assert theirs[0].name[:12] == "shards-00-of"  # how many they are follows from Arrow's bytes there


@pytest.mark.parametrize("name", SIMHASH)
def test_simhash_keeps_what_data_juicer_keeps(name: str, root: Path, tmp_path: Path) -> None:
    done = run(root, tmp_path, HEADER.replace("data.jsonl", "alike.jsonl") + SIMHASH[name], name)
    assert done.result.read_bytes() == (GOLDEN / f"{name}.jsonl").read_bytes()
    assert 0 < done.dropped["document_simhash_deduplicator"] == done.read - done.kept


def test_what_opencv_sees_is_what_data_juicer_sees(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    write_seen(tmp_path)
    (tmp_path / "out").mkdir()
    done = run(tmp_path, tmp_path / "out", HEADER.replace("data.jsonl", "seen.jsonl") + SEEN, "seen")
    assert done.stats is not None
    for name, path in (("seen", done.result), ("seen_stats", done.stats)):
        assert path.read_text("utf-8") == (GOLDEN / f"{name}.jsonl").read_text("utf-8").replace("{ROOT}", str(tmp_path))


def test_a_table_names_pictures(tmp_path: Path) -> None:
    """Data-Juicer takes such a cell for a list of letters."""
    (tmp_path / "t.csv").write_text('text,image,n\na,"[""a.jpg"", ""b.jpg""]",1\nb,c.jpg,1_0\nc,,NA\nd,e,3,4\nNA,f,2\n')
    done = run(tmp_path, tmp_path, "dataset_path: '{root}/t.csv'\nimage_key: image\nexport_path: '{root}/{name}/r.jsonl'\nprocess: []", "x")
    assert read(done.result) == [
        {"text": "a", "image": [f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"], "n": "1"},
        {"text": "b", "image": [f"{tmp_path}/c.jpg"], "n": "1_0"},
        {"text": "c", "image": None, "n": "NA"}, {"text": "NA", "image": [f"{tmp_path}/f"], "n": "2"}]
    assert done.faults == 1


def test_dates_and_more_rows_than_a_batch(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    rows = "".join(json.dumps({"text": f"row {i}", "n": None if i % 2 else i}) + "\n" for i in range(4100))
    (tmp_path / "a.jsonl").write_text(rows)
    recipe = "dataset_path: '{root}/a.jsonl'\nexport_path: '{root}/{name}/r.parquet'\nexport_shard_size: 60000\nprocess: []"
    run(tmp_path, tmp_path, recipe, "x", shard=2000)
    tables = [pyarrow.parquet.read_table(p) for p in sorted(tmp_path.glob("r-*.parquet"))]
    assert len(tables) > 1 and "".join(json.dumps(r) + "\n" for t in tables for r in t.to_pylist()) == rows


@pytest.mark.parametrize(("text", "told"), [
    ("dataset_path: '{root}/a.txt'", "of .csv, .json"),
    ("dataset_path: '{root}/broken.json'", "broken.json cannot be read"),
    ("dataset_path: '{root}/broken.jsonl.gz'", "broken.jsonl.gz cannot be read"),
    ("dataset: {max_sample_num: 0, configs: [{path: '{root}/b.jsonl'}]}", "max_sample_num: got 0"),
    ("dataset: {max_sample_num: 3, configs: [{path: '{root}/b.jsonl', weight: -1}]}", "weight: got -1"),
    ("dataset_path: '{root}/b.jsonl'\nexport_type: parquet", "ends in .parquet"),
    ("dataset_path: '{root}/b.jsonl'\nprocess: [sentence_split_mapper]", "punkt models"),
    ("dataset_path: '{root}/b.jsonl'\nprocess: [document_simhash_deduplicator: {num_blocks: 4}]", "less than num_blocks"),
])
def test_what_cannot_be_read_or_written_is_said(text: str, told: str, root: Path, tmp_path: Path) -> None:
    (root / "broken.json").write_text('[{"text": 1},')
    (root / "broken.jsonl.gz").write_bytes(b"no gzip")
    (root / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"path|dataset|mistake|dedup") as error:
        run(root, tmp_path, text + "\nexport_path: '{root}/{name}/r.jsonl'\n", "x")
    assert told in str(error.value)
