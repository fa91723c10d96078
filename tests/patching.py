"""Random patches for the tiny models, and a look at everything a patch could leave behind."""
import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from safelight.families import Family
from safelight.patches import control, embedding, lora
from safelight.values import NO_FILE, Blob, Cond, Patch
from tests.dialects import ldm


def tensors(family: Family, *, rank: int = 2, alpha: float = 1.0) -> dict[str, torch.Tensor]:
    """A kohya-layout LoRA on every layer it may change."""
    torch.manual_seed(5)
    out = {}
    for name, place in lora.places(family).items():
        shape = place.layer.weight.shape
        out[f"{name}.lora_down.weight"] = torch.randn(rank, *shape[1:]) * 0.1
        out[f"{name}.lora_up.weight"] = torch.randn(shape[0], rank, *[1] * (len(shape) - 2)) * 0.1
        out[f"{name}.alpha"] = torch.tensor(alpha)
    return out


def write(family: Family, path: Path, **shape: Any) -> Patch:
    save_file(tensors(family, **shape), path)
    return Patch("lora", Blob.of(path))


def look(family: Family) -> dict[str, Any]:
    """Everything a patch could leave behind, deep enough to compare."""
    seen: dict[str, Any] = {}
    for part, network in family.trainable().items():
        seen[part] = [(name, type(m)) for name, m in network.named_modules()]
        for name, m in network.named_modules():
            own = {k: v for k, v in vars(m).items() if not k.startswith("_")}
            seen[f"{part}.{name}"] = (sorted(vars(m)), copy.copy(own), len(m._forward_hooks), len(m._forward_pre_hooks))
            config = vars(m).get("config", vars(m).get("_internal_dict"))
            seen[f"{part}.{name}.config"] = None if config is None else dict(vars(config))
        seen[f"{part}.flags"] = [(n, p.requires_grad, p.grad is None, id(p)) for n, p in network.named_parameters()]
        seen[f"{part}.state"] = {k: v.clone() for k, v in network.state_dict().items()}
    return seen


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    states = [k for k in a if k.endswith(".state")]
    equal = all(a[k].keys() == b[k].keys() and all(torch.equal(a[k][n], b[k][n]) for n in a[k]) for k in states)
    return equal and {k: v for k, v in a.items() if k not in states} == {k: v for k, v in b.items() if k not in states}


def a_net(family: Family, seed: int = 0) -> Any:
    """A ControlNet that is not zero."""
    torch.manual_seed(seed)
    net = control.fresh(family)
    for block in [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]:
        nn.init.normal_(block.weight, std=0.1)
    return net


def with_hint(p: Patch, hint: torch.Tensor, folder: Path, **options: float) -> Patch:
    """The patch with other hint pictures (B, H, W, 3) and other options."""
    path = folder / f"hint{hash(hint.numpy().tobytes())}.safetensors"
    save_file({"hint": hint.contiguous()}, path)
    blob = Blob.of(path)
    return replace(p, options={**p.options, **options, "hint": blob.sha256}, files={"hint.safetensors": blob})


def a_control(family: Family, path: Path, *, seed: int = 0) -> Patch:
    """A ControlNet of random weights and a random hint."""
    save_file(a_net(family, seed).state_dict(), path)
    side = 8 * family.factor
    return with_hint(Patch("control", Blob.of(path)), torch.rand(1, side, side, 3), path.parent)


def a_freeu(family: Family, path: Path) -> Patch:
    """FreeU at strong scales."""
    return Patch("freeu", NO_FILE, options={"b1": 2.0, "b2": 2.0, "s1": 0.2, "s2": 0.2})


def an_adapter(family: Family, path: Path, *, plus: bool = False, seed: int = 0, wide: int = 16) -> Patch:
    """An IP-Adapter of random weights in the original layout, that has seen a random picture; `wide` is the encoder's vector."""
    torch.manual_seed(seed)
    unet: Any = family.trainable()["unet"]
    text = unet.config.cross_attention_dim
    crossed = [unet.get_submodule(n.removesuffix(".processor")) for n in unet.attn_processors if n.endswith("attn2.processor")]
    out = {f"ip_adapter.{2 * i + 1}.to_{kv}_ip.weight": torch.randn(a.inner_dim, text) for i, a in enumerate(crossed) for kv in "kv"}
    out |= {f"image_proj.{name}": t for name, t in (_resampler(text, wide) if plus else _projection(text, wide)).items()}
    save_file(out, path)
    seen = {name: torch.randn(1, 1, *([5] if plus else []), wide) for name in ("picture", "nothing")}
    save_file(seen, path.with_suffix(".seen.safetensors"))
    blob = Blob.of(path.with_suffix(".seen.safetensors"))
    return Patch("ip_adapter", Blob.of(path), options={"picture": blob.sha256}, files={"picture.safetensors": blob})


def _projection(text: int, wide: int) -> dict[str, torch.Tensor]:
    return {"proj.weight": torch.randn(4 * text, wide), "proj.bias": torch.randn(4 * text), "norm.weight": torch.ones(text),
            "norm.bias": torch.zeros(text)}


def _resampler(text: int, wide: int, hidden: int = 64) -> dict[str, torch.Tensor]:
    shapes = {"latents": (1, 4, hidden), "proj_in.weight": (hidden, wide), "proj_in.bias": (hidden,), "proj_out.weight": (text, hidden)}
    shapes |= {"proj_out.bias": (text,), "norm_out.weight": (text,), "norm_out.bias": (text,)}
    for i in range(4):
        norms = [f"layers.{i}.{name}.{kind}" for name in ("0.norm1", "0.norm2", "1.0") for kind in ("weight", "bias")]
        shapes |= dict.fromkeys(norms, (hidden,))
        shapes |= {f"layers.{i}.0.to_q.weight": (64, hidden), f"layers.{i}.0.to_kv.weight": (128, hidden)}
        shapes |= {f"layers.{i}.0.to_out.weight": (hidden, 64), f"layers.{i}.1.1.weight": (256, hidden)}
        shapes |= {f"layers.{i}.1.3.weight": (hidden, 256)}
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def a_vision(folder: Path, wide: int = 16) -> Path:
    """A tiny CLIP vision model."""
    torch.manual_seed(2)
    heads = max(2, wide // 64)
    shape: dict[str, int] = {"hidden_size": wide, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": heads}
    config = CLIPVisionConfig(**shape, image_size=32, patch_size=8, projection_dim=wide)
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def an_embedding(family: Family, path: Path, *, key: str = "red", count: int = 2, width: int = 32) -> Patch:
    """A textual inversion that prompts call by `embedding:NAME`, and by its key in diffusers' way."""
    torch.manual_seed(4)
    save_file({key: torch.randn(count, width)}, path)
    return Patch("embedding", Blob.of(path), options={"words": embedding.describe(str(path), path.stem)["words"]})


def a_full(family: Family, path: Path) -> Patch:
    """Some of the U-Net's weights, moved."""
    torch.manual_seed(6)
    state = family.trainable()["unet"].state_dict()
    save_file({f"unet.{n}": (t + 0.2 * torch.randn_like(t)).contiguous() for n, t in state.items() if "attn" in n}, path)
    return Patch("full", Blob.of(path))


def gated(family: Family) -> Any:
    """The family's U-Net as diffusers builds it with GLIGEN's gates, which are random."""
    torch.manual_seed(7)
    unet: Any = family.trainable()["unet"]
    made = UNet2DConditionModel(**{n: v for n, v in unet.config.items() if not n.startswith("_")} | {"attention_type": "gated"})
    made.load_state_dict(unet.state_dict(), strict=False)
    for name, p in made.named_parameters():
        if "fuser" in name or "position_net" in name:
            nn.init.normal_(p, std=0.3)
    return made.eval().requires_grad_(False)


def a_gligen(family: Family, path: Path) -> Patch:
    """Gates of random weights, for conditions with boxes."""
    save_file({n: t for n, t in gated(family).state_dict().items() if "fuser" in n or "position_net" in n}, path)
    return Patch("gligen", Blob.of(path))


def a_hypernetwork(family: Family, path: Path) -> Patch:
    """One for both widths of the tiny models."""
    torch.manual_seed(9)
    shapes = {f"{w}.{i}.linear.{n}.{end}": s for w in (32, 64) for i in (0, 1)
              for n, a, b in ((0, w, 8), (1, 8, w)) for end, s in (("weight", (b, a)), ("bias", (b,)))}
    save_file({n: torch.randn(s) * 0.3 for n, s in shapes.items()}, path)
    return Patch("hypernetwork", Blob.of(path))


MAKERS: dict[str, Callable[[Family, Path], Patch]] = {
    "lora": write, "control": a_control, "freeu": a_freeu, "ip_adapter": an_adapter, "embedding": an_embedding,
    "full": a_full, "gligen": a_gligen, "hypernetwork": a_hypernetwork, "weak": lambda family, path: Patch("weak", NO_FILE),
    "attention": lambda family, path: Patch("attention", NO_FILE, options={"how": "scaled", "where": "cross", "out": 4.0}),
}
"""One maker a kind: a patch of random weights that changes what the network says of `a red apple`."""


def asked(family: Family, n: int = 2, **extras: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Cond]:
    sigma = family.sigmas[torch.linspace(100, 900, n).long()]
    with torch.no_grad():
        said = family.encode_text(["a red apple", "night city", "a girl"][:n])
    noise = torch.randn(n, family.channels, 8, 8, generator=torch.Generator().manual_seed(1))
    return noise, sigma, Cond(said.tokens, {**said.extras, **extras})


def told(family: Family) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
    """What the U-Net is given for `asked`."""
    seen: list[Any] = []
    unet = family.trainable()["unet"]
    handle = unet.register_forward_pre_hook(lambda _, args, rest: seen.append((args, rest)), with_kwargs=True)
    family.predict(*asked(family))
    handle.remove()
    (x, t), rest = seen[0]
    return x, t, rest.pop("encoder_hidden_states"), {k: v for k, v in rest.items() if k != "return_dict" and v is not None}


def by_hand(family: Family, nets: list[tuple[Any, torch.Tensor, float]]) -> torch.Tensor:
    """The U-Net with the nets' outputs given to it as diffusers wants them."""
    x, t, text, rest = told(family)
    found: list[torch.Tensor] = []
    for net, hint, strength in nets:
        shown = hint.permute(0, 3, 1, 2).expand(len(x), -1, -1, -1)
        heard = text if net.encoder_hid_proj is None else net.encoder_hid_proj(text)
        down, mid = net(x[:, : net.config.in_channels], t, heard, shown, conditioning_scale=strength, return_dict=False, **rest)
        found = [a + b for a, b in zip(found, [*down, mid], strict=True)] if found else [*down, mid]
    *below, middle = found
    steered = {"down_block_additional_residuals": tuple(below), "mid_block_additional_residual": middle}
    out: torch.Tensor = family.trainable()["unet"](x, t, text, **steered, **rest).sample
    return out


def in_original_layout(family: Family, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A ControlNet's tensors by the names of the original repository."""
    hints = {"conv_in": 0, "conv_out": 14}
    out = {}
    for name, t in tensors.items():
        first, _, rest = name.partition(".")
        number, _, end = rest.removeprefix("blocks.").partition(".")
        if first == "controlnet_cond_embedding":
            at, end = (hints[number], end) if number in hints else (2 * int(number) + 2, end)
            out[f"input_hint_block.{at}.{end}"] = t
        elif first == "controlnet_down_blocks":
            out[f"zero_convs.{number}.0.{end}"] = t
        else:
            out[f"middle_block_out.0.{rest}" if first == "controlnet_mid_block" else ldm(family, name)] = t
    return out
