"""The records that flow between ops, each with a content key. No torch at import.

A value is frozen and is identified by what it holds: two values with the same content have the same `key`, however they were
made. Heavy things (weights, pictures of a dataset) are never inside a value: a `Blob` names a file by its content.
"""
from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Info = Mapping[str, Any]


def digest(*parts: bytes | str) -> str:
    """BLAKE2b-128 of the parts in order, as 32 hex digits; each part is prefixed by its length, so parts cannot run together."""
    h = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        h.update(len(raw).to_bytes(8, "big"))
        h.update(raw)
    return h.hexdigest()


def canonical(data: Any) -> str:
    """JSON with sorted keys and no spaces: equal data, equal text. Tuples become lists; a dataclass becomes its fields."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)


def _plain(x: Any) -> Any:
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return {f.name: getattr(x, f.name) for f in dataclasses.fields(x)}
    if isinstance(x, Mapping):
        return dict(x)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(x, numpy.generic):
        return x.item()
    if isinstance(x, Path):
        return str(x)
    raise TypeError(f"cannot write {type(x).__name__} as JSON")


class Value:
    """What every value has: a `type_name` (the graph's socket type) and a `key` (32 hex digits of its content).

    `recipe` says which recipe made this very object; the engine sets it on what it hands out, it is no part of the content, and a value
    made of another one (`dataclasses.replace`) has none.
    """

    type_name: ClassVar[str] = "VALUE"
    recipe: ClassVar[str] = ""

    @property
    def key(self) -> str:
        """The content key."""
        raise NotImplementedError

    def save(self, path: str | Path) -> list[Path]:
        """Write it to a file, or into a folder, with its lineage; returns the paths written. ValueError when it is nothing to look at."""
        files = import_module("safelight.files")  # by name: exporting lies above this layer
        written: list[Path] = files.save(self, Path(path))
        return written


@dataclass(frozen=True)
class Blob:
    """A file named by its content. `path` is where it lies now and is not part of the identity; `sha256` is 64 hex digits."""

    path: str
    sha256: str

    @staticmethod
    def of(path: str | Path) -> Blob:
        """Read the file once and hash it. OSError when it cannot be read."""
        with open(path, "rb") as f:
            return Blob(str(path), hashlib.file_digest(f, "sha256").hexdigest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blob) and other.sha256 == self.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)


NO_FILE = Blob("", "")
"""The weights of a patch that has none."""


@dataclass(frozen=True)
class Patch(Value):
    """A reversible change of a model: what kind, the weights (or NO_FILE), how strong. `files` holds what training left beside the weights
    (`record.json`: curves and settings; sample pictures by name) and what the kind reads besides them (a hint picture; `options` then has
    its hash). It does not enter the key; neither does `info`."""

    type_name: ClassVar[str] = "PATCH"
    kind: str
    weights: Blob
    strength: float = 1.0
    options: Info = field(default_factory=dict)
    files: Mapping[str, Blob] = field(default_factory=dict)
    info: Info = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Kind, weights' hash, strength and options."""
        return digest("patch", self.kind, self.weights.sha256, canonical([self.strength, self.options]))


@dataclass(frozen=True)
class Part:
    """A part of a model that comes from elsewhere: which (`vae`, `text_encoder`, ...), where from, the content hash of what is there.

    The source of `scheduler` is what the network is said to predict: eps, v, edm sigma_max=80.0, or a flow by its shift=3.
    """

    name: str
    source: str
    fingerprint: str


@dataclass(frozen=True)
class Model(Value):
    """A recipe for a network, never its weights: family, where it comes from, the content hash of the files there, patches.

    `parts` are those that come from elsewhere; `fingerprint` covers them.
    """

    type_name: ClassVar[str] = "MODEL"
    family: str
    source: str
    fingerprint: str
    patches: tuple[Patch, ...] = ()
    parts: tuple[Part, ...] = ()

    @property
    def key(self) -> str:
        """Family, weights' fingerprint and the patches' keys in order; not the path."""
        return digest("model", self.family, self.fingerprint, *[p.key for p in self.patches])

    def with_patch(self, patch: Patch) -> Model:
        """The same model with one more patch on top."""
        return dataclasses.replace(self, patches=(*self.patches, patch))


@dataclass(frozen=True)
class Caption:
    """One caption layer. `by` is `file`, `human`, `template`, `tagger`, ...; layers are added, never overwritten."""

    by: str
    text: str


@dataclass(frozen=True)
class Row:
    """One picture of a dataset. width and height are pixels after EXIF orientation. `name` is its path below the source.
    A row with a non-empty `dropped` (the reason) stays in the report and takes no part in anything else."""

    picture: Blob
    name: str
    width: int
    height: int
    captions: tuple[Caption, ...] = ()
    dropped: str = ""
    info: Info = field(default_factory=dict)

    @property
    def caption(self) -> str:
        """The caption in use: the newest layer, or the empty string."""
        return self.captions[-1].text if self.captions else ""


@dataclass(frozen=True)
class Dataset(Value):
    """Rows in order. The key sees kept rows only, by picture hash and caption in use, and by how often one counts and where, if that is
    said: what changes none of them, trains nothing again."""

    type_name: ClassVar[str] = "DATASET"
    rows: tuple[Row, ...]
    info: Info = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Content of the kept rows, in order."""
        counts = [(i, r.info.get("repeats", 1), r.info.get("mask")) for i, r in enumerate(self.kept)]
        more = [c for c in counts if c[1:] != (1, None)]
        said = [canonical(more)] if more else []
        return digest("dataset", *[part for r in self.kept for part in (r.picture.sha256, r.caption)], *said)

    @cached_property
    def kept(self) -> tuple[Row, ...]:
        """The rows that were not dropped."""
        return tuple(r for r in self.rows if not r.dropped)

    def __len__(self) -> int:
        return len(self.kept)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.kept)


@dataclass(frozen=True, eq=False)
class Image(Value):
    """A batch of pictures: `pixels` (B, H, W, 3) float32 in [0, 1]. `info` has one mapping a picture (prompt, seed, ...), not in key."""

    type_name: ClassVar[str] = "IMAGE"
    pixels: NDArray[np.float32]
    info: tuple[Info, ...] = ()

    def __post_init__(self) -> None:
        import numpy as np

        p = self.pixels
        if p.ndim != 4 or p.shape[-1] != 3 or p.dtype != np.float32:
            raise ValueError(f"Image: pixels must be (B, H, W, 3) float32, got {p.shape} {p.dtype}")
        if self.info and len(self.info) != len(p):
            raise ValueError(f"Image: {len(self.info)} infos for {len(p)} pictures")

    @cached_property
    def key(self) -> str:
        """Shape and pixel bytes."""
        import numpy as np

        return digest("image", str(self.pixels.shape), np.ascontiguousarray(self.pixels).tobytes())

    def __len__(self) -> int:
        return len(self.pixels)

    def bytes8(self) -> NDArray[np.uint8]:
        """(B, H, W, 3) uint8: times 255, clipped, truncated (as ComfyUI's SaveImage does)."""
        import numpy as np

        return np.asarray(np.clip(self.pixels * np.float32(255.0), 0, 255), dtype=np.uint8)


@dataclass(frozen=True, eq=False)
class Mask(Value):
    """(B, H, W) float32 in [0, 1]; 1 is where something happens (is repainted, counts in the loss)."""

    type_name: ClassVar[str] = "MASK"
    values: NDArray[np.float32]

    @cached_property
    def key(self) -> str:
        """Shape and bytes."""
        import numpy as np

        return digest("mask", str(self.values.shape), np.ascontiguousarray(self.values).tobytes())


@dataclass(frozen=True, eq=False)
class Latent(Value):
    """`samples` (B, C, h, w) float32 tensor in the model's own latent units (already scaled).

    `mask` (1 or B, 1, H, W) of any size says where it may change. `rows` says which pictures of a larger batch these are: a latent cut out
    of a batch is drawn with the noise it had there.
    """

    type_name: ClassVar[str] = "LATENT"
    samples: Tensor
    family: str = ""
    mask: Tensor | None = None
    rows: tuple[int, ...] | None = None

    @cached_property
    def key(self) -> str:
        """Family, shapes and bytes."""
        raw = [self.samples] if self.mask is None else [self.samples, self.mask]
        rows = [] if self.rows is None else ["rows", canonical(self.rows)]
        held = [p for t in raw for p in (str(tuple(t.shape)), t.detach().cpu().float().numpy().tobytes())]
        return digest("latent", self.family, *held, *rows)


@dataclass(frozen=True)
class Region:
    """Where, when and how much a condition counts.

    `start` and `end` are shares of the way from noise (0) to picture (1). `area` is width, height, x and y, in pixels or, with `shares`, in
    shares of the picture. `mask` of any size weighs each place, times `mask_strength`; with `bounds` its bounding box is the area.
    With `guide`, a kind and a number such as `dual=8`, it does not count beside the others but is a third one for the guidance.
    """

    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    area: tuple[float, ...] | None = None
    shares: bool = False
    mask: Mask | None = None
    mask_strength: float = 1.0
    bounds: bool = False
    guide: str = ""


WHOLE = Region()


@dataclass(frozen=True, eq=False)
class Cond(Value):
    """Text condition of one family: `tokens` (B, L, D) tensor; `extras` are tensors only that family reads (pooled, time ids, ...).

    An extra of four dimensions is (B, C, h, w), of the latent's places. `others`, without others of their own, count beside this one.
    """

    type_name: ClassVar[str] = "CONDITIONING"
    tokens: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    region: Region = WHOLE
    others: tuple[Cond, ...] = ()

    @cached_property
    def key(self) -> str:
        """Names, shapes and bytes of the tensors; the region and the others where there are any."""
        named = [("tokens", self.tokens), *sorted(self.extras.items())]
        held = [p for n, t in named for p in (n, str(tuple(t.shape)), t.detach().cpu().float().numpy().tobytes())]
        r = self.region
        where = [] if r == WHOLE else [canonical(dataclasses.replace(r, mask=None)), r.mask.key if r.mask else ""]
        return digest("cond", *held, *where, *[o.key for o in self.others])

    @property
    def parts(self) -> tuple[Cond, ...]:
        """This condition without the others, then the others."""
        return (dataclasses.replace(self, others=()), *self.others) if self.others else (self,)


@dataclass(frozen=True, eq=False)
class Seen(Value):
    """What a picture tower (CLIP) sees in B pictures, float32: `embeds` (B, P) in the space shared with texts, the `states` (B, L, D) of
    its last layer, and those of the layer `before`."""

    type_name: ClassVar[str] = "CLIP_VISION_OUTPUT"
    embeds: Tensor
    states: Tensor
    before: Tensor

    @cached_property
    def key(self) -> str:
        """Shapes and bytes."""
        return digest("seen", *[p for t in (self.embeds, self.states, self.before) for p in (str(tuple(t.shape)), t.numpy().tobytes())])


@dataclass(frozen=True)
class Sigmas(Value):
    """Noise levels to walk along, as float32 has them: falling, usually to 0; rising ones lead from a picture to its noise."""

    type_name: ClassVar[str] = "SIGMAS"
    levels: tuple[float, ...]

    @property
    def key(self) -> str:
        """The numbers."""
        return digest("sigmas", canonical(self.levels))


@dataclass(frozen=True)
class Scores(Value):
    """Named metrics of a batch of pictures: `values[metric][i]` belongs to picture i of `image`. Larger is better in every metric."""

    type_name: ClassVar[str] = "SCORES"
    values: Mapping[str, Sequence[float]]
    image: Image

    @property
    def key(self) -> str:
        """Pictures' key and the numbers."""
        return digest("scores", self.image.key, canonical(self.values))

    def order(self, by: str | None = None) -> list[int]:
        """Picture indices, best first, by one metric or by the mean rank over all of them."""
        import numpy as np

        names = [by] if by else list(self.values)
        unknown = [n for n in names if n not in self.values]
        if unknown:
            raise ValueError(f"Scores.order: no metric {unknown[0]!r}; have {', '.join(self.values)}")
        rank = np.zeros(len(self.image))
        for n in names:
            rank += np.argsort(np.argsort(-np.asarray(self.values[n], dtype=float), kind="stable"), kind="stable")
        return [int(i) for i in np.argsort(rank, kind="stable")]

    def best(self, n: int, by: str | None = None) -> Image:
        """The n best pictures, best first."""
        keep = self.order(by)[:n]
        return Image(self.image.pixels[keep], tuple(self.image.info[i] for i in keep) if self.image.info else ())


@dataclass(frozen=True)
class Page(Value):
    """A finished file to look at (a report, a sheet): HTML or PNG bytes in a blob."""

    type_name: ClassVar[str] = "PAGE"
    file: Blob
    media: str = "text/html"

    @property
    def key(self) -> str:
        """The file's hash."""
        return digest("page", self.media, self.file.sha256)


class Knobs:
    """Marks a frozen dataclass as a group of knobs: an op takes it as one parameter and every surface shows its fields flat."""


VALUES: dict[str, type[Value]] = {c.__name__: c for c in (Patch, Model, Dataset, Image, Mask, Latent, Cond, Seen, Sigmas, Scores, Page)}
