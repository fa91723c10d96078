"""Data-Juicer's recipes: its own outputs byte for byte, and what is better here."""
from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from safelight.cli import cli
from safelight.data.juicer import read_recipe, run_recipe
from safelight.data.juicer.hashes import image_hash
from safelight.data.juicer.known import Known
from safelight.data.juicer.pictures import Picture
from safelight.data.juicer.registry import OPERATORS, Sample, find, settle
from safelight.data.juicer.rows import Alike, parse, shape_among, source
from safelight.data.juicer.shard import run_shard, stages
from tests.juicer import HEADER, RECIPES, numbered, write

GOLDEN = Path(__file__).parents[1] / "golden" / "juicer"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures and rows that Data-Juicer saw."""
    path = tmp_path_factory.mktemp("rows")
    write(path)
    return path


Recipe = Callable[..., Path]


@pytest.fixture
def recipe(root: Path, tmp_path: Path) -> Recipe:
    """Write a recipe on those rows (or on others) whose result goes to the test's folder."""

    def made(process: str, *, data: Path | None = None, name: str = "one") -> Path:
        text = HEADER.replace("{root}/data.jsonl", str(data or root / "data.jsonl"))
        text = text.replace("{root}", str(tmp_path)).replace("{name}", name)
        (tmp_path / f"{name}.yaml").write_text(text + process, "utf-8")
        return tmp_path / f"{name}.yaml"

    return made


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


@pytest.mark.parametrize("name", RECIPES)
def test_the_outputs_are_data_juicers(name: str, root: Path, recipe: Recipe) -> None:
    done = run_recipe(read_recipe(recipe(RECIPES[name], name=name)), shard=37)
    for suffix in ("", "_stats"):
        golden, ours = GOLDEN / f"{name}{suffix}.jsonl", done.result.with_name(f"result{suffix}.jsonl")
        assert golden.exists() == ours.exists()
        if golden.exists():
            assert ours.read_text("utf-8") == golden.read_text("utf-8").replace("{ROOT}", str(root))
    assert done.read == 160 == done.kept + sum(done.dropped.values())


def test_twelve_operators_are_compared() -> None:
    assert sum(RECIPES["filters"].count(name) for name in OPERATORS) >= 12


def test_one_bad_file_drops_its_row_alone(recipe: Recipe, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (50, 40)).save(tmp_path / "good.jpg")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture")
    Image.new("RGB", (3, 3)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:40])
    data = tmp_path / "data.jsonl"
    bad: list[Any] = [["gone.jpg"], ["empty.jpg"], ["text.jpg"], ["good.jpg", "cut.jpg"], "good.jpg", [1]]
    data.write_text("".join(json.dumps({"text": "a", "image": i}) + "\n" for i in [["good.jpg"], *bad, []]) + "not json\n[1]\n\n{}\n")
    done = run_recipe(read_recipe(recipe("process: [image_shape_filter]", data=data)))
    assert [r["image"] for r in rows(done.result)] == [[str(tmp_path / "good.jpg")], []]
    dropped = rows(done.dropped_list)
    assert sorted(d["line"] for d in dropped) == [2, 3, 4, 5, 6, 7, 9, 10, 12]
    assert all(d["fault"] and d["reason"] for d in dropped) and done.faults == 9


def test_a_new_threshold_reads_no_picture_again(recipe: Recipe, tmp_path: Path) -> None:
    write(tmp_path)
    files, data = sorted(tmp_path.glob("pictures/*")), tmp_path / "data.jsonl"
    for file in files:
        os.utime(file, (1.6e9, 1.6e9))
    process = "process: [image_aspect_ratio_filter: {max_ratio: 2}, image_deduplicator]"
    known = tmp_path / "measures.sqlite"
    first = run_recipe(read_recipe(recipe(process, data=data)), known=known)
    for file in files:  # whoever looks into one now finds no picture
        file.write_bytes(b"x" * file.stat().st_size)
        os.utime(file, (1.6e9, 1.6e9))
    again = run_recipe(read_recipe(recipe(process.replace("2", "1.2"), data=data, name="two")), known=known)
    assert again.faults == first.faults and 0 < again.kept < first.kept
    os.utime(files[0], (1.7e9, 1.7e9))
    assert run_recipe(read_recipe(recipe(process, data=data, name="three")), known=known).faults > first.faults  # it is looked at again


def test_near_duplicates_by_distance(recipe: Recipe, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    for i in range(3):
        coarse = np.random.default_rng(i).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC).save(tmp_path / f"{i}.png")
        Image.open(tmp_path / f"{i}.png").rotate(0.7).save(tmp_path / f"{i}.jpg", quality=30)
    told = [(name, said) for i, said in enumerate(("a", "b", "a")) for name, said in ((f"{i}.png", said), (f"{i}.jpg", "a"))]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": said, "image": [name]}) + "\n" for name, said in told))

    def kept(settings: str) -> list[str]:
        done = run_recipe(read_recipe(recipe(f"process: [image_deduplicator: {{{settings}}}]", data=data)))
        return [Path(r["image"][0]).name for r in rows(done.result)]

    assert len(kept("")) > 3
    assert kept("distance: 12") == ["0.png", "1.png", "2.png"]
    assert kept("distance: 12, consider_text: true") == ["0.png", "1.png", "1.jpg", "2.png"]


def test_a_shard_is_plain_data(root: Path, recipe: Recipe) -> None:
    made = read_recipe(recipe(RECIPES["filters"]))
    (stage,) = stages(made, None)
    samples, _ = parse(numbered(root / "data.jsonl"), source(root / "data.jsonl", made), _alike(root))
    whole = run_shard(samples, stage)
    samples, _ = parse(numbered(root / "data.jsonl"), source(root / "data.jsonl", made), _alike(root))
    parts = [run_shard(*pickle.loads(pickle.dumps((samples[i:i + 50], stage)))) for i in range(0, 200, 50)]  # noqa: S301
    assert [s.row for s in whole.kept] == [s.row for p in parts for s in p.kept]
    assert whole.drops == [d for p in parts for d in p.drops]


def _alike(root: Path) -> Alike:
    return Alike(shape_among(numbered(root / "data.jsonl")))


@pytest.mark.parametrize(("wrong", "told"), [
    ("process: [image_shape_filtr]", "did you mean 'image_shape_filter'"),
    ("process: [image_shape_filter: {min_widht: 3}]", "did you mean 'min_width'"),
    ("process: [image_shape_filter: {min_width: big}]", "min_width: got 'big', expected a whole number"),
    ("process: [image_shape_filter: {any_or_all: alll}]", "did you mean 'all'"),
    ("process: [image_size_filter: {min_size: 10 parsecs}]", "image_size_filter: got '10 parsecs'"),
    ("process: [random_selector: {select_ratio: 1.5}]", "a number from 0 to 1"),
    ("process: [words_num_filter: {tokenization: true}]", "tokenization: got True, expected False"),
    ("process: [python_lambda_mapper: {lambda_str: 'lambda row: row'}]", "--allow-code"),
    ("image_kez: a\nprocess: []", "did you mean 'image_key'"),
    ("export_shard_size: -5\nprocess: []", "export_shard_size: got -5"),
    ("encrypt_before_export: true\nprocess: []", "encrypt_before_export: got True"),
    ("process: {a: 1, b: 2}", "process"),
])
def test_what_is_not_understood_is_an_error(wrong: str, told: str, recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="mistake") as error:
        read_recipe(recipe(wrong))
    assert told in str(error.value)


def test_code_runs_when_it_is_allowed(recipe: Recipe) -> None:
    process = "process: [python_lambda_mapper: {lambda_str: 'lambda row: {**row, \"text\": row[\"text\"].upper()}'}]"
    done = run_recipe(read_recipe(recipe(process), allow_code=True))
    assert rows(done.result)[0]["text"] == "A RED FOX SITS IN THE SNOW, LOOKING AT THE CAMERA"


def test_columns_and_numbers_are_made_alike(recipe: Recipe, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "a", "n": 1}\n{"text": "b", "n": 1.5, "m": {"x": 1}}\n{"text": "c", "m": {"y": [1]}}\n')
    assert rows(run_recipe(read_recipe(recipe("process: []", data=data))).result) == [
        {"text": "a", "n": 1.0, "m": None},
        {"text": "b", "n": 1.5, "m": {"x": 1, "y": None}},
        {"text": "c", "n": None, "m": {"x": None, "y": [1]}}]


def test_the_command_says_what_became_of_the_rows(recipe: Recipe, tmp_path: Path) -> None:
    config = str(recipe(RECIPES["mission"]))
    said = CliRunner().invoke(cli, ["dj", "--config", config, "--np", "3", f"--export_path={tmp_path}/other/r.jsonl"])
    assert said.exit_code == 0, said.output
    assert "115 of 160 rows kept" in said.output and (tmp_path / "other" / "r_stats.jsonl").exists()


def test_nothing_heavy_is_imported(recipe: Recipe) -> None:
    code = ("import sys; from safelight.cli import cli; cli(sys.argv[1:], standalone_mode=False); "
            "print([m for m in ('torch', 'numpy', 'PIL', 'pandas', 'pyarrow', 'safelight.engine') if m in sys.modules])")
    command = [sys.executable, "-c", code, "dj", "--config", recipe(RECIPES["mission"])]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("given", "kept"), [(1 / 3, 0.33333333330000003), (4 / 3, 1.3333333333000001), (0.1, 0.1), (-1.5, -1.5), (7, 7),
                                             (0.99999999999, 1.0), ([48 / 65], [0.7384615385000001])])
def test_stats_go_through_ten_decimals(given: Any, kept: Any) -> None:
    assert settle(given) == kept


def test_hashes_are_those_of_imagededup(root: Path) -> None:
    # made by imagededup 0.3.3 on the pictures as Data-Juicer loads them
    golden = json.loads((GOLDEN / "hashes.json").read_text())
    for name, hashes in golden.items():
        picture = Picture(str(root / name), Known(None))
        assert {m: image_hash(picture, m) for m in hashes} == hashes


def test_a_blurred_copy_leaves_the_original(recipe: Recipe, root: Path, tmp_path: Path) -> None:
    process = f"process: [image_blur_mapper: {{p: 1, save_dir: {tmp_path}/blurred}}]"
    found = rows(run_recipe(read_recipe(recipe(process))).result)
    row = next(r for r in found if r["image"])
    assert all(Path(p).parent == tmp_path / "blurred" for p in row["image"]) and all(Path(p).exists() for p in row["__dj__source_file__"])


def test_every_operator_is_found_by_name() -> None:
    find("")
    assert len(OPERATORS) >= 40 and all(find(name) is o for name, o in OPERATORS.items())
    assert isinstance(Sample(1, {}), Sample)
