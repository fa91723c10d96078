"""A training by Ray Train: a lost process is started again, and the file is that of one process."""
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from tests.command_lines import command, line, words

pytest.importorskip("ray.train", exc_type=ImportError)
pytestmark = pytest.mark.slow

STEPS = 300
"""So many that a checkpoint, which comes every 15 seconds, is written long before the end."""


def kill_a_worker(process: subprocess.Popen[bytes], home: Path) -> int:
    """Once the training has a checkpoint; returns how many were killed."""
    while process.poll() is None:
        time.sleep(0.05)
        if any(home.glob("work/*/checkpoints/*")):
            below = psutil.Process(process.pid).children(recursive=True)
            workers = [child for child in below if "RayTrainWorker" in " ".join(child.cmdline())]
            for child in workers[:1]:
                child.send_signal(signal.SIGKILL)
            return len(workers[:1])
    return 0


def test_ray_begins_again_where_a_worker_is_lost(tmp_path: Path) -> None:
    told = [*words(tmp_path), "--steps", str(STEPS)]
    one = command(tmp_path / "one", told, "--out", str(tmp_path / "one.safetensors"))
    assert len(one) == STEPS
    more = ["--processes", "2", "--engine", "ray", "--out", str(tmp_path / "ray.safetensors")]
    with open(tmp_path / "said", "wb") as said:
        process = subprocess.Popen(line(tmp_path / "ray", [*told, *more]), stdout=said, stderr=said)
    with process:
        killed = kill_a_worker(process, tmp_path / "ray")
        status = process.wait()
    assert (killed, status) == (1, 0), (tmp_path / "said").read_text(errors="replace")[-3000:]
    alone, both = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "ray"))
    assert alone.keys() == both.keys()
    assert max(float((alone[k] - both[k]).abs().max()) for k in alone) < 1e-4
