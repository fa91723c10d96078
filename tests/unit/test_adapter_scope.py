"""On which rows patches act: sides of the guidance, parts of the way; and what is told of a file that was read."""
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import safelight as sl
from safelight.engine import call
from safelight.events import Event, Note
from safelight.families import Family
from safelight.op import load_ops
from safelight.patches import control as controls
from safelight.patches import ip_adapter as adapters
from safelight.patches import rows
from safelight.patches.control import control
from safelight.patches.ip_adapter import ip_adapter
from safelight.sampling.driver import drive
from safelight.sampling.guidance import CFG
from safelight.sampling.process import process
from safelight.sampling.request import Request
from safelight.store import current
from safelight.values import Cond, Patch
from tests import tiny
from tests.patching import a_control, a_vision, an_adapter, an_embedding, with_hint, write

CPU = torch.device("cpu")
OPS = load_ops()
SIGMAS = [9.0, 2.0, 0.0]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    return tiny.loader(tmp_path_factory.mktemp("m"))


def texts(family: Family) -> tuple[Cond, Cond]:
    with torch.no_grad():
        return family.encode_text(["a red apple"]), family.encode_text(["night city"])


def noise(family: Family, n: int = 1) -> Tensor:
    return torch.randn(n, family.channels, 8, 8, generator=torch.Generator().manual_seed(2))


def drawn(family: Family, n: int = 1) -> Tensor:
    """Two Euler steps under guidance."""
    text, against = texts(family)
    x = noise(family, n)
    request = Request(cond=text, negative=against, latent=torch.zeros_like(x), sigmas=SIGMAS, noise=x, guidance=CFG(3.0))
    work: Iterator[Any] = drive(family, [request])
    while True:
        try:
            next(work)
        except StopIteration as end:
            found: Tensor = end.value[0]
            return found


def by_hand(family: Family, positive: list[Patch], negative: list[Patch], n: int = 1) -> Tensor:
    """The same steps with each side asked by itself, its ControlNets' outputs given to a U-Net of diffusers as it wants them."""
    text, against = texts(family)
    unet: Any = family.trainable()["unet"]
    plain = unet.forward

    def asked(x: Tensor, sigma: float, cond: Cond, patches: list[Patch]) -> Tensor:
        def steered(sample: Tensor, time: Any, words: Tensor, **rest: Any) -> Any:
            found: list[Tensor] = []
            for p in patches:
                hint = controls.read_hint(p).permute(0, 3, 1, 2).expand(len(sample), -1, -1, -1)
                net = controls.load(family, p.weights.path, {})
                more = rest.get("added_cond_kwargs")
                down, mid = net(sample, time, words, hint, conditioning_scale=p.strength, added_cond_kwargs=more, return_dict=False)
                found = [a + b for a, b in zip(found, [*down, mid], strict=True)] if found else [*down, mid]
            if found:
                rest |= {"down_block_additional_residuals": tuple(found[:-1]), "mid_block_additional_residual": found[-1]}
            return plain(sample, time, words, **rest)

        unet.forward = lambda sample, time, encoder_hidden_states, **rest: steered(sample, time, encoder_hidden_states, **rest)
        try:
            with torch.no_grad():
                whole = {k: t.expand(n, *t.shape[1:]) for k, t in cond.extras.items()}
                return family.denoise(x, torch.full((n,), sigma), Cond(cond.tokens.expand(n, -1, -1), whole))
        finally:
            del unet.forward

    way = process(family)
    x = way.start(torch.zeros_like(noise(family, n)), noise(family, n), SIGMAS[0])
    for s, t in ((SIGMAS[0], SIGMAS[1]), (SIGMAS[1], SIGMAS[2])):
        wanted, unwanted = asked(x, s, text, positive), asked(x, s, against, negative)
        x0 = unwanted + 3.0 * (wanted - unwanted)
        x = x + (x - x0) / s * (t - s)
    return x


@pytest.mark.parametrize("sides", ["positive", "negative", "positive negative", "both positive", "both negative positive"])
@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
def test_each_side_has_the_controlnets_that_are_its_own(
    load: Callable[[str], Family], tmp_path: Path, layout: str, sides: str
) -> None:
    family = load(layout)
    made = []
    for i, side in enumerate(sides.split()):
        p = a_control(family, tmp_path / f"{i}.safetensors", seed=i)
        hint = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(i))
        made.append(replace(with_hint(p, hint, tmp_path, **({} if side == "both" else {"side": side})), strength=0.4 + 0.3 * i))  # type: ignore[arg-type]
    with ExitStack() as stack:
        for p in made:
            stack.enter_context(control(family, p))
        got = drawn(family, 2)
    both, positive, negative = ([p for p in made if p.options.get("side", "both") == side] for side in rows.SIDES)
    wanted = by_hand(family, [p for p in made if p not in negative], [p for p in made if p not in positive], 2)
    scale = float(wanted.abs().max())
    assert float((got - wanted).abs().max()) < 1e-5 * scale
    assert float((got - by_hand(family, both, both, 2)).abs().max()) > 1e-3 * scale
    assert float((got - by_hand(family, made, made, 2)).abs().max()) > 1e-3 * scale


def test_a_side_and_a_part_of_the_way_hold_together(load: Callable[[str], Family], tmp_path: Path) -> None:
    family = load("sd1")
    p = a_control(family, tmp_path / "c.safetensors")
    x, sigma = noise(family, 4), family.sigmas[[900, 900, 100, 100]]
    text = family.encode_text(["a red apple"]).tokens.expand(4, -1, -1)
    cond = Cond(text, {rows.NEGATIVE: torch.tensor([False, True, False, True])})
    plain = family.predict(x, sigma, cond)
    with control(family, replace(p, options={**p.options, "end": 0.5, "side": "negative"})):
        moved = (family.predict(x, sigma, cond) - plain).abs().amax((1, 2, 3)) > 1e-3
        assert moved.tolist() == [False, True, False, False]
        with pytest.raises(ValueError, match="whose a row is"):
            family.predict(x, sigma, Cond(text))


@pytest.mark.parametrize("options", [{"side": "left"}, {"start": 0.5, "end": 0.2}, {"end": 1.5}])
def test_another_side_or_way_is_refused(load: Callable[[str], Family], tmp_path: Path, options: dict[str, Any]) -> None:
    p = a_control(load("sd1"), tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="patch: got"), control(load("sd1"), replace(p, options={**p.options, **options})):
        pass


@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
@pytest.mark.parametrize("plus", [False, True])
def test_a_picture_prompt_counts_on_its_part_of_the_way(
    load: Callable[[str], Family], tmp_path: Path, layout: str, plus: bool
) -> None:
    """Row by row; another adapter that is always on stays on."""
    family = load(layout)
    one, two = (an_adapter(family, tmp_path / f"{i}.safetensors", plus=plus, seed=i) for i in range(2))
    said = family.encode_text(["a red apple"])
    cond = Cond(said.tokens.expand(3, -1, -1), {k: t.expand(3, *t.shape[1:]) for k, t in said.extras.items()})
    x, sigma = noise(family, 3), family.sigmas[[100, 500, 900]]
    with ip_adapter(family, two):
        without = family.predict(x, sigma, cond)
        with ip_adapter(family, one):
            always = family.predict(x, sigma, cond)
    for start, end, on in ((0.0, 0.3, [2]), (0.3, 0.7, [1]), (0.7, 1.0, [0]), (0.2, 0.25, [])):
        part = replace(one, options={**one.options, "start": start, "end": end})
        for order in ((part, two), (two, part)):
            with ip_adapter(family, order[0]), ip_adapter(family, order[1]):
                got = family.predict(x, sigma, cond)
            for row in range(3):
                assert torch.allclose(got[row], (always if row in on else without)[row], atol=1e-5)
                assert (row in on) == bool((got[row] - without[row]).abs().max() > 1e-3)


FACE_ID = {
    "faceid": {"image_proj.proj.0.weight": (8, 512), "image_proj.proj.2.weight": (8, 8), "image_proj.norm.weight": (32,)},
    "faceid-plus": {"image_proj.proj.0.weight": (8, 512), "image_proj.perceiver_resampler.proj_in.weight": (8, 16)},
    "plain with LoRAs": {"image_proj.proj.weight": (8, 16), "ip_adapter.1.to_q_lora.down.weight": (2, 8)},
}


@pytest.mark.parametrize("kind", FACE_ID)
def test_a_face_id_adapter_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    shapes = FACE_ID[kind] | {"ip_adapter.1.to_k_ip.weight": (8, 8), "ip_adapter.1.to_v_ip.weight": (8, 8)}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "f.safetensors")
    with pytest.raises(ValueError, match=r"FaceID adapters, .* are not supported"):
        adapters.read(str(tmp_path / "f.safetensors"))


def notes(name: str, **given: Any) -> tuple[list[str], Any]:
    seen: list[Event] = []
    work = call(OPS[name], given, current())
    while True:
        try:
            seen.append(next(work))
        except StopIteration as end:
            return [e.text for e in seen if isinstance(e, Note)], end.value


def test_what_was_read_of_a_file_is_told_and_kept(load: Callable[[str], Family], tmp_path: Path) -> None:
    family, model = load("mini"), sl.model(str(tiny.mini(tmp_path / "mini")))
    said = {}
    made = write(family, tmp_path / "ink.safetensors")
    more = {**load_file(made.weights.path), "bundle_emb.cat.clip_l": torch.zeros(2, 32)}
    save_file(more, tmp_path / "ink.safetensors")
    said["lora"], lora = notes("load_lora", path=str(tmp_path / "ink.safetensors"))
    layers = len(more) // 3
    assert said["lora"] == [f"load_lora: ink: {len(more) - 1} of {len(more)} keys read; OneTrainer, locon of rank 2, {layers} layers"]
    a_control(family, tmp_path / "edges.safetensors")
    count = len(load_file(tmp_path / "edges.safetensors"))
    said["control"], net = notes("load_control", path=str(tmp_path / "edges.safetensors"))
    assert said["control"] == [f"load_control: edges: {count} of {count} keys read; diffusers names"]
    an_embedding(family, tmp_path / "cat.safetensors")
    said["embedding"], cat = notes("load_embedding", path=str(tmp_path / "cat.safetensors"))
    assert said["embedding"] == ["load_embedding: cat: 1 of 1 keys read; 2 vectors of 32"]
    total = len(load_file(an_adapter(family, tmp_path / "look.safetensors").weights.path))
    given = {"path": str(tmp_path / "look.safetensors"), "encoder": str(a_vision(tmp_path / "vision")), "end": 0.5}
    picture = sl.Image(torch.rand(1, 40, 40, 3).numpy())
    said["ip_adapter"], seeing = notes("with_ip_adapter", model=model, image=picture, **given)
    assert said["ip_adapter"] == [f"with_ip_adapter: look: {total} of {total} keys read; plain, {(total - 4) // 2} attention layers"]
    for p, keys, of in ((lora, len(more) - 1, len(more)), (net, count, count), (cat, 1, 1), (seeing.patches[0], total, total)):
        assert (p.info["keys"], p.info["total"]) == (keys, of)
    changed = sl.with_embedding(sl.with_lora(seeing, lora), cat)
    fits, _ = notes("generate", model=changed, prompt="embedding:cat", seeds=[1], steps=1, width=64, height=64)
    assert fits == [
        f"ip_adapter look: {total} of {total} tensors matched", f"lora ink: {3 * layers} of {3 * layers} keys matched, {layers} layers",
        "embedding cat: 1 of 1 tensors matched",
    ]


def test_an_old_file_with_a_whole_model_beside_it_says_so(tmp_path: Path) -> None:
    names = ["control_model.zero_convs.0.0.weight", "control_model.input_hint_block.0.weight", "model.diffusion_model.out.2.weight"]
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "old.safetensors")
    assert controls.contents(str(tmp_path / "old.safetensors")) == {"layout": "original", "keys": 2, "total": 3}
