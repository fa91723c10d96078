"""Run a training script as it is and write down when each optimizer step ended: `python clocked.py OUT SCRIPT [ARGUMENTS ...]`.

OUT becomes JSON: `ends`, seconds on the wall of every optimizer step's end, `cpu`, the process' CPU seconds at the same moments, `peak`,
the process' largest memory in GB until the last of them, and `all`, until its end.
"""
from __future__ import annotations

import atexit
import json
import resource
import runpy
import sys
import time
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

ENDS: list[float] = []
CPU: list[float] = []
PEAK = [0.0]


def ended(*_: Any) -> None:
    """Called after every step of any optimizer."""
    ENDS.append(time.perf_counter())
    CPU.append(time.process_time())
    PEAK[0] = memory()


def memory() -> float:
    """The most so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def written(out: Path) -> None:
    """The file, at the process' end."""
    out.write_text(json.dumps({"ends": ENDS, "cpu": CPU, "peak": PEAK[0], "all": memory()}))


def main() -> None:
    """Run the script in this process."""
    out, script = Path(sys.argv[1]), sys.argv[2]
    register_optimizer_step_post_hook(ended)
    atexit.register(written, out)
    sys.argv = sys.argv[2:]
    sys.path.insert(0, str(Path(script).resolve().parent))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
