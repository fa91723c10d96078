"""What steers a model besides its prompt: hint pictures, picture prompts, words of their own."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from safelight.events import Note
from safelight.op import Knob, OneOf, Work, op
from safelight.values import NO_FILE, Blob, Image, Model, Patch, digest


def hint_names() -> Iterable[str]:
    """The preprocessors there are."""
    from safelight.data.hints import HINTS

    return sorted(HINTS)


@op(group="image", version=1)
def hint(
    image: Image, *,
    by: Annotated[str, OneOf(hint_names)] = "canny",
    size: Annotated[float | None, Knob(0.1, 512, step=0.5)] = None,
    low: Annotated[float, Knob(0.0, 6.0, step=0.05)] = 0.4,
    high: Annotated[float, Knob(0.0, 6.0, step=0.05)] = 0.8,
) -> Image:
    """Make of a picture what a ControlNet follows: lines, tones or colours. None of these needs a model.

    Args:
        by: `canny` edges of one pixel, `scribble` thick strokes, `lineart` soft lines (all white on black), `tile` the picture at a low
            resolution, `blur` out of focus, `colour` a grid of colours, `invert` black for white
        size: how coarse, in pixels of a picture of 512; nothing is each one's usual: scribble 5, lineart 6, tile 8, blur 9, colour 64
        low: for canny: the least slope along an edge; a step from black to white has 4, and 0.4 is OpenCV's 100
        high: for canny: the least slope somewhere on an edge; 0.8 is OpenCV's 200
    """
    from safelight.data.hints import Asked, make

    return Image(make(image.pixels, by, Asked(size, low, high)))


def _place(name: str, path: Path, kind: str) -> Path:
    """A file or folder, here or by its name in the models folders. ValueError when there is none."""
    from safelight import folders

    return folders.place(name, kind, path).absolute()


def _weights(name: str, path: Path, kind: str) -> Path:
    """The file itself, or the one in a diffusers folder. ValueError when there is none, or several."""
    place = _place(name, path, kind)
    if place.is_file():
        return place
    found = sorted(place.glob("*.safetensors"))
    usual = [p for p in found if p.name == "diffusion_pytorch_model.safetensors"] or found
    if len(usual) != 1:
        raise ValueError(f"{name}: got the folder {path} with {len(found)} .safetensors files; expected a file, or a folder with one")
    return usual[0]


def _sound(file: Path) -> Work[Blob]:
    """The file where it lies, when it is safetensors; else its tensors as safetensors."""
    from safelight import index
    from safelight.weights.pickles import convert

    found = yield from convert(file)
    return Blob(str(found), index.sha256(found))


def loaded(op: str, name: str, found: Mapping[str, Any], more: str) -> Note:
    """What is told of an adapter file that was read; `keys` of its `total` tensors are used."""
    return Note(text=f"{op}: {name}: {found['keys']} of {found['total']} keys read; {more}")


def _hash(*files: Path) -> str:
    from safelight import index

    return digest(*[index.sha256(file) for file in files if file.is_file()])


def _control_file(given: Mapping[str, Any]) -> str:
    file = _weights("load_control", given["path"], "controlnet")
    return _hash(file, file.with_name("config.json"))


@op(group="model", version=2, fingerprint=_control_file)
def load_control(path: Path) -> Work[Patch]:
    """Read a ControlNet: a file in diffusers' or the original layout, or diffusers' folder. It stays where it is.

    Args:
        path: the file or folder, or its name in models/controlnet: .safetensors, or .pth, .pt and .bin, of which only the tensors are taken
    """
    from safelight.patches.control import contents, describe, read

    file = _weights("load_control", path, "controlnet")
    weights = yield from _sound(file)
    read(weights.path)
    config, found = describe(file), contents(weights.path)
    yield loaded("load_control", path.stem, found, f"{found['layout']} names")
    return Patch("control", weights, options={"config": config} if config else {}, info={"name": path.stem, **found})


KINDS = ("auto", "openpose", "depth", "hed", "canny", "normal", "segment", "tile", "repaint")


@op(group="model", store=False, exact=True)
def set_kind(control: Patch, *, kind: Annotated[str, OneOf(lambda: KINDS)] = "auto") -> Patch:
    """Tell a ControlNet for many kinds of hints (a union) which it is shown; it changes no other.

    Args:
        kind: `hed` is pidi and scribble too, `canny` lineart and mlsd; `auto` says nothing
    """
    _expect("set_kind", "control", control, "load_control")
    return dataclasses.replace(control, options={**control.options, "kind": KINDS.index(kind) - 1})


@op(group="model", version=1, exact=True, fingerprint=lambda given: _hash(_weights("with_network", given["path"], given["kind"])))
def with_network(
    model: Model, *, kind: Literal["hypernetworks", "gligen"], path: Path, strength: Annotated[float, Knob(-10, 10, step=0.01)] = 1.0,
) -> Work[Model]:
    """Put a small network into a U-Net's attention. Several hypernetworks work one after the other, of GLIGENs the last.

    Args:
        kind: AUTOMATIC1111's hypernetworks, or GLIGEN (arXiv:2301.07093), which draws what `add_box` put into a condition
        path: the file, or its name in the models folder of this kind
        strength: of a hypernetwork; 0 changes nothing
    """
    weights = yield from _sound(_weights("with_network", path, kind))
    return model.with_patch(Patch(kind.removesuffix("s"), weights, strength, info={"name": path.stem}))


@op(group="model", store=False, exact=True)
def with_control(
    model: Model, control: Patch, *,
    image: Image,
    strength: Annotated[float, Knob(0, 10, step=0.05)] = 1.0,
    start: Annotated[float, Knob(0, 1, step=0.01)] = 0.0,
    end: Annotated[float, Knob(0, 1, step=0.01)] = 1.0,
    side: Literal["both", "positive", "negative"] = "both",
) -> Model:
    """Let a ControlNet steer a model by a hint picture. Several add up.

    Args:
        control: from `load_control`
        image: what it follows (see `hint`); one for all pictures, or one for each that is drawn
        strength: how closely; 0 changes nothing, 1 is as trained
        start: from which share of the way on, 0 is the first step
        end: up to which share of the way, 1 is the last step
        side: whether it steers what the prompt says, what the negative prompt says, or both; the difference between them is what guides
    """
    from safetensors.numpy import save

    _expect("with_control", "control", control, "load_control")
    _ordered("with_control", start, end)
    picture = _kept(save({"hint": image.pixels}))
    options = {**control.options, "hint": picture.sha256, "start": start, "end": end} | ({} if side == "both" else {"side": side})
    files = {**control.files, "hint.safetensors": picture}
    return model.with_patch(dataclasses.replace(control, strength=strength, options=options, files=files))


@op(group="model", store=False, exact=True)
def with_freeu(
    model: Model, *,
    b1: Annotated[float, Knob(0, 10, step=0.01)] = 1.3,
    b2: Annotated[float, Knob(0, 10, step=0.01)] = 1.4,
    s1: Annotated[float, Knob(0, 10, step=0.01)] = 0.9,
    s2: Annotated[float, Knob(0, 10, step=0.01)] = 0.2,
    method: Literal["v2", "v1"] = "v2",
) -> Model:
    """Let the decoder of a U-Net count more and its skips less: often better structure, for nothing (FreeU, arXiv:2309.11497).

    Args:
        b1: how much more the decoder's deepest stage counts
        b2: the same for the next stage
        s1: how much of the skips' low frequencies is left at the deepest stage
        s2: the same for the next stage
        method: v2 raises features where they stand out, v1 everywhere; its usual b1 and b2 are 1.1 and 1.2
    """
    options = {"b1": b1, "b2": b2, "s1": s1, "s2": s2, "version": int(method[1:])}
    return model.with_patch(Patch("freeu", NO_FILE, options=options))


def _embedding_file(given: Mapping[str, Any]) -> str:
    return _hash(_weights("load_embedding", given["path"], "embeddings"))


@op(group="model", version=2, fingerprint=_embedding_file)
def load_embedding(path: Path, *, name: str = "") -> Work[Patch]:
    """Read a textual inversion in AUTOMATIC1111's, SDXL's or diffusers' names. A copy is kept in the store.

    Args:
        path: the file, or its name in models/embeddings: .safetensors, or .pt and .bin, of which only the tensors are taken
        name: prompts call it by `embedding:name`, and by the file's own token if it has one; nothing: the file's name
    """
    from safelight.patches.embedding import describe
    from safelight.store import current

    file = _weights("load_embedding", path, "embeddings")
    sound = yield from _sound(file)
    told = describe(sound.path, name or file.stem)
    yield loaded("load_embedding", name or file.stem, told, f"{told['vectors']} vectors of {', '.join(map(str, told['widths']))}")
    return Patch("embedding", current().blob(sound.path), options={"words": told.pop("words")}, info={"name": name or file.stem, **told})


@op(group="model", store=False, exact=True)
def with_embedding(model: Model, embedding: Patch, *, strength: Annotated[float, Knob(0, 10, step=0.05)] = 1.0) -> Model:
    """Teach a model's text encoder a word: prompts may then say `embedding:name`.

    Args:
        embedding: from `load_embedding`
        strength: a weight on the word, wherever it stands; 0 leaves it unknown
    """
    _expect("with_embedding", "embedding", embedding, "load_embedding")
    return model.with_patch(dataclasses.replace(embedding, strength=strength))


def _adapter_files(given: Mapping[str, Any]) -> str:
    encoder = _place("with_ip_adapter", given["encoder"], "clip_vision")
    files = [encoder] if encoder.is_file() else [*sorted(encoder.glob("*.json")), *sorted(encoder.glob("*.safetensors"))]
    return _hash(_weights("with_ip_adapter", given["path"], "ipadapter"), *files)


@op(group="model", version=1, exact=True, fingerprint=_adapter_files)
def with_ip_adapter(
    model: Model, image: Image, *,
    path: Path,
    encoder: Path,
    strength: Annotated[float, Knob(0, 10, step=0.05)] = 1.0,
    start: Annotated[float, Knob(0, 1, step=0.01)] = 0.0,
    end: Annotated[float, Knob(0, 1, step=0.01)] = 1.0,
) -> Work[Model]:
    """Let pictures be part of the prompt: an IP-Adapter (arXiv:2308.06721) on a model. Several add up.

    Args:
        image: what the drawn pictures are to be like; several are looked at together
        path: the adapter's file, plain, plus or full-face (`image_proj.*`, `ip_adapter.*`; no FaceID), or its name in models/ipadapter
        encoder: the CLIP vision model that the adapter was trained with: a folder, a file, or its name in models/clip_vision
        strength: how much the pictures count beside the words; 0 changes nothing
        start: from which share of the way on, 0 is the first step
        end: up to which share of the way, 1 is the last step
    """
    from safelight.patches.ip_adapter import describe, encode

    _ordered("with_ip_adapter", start, end)
    weights = yield from _sound(_weights("with_ip_adapter", path, "ipadapter"))
    found = describe(weights.path)
    yield loaded("with_ip_adapter", path.stem, found, f"{found['layout']}, {found['layers']} attention layers")
    seen = _kept(encode(weights.path, _place("with_ip_adapter", encoder, "clip_vision"), image.pixels))
    options, files = {"picture": seen.sha256, "start": start, "end": end}, {"picture.safetensors": seen}
    return model.with_patch(Patch("ip_adapter", weights, strength, options, files, {"name": path.stem, **found}))


def _kept(content: bytes) -> Blob:
    from safelight.store import current

    return current().blob(content, ".safetensors")


def _ordered(name: str, start: float, end: float) -> None:
    if not start <= end:
        raise ValueError(f"{name}: start: got {start:g}, expected at most end, which is {end:g}")


def _expect(name: str, port: str, given: Patch, maker: str) -> None:
    kind = maker.removeprefix("load_")
    if given.kind != kind:
        raise ValueError(f"{name}: {port}: got a patch of the kind {given.kind!r}, expected one from {maker}")
