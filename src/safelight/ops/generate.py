"""Models, what is put on them, and the pictures they draw."""
from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from safelight.op import Knob, Step, Work, op
from safelight.ops.control import loaded
from safelight.sampling.settings import GUIDANCE, SAMPLING, SIZE, Guidance, Sampling, Size
from safelight.values import Blob, Image, Mask, Model, Patch

if TYPE_CHECKING:
    from safelight.sampling.storyboard import Line


def _lora(path: Path) -> Path:
    """Where the file lies. ValueError when there is none, here or in the models folders."""
    from safelight import folders

    return folders.place("load_lora", "loras", path, whole=False)


def _file(given: Mapping[str, Any]) -> str:
    from safelight import index

    file = _lora(given["path"])
    beside = file.with_name("adapter_config.json")
    return index.sha256(file) + (index.sha256(beside) if beside.is_file() else "")


@op(group="model", version=3, loads=True, fingerprint=_file)
def load_lora(path: Path, *, alpha: Annotated[float | None, Knob(0, 4096, step=0.5)] = None) -> Work[Patch]:
    """Read an adapter: LoRA, LoCon, LoHa, LoKr, DoRA or full differences, in any program's names. A copy is kept in the store.

    Args:
        path: the file, or its name in models/loras: .safetensors, or .ckpt, .pt and .bin, of which only the tensors are taken
        alpha: for a file that does not hold its own (DiffSynth's): it is as strong as alpha / rank; nothing: alpha is the rank
    """
    from safelight.patches.lora import describe, peft_settings
    from safelight.store import current
    from safelight.weights.pickles import convert

    file = _lora(path)
    sound = yield from convert(file)
    known, options = describe(str(sound)), peft_settings(file)
    if alpha is not None and (options or known["alpha"] != "none"):
        raise ValueError(f"load_lora: alpha is {alpha:g}, and {file} has its own; leave alpha out, and use `strength` for less or more")
    if alpha is not None:
        options = {"alpha": alpha}
    about = f"{known['dialect']}, {' and '.join(known.get('kinds', ()))} of rank {known['rank']}, {known['layers']} layers"
    yield loaded("load_lora", file.stem, known, about)
    return Patch("lora", current().blob(sound), options=options, info={"name": file.stem, **known})


@op(group="model", store=False, exact=True)
def with_lora(
    model: Model, lora: Patch, *,
    strength: Annotated[float, Knob(-10, 10, step=0.05)] = 1.0,
    text_strength: Annotated[float | None, Knob(-10, 10, step=0.05)] = None,
    merged: bool = True,
) -> Model:
    """Put a LoRA on a model. Several add up.

    Args:
        strength: how much of it; 0 changes nothing, 1 is as trained
        text_strength: another strength for the text encoders' part; nothing: the same; at 0 that part need not fit the model
        merged: add it into the weights (no cost in drawing) or compute it beside the layers
    """
    options = {**lora.options, "merged": merged} | ({} if text_strength is None else {"text_strength": text_strength})
    return model.with_patch(dataclasses.replace(lora, strength=strength, options=options))


@op(group="generate", version=3)
def generate(
    model: Model, prompt: Annotated[str, Knob(multiline=True)], *,
    seeds: Annotated[Sequence[int], Knob(0, 2**64 - 1, draw=True)] = (-1,),
    size: Size = SIZE,
    sampling: Sampling = SAMPLING,
    guidance: Guidance = GUIDANCE,
    image: Image | None = None,
    mask: Mask | None = None,
) -> Work[Image]:
    """Draw pictures of a prompt, one a seed.

    `(word:1.2)` makes a word count more; prompts may be of any length. `<lora:name:0.8>` in the prompt puts a LoRA of the models folders on
    the model, `<lora:name:0.5:0.8>` with another strength for the text encoders; `\\<lora:` stays text. With an image, drawing starts from
    it (`denoise` below 1 keeps something of it); with a mask as well, only what the mask covers is drawn, the rest stays to the pixel.

    Args:
        prompt: what to draw
        seeds: one picture each; -1 draws a seed and records it
        image: start from this picture, or one picture a seed
        mask: where 1, the image is drawn over
    """
    from safelight.runtime import lease
    from safelight.sampling.draw import Shot, draw, fits, painted_over, seen, starts, warnings

    yield from warnings(image, sampling)
    with lease(model, holder="generate") as family:
        yield from fits(family)
        begun = starts(family, size, len(seeds), image, mask)
        shown = seen(family, size, len(seeds), image, mask)
        shots = [Shot(prompt, seed, sampling, guidance, z, m, e) for seed, (z, m), e in zip(seeds, begun, shown, strict=True)]
        drawn = yield from draw(family, shots)
    if image is not None and mask is not None:
        drawn = painted_over(image, drawn, mask)
    return _named(drawn, model)


@generate.expands
def _with_loras(given: Mapping[str, Any]) -> tuple[Mapping[str, Any], Sequence[Step]]:
    """What a prompt's tags stand for: a `with_lora` each before the op."""
    from safelight.sampling.tags import refuse, taken

    refuse("generate", "negative", given["negative"], "LoRAs are named in the prompt")
    prompt, named = taken("generate", given["prompt"])
    told = [{"lora": n.file, "strength": n.strength, "text_strength": n.text_strength} for n in named]
    return {**given, "prompt": prompt}, [Step("model", "with_lora", inputs) for inputs in told]


def _lines(given: Mapping[str, Any]) -> str:
    path = Path(given["path"])
    if not path.is_file():
        raise ValueError(f"storyboard: there is no file {path}")
    return Blob.of(path).sha256


@op(group="generate", version=3, fingerprint=_lines)
def storyboard(
    model: Model, path: Path, *, size: Size = SIZE, sampling: Sampling = SAMPLING, guidance: Guidance = GUIDANCE,
) -> Work[Image]:
    """Draw every picture of a file that has a prompt a line, with one load of the model.

    Columns: prompt, negative, seed, steps, scale; what a line leaves out is as set here, a missing seed is the line's number. The file is
    .txt (prompt, negative prompt and seed apart by tabs), .csv, .jsonl or .yaml.

    Args:
        path: the file
    """
    return _named((yield from draw_lines("storyboard", model, read_lines("storyboard", path), (size, sampling, guidance))), model)


def read_lines(op: str, path: Path) -> list[Line]:
    """The lines of a storyboard. ValueError when one names a LoRA."""
    from safelight.sampling.storyboard import read
    from safelight.sampling.tags import refuse

    lines = read(Path(path))
    for line in lines:
        refuse(op, "path", f"{line.prompt} {line.negative or ''}", "all lines share one model; put the LoRA on it by with_lora")
    return lines


def draw_lines(op: str, model: Model, lines: Sequence[Line], settings: tuple[Size, Sampling, Guidance]) -> Work[Image]:
    """The lines' pictures, with one load of the model; what a line leaves out is as in the settings."""
    from safelight.runtime import lease
    from safelight.sampling.draw import Shot, draw, fits, starts

    size, sampling, guidance = settings
    with lease(model, holder=op) as family:
        yield from fits(family)
        begun = starts(family, size, len(lines), None, None)
        shots = [Shot(x.prompt, x.seed, *x.over(sampling, guidance), z) for x, (z, _) in zip(lines, begun, strict=True)]
        return (yield from draw(family, shots))


def _named(drawn: Image, model: Model) -> Image:
    from safelight import folders

    name = folders.shown(Path(model.source))
    told = {"model": name if name != "weights" else "mini", "model_hash": model.fingerprint[:10]}
    return dataclasses.replace(drawn, info=tuple({**row, **told} for row in drawn.info))
