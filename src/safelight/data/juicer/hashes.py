"""`image_deduplicator`: pictures whose perceptual hashes are equal. The hashes are imagededup's, which Data-Juicer uses, bit for bit."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from safelight.data.juicer.documents import fingerprint
from safelight.data.juicer.pictures import Picture
from safelight.data.juicer.registry import Param, Pictures, Sample, Settings, pick

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIDES = {"phash": (32, 32), "dhash": (9, 8), "whash": (256, 256), "ahash": (8, 8)}


def _first(keys: Sequence[Any], s: Settings) -> Sequence[int]:
    copies = _near(keys, s) if s["distance"] else set[int]()
    seen: set[Any] = set()
    kept = []
    for i, key in enumerate(keys):
        if i not in copies and (key == "" or key not in seen):  # rows without pictures are no copies of each other
            kept.append(i)
        seen.add(key)
    return kept


def _near(keys: Sequence[Any], s: Settings) -> set[int]:
    """Rows with one picture whose hash is close to that of a row before it, their texts being equal where texts count."""
    from safelight.data.duplicates import repeats

    told = [key if s["consider_text"] else (key, "") for key in keys]
    single = [i for i, (hashed, _) in enumerate(told) if len(hashed) == 16]
    same = repeats([int(told[i][0], 16) for i in single], s["distance"], lambda a, b: bool(told[single[a]][1] == told[single[b]][1]))
    return {single[i] for i in same}


@pick(_first, needs="pixels", method=("phash", "dhash", "whash", "ahash"), consider_text=False, distance=Param(0, (int,), low=0, high=32))
def image_deduplicator(sample: Sample, pictures: Pictures, s: Settings) -> Any:
    """Keep the first of the rows whose pictures have equal hashes; with consider_text their texts must be equal too.

    `distance` is not Data-Juicer's: rows with one picture are copies too when their hashes differ in so many bits. It compares with rows
    that are kept only. 0: equal hashes alone count.
    """
    asked = f"{s['method']} 1"
    hashed = "".join(p.known.answer(p, asked, lambda p: image_hash(p, s["method"])) for p in {p.path: p for p in pictures}.values())
    return (hashed, fingerprint(sample.row[s["text_key"]])) if s["consider_text"] else hashed


def image_hash(picture: Picture, method: str) -> str:
    """64 bits as 16 hex digits. phash: Zauner's DCT hash; dhash: darker than the right neighbour; ahash: the mean; whash: Haar wavelets."""
    import numpy as np
    from PIL import Image as Pil

    grey = np.asarray(picture.pixels.resize(SIDES[method], Pil.Resampling.LANCZOS).convert("L"))
    bits: NDArray[np.uint8] = np.packbits(_BITS[method](grey))
    return bits.tobytes().hex()


def _phash(grey: NDArray[np.uint8]) -> NDArray[np.bool_]:
    import numpy as np
    from scipy.fftpack import dct

    low: NDArray[np.float64] = dct(dct(grey, axis=0), axis=1)[:8, :8]
    return np.asarray(low >= np.median(low.ravel()[1:]))


def _whash(grey: NDArray[np.uint8]) -> NDArray[np.bool_]:
    import numpy as np

    low = grey.reshape(8, 32, 8, 32).sum(axis=(1, 3))  # five Haar levels: the sums of squares of 32 x 32, but for a factor
    return np.asarray(low >= np.median(low))


_BITS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.bool_]]] = {
    "phash": _phash, "whash": _whash, "dhash": lambda grey: grey[:, 1:] > grey[:, :-1], "ahash": lambda grey: grey >= grey.mean(),
}
