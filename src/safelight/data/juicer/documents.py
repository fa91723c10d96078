"""Rows with equal or nearly equal texts: `document_deduplicator`, `document_minhash_deduplicator`, `document_simhash_deduplicator`."""
from __future__ import annotations

import hashlib
import string
from collections.abc import Hashable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from safelight.data.juicer.mappers import PATTERN, compiled
from safelight.data.juicer.registry import COUNT, Param, Pictures, Sample, Settings, pick

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MERSENNE, WORD = (1 << 61) - 1, (1 << 32) - 1


def fingerprint(text: str) -> str:
    """MD5 of the text without blanks at its ends, 32 hex digits."""
    return hashlib.md5(text.strip().encode(), usedforsecurity=False).hexdigest()


def _first(keys: Sequence[Any], _: Settings) -> Sequence[int]:
    first: dict[Any, int] = {}
    return [i for i, key in enumerate(keys) if first.setdefault(key, i) == i]


@pick(_first, lowercase=False, ignore_non_character=False)
def document_deduplicator(sample: Sample, _: Pictures, s: Settings) -> str:
    """Keep the first of the rows with one text; optionally without regard to case, or to blanks, digits and punctuation."""
    text = sample.row[s["text_key"]]
    text = text.lower() if s["lowercase"] else text
    return fingerprint(compiled(rf"\s+|\d+|[{_escaped()}]").sub("", text) if s["ignore_non_character"] else text)


@cache
def _escaped() -> str:
    import re

    return re.escape(string.punctuation)


def _clusters(keys: Sequence[Sequence[bytes]], _: Settings) -> Sequence[int]:
    return _firsts(map(enumerate, keys), len(keys))


def _firsts(marks: Iterable[Iterable[Hashable]], count: int) -> Sequence[int]:
    """The first row of every cluster; rows that share a mark are in one cluster."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: dict[Hashable, int] = {}
    for i, some in enumerate(marks):
        for mark in some:
            a, b = sorted((root(i), root(seen.setdefault(mark, i))))
            parent[b] = a
    return [i for i in range(count) if root(i) == i]


@pick(
    _clusters, tokenization=("space", "punctuation", "character"), window_size=Param(5, (int,), low=1), lowercase=True,
    ignore_pattern=PATTERN, num_permutations=Param(256, (int,), low=1), jaccard_threshold=Param(0.7, (float,), low=0, high=1),
    num_bands=COUNT, num_rows_per_band=COUNT, tokenizer_model=Param(None, (str,)),
)
def document_minhash_deduplicator(sample: Sample, _: Pictures, s: Settings) -> list[bytes]:
    """Keep one of the rows whose texts are nearly equal (Broder's min-wise hashing in bands; the permutations are Data-Juicer's)."""
    import numpy as np

    bands, rows = s["num_bands"], s["num_rows_per_band"]
    if bands is None or rows is None:
        bands, rows = best_bands(s["jaccard_threshold"], s["num_permutations"])
    told = set(_windows(sample.row[s["text_key"]], s))
    hashed = [int.from_bytes(hashlib.sha1(t, usedforsecurity=False).digest()[:4], "little") for t in told]
    a, b = _permutations(s["num_permutations"])
    if hashed:
        column = np.array(hashed, dtype=np.uint64)[:, None]
        least = ((column * a + b) % np.uint64(MERSENNE) & np.uint64(WORD)).min(axis=0)
    else:
        least = np.full(s["num_permutations"], WORD, dtype=np.uint64)
    return [hashlib.blake2b(least[i * rows:(i + 1) * rows].tobytes(), digest_size=8).digest() for i in range(bands)]


def _alike(keys: Sequence[str], s: Settings) -> Sequence[int]:
    import numpy as np

    from safelight.data.duplicates import close_pairs

    if s["hamming_distance"] >= s["num_blocks"]:
        raise ValueError(f"document_simhash_deduplicator: hamming_distance: got {s['hamming_distance']}, expected less than num_blocks, "
                         f"{s['num_blocks']}")
    distinct, which = np.unique(np.array([int(k, 16) for k in keys], dtype=np.uint64), return_inverse=True)
    marks: list[list[Hashable]] = [[i] for i in range(len(distinct))]
    for i, j in close_pairs(distinct, s["hamming_distance"]).tolist():
        marks[i].append((i, j))
        marks[j].append((i, j))
    return _firsts((marks[i] for i in which.tolist()), len(keys))


@pick(
    _alike, tokenization=("space", "punctuation", "character"), window_size=Param(6, (int,), low=1), lowercase=True, ignore_pattern=PATTERN,
    num_blocks=Param(6, (int,), low=1), hamming_distance=Param(4, (int,), low=1),
)
def document_simhash_deduplicator(sample: Sample, _: Pictures, s: Settings) -> str:
    """Keep one of the rows whose 64-bit similarity hashes (Charikar 2002) differ in few bits, or are joined by a chain of such."""
    import numpy as np

    told = [hashlib.md5(t, usedforsecurity=False).digest()[:8] for t in _windows(sample.row[s["text_key"]], s)]
    bits = np.unpackbits(np.frombuffer(b"".join(told), np.uint8).reshape(-1, 8), axis=1)
    return np.packbits(2 * bits.sum(axis=0, dtype=np.int64) > len(bits)).tobytes().hex()


def _windows(text: str, s: Settings) -> list[bytes]:
    """Runs of window_size tokens of the text."""
    text = text.lower() if s["lowercase"] else text
    if s["ignore_pattern"]:
        text = compiled(s["ignore_pattern"]).sub("", text)
    n = s["window_size"]
    match s["tokenization"]:
        case "character":
            return [text[i:i + n].encode() for i in range(len(text) - n + 1)]
        case "punctuation":
            tokens = compiled(r"\p{P}").split(text)
        case _:
            tokens = [t for t in text.split(" ") if t]
    return [" ".join(tokens[i:i + n]).encode() for i in range(len(tokens) - n + 1)]


@cache
def _permutations(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    import numpy as np

    draw = np.random.RandomState(42)  # the numbers must be those that Data-Juicer draws
    drawn = [(draw.randint(1, MERSENNE, dtype=np.uint64), draw.randint(0, MERSENNE, dtype=np.uint64)) for _ in range(count)]
    a, b = np.array(drawn, dtype=np.uint64).T
    return a, b


@cache
def best_bands(threshold: float, permutations: int) -> tuple[int, int]:
    """(bands, rows) with the least sum of false positives and false negatives around a Jaccard similarity of `threshold`."""
    from scipy.integrate import quad

    def wrong(bands: int, rows: int) -> float:
        missed = quad(lambda s: (1 - s**float(rows)) ** float(bands), threshold, 1.0)[0]
        false = quad(lambda s: 1 - (1 - s**float(rows)) ** float(bands), 0.0, threshold)[0]
        return float(0.5 * false + 0.5 * missed)

    shapes = [(b, r) for b in range(1, permutations + 1) for r in range(1, permutations // b + 1)]
    return min(shapes, key=lambda shape: wrong(*shape))
