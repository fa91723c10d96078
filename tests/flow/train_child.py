"""A process that trains on request, each time in a child of its own, which may be killed: the imports are paid once.

Reads `HOME MODEL PICTURES STEPS` lines; the child prints `pid N`, a line an event, and `done SHA256 RECORD` or `failed ERROR`; then this
process prints `exit STATUS`.
"""
import json
import os
import sys
from pathlib import Path

import torch

from safelight.engine import call
from safelight.op import load_ops
from safelight.recipes import shared
from safelight.store import Store

KNOBS = {"rank": 2, "batch": 2, "samples": 1, "held_out": 0.2, "lr": 1e-2}


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run(home: Path, model: str, pictures: str, steps: int) -> None:
    ops, store = load_ops(), Store(home)
    work = call(ops["train_lora"], {"model": model, "data": pictures, "steps": steps, "every": steps // 3, **KNOBS}, store)
    say(f"pid {os.getpid()}")
    while True:
        try:
            say(json.dumps(next(work).json()))
        except StopIteration as stop:
            say(f"done {stop.value.weights.sha256} {stop.value.files['record.json'].path}")
            return
        except OSError as error:
            say(f"failed {error}")
            return


def main() -> None:
    torch.set_num_threads(1)
    shared.CHECKPOINT_SECONDS = 0.0
    load_ops()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            run(*(kind(part) for kind, part in zip((Path, str, str, int), line.split(), strict=True)))
            os._exit(0)
        say(f"exit {os.waitpid(child, 0)[1]}")


if __name__ == "__main__":
    main()
