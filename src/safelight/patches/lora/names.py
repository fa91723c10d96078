"""Names: the ways files call a network's layers, as tables made from the network itself, so that any of its shapes is read.

A name from a file is only ever looked up here; none reaches an attribute of a module. Names are compared with `_` for every dot: that is
how kohya writes them, and no two layers of a network differ in that alone.
"""
from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from torch import nn

from safelight.patches.lora.beside import Beside, original, own

if TYPE_CHECKING:
    from safelight.families import Family

DENOISERS = ("unet", "transformer")

PREFIXES = {
    "unet": "lora_unet_", "transformer": "lora_transformer_",
    "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_", "text_encoder_3": "lora_te3_",
}
"""The networks an adapter may change, and how kohya's layout begins their names; the first of several text encoders is `lora_te1_`."""

COMFY_TEXT = {"text_encoder": ("clip_l", "clip_h"), "text_encoder_2": ("clip_g",), "text_encoder_3": ("t5xxl",)}
"""ComfyUI's names of text encoders, after `text_encoders.`."""

CLIP = re.compile(r"encoder\.layers\.\d+\.(self_attn|mlp\.fc|layer_norm)|embeddings\.(token|position)_embedding|final_layer_norm")
"""Layers of a CLIP text tower that kohya's names put below `text_model`; other towers have no such part."""

LDM_TOP = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding.linear_1": "label_emb.0.0", "class_embedding.linear_2": "label_emb.0.2",
}
LDM_INNER = {
    "resnets": {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    },
    "attentions": {}, "upsamplers": {}, "downsamplers": {"conv": "op"},
}
"""What LDM (and SGM) call the layers of a U-Net and of its blocks."""

DIFFSYNTH_INNER = {"ff.net.0.proj": "act_fn.proj", "ff.net.2": "ff"}
SD3_TOP = {
    "pos_embed.proj": "x_embedder.proj", "proj_out": "final_layer.linear",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0", "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
}
SD3_INNER = {
    "attn.to_out.0": "x_block.attn.proj", "attn.to_add_out": "context_block.attn.proj", "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2", "norm1.linear": "x_block.adaLN_modulation.1",
    "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2",
}
SD3_FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
"""What SD 3's own layout calls the layers of its transformer, of its blocks, and what it has three of in one. The last
layers' modulations, whose halves it has the other way round, are left out."""

OLD_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
"""What diffusers' files of 2023 call a text encoder's projections."""


@dataclass(frozen=True)
class Place:
    """A layer: the network's name, the path in it, and the layer, or what an unmerged adapter has put in its place."""

    part: str
    path: str
    layer: nn.Module


class Names:
    """A model's layers by any name."""

    def __init__(self, family: Family) -> None:
        """Reads the module trees as they are now."""
        networks = {part: net for part, net in family.trainable().items() if part in PREFIXES}
        self.places = {part: dict(_layers(net)) for part, net in networks.items()}
        self.tables = {part: spellings(part, net, self.places[part]) for part, net in networks.items()}
        self.prefixes = [(prefix, part) for part in networks for prefix in prefixes(part, networks)]

    def find(self, name: str) -> list[Place]:
        """The layer of this name, dotted or not, or the layers whose rows it has one after another; empty when there is none, or when
        the name could be two layers'."""
        flat = name.replace(".", "_")
        found = {
            (part, paths)
            for prefix, part in self.prefixes
            if flat.startswith(prefix) and (paths := self.tables[part].get(flat.removeprefix(prefix)))
        }
        return [Place(part, path, self.places[part][path]) for part, paths in found for path in paths] if len(found) == 1 else []


def kohya_name(part: str, path: str, *, several: bool = False) -> str:
    """The name kohya's layout has for a layer: `lora_unet_down_blocks_0_..._to_q`. `several`: the model has more text encoders than one."""
    prefix = "lora_te1_" if part == "text_encoder" and several else PREFIXES[part]
    if part not in DENOISERS:
        path = path.removeprefix("text_model.")
        prefix += "text_model_" if CLIP.match(path) else ""
    return prefix + path.replace(".", "_")


def places(family: Family) -> dict[str, Place]:
    """Every linear and convolution layer an adapter can change, by its kohya name."""
    networks = {part: net for part, net in family.trainable().items() if part in PREFIXES}
    several = "text_encoder_2" in networks
    return {
        kohya_name(part, path, several=several): Place(part, path, layer)
        for part, network in networks.items()
        for path, layer in _layers(network)
        if isinstance(original(layer), nn.Linear | nn.Conv2d)
    }


def prefixes(part: str, parts: Collection[str]) -> list[str]:
    """What may stand before a layer's name in a network. A denoiser's layers, and a text encoder's when it is the only one, need none."""
    if part in DENOISERS:
        return ["lora_unet_", f"lora_{part}_", "lycoris_", "diffusion_model_", "model_diffusion_model_", f"{part}_", ""]
    only = sum(p not in DENOISERS for p in parts) == 1
    comfy = [name for p, names in COMFY_TEXT.items() if p == part or only for name in names]
    told = [PREFIXES[part], f"{part}_", *(f"text_encoders_{name}_transformer_" for name in comfy)]
    if part == "text_encoder" or only:
        told += ["lora_te_", "lora_te1_", "text_encoder_"]
    return list(dict.fromkeys([*told, ""] if only else told))


def spellings(part: str, network: nn.Module, paths: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Paths by every flat name a layer, or several as one, has inside its network. A name with two meanings is left out."""
    found: dict[str, tuple[str, ...]] = {}
    twice = set()
    every: Iterable[tuple[tuple[str, ...], str]] = _text_names(paths)
    if part in DENOISERS:
        every = chain(_denoiser_names(network, paths), _fused_names(paths))
    for meant, name in every:
        flat = name.replace(".", "_")
        if found.setdefault(flat, meant) != meant:
            twice.add(flat)
    return {name: meant for name, meant in found.items() if name not in twice}


def block_names(unet: nn.Module) -> Iterator[tuple[str, str, str]]:
    """(path, LDM's name, DiffSynth's name) of every block of a U-Net in diffusers' layout, from its own tree.

    LDM numbers rows: a row of the way down is a resnet with its attention, or a downsampler; on the way up the upsampler ends the row it
    follows. DiffSynth numbers single blocks, and the push or pop of a skip after or before each row.
    """
    down, middle, up = (list(_blocks(unet, side)) for side in ("down_blocks", "mid_block", "up_blocks"))
    at = 0
    for n, row in enumerate(down, 1):
        for k, path in enumerate(row):
            yield path, f"input_blocks.{n}.{k}", f"blocks.{at + k}"
        at += len(row) + 1
    for k, path in enumerate(path for row in middle for path in row):
        yield path, f"middle_block.{k}", f"blocks.{at + k}"
    at += sum(map(len, middle))
    for n, row in enumerate(up):
        for k, path in enumerate(row):
            yield path, f"output_blocks.{n}.{k}", f"blocks.{at + 1 + k}"
        at += len(row) + 1


def _blocks(unet: nn.Module, side: str) -> Iterator[list[str]]:
    held = dict(unet.named_children()).get(side)
    if held is None:
        return
    for path, block in [(side, held)] if side == "mid_block" else [(f"{side}.{i}", b) for i, b in held.named_children()]:
        yield from _rows(block, path)


def _rows(block: nn.Module, path: str) -> list[list[str]]:
    count = {name: len(list(held.children())) for name, held in block.named_children()}
    rows = [
        [f"{path}.{kind}.{j}" for kind in ("resnets", "attentions") if j < count.get(kind, 0)] for j in range(count.get("resnets", 0))
    ]
    if count.get("downsamplers"):
        rows.append([f"{path}.downsamplers.0"])
    if count.get("upsamplers") and rows:
        rows[-1].append(f"{path}.upsamplers.0")
    return rows


def _denoiser_names(network: nn.Module, paths: Collection[str]) -> Iterator[tuple[tuple[str], str]]:
    blocks = {path: (ldm, diffsynth) for path, ldm, diffsynth in block_names(network)}
    for path in paths:
        names = [path, LDM_TOP.get(path, path), _sd3_name(path)]
        block = next((head for n in (3, 4) if (head := ".".join(path.split(".")[:n])) in blocks), "")
        if block:
            inner, (ldm, diffsynth) = path.removeprefix(f"{block}."), blocks[block]
            names.append(f"{ldm}.{LDM_INNER[block.split('.')[-2]].get(inner, inner)}")
            names += [f"{diffsynth}.{name}" for name in (inner, _ending(inner, DIFFSYNTH_INNER))]
        for name in names:
            yield (path,), name
            yield (path,), _ending(name, {"to_out.0": "to_out"})


def _sd3_name(path: str) -> str:
    if path.startswith("transformer_blocks"):
        return _ending(path, SD3_INNER).replace("transformer_blocks", "joint_blocks", 1)
    return SD3_TOP.get(path, path)


def _fused_names(paths: Collection[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    for head in sorted({".".join(path.split(".")[:2]) for path in paths if path.startswith("transformer_blocks.")}):
        for name, parts in SD3_FUSED.items():
            meant = tuple(f"{head}.{part}" for part in parts)
            if all(path in paths for path in meant):
                yield meant, f"{_sd3_name(head)}.{name}"
        if f"{head}.attn.to_add_out" in paths:  # the last block has none of it, and its modulation's halves the other way round
            yield (f"{head}.norm1_context.linear",), f"{_sd3_name(head)}.context_block.adaLN_modulation.1"


def _text_names(paths: Collection[str]) -> Iterator[tuple[tuple[str], str]]:
    for path in paths:
        inner = path.removeprefix("text_model.")
        for name in (inner, _ending(inner, OLD_TEXT)):
            yield (path,), name
            yield (path,), f"text_model.{name}"


def _ending(name: str, other: Mapping[str, str]) -> str:
    """The name with its end called otherwise, or as it is."""
    for ours, theirs in other.items():
        if name.endswith(f".{ours}"):
            return name.removesuffix(ours) + theirs
    return name


def _layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that hold a weight of floating numbers, by path; one that is wrapped, as wrapped. No module twice."""
    todo = [("", network)]
    seen: set[int] = set()
    while todo:
        path, module = todo.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        weight = own(module, "weight")
        if weight is not None and weight.is_floating_point() and path:
            yield path, module
        if not isinstance(module, Beside):
            todo += reversed([(f"{path}.{name}" if path else name, child) for name, child in module.named_children()])
