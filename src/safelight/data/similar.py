"""Near duplicates by what a network sees: pictures whose embeddings point the same way. Exact search, by faiss among very many."""
from __future__ import annotations

import base64
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import numpy as np

from safelight.data.captioners import Towers
from safelight.data.curation import Known, Verdicts, better
from safelight.events import Event, Progress
from safelight.pictures import Unreadable, floats, read, square
from safelight.values import Dataset

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = 64  # pictures decoded and embedded together
BLOCK = 512  # pictures compared together
FEW = 200_000  # below, numpy's product is faster than the graph
CHUNK = 2**14  # with so many kept ones at a time
ROUNDING = 1e-5  # of a cosine


class Exact:
    """Vectors of length 1, and which of them is nearest to others, by faiss' names. All are compared."""

    def __init__(self, width: int) -> None:
        self._chunks: list[NDArray[np.float32]] = []
        self._width = width
        self.ntotal = 0

    def add(self, vectors: NDArray[np.float32]) -> None:
        """(N, D) float32 more."""
        start = self.ntotal % CHUNK
        for some in (vectors[:CHUNK - start], *(vectors[i:i + CHUNK] for i in range(CHUNK - start, len(vectors), CHUNK))):
            if self.ntotal % CHUNK == 0:
                self._chunks.append(np.empty((CHUNK, self._width), np.float32))
            at = self.ntotal % CHUNK
            self._chunks[-1][at:at + len(some)] = some
            self.ntotal += len(some)

    def search(self, asked: NDArray[np.float32], _k: int = 1) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(M, D) -> cosine of the nearest (M, 1) and its number (M, 1)."""
        best, which = np.full((len(asked), 1), -2, np.float32), np.full((len(asked), 1), -1, np.int64)
        for n, chunk in enumerate(self._chunks):
            cosines = asked @ chunk[:min(CHUNK, self.ntotal - n * CHUNK)].T
            at = cosines.argmax(axis=1)[:, None]
            near = np.take_along_axis(cosines, at, axis=1)
            which, best = np.where(near > best, at + n * CHUNK, which), np.maximum(near, best)
        return best, which


def index(width: int, count: int) -> Any:
    """An empty index for so many vectors of that width: Exact, and above FEW a graph of faiss (HNSW, arXiv:1603.09320) where it is
    installed, whose time hardly grows with the count but which may miss a neighbour."""
    if count <= FEW:
        return Exact(width)
    try:
        import faiss
    except ModuleNotFoundError:
        return Exact(width)
    graph = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = 80, 64
    return graph


def nearest(vectors: NDArray[np.float32], similarity: float, kept: Any) -> Generator[Event, None, dict[int, tuple[int, float]]]:
    """Which of (N, D) vectors of length 1 repeat an earlier one: number -> (number of the nearest one kept, cosine). Yields Progress.

    The order is the preference: give the best first. A vector is compared with kept ones only, so that a chain of small changes does not
    drop its far end. `kept` is an empty index.
    """
    numbers: list[int] = []
    out: dict[int, tuple[int, float]] = {}
    for start in range(0, len(vectors), BLOCK):
        yield Progress(step=start, total=len(vectors), what="comparing pictures", unit="picture")
        block = vectors[start:start + BLOCK]
        far, which = kept.search(block, 1) if numbers else (np.full((len(block), 1), -2.0), None)
        among = block @ block.T
        stay: list[int] = []
        for i in range(len(block)):
            here = stay[int(among[i, stay].argmax())] if stay else i
            inside = float(among[i, here]) if stay else -2.0
            cosine = max(float(far[i, 0]), inside)
            if cosine < similarity - ROUNDING:
                stay.append(i)
            else:
                out[start + i] = start + here if which is None or inside > far[i, 0] else numbers[which[i, 0]], min(1.0, cosine)
        kept.add(block[stay])
        numbers += [start + i for i in stay]
    return out


def drop_similar(
    data: Dataset, similarity: float, towers: Callable[[], Towers], *, stamp: str = "", known: Known | None = None,
) -> Generator[Event, None, Dataset]:
    """Drop pictures whose embedding has at least that cosine similarity with a better one's. Yields Progress.

    towers: asked for when a picture is not known. known: embeddings by (sha256, question), read and added to; `stamp` tells encoders apart.
    Every row of a cluster has info['like']: `cluster` (a number), `kept` (the name of the one that stays) and `similarity` with it.
    """
    known = {} if known is None else known
    work = Verdicts(data.rows, {i: r.dropped for i, r in enumerate(data.rows) if r.dropped}, {})
    question = f"embedding {stamp}"
    yield from _look(work, towers, question, known)
    order = sorted(work.open, key=lambda i: better(work.rows[i]))
    if not order:
        return work.dataset(data)
    vectors = np.stack([_read(known[work.rows[i].picture.sha256, question]) for i in order])
    near = yield from nearest(vectors, similarity, index(vectors.shape[1], len(vectors)))
    numbers = _numbers(work, sorted({order[first] for first, _ in near.values()}))
    for i, number in numbers.items():
        work.like[i] = {"cluster": number, "kept": work.rows[i].name, "similarity": 1.0}
    for at, (first, cosine) in near.items():
        i, kept, cosine = order[at], order[first], round(cosine, 4)
        work.reasons[i] = f"near duplicate: looks like {work.rows[kept].name} (similarity {cosine:.3f})"
        work.like[i] = {"cluster": numbers[kept], "kept": work.rows[kept].name, "similarity": cosine}
    return work.dataset(data)


def _look(work: Verdicts, towers: Callable[[], Towers], question: str, known: Known) -> Generator[Event, None, None]:
    """Embed what is not known, as float16 in base64: half the room, and no cosine moves by more than 0.001."""
    todo = [i for i in work.open if (work.rows[i].picture.sha256, question) not in known]
    for start in range(0, len(todo), BATCH):
        yield Progress(step=start, total=len(todo), what="looking at pictures", unit="picture")
        seer = towers()
        pixels = {}
        for i in todo[start:start + BATCH]:
            try:
                pixels[i] = floats(square(read(work.rows[i].picture.path, least=seer.size), seer.size))
            except Unreadable as error:
                work.reasons[i] = f"unreadable: {error}"
        for i, vector in zip(pixels, seer.image(np.stack(list(pixels.values()))) if pixels else (), strict=True):
            known[work.rows[i].picture.sha256, question] = base64.b64encode(vector.astype("<f2").tobytes()).decode()


def _read(told: str) -> NDArray[np.float32]:
    vector = np.frombuffer(base64.b64decode(told), "<f2").astype(np.float32)
    return vector / np.linalg.norm(vector)


def _numbers(work: Verdicts, kept: list[int]) -> dict[int, int]:
    """A number for the cluster of each kept row: the one it has, or the next that no row has."""
    had = {i: int(r.info.get("like", {}).get("cluster", 0)) for i, r in enumerate(work.rows)}
    last = max(had.values(), default=0)
    fresh = [i for i in kept if not had[i]]
    return {i: had[i] for i in kept if had[i]} | {i: last + n for n, i in enumerate(fresh, start=1)}
