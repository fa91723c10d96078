"""ControlNet (arXiv:2302.05543): a copy of the U-Net's encoder reads a picture beside the latent and adds to the U-Net's skips.

Read layouts: diffusers' `ControlNetModel`, `ControlNetUnionModel` and `SD3ControlNetModel`, and the original one, `control_model.*` or
without that prefix. A file that does not fit the model is refused, never half used.
"""
from __future__ import annotations

import inspect
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.controlnet_sd3 import SD3ControlNetModel
from diffusers.models.controlnets.controlnet_union import ResidualAttentionBlock
from diffusers.models.embeddings import get_timestep_embedding
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from safelight.families.tiles import middle
from safelight.patches import kept, patch, tell
from safelight.patches.rows import EVERY, Rows, Span, watched
from safelight.weights import header

if TYPE_CHECKING:
    from safelight.families import Family
    from safelight.values import Patch

WIDTHS = (16, 32, 96, 256)
"""Channels of the layers that bring a hint from pixels down to the latent's size, each after the first at half the size."""

KEPT = 2
"""How many ControlNets stay loaded with a model."""

CONFIG = "safelight.config"
"""Where a file of ours says its shape, in its metadata."""

FIRST = "controlnet_cond_embedding.conv_in.weight"
JOINT = "pos_embed_input.proj.weight"
ORIGINAL = ("control_model.zero_convs.0.0.weight", "zero_convs.0.0.weight")

UNION = ("task_embedding", "transformer_layes", "spatial_ch_projs", "control_add_embedding")
BLOCKS = "block_controlnet_hidden_states"

_loaded: WeakKeyDictionary[Family, OrderedDict[str, Any]] = WeakKeyDictionary()


def fresh(family: Family, *, attention: bool = True) -> Any:
    """A ControlNet to train, float32: the U-Net's encoder copied, its outputs zero, so that it changes nothing yet. Its hint is as many
    times larger than the latent as the picture is. The layers that read it are random: torch's generator seeds them. Without `attention`
    the copy has convolutions alone and does not read the prompt: about half of the weights."""
    unet: Any = family.trainable()["unet"]
    steps = family.factor.bit_length()
    widths = (*WIDTHS[:steps], *[WIDTHS[-1]] * (steps - len(WIDTHS)))
    if not attention:
        return _without_attention(unet, widths).to(family.device)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)
    if net.encoder_hid_proj is not None:
        net.encoder_hid_proj.load_state_dict(unet.encoder_hid_proj.state_dict())
    return net.to(family.device)


def _without_attention(unet: Any, widths: tuple[int, ...]) -> Any:
    plain = {"down_block_types": ("DownBlock2D",) * len(unet.config.block_out_channels), "mid_block_type": "UNetMidBlock2D"}
    net = ControlNetModel(**shape(unet) | plain | {"conditioning_embedding_out_channels": widths})
    held, wanted = unet.state_dict(), net.state_dict()
    net.load_state_dict({name: held[name] for name, t in wanted.items() if name in held and held[name].shape == t.shape}, strict=False)
    return net


def read(path: str, layers: int = 2) -> dict[str, Tensor]:
    """A file's tensors by diffusers' names. `layers` is how many each level of the U-Net has; the original layout does not say."""
    try:
        tensors = load_file(path)
    except SafetensorError as e:
        raise ValueError(f"control {path}: not a safetensors file ({e}); convert it first") from e
    if any(key in tensors for key in ORIGINAL):
        converted = convert_controlnet_checkpoint(tensors, {"layers_per_block": layers})
        tensors = {name: tensor for name, tensor in converted.items() if tensor is not None} | _sizes(tensors)
    if not {FIRST, JOINT} & tensors.keys():
        raise ValueError(f"control {path}: no ControlNet, its first tensor is {min(tensors, default='missing')!r}; expected {FIRST!r}")
    return tensors


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SDXL's layers for pooled text and sizes, which diffusers' converter leaves out, by diffusers' names."""
    plain = {name.removeprefix("control_model."): tensor for name, tensor in tensors.items()}
    named = {f"label_emb.0.{2 * n - 2}.{end}": f"add_embedding.linear_{n}.{end}" for n in (1, 2) for end in ("weight", "bias")}
    return {new: plain[old] for old, new in named.items() if old in plain}


def describe(path: str | Path) -> dict[str, Any]:
    """What a file we trained, or diffusers' config.json beside one, says of its shape; empty when neither does, and the U-Net's own shape
    is meant."""
    own = header.read(path).metadata.get(CONFIG)
    if own is not None:
        return shaping(json.loads(own))
    beside = Path(path).with_name("config.json")
    told = json.loads(beside.read_text("utf-8")) if beside.is_file() else {}
    return shaping(told) if told.get("_class_name") == ControlNetModel.__name__ else {}


def contents(path: str) -> dict[str, Any]:
    """Whose names a file has (`layout`), how many of its tensors are a ControlNet's (`keys`) and how many it has (`total`); old files have
    a whole model beside it."""
    names = header.read(path).tensors
    original = next((first.removesuffix("zero_convs.0.0.weight") for first in ORIGINAL if first in names), None)
    known = [n for n in names if original is None or n.startswith(original)]  # `load` refuses what else is in diffusers' layout
    return {"layout": "diffusers" if original is None else "original", "keys": len(known), "total": len(names)}


def load(family: Family, path: str, config: Mapping[str, Any], kind: int = -1) -> Any:
    """The file's ControlNet for this family, frozen; `kind` as in `control`. ValueError with matched/total when it is another model's."""
    networks: Any = family.trainable()
    settings = {**networks["transformer" if "transformer" in networks else "unet"].config, **config}
    tensors = read(path, int(settings.get("layers_per_block", 2)))
    union = {name: tensors.pop(name) for name in list(tensors) if name.startswith(UNION)}
    joint = JOINT in tensors
    if joint != ("transformer" in networks):
        raise ValueError(f"control: needs {'SD 3' if joint else 'a U-Net'}; this {family.name} model has {', '.join(networks)}: {path}")
    with torch.device("meta"):
        made: Any = _joint(family, settings, tensors) if joint else ControlNetModel(**_beside(family, settings, tensors))
    wanted = {name: t.shape for name, t in made.state_dict().items()}
    lost = [name for name, s in wanted.items() if name not in tensors or tensors[name].shape != s]
    lost += [name for name in tensors if name not in wanted]
    if lost:
        fits = f"{len(set(wanted) - set(lost))} of {len(wanted)} tensors fit this {family.name} model; first misfit {lost[0]}"
        raise ValueError(f"control {path}: {fits}; use a ControlNet that was trained for this model")
    made.load_state_dict({name: t.to(family.device, family.dtype) for name, t in tensors.items()}, assign=True)
    if union:
        _tell_kind(made, {name: t.to(family.device, family.dtype) for name, t in union.items()}, kind)
    return made.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def _beside(family: Family, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    widths = [tensors[FIRST].shape[0], *(t.shape[0] for name, t in tensors.items() if _halves(name))]
    plain = tensors.get("conv_in.weight", tensors[FIRST]).shape[1] == family.channels  # an inpainting U-Net takes more
    own = {"conditioning_channels": tensors[FIRST].shape[1], "conditioning_embedding_out_channels": widths}
    return shaping(settings) | own | ({"in_channels": family.channels} if plain else {})


def _joint(family: Family, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Beside SD 3's transformer: it has fewer blocks, and may be shown more than a latent has channels."""
    blocks = sum(name.startswith("controlnet_blocks.") and name.endswith(".weight") for name in tensors)
    dual = [i for i in range(blocks) if f"transformer_blocks.{i}.attn2.to_q.weight" in tensors]
    own = {"num_layers": blocks, "dual_attention_layers": dual, "extra_conditioning_channels": tensors[JOINT].shape[1] - family.channels}
    return SD3ControlNetModel(**{n: v for n, v in settings.items() if n[0] != "_"} | own)


def _tell_kind(net: Any, tensors: Mapping[str, Tensor], kind: int) -> None:
    """Make a union (ControlNet++) one for this kind of hints (-1: not said): the kind adds a constant to what the net makes of the noise
    level, and something to each channel of what it read of a hint, (B, C, h, w), by way of the channels' means."""
    kinds, wide = tensors["task_embedding"].shape
    if kind >= kinds:
        raise ValueError(f"control: got kind {kind} of hints; this union knows {kinds}, from 0 on; the one called promax knows 8")
    w, b, w2, b2 = (tensors[f"control_add_embedding.linear_{i}.{end}"].float() for i in (1, 2) for end in ("weight", "bias"))
    told = get_timestep_embedding((torch.arange(kinds) == kind).to(w), w.shape[1] // kinds, flip_sin_to_cos=True, downscale_freq_shift=0)
    level = net.time_embedding.linear_2
    level.bias = nn.Parameter((level.bias + w2 @ nn.functional.silu(w @ told.flatten() + b) + b2).to(level.bias.dtype))
    depth = len({n.split(".")[1] for n in tensors if n.startswith("transformer_layes")})
    layers, out = nn.Sequential(*(ResidualAttentionBlock(wide, 1) for _ in range(depth))), nn.Linear(wide, wide)
    for part, prefix in ((layers, "transformer_layes."), (out, "spatial_ch_projs.")):
        part.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}, assign=True)

    def added(_: Any, __: Any, read: Tensor) -> Tensor:
        said: Tensor = out(layers((read.mean(dim=(2, 3)) + tensors["task_embedding"][kind])[None])[0])  # a row attends to itself alone
        return read + said[..., None, None]

    if kind >= 0:
        net.controlnet_cond_embedding.register_forward_hook(added)


def shape(net: Any) -> dict[str, Any]:
    """What of a network's configuration makes a ControlNet of its shape."""
    return shaping(dict(net.config))


def shaping(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that a ControlNet's class takes."""
    names = inspect.signature(ControlNetModel.__init__).parameters
    return {name: value for name, value in config.items() if name in names}


def _halves(name: str) -> bool:
    """The hint's convolutions come in pairs; the second of each halves the size and widens."""
    parts = name.split(".")
    return parts[:2] == ["controlnet_cond_embedding", "blocks"] and parts[-1] == "weight" and int(parts[2]) % 2 == 1


def _kept(family: Family, what: Patch) -> Any:
    known = _loaded.setdefault(family, OrderedDict())
    config, kind = what.options.get("config", {}), int(what.options.get("kind", -1))
    name = f"{what.weights.sha256} {kind} {json.dumps(config, sort_keys=True)}"
    if name not in known:
        while len(known) >= KEPT:
            known.popitem(last=False)
        known[name] = load(family, what.weights.path, config, kind)
    known.move_to_end(name)
    return known[name]


def read_hint(what: Patch) -> Tensor:
    """(1 or B, H, W, 3) in [0, 1]: the file whose hash is the option `hint`."""
    blob = next((b for b in what.files.values() if b.sha256 == what.options.get("hint")), None)
    if blob is None:
        raise ValueError(f"control: the hint picture {what.options.get('hint')} is not among the patch's files; put one on by with_control")
    return load_file(blob.path)["hint"]


@patch
def control(family: Family, what: Patch) -> Iterator[None]:
    """Let a ControlNet steer at `what.strength`; several add up. Options: `hint` (hash of the picture, which lies in `files`), `start`,
    `end` and `side` (see `Span`), `config` (see `describe`), a union's `kind` (-1: not said). Strength 0 neither changes nor loads."""
    if not what.strength:
        yield
        return
    net = _kept(family, what)
    count = len(net.state_dict())
    tell(family, what, f"{count} of {count} tensors matched")  # `load` refuses fewer
    with attached(family, net, read_hint(what), strength=what.strength, span=Span.of(what.options)):
        yield


@contextmanager
def attached(family: Family, net: nn.Module, hint: Tensor, *, strength: float = 1.0, span: Span = EVERY) -> Iterator[None]:
    """Add a loaded ControlNet's output to the U-Net's skips; gradients flow into the net. `hint` (1 or B, H, W, 3) in [0, 1] is cut to the
    latent's shape about its middle and scaled to `factor` times its size; with B pictures each row takes its own picture's."""
    kind = _SteeredJoint if isinstance(net, SD3ControlNetModel) else _Steered
    steered = family.trainable()[kind.part]
    with kept([steered]), watched(family) as rows:
        vars(steered)["forward"] = kind(family, net, hint, strength=strength, span=span, rows=rows)
        yield


class _Steered:
    """The U-Net's forward with a ControlNet beside it."""
    part = "unet"

    def __init__(self, family: Family, net: Any, hint: Tensor, *, strength: float, span: Span, rows: Rows) -> None:
        self.family, self.net, self.strength, self.span, self.rows = family, net, strength, span, rows
        self.plain: Any = family.trainable()[self.part].forward
        self.hint = hint.to(family.device).permute(0, 3, 1, 2)  # (1 or B, 3, H, W)
        self.sized: tuple[Any, Tensor] = None, self.hint

    def __call__(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **rest: Any) -> Any:
        on = self.span.on(self.family, self.rows)
        if on is None or bool(on.any()):
            added = self._added(sample, torch.as_tensor(timestep).expand(len(sample)), encoder_hidden_states, rest, on)
            rest = rest | _sum(rest, added)
        return self.plain(sample, timestep, encoder_hidden_states, **rest)

    def _added(self, sample: Tensor, time: Tensor, text: Tensor, rest: Mapping[str, Any], on: Tensor | None) -> list[Tensor]:
        """What the net adds to each skip and, last, to the middle; nothing in the rows that are not `on`."""
        net: Any = self.net
        at = None if on is None or bool(on.all()) else on.to(sample.device).nonzero()[:, 0]
        more = {name: _take(t, at) for name, t in (rest.get("added_cond_kwargs") or {}).items() if isinstance(t, Tensor)}
        labels = rest.get("class_labels")
        fed = sample[:, : net.config.in_channels]  # an inpainting U-Net's mask and picture come after
        text = _take(text, at)
        if net.config.encoder_hid_dim_type == "text_proj":  # Kolors; diffusers' forward leaves it out
            text = net.encoder_hid_proj(text)
        down, mid = net(
            _take(fed, at), _take(time, at), text, controlnet_cond=_take(self._hints(sample), at),
            conditioning_scale=self.strength, class_labels=None if labels is None else _take(labels, at),
            added_cond_kwargs=more or None, return_dict=False,
        )
        found = [*down, mid]
        return found if at is None else [r.new_zeros((len(sample), *r.shape[1:])).index_copy(0, at, r) for r in found]

    def _hints(self, sample: Tensor) -> Tensor:
        """(rows, 3, h * factor, w * factor)."""
        size = (sample.shape[2] * self.family.factor, sample.shape[3] * self.family.factor)
        if self.sized[0] != (size, sample.dtype):
            self.sized = (size, sample.dtype), self._shown(size).to(sample.dtype)
        sized = self.sized[1]
        if len(sized) == 1:
            return sized.expand(len(sample), -1, -1, -1)
        if self.rows.picture is not None and int(self.rows.picture.max()) < len(sized):
            return sized[self.rows.picture.to(sized.device)]
        if self.rows.picture is None and len(sized) == len(sample):
            return sized
        raise ValueError(f"control: the hint is a batch of {len(sized)}; expected one picture, or one for every picture that is drawn")

    def _shown(self, size: tuple[int, int]) -> Tensor:
        return fitted(self.hint, size)


class _SteeredJoint(_Steered):
    """The forward of SD 3's transformer with a ControlNet beside it, which is shown the hint as a latent."""
    part = "transformer"

    def __call__(self, sample: Tensor, **told: Any) -> Any:  # type: ignore[override]
        on = self.span.on(self.family, self.rows)
        if on is None or bool(on.any()):
            added = self._added(sample, told["timestep"], told["encoder_hidden_states"], told, on)
            before = told.get(BLOCKS) or [0] * len(self.family.trainable()[self.part].transformer_blocks)  # type: ignore[arg-type]
            told[BLOCKS] = [b + added[i * len(added) // len(before)] for i, b in enumerate(before)]  # several nets may differ in depth
        return self.plain(sample, **told)

    def _added(self, sample: Tensor, time: Tensor, text: Tensor, rest: Mapping[str, Any], on: Tensor | None) -> list[Tensor]:
        at = None if on is None or bool(on.all()) else on.to(sample.device).nonzero()[:, 0]
        given = [_take(t, at) for t in (sample, self._hints(sample), text, torch.zeros_like(rest["pooled_projections"]), time)]
        found: list[Tensor] = self.net(given[0], given[1], self.strength, *given[2:], return_dict=False)[0]
        return found if at is None else [r.new_zeros((len(sample), *r.shape[1:])).index_copy(0, at, r) for r in found]

    def _shown(self, size: tuple[int, int]) -> Tensor:
        """Without the latent's shift, as such nets were trained; what more they are shown says that nothing is covered."""
        vae: Any = self.family.trainable()["vae"].config
        seen = self.family.encode_image(super()._shown(size).permute(0, 2, 3, 1)) + (vae.shift_factor or 0) * vae.scaling_factor
        return torch.cat([seen, seen.new_ones(len(seen), self.net.config.extra_conditioning_channels, *seen.shape[2:])], dim=1)


def _take(t: Tensor, at: Tensor | None) -> Tensor:
    return t if at is None else t.index_select(0, at.to(t.device))


def _sum(rest: Mapping[str, Any], added: list[Tensor]) -> dict[str, Any]:
    """The two arguments of a U-Net that takes residuals, with what another ControlNet put there."""
    down, mid = rest.get("down_block_additional_residuals"), rest.get("mid_block_additional_residual")
    if down is not None:
        added = [a + b for a, b in zip(added, [*down, mid], strict=True)]
    return {"down_block_additional_residuals": tuple(added[:-1]), "mid_block_additional_residual": added[-1]}


def fitted(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) cut about the middle to the shape of `size` (height, width) and brought to it by the nearest pixel, as ComfyUI does."""
    cut = middle(pictures, size[1] / size[0])
    return cut if cut.shape[2:] == size else nn.functional.interpolate(cut, size, mode="nearest-exact")
