"""Shows the events of running work on a terminal; silent where there is none."""
from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from safelight.events import Cached, Done, Event, Note, Progress, Started
from safelight.spec import Work

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

R = TypeVar("R")
log = logging.getLogger(__name__)


def watch(work: Work[R], console: Console | None = None) -> R:
    """Run to the end and return the value, with bars and time left on stderr if that is a terminal. Closes the work when it is stopped."""
    if console is None and not sys.stderr.isatty():
        return _run(work, _quiet)
    from rich.console import Console

    with _Screen(console or Console(stderr=True)) as screen:
        return _run(work, screen.show)


def _run(work: Work[R], show: Any) -> R:
    try:
        while True:
            show(next(work))
    except StopIteration as stop:
        value: R = stop.value
        return value
    finally:
        work.close()


def _quiet(event: Event) -> None:
    if isinstance(event, Note):
        log.log(logging.WARNING if event.level == "warning" else logging.INFO, "%s", event.text)


class _Screen:
    """One bar a running op: done, total, speed's time left, and the newest numbers the op gave."""

    def __init__(self, console: Console) -> None:
        from rich import progress

        self.console = console
        self.bars: Bars = progress.Progress(
            progress.SpinnerColumn(), progress.TextColumn("{task.description}"), progress.BarColumn(bar_width=30),
            progress.MofNCompleteColumn(), progress.TimeElapsedColumn(), progress.TextColumn("left"), progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[numbers]}"), console=console, transient=True,
        )
        self.tasks: dict[tuple[str, str], TaskID] = {}
        self.ops: dict[str, str] = {}

    def __enter__(self) -> _Screen:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def show(self, event: Event) -> None:
        match event:
            case Started():
                self.ops[event.node] = event.op
            case Progress():
                self.progress(event)
            case Note():
                style = "yellow" if event.level == "warning" else None
                self.console.print(event.text, style=style, markup=False, highlight=False)
            case Cached():
                self.console.print(f"[dim]{event.op}: kept from before[/dim]", highlight=False)
            case Done():
                self.end(event.node)
                self.console.print(f"{event.op}: {event.seconds:.1f} s", markup=False, highlight=False)

    def progress(self, event: Progress) -> None:
        key = (event.node, event.what)
        name = event.what or self.ops.get(event.node, "")
        if key not in self.tasks:
            self.tasks[key] = self.bars.add_task(name, total=event.total or None, numbers="")
        numbers = "  ".join(f"{n} {v:.4g}" for n, v in event.values)
        self.bars.update(self.tasks[key], completed=event.step, total=event.total or None, numbers=numbers)

    def end(self, node: str) -> None:
        for key in [k for k in self.tasks if k[0] == node]:
            self.bars.remove_task(self.tasks.pop(key))
