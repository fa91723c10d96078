"""`dj` and `curate` killed with SIGKILL at ten moments: the same command then finishes with the result of a run that was left alone."""
from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.juicer import HEADER, write

KILLS = 10
PROGRAM = [sys.executable, "-c", "from safelight.cli import main; main()"]
PROCESS = """
process:
  - image_shape_filter: {min_width: 50}
  - image_blur_mapper: {p: 0.5, save_dir: 'SAVED'}
  - image_deduplicator: {consider_text: true}
  - topk_specified_field_selector: {field_key: score, topk: 400}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 rows, six times over with texts of their own."""
    path = tmp_path_factory.mktemp("rows")
    rows = [json.loads(line) for line in write(path).read_text("utf-8").splitlines()]
    more = [{**r, "text": f"{r['text']} {n}", "score": r["score"] + n / 1000} for n in range(6) for r in rows]
    (path / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in more), "utf-8")
    return path


def start(command: list[str], home: Path) -> subprocess.Popen[bytes]:
    env = {**os.environ, "SAFELIGHT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*PROGRAM, *command], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def whole(command: list[str], home: Path) -> float:
    """Run to the end; the seconds it took."""
    began = time.monotonic()
    ran = start(command, home)
    _, errors = ran.communicate(timeout=300)
    assert ran.returncode == 0, errors.decode()[-3000:]
    return time.monotonic() - began


def killed(command: list[str], home: Path, after: float) -> bool:
    """Whether it was still at work when it was killed."""
    ran = start(command, home)
    try:
        ran.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        ran.kill()
        ran.communicate()
    return ran.returncode == -9


@pytest.mark.slow
def test_a_recipe_that_is_killed_again_and_again(root: Path, tmp_path: Path) -> None:
    for name in ("calm", "killed"):
        text = HEADER.replace("{root}/data.jsonl", str(root / "data.jsonl")).replace("{root}", str(tmp_path)).replace("{name}", name)
        (tmp_path / f"{name}.yaml").write_text(text + PROCESS.replace("SAVED", str(tmp_path / name / "blurred")), "utf-8")
    seconds = whole(["dj", "--config", str(tmp_path / "calm.yaml")], tmp_path / "calm-home")
    chance, hit = random.Random(time.time_ns()), 0
    for _ in range(KILLS):
        hit += killed(["dj", "--config", str(tmp_path / "killed.yaml")], tmp_path / "home", chance.uniform(0.1, 1) * seconds)
        done = tmp_path / "killed" / "result.jsonl"
        assert not done.exists() or done.read_bytes().endswith(b"}\n")
    assert hit >= KILLS // 2
    whole(["dj", "--config", str(tmp_path / "killed.yaml")], tmp_path / "home")
    for name in ("result.jsonl", "result_stats.jsonl", "result_dropped.jsonl"):
        calm, other = ((tmp_path / k / name).read_text("utf-8") for k in ("calm", "killed"))
        assert calm.replace(f"{tmp_path}/calm/", f"{tmp_path}/killed/") == other
    rows = (tmp_path / "killed" / "result.jsonl").read_text("utf-8").split("\n")[:-1]
    assert len(rows) == len(set(rows)) == 400
    assert not list((tmp_path / "killed").glob(".*"))
    pictures = {k: {p.name: p.read_bytes() for p in (tmp_path / k / "blurred").glob("[!.]*")} for k in ("calm", "killed")}
    assert pictures["calm"] and pictures["calm"] == pictures["killed"]


@pytest.mark.slow
def test_curating_that_is_killed_again_and_again(root: Path, tmp_path: Path) -> None:
    def command(out: str) -> list[str]:
        return ["curate", str(root / "pictures"), "--min-side", "40", "--out", str(tmp_path / out)]

    seconds = whole(command("calm"), tmp_path / "calm-home")
    chance, hit = random.Random(time.time_ns()), 0
    for _ in range(KILLS):
        hit += killed(command("killed"), tmp_path / "home", chance.uniform(0.1, 1) * seconds)
    assert hit >= KILLS // 2
    whole(command("killed"), tmp_path / "home")
    files = [{p.relative_to(tmp_path / k): p.read_bytes() for p in (tmp_path / k).rglob("*") if p.is_file()} for k in ("calm", "killed")]
    assert files[0] == files[1] and len(files[0]) > 5
