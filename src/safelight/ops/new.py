"""A model that knows nothing yet."""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from safelight.op import Knob, op
from safelight.values import Model, canonical, digest

if TYPE_CHECKING:
    from safelight.families.sources import Parts

WIDTHS = {"tiny": (64, 96, 128), "small": (128, 192, 224)}
"""A U-Net's, from the latent's full size down to a quarter of it."""

INDEX = {"_class_name": "ClassesPipeline", "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
         "scheduler": ["diffusers", "DDIMScheduler"]}
"""What model_index.json says of a model that reads no text."""


@op(group="model", store=False, version=1)
def new_model(
    like: Model, *,
    shape: Literal["tiny", "small"] = "tiny",
    conditioning: Literal["none", "class", "text"] = "text",
    labels: Sequence[str] = (),
    seed: Annotated[int, Knob(0, 2**53, draw=True)] = 0,
) -> Model:
    """Make a model whose U-Net has random weights, for train_full to train from nothing, at a rate of about 1e-3.

    It lies in the store as a folder in diffusers layout; `save` writes it elsewhere, with what was trained in it. Without a text it draws
    what it was shown, or a class: a caption or prompt is of the class whose name is in it, and of none when it is empty.

    Args:
        like: whose autoencoder, noise levels and text encoder it takes: a model in a folder, such as mini
        shape: tiny has 6 million weights and learns on a laptop; small has 19 million, as mini
        conditioning: what the U-Net is told besides the noise: nothing, one of some classes, or a text
        labels: the names of the classes
        seed: of the weights; -1 draws one
    """
    from safelight.families.sources import Folder, open_model, open_source
    from safelight.store import current

    parts = open_model(like)
    if not isinstance(parts, Folder) or like.patches:
        raise ValueError(f"new_model: like: got {like.source} with {len(like.patches)} patches; expected a model in one folder, without")
    if (conditioning == "class") != bool(labels) or len(set(map(str.lower, labels))) < len(labels):
        raise ValueError(f"new_model: labels: got {list(labels)} for conditioning {conditioning!r}; expected different names for class "
                         "alone")
    if conditioning == "text" and parts.family != "sd":
        raise ValueError(f"new_model: like: got a {parts.family} model; expected one such as mini or SD, with one text encoder")
    told = _unet(parts, WIDTHS[shape], len(labels))
    folder = current().folder(digest("new_model", like.key, conditioning, canonical([told, labels, seed])))
    if not (folder / "model_index.json").is_file():
        _write(parts.path, folder, told, seed, None if conditioning == "text" else labels)
    made = open_source(folder)
    return replace(like, family=made.family, source=made.source, fingerprint=made.fingerprint())


def _unet(like: Parts, widths: tuple[int, ...], classes: int) -> dict[str, Any]:
    """Settings of a U-Net for the model's latents; text enters at a half and a quarter of their size."""
    channels, theirs = like.config("vae")["latent_channels"], like.config("unet")
    return {
        "sample_size": theirs["sample_size"], "in_channels": channels, "out_channels": channels, "block_out_channels": widths,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), "layers_per_block": 1,
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 4,
        "cross_attention_dim": theirs["cross_attention_dim"], "num_class_embeds": classes + 1 if classes else None,
    }


def _write(base: Path, folder: Path, told: dict[str, Any], seed: int, classes: Sequence[str] | None) -> None:
    """The U-Net in float16 and the base's other parts; with `classes` their names instead of a text encoder. What makes it a model is
    written last."""
    import shutil

    from safetensors.torch import save_file

    from safelight.disk import place, put
    from safelight.families.sources import PARTS
    from safelight.families.unet import fresh

    net = fresh(told, seed)
    put(folder / "unet" / "config.json", net.to_json_string().encode())
    weights = {name: t.half() for name, t in net.state_dict().items()}
    at = folder / "unet" / "diffusion_pytorch_model.safetensors"
    place(at.parent, at, lambda new: save_file(weights, new, metadata={"format": "pt"}))
    for part in PARTS if classes is None else ("vae", "scheduler"):
        if part != "unet" and (base / part).is_dir():
            shutil.copytree(base / part, folder / part, dirs_exist_ok=True)
    index = (base / "model_index.json").read_bytes() if classes is None else json.dumps(INDEX).encode()
    if classes is not None:
        (folder / "tokenizer").mkdir(exist_ok=True)
        put(folder / "tokenizer" / "config.json", json.dumps({"classes": list(classes)}, ensure_ascii=False).encode())
    put(folder / "model_index.json", index)
