"""Union ControlNets, SD 3's, GLIGEN and hypernetworks against diffusers and closed forms; the ops and nodes that put them on."""
import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.controlnets.controlnet_sd3 import SD3ControlNetModel
from diffusers.models.controlnets.controlnet_union import ControlNetUnionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import safelight as sl
from safelight.comfy import Places, translate
from safelight.families import Family
from safelight.folders import roots
from safelight.patches import control as controls
from safelight.patches import find, hypernetwork
from safelight.patches.rows import BOXES
from safelight.sampling import regions
from safelight.sampling.process import process
from safelight.store import Store, using
from safelight.values import Blob, Cond, Patch, Region
from safelight.weights.pickles import to_safetensors
from tests import tiny
from tests.comfy.prompts import node
from tests.dialects import ldm
from tests.patching import a_gligen, a_hypernetwork, a_net, asked, gated, told, with_hint


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    return tiny.loader(tmp_path_factory.mktemp("m"))


@pytest.fixture(scope="module")
def family(load: Callable[[str], Family]) -> Family:
    return load("sd1")


def taken(cls: Any, config: Any) -> dict[str, Any]:
    return {n: v for n, v in dict(config).items() if n in inspect.signature(cls.__init__).parameters}


def put(net: Any, path: Path, family: Family, **options: Any) -> Patch:
    """The net, not zero, in a file, with a random hint."""
    torch.manual_seed(3)
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    net.eval().requires_grad_(False)
    save_file(net.state_dict(), path)
    side = 8 * family.factor
    return with_hint(Patch("control", Blob.of(path), 0.7, options), torch.rand(1, side, side, 3), path.parent)


# Unions


@pytest.fixture
def union(family: Family) -> Any:
    config = taken(ControlNetUnionModel, a_net(family).config)
    wide = config["block_out_channels"][0]
    return ControlNetUnionModel(**config | {"num_trans_channel": wide, "num_proj_channel": wide, "addition_time_embed_dim": 8})


@pytest.mark.parametrize("kind", [0, 3, 5])
def test_a_union_says_of_each_row_what_diffusers_says_of_it_alone(family: Family, union: Any, tmp_path: Path, kind: int) -> None:
    p = put(union, tmp_path / "u.safetensors", family, kind=kind)
    shown, (x, t, text, rest) = controls.read_hint(p).permute(0, 3, 1, 2), told(family)
    one = torch.zeros(1, 6)
    one[0, kind] = 1
    alone = [union(x[i : i + 1], t[i : i + 1], text[i : i + 1], [shown], one, [kind], 0.7, return_dict=False) for i in range(len(x))]
    down, middle = [torch.cat(some) for some in zip(*(a[0] for a in alone), strict=True)], torch.cat([a[1] for a in alone])
    steered = {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}
    wanted = family.trainable()["unet"](x, t, text, **steered, **rest).sample
    with find("control")(family, p):
        assert torch.allclose(family.predict(*asked(family)), wanted, atol=1e-5)
    assert (wanted - family.predict(*asked(family))).abs().max() > 0.1


def test_a_union_that_is_told_no_kind_is_a_plain_net_with_a_constant(family: Family, union: Any, tmp_path: Path) -> None:
    p = put(union, tmp_path / "u.safetensors", family)
    plain = a_net(family)
    plain.load_state_dict(union.state_dict(), strict=False)
    with torch.no_grad():
        plain.time_embedding.linear_2.bias += union.control_add_embedding(union.control_type_proj(torch.zeros(6)).flatten())
    save_file(plain.state_dict(), tmp_path / "p.safetensors")
    said = []
    for one in (p, replace(p, weights=Blob.of(tmp_path / "p.safetensors"))):
        with find("control")(family, one):
            said.append(family.predict(*asked(family)))
    assert torch.allclose(*said, atol=1e-5)
    with pytest.raises(ValueError, match="got kind 7 of hints; this union knows 6"), find("control")(
        family, replace(p, options={**p.options, "kind": 7})
    ):
        pass


# SD 3


def joint(family: Family, **more: Any) -> SD3ControlNetModel:
    return SD3ControlNetModel(**taken(SD3ControlNetModel, family.trainable()["transformer"].config) | more)


def by_diffusers(family: Family, nets: list[tuple[Any, Patch]]) -> Tensor:
    networks: Any = family.trainable()
    (x, sigma, cond), vae, depth = asked(family), networks["vae"], len(networks["transformer"].transformer_blocks)
    time, pooled = family.network.way.timestep(sigma), cond.extras["pooled"]  # type: ignore[attr-defined]
    added = [torch.zeros(())] * depth
    for net, p in nets:
        shown = vae.encode(controls.read_hint(p).permute(0, 3, 1, 2) * 2 - 1).latent_dist.mean * vae.config.scaling_factor
        more = torch.ones(1, net.config.extra_conditioning_channels, *shown.shape[2:])
        shown = torch.cat([shown, more], dim=1).expand(len(x), -1, -1, -1)
        said = net(x, shown, p.strength, cond.tokens, torch.zeros_like(pooled), time, return_dict=False)[0]
        added = [a + said[i * len(said) // depth] for i, a in enumerate(added)]
    out: Tensor = networks["transformer"](x, cond.tokens, pooled, time, added, return_dict=False)[0]
    return out


@torch.no_grad()
def test_a_control_of_sd3_does_what_diffusers_does(load: Callable[[str], Family], tmp_path: Path) -> None:
    family = load("sd3")
    nets: list[Any] = [joint(family, num_layers=1), joint(family, num_layers=2, extra_conditioning_channels=1)]
    given = [put(net, tmp_path / f"{i}.safetensors", family) for i, net in enumerate(nets)]
    plain, pairs = family.predict(*asked(family)), list(zip(nets, given, strict=True))
    with find("control")(family, given[0]):
        one = family.predict(*asked(family))
        with find("control")(family, given[1]):
            both = family.predict(*asked(family))
    assert torch.allclose(one, by_diffusers(family, pairs[:1]), atol=1e-5)
    assert torch.allclose(both, by_diffusers(family, pairs), atol=1e-5)
    with find("control")(family, replace(given[0], options={**given[0].options, "end": 0.5})):
        half = family.predict(*asked(family))
    assert torch.equal(half[0], plain[0])
    assert (half[1] - plain[1]).abs().max() > 0.1
    assert torch.equal(family.predict(*asked(family)), plain)


def test_a_net_for_sd3_is_refused_beside_a_unet(load: Callable[[str], Family], tmp_path: Path) -> None:
    p = put(joint(load("sd3"), num_layers=1), tmp_path / "j.safetensors", load("sd3"))
    with pytest.raises(ValueError, match="needs SD 3; this sd model has unet"), find("control")(load("sd1"), p):
        pass


# GLIGEN


def boxes(n: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.cat([torch.randint(0, 32, (1, n, 4)).float(), torch.randn(1, n, 32)], dim=2)


@pytest.mark.parametrize("original", [False, True])
def test_boxes_are_read_as_diffusers_reads_them(family: Family, tmp_path: Path, original: bool) -> None:
    p, net = a_gligen(family, tmp_path / "g.safetensors"), gated(family)
    if original:
        tensors = load_file(p.weights.path)
        blocks = {n.partition(".fuser")[0] for n in tensors if ".fuser" in n}
        names = {b: ldm(family, f"{b}.norm1.weight").removesuffix(".norm1.weight") for b in blocks}
        save_file({n.replace(b := n.partition(".fuser")[0], names.get(b, b)): t for n, t in tensors.items()}, p.weights.path)
        p = replace(p, weights=Blob.of(p.weights.path))
    x, sigma, cond = asked(family)
    given, size = boxes(3), 8 * family.factor
    seen, at, text, rest = told(family)
    filled, there = nn.functional.pad(given, (0, 0, 0, 27)).expand(2, -1, -1), (torch.arange(30) < 3).float().expand(2, -1)
    objects = {"boxes": filled[..., :4] / size, "masks": there, "positive_embeddings": filled[..., 4:]}
    wanted = net(seen, at, text, cross_attention_kwargs={"gligen": objects}, **rest).sample
    plain = family.predict(x, sigma, cond)
    with find("gligen")(family, p):
        boxed = replace(cond, extras={**cond.extras, BOXES: given.expand(2, -1, -1)})
        assert torch.allclose(family.predict(x, sigma, boxed), wanted, atol=1e-5)
        assert torch.equal(family.predict(x, sigma, cond), plain)
        with pytest.raises(ValueError, match="has 31 boxes, expected 30 at most"):
            family.predict(x, sigma, replace(cond, extras={BOXES: boxes(31).expand(2, -1, -1)}))
    assert (wanted - plain).abs().max() > 0.1


def test_a_gligen_of_another_shape_is_refused(family: Family, tmp_path: Path) -> None:
    p = a_gligen(family, tmp_path / "g.safetensors")
    save_file({n: t for n, t in load_file(p.weights.path).items() if "mid_block" not in n}, tmp_path / "bad.safetensors")
    bad = replace(p, weights=Blob.of(tmp_path / "bad.safetensors"))
    with pytest.raises(ValueError, match="3 gates for 4 blocks"), find("gligen")(family, bad):
        pass


def test_the_negative_side_has_the_boxes_too(family: Family) -> None:
    """Where it has none of its own; what has an area keeps to itself, and so does its counterpart."""
    tokens, way = torch.zeros(1, 4, 32), process(family)
    boxed, bare = (Cond(tokens, {BOXES: boxes(2)}), Cond(tokens))
    own = Cond(tokens, {BOXES: boxes(1)})
    there = replace(boxed, region=Region(area=(16, 16, 0, 0)))

    def counted(*given: Cond) -> list[list[int]]:
        both = regions.sides(given[0], given[1], family, (1, 4, 8, 8), way)
        return [[p.cond.extras.get(BOXES, tokens[:, :0]).shape[1] for p in side] for side in both]

    assert counted(boxed, bare) == [[2], [2]]
    assert counted(boxed, own) == [[2], [1]]
    assert counted(bare, own) == [[0], [1]]
    assert counted(replace(bare, others=(there,)), bare) == [[0, 2], [0, 2]]


# Hypernetworks


@pytest.mark.parametrize(("activation", "norm", "to_end"), [(None, False, None), ("relu", True, False), ("mish", True, True)])
def test_a_hypernetwork_changes_what_keys_and_values_are_made_of(
    family: Family, tmp_path: Path, activation: str | None, norm: bool, to_end: bool | None
) -> None:
    """The closed form, with the modules that AUTOMATIC1111 builds of such a file."""
    torch.manual_seed(2)
    act = {None: nn.Identity, "relu": nn.ReLU, "mish": nn.Mish}[activation]

    def net(w: int) -> nn.Sequential:
        parts = [nn.Linear(w, 2 * w), act(), *([nn.LayerNorm(2 * w)] if norm else []), nn.Linear(2 * w, w)]
        return nn.Sequential(*parts, *([act()] if to_end else []), *([nn.LayerNorm(w)] if norm else [])).requires_grad_(False)

    nets = {w: (net(w), net(w)) for w in (32, 64)}
    state: dict[Any, Any] = {w: tuple({f"linear.{n}": t for n, t in one.state_dict().items()} for one in pair) for w, pair in nets.items()}
    torch.save({**state, "step": 5, "name": "x", "activation_func": activation, "activate_output": to_end}, tmp_path / "h.pt")
    made = to_safetensors(tmp_path / "h.pt", tmp_path / "kept")
    theirs = copy.deepcopy(family.trainable()["unet"])
    for name, layer in theirs.named_modules():
        if name.endswith((".attn1.to_k", ".attn1.to_v", ".attn2.to_k", ".attn2.to_v")):
            one = nets[layer.in_features][name.endswith("v")]  # type: ignore[index]
            layer.register_forward_pre_hook(lambda _, given, one=one: given[0] + 0.5 * one(given[0]))  # type: ignore[misc]
    x, at, text, rest = told(family)
    with find("hypernetwork")(family, Patch("hypernetwork", Blob.of(made), 0.5)):
        assert torch.allclose(family.predict(*asked(family)), theirs(x, at, text, **rest).sample, atol=1e-5)


def test_what_is_no_hypernetwork_is_refused(family: Family, tmp_path: Path) -> None:
    save_file({"lora_up.weight": torch.ones(2, 2)}, tmp_path / "l.safetensors")
    with pytest.raises(ValueError, match="got 'lora_up\\.weight' and the activation 'linear'; expected <width>"):
        hypernetwork.read(str(tmp_path / "l.safetensors"))
    save_file({"7.0.linear.0.weight": torch.ones(7, 7), "7.0.linear.0.bias": torch.ones(7)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"got widths \[7\], none of this sd model's"), find("hypernetwork")(
        family, Patch("hypernetwork", Blob.of(tmp_path / "w.safetensors"))
    ):
        pass


# Ops and nodes


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[None]:
    with using(Store(tmp_path / "store")):
        yield


@pytest.mark.usefixtures("stored")
def test_the_ops_draw_with_them(family: Family, union: Any, tmp_path: Path) -> None:
    base = tiny.model(tiny.sd1(tmp_path / "sd1"))
    a_gligen(family, tmp_path / "g.safetensors")
    a_hypernetwork(family, tmp_path / "h.safetensors")
    cond = sl.add_box(sl.encode_text(base, "a red apple"), base, text="a girl", width=16, height=8)
    cond = sl.add_box(cond, base, text="a cat", width=8, height=8, x=8, y=16)
    assert cond.extras[BOXES][0, :, :4].tolist() == [[0, 0, 16, 8], [8, 16, 16, 24]]
    nothing, blank = sl.encode_text(base, ""), sl.empty_latent(base, width=32, height=32)

    def drawn(model: Any) -> Tensor:
        return sl.sample(model, cond, negative=nothing, latent=blank, steps=2, seed=3).samples

    plain = drawn(base)
    for kind, file in (("gligen", "g"), ("hypernetworks", "h")):
        assert (drawn(sl.with_network(base, kind=kind, path=tmp_path / f"{file}.safetensors")) - plain).abs().max() > 0.01
    put(union, tmp_path / "u.safetensors", family)
    told = sl.set_kind(sl.load_control(tmp_path / "u.safetensors"), kind="canny")
    assert told.options["kind"] == 3


def test_what_the_nodes_become(tmp_path: Path) -> None:
    for kind in ("checkpoints", "gligen", "hypernetworks", "controlnet"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "a.safetensors").touch()
    places = Places(roots(tmp_path), tmp_path / "input", tmp_path / "out")
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "a.png").touch()
    place = {"width": 64, "height": 32, "x": 8, "y": 16}
    prompt = {
        "m": node("CheckpointLoaderSimple", ckpt_name="a.safetensors"), "t": node("CLIPTextEncode", text="x", clip=["m", 1]),
        "h": node("HypernetworkLoader", model=["m", 0], hypernetwork_name="a.safetensors", strength=0.5),
        "g": node("GLIGENLoader", gligen_name="a.safetensors"), "i": node("LoadImage", image="a.png"),
        "b": node("GLIGENTextBoxApply", conditioning_to=["t", 0], clip=["m", 1], gligen_textbox_model=["g", 0], text="a cat", **place),
        "both": node("ConditioningCombine", conditioning_1=["t", 0], conditioning_2=["b", 0]),
        "c": node("ControlNetLoader", control_net_name="a.safetensors"),
        "u": node("SetUnionControlNetType", control_net=["c", 0], type="hed/pidi/scribble/ted"),
        "a": node("ControlNetApplySD3", positive=["both", 0], negative=["t", 0], control_net=["u", 0], vae=["m", 2], image=["i", 0],
                  strength=1.0, start_percent=0.0, end_percent=1.0),
        "l": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "k": node("KSampler", model=["h", 0], seed=1, steps=1, cfg=2.0, sampler_name="euler", scheduler="normal", positive=["a", 0],
                  negative=["a", 1], latent_image=["l", 0], denoise=1.0),
        "v": node("VAEDecode", samples=["k", 0], vae=["m", 2]), "s": node("SaveImage", images=["v", 0], filename_prefix="x"),
    }
    graph = {key: (entry["class_type"], entry["inputs"]) for key, entry in translate(prompt, places).graph.items()}
    found = str((tmp_path / "gligen" / "a.safetensors").absolute())
    assert graph["b"] == ("add_box", {"cond": ["t", 0], "model": ["m", 0], "text": "a cat", **place})
    other = {"path": found.replace("gligen", "hypernetworks"), "strength": 0.5}
    assert graph["h"] == ("with_network", {"model": ["m", 0], "kind": "hypernetworks", **other})
    assert graph["k.gligen"] == ("with_network", {"model": ["h", 0], "kind": "gligen", "path": found})
    assert graph["u"] == ("set_kind", {"control": ["c", 0], "kind": "hed"})
    assert graph["k.control"][1]["model"] == ["k.gligen", 0]
    assert graph["k.control"][1]["control"] == ["u", 0]
