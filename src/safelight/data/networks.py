"""What ops with a network of their own share: where it lies, and pictures decoded while it works."""
from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from safelight import folders, index
from safelight.data.asking import Looking
from safelight.events import Event, Progress
from safelight.families.sources import read_config
from safelight.pictures import Unreadable
from safelight.values import Row, digest

T = TypeVar("T")
USUAL = {
    "blip": "Salesforce/blip-image-captioning-large", "vlm": "HuggingFaceTB/SmolVLM-500M-Instruct",
    "wd14": "SmilingWolf/wd-v1-4-convnext-tagger-v2",
}
"""Which network a captioner looks with when none is named."""


def find(by: str, network: str) -> Path:
    """The folder of the network of a captioner, or of the op that is named: itself, or by its name in the Hugging Face cache.

    ValueError when there is none, or when it asks for code to be run.
    """
    place = Path(network or USUAL[by]).expanduser()
    try:
        found = place if network and place.is_dir() else folders.hub_snapshot(network or USUAL[by])
    except ValueError as error:
        more = "; it needs --only model.onnx --only selected_tags.csv" if by == "wd14" else ""
        raise ValueError(f"{'caption' if by in USUAL else by}: {error}{more}") from error
    for config in sorted(found.glob("*config.json")):
        read_config(config)  # refuses tables that make libraries run code, and says which code will not be run
    return found


def stamp(by: str, network: str) -> str:
    """Changes when a file of the network does; empty for captioners without one."""
    if by not in USUAL:
        return ""
    return content(find(by, network))


def content(place: Path) -> str:
    """Changes when a file of the folder does."""
    return digest(*[part for f in sorted(p for p in place.iterdir() if p.is_file()) for part in (f.name, index.sha256(f))])


def looked(rows: Sequence[Row], asked: Looking, prepare: Callable[[Path], T], say: Callable[[Sequence[Row], list[T]], list[str]], *,
           size: int = 0) -> Generator[Event, None, list[str]]:
    """`say` of `prepare` of every picture, `size` (or as asked) at a time, the next ones decoded meanwhile. Yields Progress.

    ValueError names the picture that cannot be decoded; `curate` drops such before.
    """
    step = size or asked.batch_size
    some = [rows[i:i + step] for i in range(0, len(rows), step)]
    texts: list[str] = []

    def read(row: Row) -> T:
        try:
            return prepare(Path(row.picture.path))
        except Unreadable as error:
            raise ValueError(f"caption: {row.name} cannot be decoded ({error}); curate drops such pictures") from error

    with ThreadPoolExecutor(max(1, asked.max_data_loader_n_workers)) as pool:
        ahead = 1 if asked.max_data_loader_n_workers else 0
        waiting = [[pool.submit(read, row) for row in batch] for batch in some[:ahead]]
        for n, batch in enumerate(some):
            yield Progress(step=n * step, total=len(rows), what="describing pictures", unit="picture")
            waiting += [[pool.submit(read, row) for row in later] for later in some[n + ahead:n + ahead + 1]]
            texts += say(batch, [picture.result() for picture in waiting.pop(0)])
    yield Progress(step=len(rows), total=len(rows), what="describing pictures", unit="picture")
    return texts
