"""One random adapter in every program's names, and adapters of every kind by peft itself."""
import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from safelight.patches import lora
from safelight.patches.lora.names import LDM_INNER, LDM_TOP, block_names

RANK, ALPHA = 2, 3.0
DENOISERS = ("unet", "transformer")
Tensors = dict[str, Tensor]
Pairs = dict[tuple[str, str], tuple[Tensor, Tensor]]


@cache
def blocks(family: Any) -> dict[str, tuple[str, str]]:
    return {path: (ldm, diffsynth) for path, ldm, diffsynth in block_names(family.trainable()["unet"])}


@cache
def layers(family: Any) -> dict[tuple[str, str], Any]:
    return {(at.part, at.path): at.layer for at in lora.places(family).values()}


def adapter(family: Any, only: str = "") -> Pairs:
    """A pair for every layer of the denoiser and of the text towers that are trained in the field; of the denoiser alone when `only` is not
    empty, and for those with that in their path."""
    torch.manual_seed(5)
    found = {}
    for at, layer in layers(family).items():
        shape = layer.weight.shape
        down, up = torch.randn(RANK, *shape[1:]) * 0.2, torch.randn(shape[0], RANK, *[1] * (len(shape) - 2)) * 0.2
        if only.removeprefix("unet") in at[1] and (at[0] in DENOISERS if only else _trained(family, at[0])):
            found[at] = down, up
    return found


def _trained(family: Any, part: str) -> bool:
    return part in DENOISERS or isinstance(family.trainable()[part], CLIPTextModel | CLIPTextModelWithProjection | T5EncoderModel)


def ldm(family: Any, path: str) -> str:
    """LDM's name of a layer, or of a parameter."""
    block = next((b for b in blocks(family) if path.startswith(f"{b}.")), None)
    if block:
        inner, table = path.removeprefix(f"{block}."), LDM_INNER[block.split(".")[-2]]
        head = next((h for h in table if inner == h or inner.startswith(f"{h}.")), None)
        return f"{blocks(family)[block][0]}.{inner if head is None else table[head] + inner.removeprefix(head)}"
    head = next((h for h in LDM_TOP if path == h or path.startswith(f"{h}.")), None)
    return path if head is None else LDM_TOP[head] + path.removeprefix(head)


def diffsynth(family: Any, path: str) -> str:
    block, number = next((b, n) for b, (_, n) in blocks(family).items() if path.startswith(f"{b}."))
    return path.replace(block, number).replace("to_out.0", "to_out")


def written(pairs: Pairs, name: Callable[[str, str], str], ends: tuple[str, str], alpha: bool) -> Tensors:
    """A file: `name` for each layer, the ends for down and up; without alpha its scale is in up."""
    out = {}
    for (part, path), (down, up) in pairs.items():
        out[name(part, path) + ends[0]] = down
        out[name(part, path) + ends[1]] = up if alpha else up * (ALPHA / RANK)
        if alpha:
            out[name(part, path) + ".alpha"] = torch.tensor(ALPHA)
    return out


def without_alpha(tensors: Tensors) -> Tensors:
    return {k: v for k, v in tensors.items() if not k.endswith(".alpha")}


def flat(prefix: str, path: str) -> str:
    return prefix + path.replace(".", "_")


DOWN_UP, A_B = (".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")
DEFAULT, OLD = (".lora_A.default.weight", ".lora_B.default.weight"), ("_lora.down.weight", "_lora.up.weight")
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LINEAR = (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")


@cache
def dialects(f: Any) -> dict[str, tuple[str, Tensors, dict[str, Any]]]:
    """Which layers the dialect can hold, the file, and what the user adds. The last three are those of U-Nets."""
    whole, attention = adapter(f), adapter(f, ".attn")
    unet = {at: pair for at, pair in whole.items() if at[0] in DENOISERS}
    text = {at: pair for at, pair in whole.items() if at[0] not in DENOISERS}
    te = {"text_encoder": "lora_te1_" if "text_encoder_2" in f.trainable() else "lora_te_"}
    te |= {"text_encoder_2": "lora_te2_", "text_encoder_3": "lora_te3_"}
    clip = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
    nothing: dict[str, Any] = {}

    def inner(part: str, path: str) -> str:
        other = path == "text_projection" or not isinstance(f.trainable()[part], CLIPTextModel | CLIPTextModelWithProjection)
        return path if other else f"text_model.{path.removeprefix('text_model.')}"

    def kohya(part: str, path: str) -> str:
        return flat(f"lora_{part}_", path) if part in DENOISERS else flat(te[part], inner(part, path))

    def kohya_ldm(part: str, path: str) -> str:
        return kohya(part, ldm(f, path) if part in DENOISERS else path)

    def comfy(part: str, path: str) -> str:
        if part in DENOISERS:
            return f"diffusion_model.{ldm(f, path) if part == 'unet' else path}"
        return f"text_encoders.{clip[part]}.transformer.{inner(part, path)}"

    def dotted(part: str, path: str) -> str:
        return f"{part}.{path}"

    old_unet = written(unet, dotted, (".lora.down.weight", ".lora.up.weight"), False)
    old_text = written(text, lambda p, n: f"{p}.{inner(p, n)}", LINEAR, False)
    alone = without_alpha(written(unet, lambda p, n: n, A_B, True))
    made: dict[str, tuple[str, Tensors, dict[str, Any]]] = {
        "kohya": ("", written(whole, kohya, DOWN_UP, True), nothing),
        "diffusers": ("", old_unet | old_text, nothing),
        "diffusers, peft": ("", written(whole, dotted, A_B, False), nothing),
        "peft": ("unet", written(unet, lambda p, n: f"base_model.model.{n}", DEFAULT, False), nothing),
        "peft, its alpha elsewhere": ("unet", alone, {"alpha": ALPHA}),
        "ComfyUI": ("", written(whole, comfy, A_B, True), nothing),
        "OneTrainer": ("", written(whole, dotted, DOWN_UP, True) | {"bundle_emb.cat.clip_l": torch.zeros(2, 12)}, nothing),
        "LyCORIS": ("unet", written(unet, lambda p, n: flat("lycoris_", n), DOWN_UP, True), nothing),
    }
    if "unet" not in f.trainable():
        return made
    procs = written(attention, lambda p, n: ".processor.".join(n.removesuffix(".0").rsplit(".", 1)), OLD, False)
    kolors = without_alpha(written(attention, lambda p, n: diffsynth(f, n), DEFAULT, True))
    return made | {
        "kohya, LDM": ("", written(whole, kohya_ldm, DOWN_UP, True), nothing),
        "attn_procs": (".attn", procs, nothing),
        "DiffSynth": (".attn", kolors, {"alpha": ALPHA}),
    }


def sd3_original(state: Tensors) -> Tensors:
    """A transformer's tensors in SD 3's own layout."""
    out = dict(state)
    fused = {"x_block.attn": ("to_q", "to_k", "to_v"), "context_block.attn": ("add_q_proj", "add_k_proj", "add_v_proj")}
    rest = {"attn.to_out.0": "x_block.attn.proj", "attn.to_add_out": "context_block.attn.proj"}
    rest |= {"norm1.linear": "x_block.adaLN_modulation.1"}
    rest |= {"norm1_context.linear": "context_block.adaLN_modulation.1", "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2"}
    rest |= {"ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2"}
    top = {"pos_embed.proj": "x_embedder.proj", "pos_embed.pos_embed": "pos_embed", "proj_out": "final_layer.linear"}
    top |= {f"time_text_embed.timestep_embedder.linear_{n}": f"t_embedder.mlp.{2 * n - 2}" for n in (1, 2)}
    top |= {f"time_text_embed.text_embedder.linear_{n}": f"y_embedder.mlp.{2 * n - 2}" for n in (1, 2)}
    top |= {"norm_out.linear": "final_layer.adaLN_modulation.1"}
    for i, end in ((i, end) for i in range(2) for end in ("weight", "bias")):
        for name, parts in fused.items():
            three = [out.pop(f"transformer_blocks.{i}.attn.{part}.{end}") for part in parts]
            out[f"joint_blocks.{i}.{name}.qkv.{end}"] = torch.cat(three)
        for ours, theirs in rest.items():
            if f"transformer_blocks.{i}.{ours}.{end}" in out:
                out[f"joint_blocks.{i}.{theirs}.{end}"] = out.pop(f"transformer_blocks.{i}.{ours}.{end}")
    for key in list(out):
        head = next((h for h in top if key == h or key.startswith(f"{h}.")), None)
        if head:
            out[top[head] + key.removeprefix(head)] = out.pop(key)
    return out


KINDS = {
    "locon": LoraConfig(r=2, lora_alpha=3, init_lora_weights=False),
    "loha": LoHaConfig(r=2, alpha=3, init_weights=False, use_effective_conv2d=True),
    "loha, flat": LoHaConfig(r=2, alpha=3, init_weights=False),
    "lokr": LoKrConfig(r=1, alpha=3, init_weights=False, decompose_both=True, use_effective_conv2d=True),
    "lokr, flat": LoKrConfig(r=1, alpha=3, init_weights=False),
    "dora": LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, use_dora=True),
    "lora, bias": LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, lora_bias=True),
}


def injected(net: Any, kind: str, style: str, *, prefix: str = "lora_unet_") -> tuple[Any, Tensors]:
    """The network with a random adapter of peft's in its attentions and convolutions, and the adapter's file in peft's names or kohya's."""
    layers = {n: m for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    usual = {n: m for n, m in layers.items() if ("attn" in n or "conv" in n) and (m.bias is not None or "bias" not in kind)}
    config = copy.deepcopy(KINDS[kind])
    config.target_modules = set(usual)
    torch.manual_seed(3)
    inject_adapter_in_model(config, net)
    file: Tensors = {}
    for key, p in net.named_parameters():
        if not ("lora_" in key or "hada_" in key or "lokr_" in key):
            continue
        p.data = p * 1.3 if "magnitude" in key else torch.randn_like(p) * 0.3
        name = next(n for n in sorted(usual, key=len, reverse=True) if key.startswith(f"{n}."))
        if style == "peft":
            file[f"base_model.model.{key.replace('.default', '')}"] = p.detach()
            continue
        end = key.replace(".default", "").removeprefix(f"{name}.").replace("lora_A", "lora_down").replace("lora_B", "lora_up")
        weight = p.detach()
        if "magnitude" in end:
            end, weight = "dora_scale", weight.flatten().view(-1, *[1] * (usual[name].weight.ndim - 1))
        file[f"{flat(prefix, name)}.{end}"] = weight
        file[f"{flat(prefix, name)}.alpha"] = torch.tensor(3.0)
    return net, file
