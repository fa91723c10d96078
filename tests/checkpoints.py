"""Small random models in the layouts of single files, and the headers of the real ones: names by rules in the other direction."""
from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from safelight.families.sources import Parts

CPU = torch.device("cpu")
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """A kind of model: the networks' configurations, and how its file names the text encoders."""

    pipeline: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, tuple[type, Mapping[str, Any]]]
    prefixes: Mapping[str, str]
    scheduler: Mapping[str, Any]
    last_layer: bool = False  # the file has a text layer that nobody reads


def _unet(widths: tuple[int, ...], attends: tuple[bool, ...], cross: int, **more: Any) -> dict[str, Any]:
    return {
        "block_out_channels": widths, "cross_attention_dim": cross, "layers_per_block": 2, "sample_size": 8,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)], **more,
    }


def _vae(widths: tuple[int, ...], scale: float) -> dict[str, Any]:
    n = len(widths)
    return {
        "block_out_channels": widths, "layers_per_block": 2, "latent_channels": 4, "norm_num_groups": 32, "scaling_factor": scale,
        "down_block_types": ["DownEncoderBlock2D"] * n, "up_block_types": ["UpDecoderBlock2D"] * n,
    }


def _text(width: int, layers: int, act: str, *, words: int = 300, heads: int = 1, pad: int | None = None) -> dict[str, Any]:
    told = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads}
    marks = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1 if pad is None else pad}
    return told | {"hidden_act": act, "projection_dim": width, "vocab_size": words, **marks}


WORDS = 49408
"""How many words CLIP has."""

LINEAR = {"use_linear_projection": True}
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
OLD, OPEN = {"text_encoder": "cond_stage_model.transformer."}, {"text_encoder": "cond_stage_model.model."}
XL = {"text_encoder": "conditioner.embedders.0.transformer.", "text_encoder_2": "conditioner.embedders.1.model."}
REFINER = {"text_encoder_2": "conditioner.embedders.0.model."}
EPS, V = {**SCHEDULER, "prediction_type": "epsilon"}, {**SCHEDULER, "prediction_type": "v_prediction"}


def _size(dim: int, depth: int | list[int], heads: list[int]) -> dict[str, Any]:
    told = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": dim}
    return {**told, "transformer_layers_per_block": depth, "attention_head_dim": heads, **LINEAR}


def sd1(pipeline: str = "StableDiffusionPipeline", words: int = 300, **more: Any) -> Layout:
    unet = _unet((32, 64), (True, False), 32, attention_head_dim=8, **more)
    text = {"text_encoder": (CLIPTextModel, _text(32, 2, "quick_gelu", words=words))}
    return Layout(pipeline, unet, _vae((32, 32), 0.18215), text, OLD, EPS)


def sd2() -> Layout:
    text = {"text_encoder": (CLIPTextModel, _text(64, 2, "gelu", pad=0))}
    unet = _unet((64, 128), (True, False), 64, attention_head_dim=[1, 2], **LINEAR)
    return Layout("StableDiffusionPipeline", unet, _vae((32, 32), 0.18215), text, OPEN, V, last_layer=True)


def sdxl() -> Layout:
    unet = _unet((32, 64), (False, True), 96, **_size(64 + 6 * 256, [1, 2], [1, 1]))
    text = {
        "text_encoder": (CLIPTextModel, _text(32, 2, "quick_gelu")),
        "text_encoder_2": (CLIPTextModelWithProjection, _text(64, 2, "gelu", pad=0)),
    }
    return Layout("StableDiffusionXLPipeline", unet, _vae((32, 32), 0.13025), text, XL, EPS)


def refiner() -> Layout:
    unet = _unet((32, 64, 64), (False, True, False), 64, **_size(64 + 5 * 256, 2, [1, 1, 1]))
    text = {"text_encoder_2": (CLIPTextModelWithProjection, _text(64, 2, "gelu", pad=0))}
    return Layout("StableDiffusionXLImg2ImgPipeline", unet, _vae((32, 32), 0.13025), text, REFINER, EPS)


TINY: dict[str, Callable[[], Layout]] = {
    "sd1": sd1, "inpaint": lambda: sd1("StableDiffusionInpaintPipeline", in_channels=9), "sd2": sd2, "sdxl": sdxl, "refiner": refiner,
}

CLIP_L = (CLIPTextModel, _text(768, 12, "quick_gelu", words=WORDS, heads=12))
CLIP_H = (CLIPTextModel, _text(1024, 23, "gelu", words=WORDS, heads=16, pad=0))
CLIP_G = (CLIPTextModelWithProjection, _text(1280, 32, "gelu", words=WORDS, heads=20, pad=0))
REAL_VAE = (128, 256, 512, 512)
SD, XL3, XL4 = ((320, 640, 1280, 1280), (True, True, True, False)), ((320, 640, 1280), (False, True, True)), (False, True, True, False)

FULL: dict[str, Layout] = {
    "sd1": Layout("", _unet(*SD, 768, attention_head_dim=8), _vae(REAL_VAE, 0.18215), {"text_encoder": CLIP_L}, OLD, EPS),
    "sd2": Layout("", _unet(*SD, 1024, attention_head_dim=[5, 10, 20, 20], **LINEAR), _vae(REAL_VAE, 0.18215), {"text_encoder": CLIP_H},
                  OPEN, V, last_layer=True),
    "sdxl": Layout("", _unet(*XL3, 2048, **_size(2816, [1, 2, 10], [5, 10, 20])), _vae(REAL_VAE, 0.13025),
                   {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G}, XL, EPS),
    "refiner": Layout("", _unet((384, 768, 1536, 1536), XL4, 1280, **_size(2560, 4, [6, 12, 24, 24])), _vae(REAL_VAE, 0.13025),
                      {"text_encoder_2": CLIP_G}, REFINER, EPS),
}


def networks(layout: Layout, *, empty: bool = False, seed: int = 0) -> dict[str, Any]:
    """The networks with random weights, or without any."""

    def made() -> dict[str, Any]:
        out = {"unet": UNet2DConditionModel(**layout.unet), "vae": AutoencoderKL(**layout.vae)}
        return out | {part: cls(CLIPTextConfig(**config)) for part, (cls, config) in layout.text.items()}

    if empty:
        with init_empty_weights(include_buffers=False):
            return made()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        nets = made()
        for net in nets.values():  # norms and biases too: their default is 1 and 0, which would hide a wrong name
            for p in net.parameters():
                p.data += 0.05 * torch.randn_like(p)
        return {part: net.eval().requires_grad_(False) for part, net in nets.items()}


def folder(path: Path, layout: Layout, nets: Mapping[str, Any]) -> Path:
    """The model in diffusers layout."""
    from safelight.families.clip_words import clip_folder

    for part, net in nets.items():
        net.save_pretrained(path / part)
        if part.startswith("text"):
            words = clip_folder("!" if layout.text[part][1]["pad_token_id"] == 0 else "<|endoftext|>")
            where = path / part.replace("text_encoder", "tokenizer")
            where.mkdir()
            for f in words.iterdir():
                (where / f.name).symlink_to(f)
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler", **layout.scheduler}))
    (path / "model_index.json").write_text(json.dumps({"_class_name": layout.pipeline}))
    return path


def single(layout: Layout, nets: Mapping[str, Any]) -> Tensors:
    """The whole model's tensors by the original repositories' names."""
    out = {f"model.diffusion_model.{n}": t for n, t in unet_names(nets["unet"]).items()}
    out |= {f"first_stage_model.{n}": t for n, t in vae_names(nets["vae"]).items()}
    for part, prefix in layout.prefixes.items():
        state = nets[part].state_dict()
        named = open_names(state, layout.last_layer) if prefix.endswith(".model.") else clip_names(state)
        out |= {f"{prefix}{n}": t for n, t in named.items()}
    return out | {"alphas_cumprod": torch.ones(1000), "model_ema.decay": torch.ones(())}


def checkpoint(path: Path, layout: Layout, nets: Mapping[str, Any], *, half: bool = False, metadata: dict[str, str] | None = None) -> Path:
    """The model in a single file."""
    save(path, {n: t.half() if half and t.is_floating_point() else t for n, t in single(layout, nets).items()}, metadata)
    return path


@dataclass(frozen=True)
class Made:
    """One model, written as a folder and as a single file."""

    layout: Layout
    nets: dict[str, Any]
    folder: Path
    file: Path


Make = Callable[[str], Made]


def maker(place: Path) -> Make:
    """What makes the models of TINY, and `words` (SD 1.x with all words of CLIP), each when it is first asked for."""
    known: dict[str, Made] = {}

    def make(kind: str) -> Made:
        if kind not in known:
            layout = sd1(words=WORDS) if kind == "words" else TINY[kind]()
            nets = networks(layout)
            note = {"modelspec.prediction_type": "v"} if kind == "sd2" else None
            file = checkpoint(place / f"{kind}.safetensors", layout, nets, metadata=note)
            known[kind] = Made(layout, nets, folder(place / kind, layout, nets), file)
        return known[kind]

    return make


def built(parts: Parts, one: Made) -> dict[str, Any]:
    """The networks of the same classes, as the parts have them."""
    nets = {part: parts.build(part, type(net), device=CPU, dtype=torch.float32) for part, net in one.nets.items()}
    for net in nets.values():
        assert not net.training
        assert not any(p.requires_grad or p.is_meta for p in net.parameters())
        for p in net.parameters():  # libraries of mathematics multiply in another order where memory begins elsewhere, as mapped files do
            p.data = p.data.clone()
    return nets


def outputs(nets: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What every network says to the same inputs, in one memory layout, since another adds in another order."""
    torch.manual_seed(5)
    out = {}
    for part, net in nets.items():
        net.to(memory_format=torch.contiguous_format)
        if part == "unet":
            x, text = torch.randn(2, net.config.in_channels, 8, 8), torch.randn(2, 5, net.config.cross_attention_dim)
            ids, pooled = divmod(net.config.projection_class_embeddings_input_dim or 0, 256)
            added = {"text_embeds": torch.randn(2, pooled), "time_ids": torch.rand(2, ids) * 100} if ids else None
            out[part] = net(x, torch.tensor([3, 700]), encoder_hidden_states=text, added_cond_kwargs=added).sample
        elif part == "vae":
            out["encoded"] = net.encode(torch.randn(1, 3, 16, 16)).latent_dist.mean
            out["decoded"] = net.decode(torch.randn(1, 4, 8, 8)).sample
        else:
            said = net(input_ids=torch.tensor([[298, 20, 68, 299, *[0] * 73]]), output_hidden_states=True)
            out |= {part: said.last_hidden_state, f"{part} before": said.hidden_states[-2], f"{part} pooled": said[0]}
    return out


def separate(one: Made, place: Path, names: str) -> dict[str, str]:
    """The networks in files of their own, by the original repositories' names or by diffusers'."""
    original = names == "original"
    save(place / "unet.safetensors", unet_names(one.nets["unet"]) if original else one.nets["unet"].state_dict())
    save(place / "vae.safetensors", vae_names(one.nets["vae"]) if original else one.nets["vae"].state_dict())
    for part in one.layout.text:
        state = one.nets[part].state_dict()
        bigg = part == "text_encoder_2" or one.layout.last_layer
        save(place / f"{part}.safetensors", open_names(state) if original and bigg else clip_names(state))
    return {part: str(place / f"{part}.safetensors") for part in one.nets}


def save(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({n: t.detach().contiguous().clone() for n, t in tensors.items()}, path, metadata)
    return path


def sparse(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """A half-precision file with these shapes whose bytes are a hole."""
    told, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        told[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(told).encode()
    raw += b" " * (-len(raw) % 8)
    with open(path, "wb") as f:
        f.write(len(raw).to_bytes(8, "little") + raw)
        f.truncate(8 + len(raw) + at)
    return path


RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3",
          "conv_shortcut": "skip_connection"}
ENDS = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2", "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}


def unet_names(net: Any) -> Tensors:
    """LDM's names of a U-Net's tensors."""
    per, out = net.config.layers_per_block + 1, {}
    for name, t in net.state_dict().items():
        new = re.sub(r"(resnets\.\d+)\.(\w+)", lambda m: f"{m[1]}.{RESNET[m[2]]}", name)
        for old, end in ENDS.items():
            new = re.sub(rf"^{re.escape(old)}\.", f"{end}.", new)
        new = re.sub(r"^down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)",
                     lambda m: f"input_blocks.{int(m[1]) * per + int(m[3]) + 1}.{int(m[2] == 'attentions')}", new)
        new = re.sub(r"^down_blocks\.(\d+)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{(int(m[1]) + 1) * per}.0.op", new)
        new = re.sub(r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}", new)
        new = new.replace("mid_block.attentions.0", "middle_block.1")
        new = re.sub(r"^up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)",
                     lambda m: f"output_blocks.{int(m[1]) * per + int(m[3])}.{int(m[2] == 'attentions')}", new)
        behind = {i: 1 + ("CrossAttn" in kind) for i, kind in enumerate(net.config.up_block_types)}
        new = re.sub(r"^up_blocks\.(\d+)\.upsamplers\.0\.conv",
                     lambda m, behind=behind: f"output_blocks.{(int(m[1]) + 1) * per - 1}.{behind[int(m[1])]}.conv", new)
        out[new] = t
    return out


def vae_names(net: Any) -> Tensors:
    """LDM's names of an autoencoder's tensors; its attention is made of 1x1 convolutions."""
    levels, out = len(net.config.block_out_channels), {}
    inner = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    for name, t in net.state_dict().items():
        new = re.sub(r"up_blocks\.(\d+)\.", lambda m: f"up.{levels - 1 - int(m[1])}.", name).replace("down_blocks.", "down.")
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = new.replace("resnets.", "block.").replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        new = re.sub(r"(down|up)samplers\.0\.conv", r"\1sample.conv", new)
        found = re.match(r"(\w+)\.mid_block\.attentions\.0\.(group_norm|to_q|to_k|to_v|to_out\.0)\.(\w+)", new)
        if found:
            new = f"{found[1]}.mid.attn_1.{inner[found[2]]}.{found[3]}"
            t = t[:, :, None, None] if t.ndim == 2 else t
        out[new] = t
    return out


def clip_names(state: Tensors) -> Tensors:
    """What the transformers of the time wrote."""
    out = {n if n.startswith(("text_model.", "text_projection.")) else f"text_model.{n}": t for n, t in state.items()}
    return out | {"text_model.embeddings.position_ids": torch.arange(77)[None]}


OPEN_ENDS = {"embeddings.position_embedding.weight": "positional_embedding", "embeddings.token_embedding.weight": "token_embedding.weight",
             "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias"}
OPEN_LAYER = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
              "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def open_names(state: Tensors, last_layer: bool = False) -> Tensors:
    """OpenCLIP's names: query, key and value in one, the projection turned."""
    state = {n.removeprefix("text_model."): t for n, t in state.items()}
    layers = 1 + max(int(m[1]) for n in state if (m := re.match(r"encoder\.layers\.(\d+)\.", n)))
    width = state["final_layer_norm.weight"].shape[0]
    out = {new: state[old] for old, new in OPEN_ENDS.items()} | {"logit_scale": torch.ones(())}
    out["text_projection"] = state["text_projection.weight"].T if "text_projection.weight" in state else torch.ones(width, width)
    for i in range(layers + last_layer):
        old, new, times = f"encoder.layers.{min(i, layers - 1)}.", f"transformer.resblocks.{i}.", 1 if i < layers else 3
        for kind in ("weight", "bias"):
            out[f"{new}attn.in_proj_{kind}"] = torch.cat([state[f"{old}self_attn.{x}_proj.{kind}"] for x in "qkv"])
            out |= {f"{new}{b}.{kind}": state[f"{old}{a}.{kind}"] * times for a, b in OPEN_LAYER.items()}
    return out


JOINT_BACK = (
    ("pos_embed.pos_embed", "pos_embed"), ("pos_embed.proj", "x_embedder.proj"), ("proj_out.", "final_layer.linear."),
    ("norm_out.linear.", "final_layer.adaLN_modulation.1."), ("time_text_embed.timestep_embedder.", "t_embedder.mlp."),
    ("time_text_embed.text_embedder.", "y_embedder.mlp."), ("mlp.linear_1.", "mlp.0."), ("mlp.linear_2.", "mlp.2."),
    ("transformer_blocks.", "joint_blocks."), (".attn.to_add_out.", ".context_block.attn.proj."), (".to_out.0.", ".proj."),
    (".attn.norm_added_", ".context_block.attn.ln_"), (".norm_q.", ".ln_q."), (".norm_k.", ".ln_k."),
    (".norm1_context.linear.", ".context_block.adaLN_modulation.1."), (".norm1.linear.", ".x_block.adaLN_modulation.1."),
    (".ff_context.net.0.proj.", ".context_block.mlp.fc1."), (".ff_context.net.2.", ".context_block.mlp.fc2."),
    (".ff.net.0.proj.", ".x_block.mlp.fc1."), (".ff.net.2.", ".x_block.mlp.fc2."),
)


def joint_names(tensors: Tensors, blocks: int) -> Tensors:
    """SD 3's own names of its transformer's tensors."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        asked = re.match(r"(.*)\.(attn2?)\.(to_q|add_q_proj)\.(\w+)$", name)
        if asked:
            block, attention, first, leaf = asked.groups()
            three = [tensors[f"{block}.{attention}.{first.replace('_q', f'_{c}')}.{leaf}"] for c in "qkv"]
            side = "x" if first == "to_q" else "context"
            out[f"{block.replace('transformer_blocks', 'joint_blocks')}.{side}_block.{attention}.qkv.{leaf}"] = torch.cat(three)
        elif not re.search(r"\.(to|add)_[kv](_proj)?\.", name):
            new = name
            for old, renamed in JOINT_BACK:
                new = new.replace(old, renamed)
            new = re.sub(r"(?<!_block)\.(attn2?)\.(?=proj|ln)", r".x_block.\1.", new)
            turned = name.startswith(("norm_out", f"transformer_blocks.{blocks - 1}.norm1_context"))
            out[new] = torch.cat(tensor.chunk(2)[::-1]) if turned else tensor
    return out
