"""One adapter in every program's names gives one output; the maths is peft's; what does not fit is refused with numbers."""
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from safelight.op import load_ops
from safelight.patches import lora
from safelight.patches.lora.file import read
from safelight.values import Blob, Patch
from tests.dialects import (
    A_B,
    ALPHA,
    DOWN_UP,
    KINDS,
    LOHA,
    RANK,
    Pairs,
    Tensors,
    adapter,
    blocks,
    dialects,
    flat,
    injected,
    layers,
    ldm,
    sd3_original,
    without_alpha,
    written,
)
from tests.patching import look, same

OPS = load_ops()
SD = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
}
SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2, "transformer_layers_per_block": 2, "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 32,
}


@dataclass(frozen=True, eq=False)
class Networks:
    """What an adapter sees of a family: real networks by name."""

    held: dict[str, Any]
    shape: Mapping[str, Any]
    name: str = "tiny"

    def trainable(self) -> dict[str, Any]:
        return self.held

    def copied(self) -> Any:
        return networks(self.shape)


def networks(shape: Mapping[str, Any]) -> Any:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 8, 16), cross_attention_dim=12, attention_head_dim=4,
        norm_num_groups=4, **shape,
    )
    sizes = {"hidden_size": 12, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 8}
    config = CLIPTextConfig(vocab_size=20, bos_token_id=1, eos_token_id=2, pad_token_id=0, projection_dim=8, **sizes)
    held = {"unet": unet, "text_encoder": CLIPTextModel(config)}
    if "addition_embed_type" in shape:
        held["text_encoder_2"] = CLIPTextModelWithProjection(config)
    return Networks({part: net.eval().requires_grad_(False) for part, net in held.items()}, shape)


@pytest.fixture(scope="module")
def sd() -> Any:
    return networks(SD)


@pytest.fixture(scope="module")
def sdxl() -> Any:
    return networks(SDXL)


@torch.no_grad()
def said(family: Any) -> Tensor:
    torch.manual_seed(1)
    ids, nets, more = torch.tensor([[1, 5, 7, 2], [1, 9, 2, 0]]), family.trainable(), None
    if "text_encoder_2" in nets:
        more = {"text_embeds": nets["text_encoder_2"](input_ids=ids).text_embeds, "time_ids": torch.rand(2, 6)}
    hidden = nets["text_encoder"](input_ids=ids).last_hidden_state
    out: Tensor = nets["unet"](torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), hidden, added_cond_kwargs=more, return_dict=False)[0]
    return out


def closed_form(family: Any, pairs: Pairs, strength: float = 1.0, text_strength: float = 1.0) -> Tensor:
    was = {at: layers(family)[at].weight.data for at in pairs}
    for at, (down, up) in pairs.items():
        s = strength if at[0] == "unet" else text_strength
        layers(family)[at].weight.data = was[at] + s * ALPHA / RANK * (up.flatten(1) @ down.flatten(1)).view_as(was[at])
    out = said(family)
    for at, weight in was.items():
        layers(family)[at].weight.data = weight
    return out


@cache
def wanted_of(family: Any, only: str) -> Tensor:
    return closed_form(family, adapter(family, only))


def patched(family: Any, path: Path, tensors: Tensors, notes: dict[str, str] | None = None, **options: Any) -> Tensor:
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, notes)
    strength = options.pop("strength", 1.0)
    with lora.lora(family, Patch("lora", Blob.of(path), strength, options)):
        return said(family)


NAMES = [
    "kohya", "kohya, LDM", "diffusers", "diffusers, peft", "peft", "peft, its alpha elsewhere", "ComfyUI", "OneTrainer", "LyCORIS",
    "attn_procs", "DiffSynth",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["sd", "sdxl"])
def test_every_dialect_gives_the_closed_form(request: pytest.FixtureRequest, tmp_path: Path, which: str, name: str) -> None:
    family = request.getfixturevalue(which)
    only, tensors, options = dialects(family)[name]
    wanted = wanted_of(family, only)
    assert float((wanted - said(family)).abs().max()) > 0.1
    for merged in (True, False)[: 2 if which == "sd" else 1]:
        assert float((patched(family, tmp_path / "a.safetensors", tensors, merged=merged, **options) - wanted).abs().max()) < 1e-5


def test_the_dialects_are_all_tried(sd: Any) -> None:
    assert sorted(dialects(sd)) == sorted(NAMES)


@pytest.mark.parametrize("shape", [SD, SDXL, SD | {"layers_per_block": 2}])
def test_ldm_names_are_those_diffusers_converts(shape: dict[str, Any]) -> None:
    family = networks(shape)
    unet = family.trainable()["unet"]
    state = {key: value + i for i, (key, value) in enumerate(unet.state_dict().items())}
    stored = {f"model.diffusion_model.{ldm(family, key)}": value for key, value in state.items()}
    converted = convert_ldm_unet_checkpoint(stored, dict(unet.config))
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[key], state[key]) for key in state)


def test_names_of_real_files(sdxl: Any) -> None:
    named = {number: path for path, (_, number) in blocks(sdxl).items() if "attentions" in path}
    kolors = {7: "down_blocks.1.attentions.0", 18: "down_blocks.2.attentions.1", 21: "mid_block.attentions.0"}
    assert [int(n.split(".")[1]) for n in named] == [7, 10, 15, 18, 21, 25, 28, 31, 35, 38, 41]
    assert all(named[f"blocks.{n}"] == path for n, path in kolors.items())
    names = {name: path for path, (name, _) in blocks(sdxl).items()}
    assert names["input_blocks.4.1"] == "down_blocks.1.attentions.0" and names["output_blocks.2.2"] == "up_blocks.0.upsamplers.0"


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
@pytest.mark.parametrize("kind", ["lora", "loha"])
def test_sd3_has_q_k_and_v_in_one(tmp_path: Path, prefix: str, kind: str) -> None:
    torch.manual_seed(0)
    net = SD3Transformer2DModel(
        sample_size=8, num_layers=2, attention_head_dim=4, num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=8,
        pooled_projection_dim=8, pos_embed_max_size=8,
    ).requires_grad_(False)
    family: Any = Networks({"transformer": net}, {})
    original, moved, file = sd3_original(dict(net.state_dict())), {}, {}
    for key, weight in original.items():
        moved[key] = weight
        if key.endswith(".weight") and "joint_blocks.1.context_block.adaLN" not in key and "final_layer.adaLN" not in key:
            a, b, c, d = (torch.randn(*shape) * 0.3 for shape in [(len(weight), 2), (2, weight[0].numel())] * 2)
            name = key.removesuffix(".weight").replace(".", "_" if prefix.endswith("_") else ".")
            ends = {"lora_up.weight": a, "lora_down.weight": b} if kind == "lora" else dict(zip(LOHA, (a, b, c, d), strict=True))
            file |= {f"{prefix}{name}.{end}": t for end, t in ends.items()}
            moved[key] = weight + (a @ b if kind == "lora" else (a @ b) * (c @ d)).view_as(weight)
    converted = convert_sd3_transformer_checkpoint_to_diffusers(dict(moved))
    wanted = {k: v for k, v in converted.items() if "norm_out" not in k and "1.norm1_context" not in k}  # which have their halves turned
    save_file(file, tmp_path / "a.safetensors")
    before = look(family)
    with lora.lora(family, Patch("lora", Blob.of(tmp_path / "a.safetensors"))):
        now = net.state_dict()
        assert sum(not torch.equal(now[key], before["transformer.state"][key]) for key in wanted) == len(file) // len(ends) + 8
        assert all(float((now[key] - wanted[key]).abs().max()) < 1e-5 for key in wanted)
    assert same(look(family), before)


READ = [("sd", "kohya"), ("sd", "diffusers"), ("sd", "attn_procs"), ("sdxl", "kohya"), ("sdxl", "kohya, LDM")]


@pytest.mark.parametrize(("which", "name"), READ)
def test_diffusers_draws_the_same_from_the_same_file(request: pytest.FixtureRequest, tmp_path: Path, which: str, name: str) -> None:
    family = request.getfixturevalue(which)
    tensors = {k: v for k, v in dialects(family)[name][1].items() if "lora_te" not in k and "text_encoder" not in k}
    if which == "sdxl":  # diffusers misreads kohya's names of these
        tensors = {k: v for k, v in tensors.items() if not any(part in k for part in ("time_emb", "label_emb", "add_emb"))}
    ours = patched(family, tmp_path / "a.safetensors", tensors)
    theirs = family.copied()
    unet = theirs.trainable()["unet"]
    pipeline = StableDiffusionXLPipeline if which == "sdxl" else StableDiffusionPipeline
    if name == "attn_procs":
        unet.load_lora_adapter(dict(tensors), prefix=None)
    else:
        state, alphas = pipeline.lora_state_dict(dict(tensors), unet_config=unet.config)[:2]
        pipeline.load_lora_into_unet(state, network_alphas=alphas, unet=unet)
    assert float((said(theirs) - ours).abs().max()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", ["peft", "kohya"])
def test_the_maths_is_pefts(sd: Any, tmp_path: Path, kind: str, style: str) -> None:
    theirs = sd.copied()
    _, file = injected(theirs.trainable()["unet"], kind, style)
    options = {"alpha": 3.0} if style == "peft" else {}
    wanted = said(theirs)
    assert float((wanted - said(sd)).abs().max()) > 0.1
    before = look(sd)
    for merged in (True, False):
        assert float((patched(sd, tmp_path / "a.safetensors", file, merged=merged, **options) - wanted).abs().max()) < 1e-5
        assert same(look(sd), before)


def on_one_layer(family: Any, path: str) -> tuple[nn.Module, str]:
    return family.trainable()["unet"].get_submodule(path), flat("lora_unet_", path)


def weight_after(family: Any, path: Path, tensors: Tensors, layer: nn.Module, **options: Any) -> tuple[Tensor, Tensor | None]:
    save_file(tensors, path)
    with lora.lora(family, Patch("lora", Blob.of(path), options.pop("strength", 1.0), options)):
        assert isinstance(layer.weight, Tensor)
        return layer.weight.clone(), None if layer.bias is None else layer.bias.clone()


def test_a_locon_with_a_core(sd: Any, tmp_path: Path) -> None:
    layer, name = on_one_layer(sd, "down_blocks.0.resnets.0.conv1")
    torch.manual_seed(0)
    down, mid, up = torch.randn(2, 8, 1, 1), torch.randn(2, 2, 3, 3), torch.randn(8, 2, 1, 1)
    file = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.lora_mid.weight": mid}
    file[f"{name}.alpha"] = torch.tensor(3.0)
    x = torch.randn(1, 8, 6, 6)
    wanted = layer(x) + 1.5 * nn.functional.conv2d(nn.functional.conv2d(nn.functional.conv2d(x, down), mid, padding=1), up)
    weight, bias = weight_after(sd, tmp_path / "a.safetensors", file, layer)
    assert float((nn.functional.conv2d(x, weight, bias, padding=1) - wanted).abs().max()) < 1e-4


@pytest.mark.parametrize("path", ["down_blocks.0.resnets.0.conv1", "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2"])
@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_dora_over_either_axis(sd: Any, tmp_path: Path, path: str, by_row: bool, strength: float) -> None:
    layer, name = on_one_layer(sd, path)
    was: Any = layer.weight
    torch.manual_seed(0)
    down, up = torch.randn(2, *was.shape[1:]), torch.randn(was.shape[0], 2, *[1] * (was.ndim - 2))
    moved = was + 1.5 * (up.flatten(1) @ down.flatten(1)).view_as(was)
    matrix = moved.flatten(1) if by_row else moved.transpose(0, 1).flatten(1)
    m = torch.rand(len(matrix)) + 0.5
    turned = matrix * (m / matrix.norm(dim=1))[:, None]
    wanted = turned.view_as(was) if by_row else turned.view_as(was.transpose(0, 1)).transpose(0, 1)
    scale = m.view(-1, *[1] * (was.ndim - 1)) if by_row else m.view(1, -1, *[1] * (was.ndim - 2))
    pair = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(3.0)}
    weight, _ = weight_after(sd, tmp_path / "a.safetensors", {**pair, f"{name}.dora_scale": scale.contiguous()}, layer, strength=strength)
    assert float((weight - (was + strength * (wanted - was))).abs().max()) < 1e-5


@pytest.mark.parametrize(("end", "end_of_bias"), [("diff", "diff_b"), ("w_norm", "b_norm")])
def test_full_differences_reach_norms_and_biases(sd: Any, tmp_path: Path, end: str, end_of_bias: str) -> None:
    path = "down_blocks.0.resnets.0.norm2" if end == "w_norm" else "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    layer: Any = sd.trainable()["unet"].get_submodule(path)
    name, had = flat("lora_unet_", ldm(sd, path)), layer.bias
    weight, bias = torch.randn_like(layer.weight), torch.randn(len(layer.weight))
    file = {f"{name}.{end}": weight, f"{name}.{end_of_bias}": bias}
    after, bias_after = weight_after(sd, tmp_path / "a.safetensors", file, layer, strength=0.5)
    assert torch.equal(after, layer.weight + 0.5 * weight)
    assert bias_after is not None and torch.equal(bias_after, 0.5 * bias if had is None else had + 0.5 * bias)
    assert layer.bias is had
    merged, beside = (patched(sd, tmp_path / "a.safetensors", file, merged=m) for m in (True, False))
    assert float((merged - beside).abs().max()) < 1e-5 < float((merged - said(sd)).abs().max())


def test_strengths_of_the_networks_are_apart(sd: Any, tmp_path: Path) -> None:
    _, tensors, _ = dialects(sd)["kohya"]
    got = patched(sd, tmp_path / "a.safetensors", tensors, strength=0.5, text_strength=-0.3)
    assert float((got - closed_form(sd, adapter(sd), 0.5, -0.3)).abs().max()) < 1e-5


@pytest.mark.parametrize("order", [(True, True), (False, False), (True, False), (False, True)])
def test_several_at_once_add_up_in_either_form(sd: Any, tmp_path: Path, order: tuple[bool, bool]) -> None:
    """The second is a DoRA, whose result depends on what the first made of the weight."""
    layer = flat("lora_unet_", "conv_in")
    first = {at: pair for at, pair in adapter(sd).items() if at[1] == "conv_in"}
    save_file(written(first, lambda p, n: flat("lora_unet_", n), DOWN_UP, True), tmp_path / "one.safetensors")
    pair = {f"{layer}.lora_down.weight": torch.ones(1, 4, 3, 3), f"{layer}.lora_up.weight": torch.ones(8, 1, 1, 1)}
    save_file({**pair, f"{layer}.dora_scale": torch.rand(8, 1, 1, 1)}, tmp_path / "two.safetensors")
    said_by = []
    for forms in ((True, True), order):
        named = zip(("one", "two"), forms, strict=True)
        one, two = (Patch("lora", Blob.of(tmp_path / f"{name}.safetensors"), options={"merged": form}) for name, form in named)
        before = look(sd)
        with lora.lora(sd, one), lora.lora(sd, two), lora.lora(sd, one):
            said_by.append(said(sd))
        assert same(look(sd), before)
    assert float((said_by[0] - said_by[1]).abs().max()) < 1e-5


def test_a_pair_may_have_the_other_form_of_a_pointwise_layer(sd: Any, sdxl: Any, tmp_path: Path) -> None:
    """A 1x1 convolution in one program is a linear layer in another."""

    def other(t: Tensor) -> Tensor:
        return t.flatten(1) if t.ndim == 4 else t[..., None, None]

    for family in (sd, sdxl):
        pairs = {at: p for at, p in adapter(family).items() if at[1].endswith("proj_in")}
        turned = {at: (other(down), other(up)) for at, (down, up) in pairs.items()}
        file = written(turned, lambda p, n: flat("lora_unet_", n), DOWN_UP, True)
        for merged in (True, False):
            assert float((patched(family, tmp_path / "a.safetensors", file, merged=merged) - closed_form(family, pairs)).abs().max()) < 1e-5


@pytest.mark.parametrize("inner", ["", "unet."])
def test_alpha_from_pefts_settings_in_the_header(sd: Any, tmp_path: Path, inner: str) -> None:
    pairs = adapter(sd, ".attn")
    special = next(path for _, path in pairs)
    tensors = without_alpha(written(pairs, lambda p, n: inner + n, A_B, True))
    config = {f"{inner}r": RANK, f"{inner}lora_alpha": 7.0, f"{inner}alpha_pattern": {special: 5.0}}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    scales = {name: change.weight.scale for name, change in read(str(tmp_path / "a.safetensors")).items()}  # type: ignore[union-attr]
    assert scales.pop(flat(inner, special).replace(".", "_")) == 5.0 / RANK
    assert set(scales.values()) == {7.0 / RANK}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps({**config, f"{inner}use_rslora": True})})
    assert next(reversed(read(str(tmp_path / "a.safetensors")).values())).weight.scale == pytest.approx(7.0 / RANK**0.5)  # type: ignore[union-attr]


def test_a_file_of_another_model_is_refused_with_numbers(sd: Any, sdxl: Any, tmp_path: Path) -> None:
    _, tensors, _ = dialects(sdxl)["kohya, LDM"]
    save_file(tensors, tmp_path / "xl.safetensors")
    before = look(sd)
    says = rf"\d+ of {len(tensors)} keys match this tiny model; misfits: lora_te2_.*no such layer.* more layers"
    with pytest.raises(ValueError, match=says):
        patched(sd, tmp_path / "xl.safetensors", tensors)
    assert same(look(sd), before)


def test_text_that_does_not_fit_can_be_left_out(sd: Any, tmp_path: Path) -> None:
    only = {at: pair for at, pair in adapter(sd).items() if at[0] == "unet"}
    _, tensors, _ = dialects(sd)["kohya"]
    foreign = {k.replace("_mlp_fc1", "_feed_forward"): v for k, v in tensors.items()}
    with pytest.raises(ValueError, match="text_strength=0"):
        patched(sd, tmp_path / "a.safetensors", foreign)
    got = patched(sd, tmp_path / "a.safetensors", foreign, text_strength=0.0)
    assert float((got - closed_form(sd, only)).abs().max()) < 1e-5


NAME = "lora_unet_conv_in"
PAIR = {f"{NAME}.lora_down.weight": torch.ones(2, 4, 3, 3), f"{NAME}.lora_up.weight": torch.ones(8, 2, 1, 1)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lora_unet_no.lora_down.weight": torch.ones(2, 3), "lora_unet_no.lora_up.weight": torch.ones(3, 2)}, "2 of 4 keys.*lora_unet_no"),
        ({"lora_unet___class__.diff": torch.ones(3)}, "2 of 3 keys.*__class__.diff .no such layer"),
        ({"unet.conv_in.__init__.__globals__.diff": torch.ones(3)}, "no such layer"),
        ({"unet.down_blocks.diff": torch.ones(3)}, "no such layer"),
        ({f"{NAME}.oft_blocks": torch.ones(3)}, "oft_blocks.* is not part of an adapter"),
        ({"x" * 500 + ".alpha": torch.ones(1)}, "is not part of an adapter"),
        ({f"{NAME}.lokr_t1": torch.ones(3)}, "is not part of an adapter"),
        ({f"{NAME}.hada_w1_a": torch.ones(3, 2)}, "incomplete"),
        ({f"{NAME}.alpha": torch.ones(2)}, "alpha .* is no number"),
        ({f"{NAME}.dora_scale": torch.ones(5, 1, 1, 1)}, "its magnitude"),
        ({f"{NAME}.lora_mid.weight": torch.ones(3, 3, 3, 3)}, "do not fit each other"),
        ({f"{NAME}.lora_up.weight": torch.ones(8, 3, 1, 1)}, "do not fit each other"),
        ({f"{NAME}.lora_down.weight": torch.ones(2, 4, 5, 5)}, "the layer is"),
        ({f"{NAME}.diff_b": torch.ones(9)}, "bias has 8 values"),
        ({"unet.conv_in.diff": torch.ones(8, 4, 3, 3)}, "the same layer as lora_unet_conv_in"),
        ({"lora_unet.conv_in.lora_up.weight": torch.ones(8, 2, 1, 1)}, "more than one adapter"),
        ({"lora_unet_time_embedding_linear_1.alpha": torch.ones(())}, "incomplete"),
    ],
)
def test_nothing_is_dropped_silently(sd: Any, tmp_path: Path, change: Tensors, says: str) -> None:
    before = look(sd)
    with pytest.raises(ValueError, match=says):
        patched(sd, tmp_path / "a.safetensors", {**PAIR, **change})
    assert same(look(sd), before)


def test_a_file_says_what_it_is(sd: Any, tmp_path: Path) -> None:
    for name, (_, tensors, _) in dialects(sd).items():
        save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "a.safetensors")
        known = lora.describe(str(tmp_path / "a.safetensors"))
        assert known["dialect"].split(",")[0] == ("diffusers" if name == "peft, its alpha elsewhere" else name.split(",")[0])
        assert known["rank"] == RANK and known["ranks"] == [RANK]
        assert known["networks"] == (["unet", "text_encoder"] if "text" in str(list(tensors)) else ["unet"])
        assert known["kinds"] == (["lora"] if name in ("attn_procs", "DiffSynth") else ["locon"])
        assert known["alpha"] == ("in the file" if any("alpha" in key for key in tensors) else "none")


def test_a_file_says_what_it_was_trained_on(tmp_path: Path) -> None:
    often = json.dumps({"10_sks cat": {"sks": 9, "a cat": 4}, "5_more": {"a cat": 3, "sunny": 1, "broken": "no"}})
    notes = {"ss_tag_frequency": often, "ss_base_model_version": "sd_v1", "modelspec.trigger_phrase": "sks cat", "other": "x"}
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    pair = {f"{key}.lora_down.weight": torch.ones(4, 768), f"{key}.lora_up.weight": torch.ones(320, 4)}
    save_file(pair, tmp_path / "a.safetensors", notes)
    assert lora.describe(str(tmp_path / "a.safetensors")) == {
        "dialect": "kohya, diffusers block names", "kinds": ["lora"], "layers": 1, "keys": 2, "total": 2, "rank": 4, "ranks": [4],
        "networks": ["unet"], "alpha": "none", "base": "Stable Diffusion 1.x", "trigger": "sks cat",
        "tags": ["sks", "a cat", "sunny", "broken"], "ss_base_model_version": "sd_v1",
    }


def test_load_lora_takes_alpha_from_the_user_from_peft_or_from_neither(sd: Any, tmp_path: Path) -> None:
    pairs = adapter(sd, ".attn")
    for folder in ("bare", "peft", "full"):
        (tmp_path / folder).mkdir()
    tensors = written(pairs, lambda p, n: f"base_model.model.{n}", A_B, True)
    torch.save(without_alpha(tensors), tmp_path / "bare" / "epoch=0-step=500.ckpt")
    save_file(without_alpha(tensors), tmp_path / "peft" / "adapter_model.safetensors")
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA, "peft_type": "LORA"}))
    save_file(tensors, tmp_path / "full" / "a.safetensors")
    wanted = closed_form(sd, pairs)
    for path in ("bare/epoch=0-step=500.ckpt", "peft/adapter_model.safetensors", "full/a.safetensors"):
        patch: Patch = OPS["load_lora"](tmp_path / path, **({"alpha": ALPHA} if "bare" in path else {}))
        with lora.lora(sd, patch):
            assert float((said(sd) - wanted).abs().max()) < 1e-5
    for path in ("peft/adapter_model.safetensors", "full/a.safetensors"):
        with pytest.raises(ValueError, match="leave alpha out"):
            OPS["load_lora"](tmp_path / path, alpha=2.0)
