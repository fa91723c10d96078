"""IP-Adapter (arXiv:2308.06721): a picture as a prompt, through attention of its own beside the text's.

Read layout: the original one, `image_proj.*` and `ip_adapter.<n>.to_k_ip.weight`, n counting the attention layers; plain, full-face and
plus (whose projection has `latents`). FaceID files read what a face recognition network makes of a picture, and are refused.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers.models.embeddings import MultiIPAdapterImageProjection
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from safelight.families.vision import tower
from safelight.patches import patch, preserved, tell
from safelight.patches.rows import Rows, Span, unet_of, watched

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from safelight.families import Family
    from safelight.values import Patch

PARTS = ("image_proj", "ip_adapter")
POOLED = "image_proj.proj.weight"
"""In files whose projection reads one vector a picture; the others read the encoder's last layer but one."""

KINDS = {"latents": "plus", "proj.weight": "plain", "proj.3.weight": "full-face"}
"""Which layout it is, by a tensor that only its projection has."""


def read(path: str) -> dict[str, dict[str, Tensor]]:
    """A file's tensors by part. ValueError when it is no IP-Adapter."""
    try:
        tensors = load_file(path)
    except SafetensorError as e:
        raise ValueError(f"ip_adapter {path}: not a safetensors file ({e}); convert it first") from e
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise ValueError(f"ip_adapter {path}: {key!r} is not part of an IP-Adapter; expected image_proj.* and ip_adapter.*")
        parts[part][name] = tensor
    if not all(parts.values()):
        raise ValueError(f"ip_adapter {path}: no {next(p for p in PARTS if not parts[p])}.* in it; expected an IP-Adapter")
    if any("_lora." in name for name in parts["ip_adapter"]) or not KINDS.keys() & parts["image_proj"].keys():
        raise ValueError(
            f"ip_adapter {path}: its layout is none of {', '.join(KINDS.values())}; FaceID adapters, which read the vectors of a face "
            "recognition network, are not supported"
        )
    return parts


def describe(path: str) -> dict[str, Any]:
    """`layout` (plain, plus or full-face), `layers` of attention, and how many of the file's tensors are used (`keys`, all of its
    `total`). ValueError when it is no IP-Adapter, or one of a layout that is not supported."""
    parts = read(path)
    total = sum(map(len, parts.values()))
    layout = next(kind for name, kind in KINDS.items() if name in parts["image_proj"])
    return {"layout": layout, "layers": len(parts["ip_adapter"]) // 2, "keys": total, "total": total}


def encode(path: str, encoder: Path, pixels: NDArray[np.float32]) -> bytes:
    """What a picture is to the adapter in `path`, as a safetensors file: `picture` and, for negative prompts, `nothing`, (1, N, D) or
    (1, N, L, D) float32 for N pictures that are looked at together. `encoder` is a CLIPVisionModelWithProjection, a folder or its
    safetensors file alone; `pixels` are (N, H, W, 3) in [0, 1]. ValueError when the encoder is not the one the adapter was trained with."""
    from transformers import CLIPImageProcessorPil

    net = tower(encoder, device=torch.device("cpu"), dtype=torch.float32)
    side = int(net.config.image_size)
    cut = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    known = (encoder / "preprocessor_config.json").is_file()
    prepare = CLIPImageProcessorPil.from_pretrained(encoder, local_files_only=True) if known else CLIPImageProcessorPil(**cut)
    x = prepare(list((pixels * 255).round().astype("uint8")), return_tensors="pt").pixel_values  # (N, 3, side, side)
    pooled = POOLED in load_file(path)
    with torch.no_grad():
        if pooled:
            picture = net(pixel_values=x).image_embeds
            nothing = torch.zeros_like(picture)
        else:
            picture, nothing = (net(pixel_values=p, output_hidden_states=True).hidden_states[-2] for p in (x, torch.zeros_like(x)))
    _fits(path, picture)
    return save({"picture": picture[None].contiguous(), "nothing": nothing[None].contiguous()})


def _fits(path: str, seen: Tensor) -> None:
    projection = read(path)["image_proj"]
    first = next((projection[n] for n in ("proj.weight", "proj_in.weight", "proj.0.weight") if n in projection), None)
    if first is None or first.shape[1] != seen.shape[-1]:
        raise ValueError(
            f"ip_adapter {path}: the encoder gives vectors of {seen.shape[-1]} and the adapter reads "
            f"{'something else' if first is None else first.shape[1]}; use the encoder it was trained with"
        )


@patch
def ip_adapter(family: Family, what: Patch) -> Iterator[None]:
    """Let a picture prompt at `what.strength`; several adapters add up. Options: `picture` (hash of the encoded picture, which lies in
    `files`; see `encode`), `start` and `end` (see `Span`). Rows of the negative prompt see what the encoder makes of nothing."""
    if not what.strength:
        yield
        return
    blob = next((b for b in what.files.values() if b.sha256 == what.options.get("picture")), None)
    if blob is None:
        raise ValueError("ip_adapter: the encoded picture is not among the patch's files; put one on by with_ip_adapter")
    unet = unet_of(family, "ip_adapter")
    with preserved({"unet": unet}), watched(family) as rows:
        held = [*vars(unet).get("_adapters", ()), _Held(read(what.weights.path), what.strength, Span.of(what.options))]
        _install(unet, held, what.weights.path)
        count = sum(map(len, held[-1].parts.values()))
        tell(family, what, f"{count} of {count} tensors matched")  # `_install` refuses fewer
        unet.encoder_hid_proj.register_forward_hook(partial(_timed, family, rows, [one.span for one in held]))
        vars(unet)["_adapters"] = held
        vars(unet)["forward"] = _Prompted(unet.forward, load_file(blob.path), rows)
        yield


class _Held(NamedTuple):
    """An adapter that is on a model."""

    parts: dict[str, dict[str, Tensor]]
    strength: float
    span: Span


def _timed(family: Family, rows: Rows, spans: Sequence[Span], _: Any, __: Any, tokens: list[Tensor]) -> list[Tensor]:
    """Each adapter's tokens, (B, N, L, D), zero in the rows it does not act on: their keys and values are zero too, and add nothing."""
    acting = [span.on(family, rows) for span in spans]
    return [t if on is None else t * on.to(t).view(-1, 1, 1, 1) for t, on in zip(tokens, acting, strict=True)]


def _install(unet: Any, adapters: Sequence[_Held], path: str) -> None:
    """Processors and projections for all adapters at once, by diffusers' own converters."""
    if unet.config.encoder_hid_dim_type == "text_proj":
        unet.text_encoder_hid_proj = unet.encoder_hid_proj
    unet.encoder_hid_proj = None
    like = {"device": unet.device, "dtype": unet.conv_in.weight.dtype}
    states = [{part: {n: t.to(**like) for n, t in tensors.items()} for part, tensors in one.parts.items()} for one in adapters]
    layers = sum(name.endswith("attn2.processor") for name in unet.attn_processors)
    theirs = len(states[-1]["ip_adapter"]) // 2
    try:
        if theirs != layers:
            raise ValueError(f"it has {theirs} attention layers")
        processors = unet._convert_ip_adapter_attn_to_diffusers(states)
        projections = [unet._convert_ip_adapter_image_proj_to_diffusers(state["image_proj"]) for state in states]
        if any(t.is_meta for projection in projections for t in projection.state_dict().values()):
            raise ValueError("tensors of image_proj are missing")
    except (ValueError, KeyError, RuntimeError) as e:
        raise ValueError(f"ip_adapter {path}: does not fit this model, whose U-Net has {layers} such layers: {e}") from e
    for name, processor in processors.items():
        if name.endswith("attn2.processor"):
            processor.scale = [one.strength for one in adapters]
    unet.set_attn_processor(processors)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection(projections).to(**like)
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    unet.requires_grad_(False)


class _Prompted:
    """The U-Net's forward, told what the encoder saw."""

    def __init__(self, plain: Any, seen: Mapping[str, Tensor], rows: Rows) -> None:
        self.plain, self.rows = plain, rows
        self.picture, self.nothing = seen["picture"], seen["nothing"]

    def __call__(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **rest: Any) -> Any:
        embeds = self.picture.to(sample).expand(len(sample), *self.picture.shape[1:])
        if self.rows.negative is not None:
            against = self.rows.negative.to(sample.device).view(-1, *[1] * (embeds.ndim - 1))
            embeds = torch.where(against, self.nothing.to(sample), embeds)
        more = dict(rest.pop("added_cond_kwargs", None) or {})
        # The adapter that came last is outermost, and the projections stand in the order of coming.
        more["image_embeds"] = [embeds, *more.get("image_embeds", [])]
        return self.plain(sample, timestep, encoder_hidden_states, added_cond_kwargs=more, **rest)
