"""A recipe on a Ray cluster of two nodes on this machine: the rows of one pass, also when a worker or the driver is killed on the way."""
from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from safelight.data.juicer import read_recipe, run_recipe
from tests.juicer import HEADER, write

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 2**27})
cluster.add_node(num_cpus=1, object_store_memory=2**27)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
"""
DRIVER = """
import json, sys
from safelight.data.juicer import read_recipe
from safelight.data.juicer.cluster import run_on_ray
work = run_on_ray(read_recipe(sys.argv[1], allow_code=True), address=sys.argv[2], shard=8)
for event in work:
    print(json.dumps(event.json()), flush=True)
"""
SLOW = """
process:
  - image_shape_filter: {min_width: 50}
  - python_lambda_mapper: {lambda_str: LAMBDA}
  - document_deduplicator:
  - topk_specified_field_selector: {field_key: score, topk: 60}
"""
MARK = ("lambda row: (__import__(\"time\").sleep(0.06), open(\"{marks}/\" + __import__(\"ray\").get_runtime_context().get_node_id()"
        " + \"-\" + str(__import__(\"os\").getpid()), \"a\").write(\"x\")) and row")
"""Takes its time and leaves a mark of node and process; the row stays as it is."""


@pytest.fixture(scope="module")
def env() -> dict[str, str]:
    return {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "OMP_NUM_THREADS": "1", "SAFELIGHT_TRACEBACK": "1"}


@pytest.fixture(scope="module")
def address(env: dict[str, str]) -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-c", NODES], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as nodes:
        assert nodes.stdout is not None
        found = nodes.stdout.readline().strip()
        yield found
        nodes.communicate("")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows")
    write(path)
    return path


class Case:
    """One recipe: its slow form for the cluster and what one pass makes of it."""

    def __init__(self, root: Path, out: Path, env: dict[str, str], address: str) -> None:
        self.out, self.env, self.address, self.marks = out, env, address, out / "marks"
        self.marks.mkdir()
        for name, act in (("local", "lambda row: row"), ("ray", MARK.format(marks=self.marks))):
            text = HEADER.replace("{root}/data.jsonl", str(root / "data.jsonl")).replace("{root}", str(out)).replace("{name}", name)
            (out / f"{name}.yaml").write_text(text + SLOW.replace("LAMBDA", "'" + act + "'"), "utf-8")
        run_recipe(read_recipe(out / "local.yaml", allow_code=True), shard=8)

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DRIVER, str(self.out / "ray.yaml"), self.address]
        return subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def marked(self, count: int) -> list[tuple[str, int]]:
        """(node, process) of the workers, as soon as rows in all their files are that many."""
        for _ in range(600):
            marks = list(self.marks.iterdir())
            if sum(m.stat().st_size for m in marks) >= count:
                return [(m.name.partition("-")[0], int(m.name.partition("-")[2])) for m in marks]
            time.sleep(0.1)
        raise AssertionError("no worker began")

    def check(self, driver: subprocess.Popen[str]) -> list[str]:
        """Wait for the end; the results must be those of one pass. The notes."""
        told, errors = driver.communicate(timeout=300)
        assert driver.returncode == 0, errors[-3000:]
        for name in ("result.jsonl", "result_stats.jsonl", "result_dropped.jsonl"):
            assert (self.out / "ray" / name).read_bytes() == (self.out / "local" / name).read_bytes()
        assert not list((self.out / "ray").glob(".*"))
        events = [json.loads(line) for line in told.splitlines() if line.startswith("{")]  # Ray tells of lost workers there too
        assert any(e["event"] == "progress" and e["total"] == 20 for e in events)
        return [e["text"] for e in events if e["event"] == "note"]


@pytest.fixture
def case(root: Path, tmp_path: Path, env: dict[str, str], address: str) -> Case:
    return Case(root, tmp_path, env, address)


def test_two_nodes_make_what_one_pass_makes_though_a_worker_is_killed(case: Case) -> None:
    driver = case.start()
    _, victim = case.marked(20)[0]
    os.kill(victim, signal.SIGKILL)
    case.check(driver)
    workers = case.marked(0)
    assert len({node for node, _ in workers}) == 2 and len({process for _, process in workers}) > 2


def test_a_killed_driver_goes_on_where_it_stopped(case: Case) -> None:
    driver = case.start()
    case.marked(60)
    driver.kill()
    driver.communicate()
    assert not (case.out / "ray" / "result.jsonl").exists()
    notes = case.check(case.start())
    assert any("shards were done before" in note for note in notes)


def test_the_command_starts_a_cluster_of_its_own(root: Path, tmp_path: Path) -> None:
    text = HEADER.replace("{root}/data.jsonl", str(root / "data.jsonl")).replace("{root}", str(tmp_path))
    for name in ("local", "ray"):
        (tmp_path / f"{name}.yaml").write_text(text.replace("{name}", name) + "process: [image_shape_filter: {min_width: 90}]", "utf-8")
        ran = subprocess.run(
            [sys.executable, "-c", "from safelight.cli import main; main()", "dj", "--config", str(tmp_path / f"{name}.yaml"),
             "--engine", name], env={**os.environ, "SAFELIGHT_HOME": str(tmp_path / "home")}, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
    for file in ("result.jsonl", "result_stats.jsonl", "result_dropped.jsonl"):
        assert (tmp_path / "ray" / file).read_bytes() == (tmp_path / "local" / file).read_bytes()


def test_who_has_no_token_is_refused(case: Case) -> None:
    case.env = {**case.env, "RAY_AUTH_TOKEN": "0" * 64}
    driver = case.start()
    _, errors = driver.communicate(timeout=300)
    assert driver.returncode and "auth" in errors.lower() and not (case.out / "ray").exists()
