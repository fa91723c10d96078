"""A model, by name, file or folder, and parts of it from elsewhere."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from safelight.op import Knob, op
from safelight.values import Knobs, Model, Part

if TYPE_CHECKING:
    from safelight.families.sources import Parts

WHOLE = ("checkpoints", "diffusers", "diffusion_models")
TEXT = ("text_encoders", "LLM")
PARTS = {"vae": ("vae",), "unet": ("diffusion_models",), "text_encoder": TEXT, "text_encoder_2": TEXT, "text_encoder_3": TEXT}
"""Which folders the name of a part is looked for in."""


def _place(name: str, kinds: tuple[str, ...]) -> Path:
    from safelight import folders
    from safelight.embedded import WEIGHTS
    from safelight.pulling.names import KNOWN

    if name == "mini":
        return WEIGHTS
    if name.startswith("hf:"):
        return folders.hub_snapshot(name)
    path = Path(name).expanduser()
    if path.exists():
        return path.absolute()
    try:
        return folders.current().first(kinds, pulled(name))
    except ValueError as e:
        if name in KNOWN:
            return folders.hub_snapshot(KNOWN[name].hf)
        raise ValueError(f"model: {name!r} is no file or folder here, nor in the models folders ({str(e).removeprefix('models: ')})") from e


def pulled(name: str) -> str:
    """The folder's name of what `safelight pull ms:...` fetched."""
    from safelight.pulling.names import wanted

    return wanted(name).name if name.startswith("ms:") else name


def _parts(given: Mapping[str, Any]) -> tuple[Part, ...]:
    from safelight.families.sources import PREDICTIONS, open_part
    from safelight.values import digest

    named = [Part(part, str(_place(given[part], kinds)), "") for part, kinds in PARTS.items() if given.get(part)]
    found = [Part(p.name, p.source, open_part(p).fingerprint(p.name)) for p in named]
    said, levels = given.get("prediction") or "auto", given["levels"]
    ends = [f"{end}={getattr(levels, end)!r}" for end in ("sigma_min", "sigma_max") if getattr(levels, end) is not None]
    if levels.shift and said != "auto":
        raise ValueError(f"model: got shift={levels.shift:g} with prediction={said}; a shift is a flow's, give one of them")
    if ends and (levels.shift or "sigma_min" not in PREDICTIONS.get(said, {})):
        raise ValueError(f"model: got {ends[0]} with prediction={said}; expected edm, edm-v, edm-eps or angle-v, and no shift")
    told = f"shift={levels.shift:g}" if levels.shift else " ".join([said, *ends])
    return (*found, *([Part("scheduler", told, digest(told))] if told != "auto" else []))


def _open(given: Mapping[str, Any]) -> tuple[Parts, tuple[Part, ...]]:
    from safelight.families.sources import open_source

    parts = _parts(given)
    return open_source(_place(given["name"], WHOLE), parts), parts


def _files(given: Mapping[str, Any]) -> str:
    return _open(given)[0].fingerprint()


@dataclass(frozen=True)
class Levels(Knobs):
    """Which noise levels it was taught, where its files do not say."""

    shift: Annotated[float | None, Knob(0, 1000, step=0.01, help="it predicts a flow, moved up so far (arXiv:2403.03206); SD 3: 3")] = None
    sigma_min: Annotated[float | None, Knob(0, 1000, step=0.001, help="the least noise of edm* and angle-v; unset: 0.002, 0.03")] = None
    sigma_max: Annotated[float | None, Knob(0, 1000, step=0.001, help="the most noise; unset: edm 80, edm-* 120, angle-v 500")] = None


LEVELS = Levels()


@op(group="model", store=False, loads=True, fingerprint=_files)
def model(
    name: str = "mini", *,
    vae: str | None = None,
    unet: str | None = None,
    text_encoder: str | None = None,
    text_encoder_2: str | None = None,
    text_encoder_3: str | None = None,
    prediction: Literal["auto", "eps", "v", "v-zsnr", "edm", "edm-v", "edm-eps", "angle-v"] = "auto",
    levels: Levels = LEVELS,
) -> Model:
    """Name a model: `mini`, which ships with Safelight, a checkpoint, or a folder in diffusers layout. Nothing is loaded before it is used.

    The family is found from the file. Parts may come from elsewhere: a file, a folder with config.json, or another whole model.

    Args:
        name: mini, a path, a name in the models folders (`safelight models` lists them), or hf:owner/name in the Hugging Face cache
        vae: another autoencoder, for instance SDXL's repaired for half precision
        unet: another U-Net
        text_encoder: another text encoder; its words come with it where its folder has them
        text_encoder_2: another second text encoder, where the model has two
        text_encoder_3: T5, where the model may have it (SD 3)
        prediction: what the network predicts, where its file does not say; v-zsnr: v down to pure noise; edm*, angle-v: no steps of noise
    """
    texts = {"text_encoder": text_encoder, "text_encoder_2": text_encoder_2, "text_encoder_3": text_encoder_3}
    others = {"vae": vae, "unet": unet, **texts}
    found, parts = _open({"name": name, **others, "prediction": prediction, "levels": levels})
    return Model(found.family, found.source, found.fingerprint(), parts=parts)
