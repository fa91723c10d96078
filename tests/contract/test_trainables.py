"""Every kind of adapter: no change at first, gone afterwards, exact after a break, and in its file what was trained."""
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor, nn

from safelight.events import Progress
from safelight.families import Family
from safelight.patches import lora as lora_patch
from safelight.train import batches, lora_file, trainables
from safelight.train.checkpoints import Checkpoints
from safelight.train.loop import Trained, Training, train
from safelight.train.settings import LoraShape, Optimizer
from safelight.train.trainables import METHODS, Adapter
from safelight.values import Blob, Patch
from tests import tiny
from tests.patching import look, same

PROMPTS = ["a red apple", ""]

SCHEDULER = DDIMScheduler(steps_offset=1, clip_sample=False)

PLAIN = [m for m in METHODS if m not in ("dora", "loha", "lokr")]
"""Methods whose file is a plain LoRA."""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return tiny.load(tiny.sd1(tmp_path_factory.mktemp("m") / "m"), device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return tiny.load(tiny.sd1(tmp_path_factory.mktemp("m") / "m"), device=torch.device("cpu"), dtype=torch.bfloat16)


def losses(family: Family, adapter: Adapter) -> Any:
    """A few random latents to learn; the penalty is part of it."""

    def of(step: int) -> Iterator[Tensor]:
        x0 = batches.noise(0, step % 2, 2, (family.channels, 8, 8))
        noise, sigma = batches.noise(1, step, 2, (family.channels, 8, 8)), family.sigmas[[100, 700]]
        cond = family.encode_text(PROMPTS)
        loss = (family.predict(family.noised(x0, noise, sigma), sigma, cond) - family.target(x0, noise, sigma)).square().mean()
        extra = adapter.penalty()
        yield loss if extra is None else loss + extra

    return of


def task(family: Family, adapter: Adapter, steps: int, **more: Any) -> Training:
    optimizer = Optimizer(lr=more.pop("lr", 5e-3), warmup=0, decay="constant", weight_decay=0.05)
    return Training(adapter.parameters, losses(family, adapter), steps, optimizer, evolving=adapter, rates=adapter.rates, **more)


def run(t: Training, stop: int = 0) -> Trained | None:
    """To the end, or until so many steps are done."""
    work = train(t)
    while True:
        try:
            event = next(work)
        except StopIteration as e:
            found: Trained = e.value
            return found
        if stop and isinstance(event, Progress) and event.what == "train" and event.step == stop:
            work.close()
            return None


def trained(family: Family, adapter: Adapter, steps: int = 6, **more: Any) -> Mapping[str, Tensor]:
    found = run(task(family, adapter, steps, **more))
    assert found is not None
    return found.weights


@pytest.mark.parametrize("method", METHODS)
def test_it_is_no_change_at_first_and_gone_at_the_end(family: Family, rounded: Family, method: str) -> None:
    for f in (family, rounded) if method in ("lora", "dora", "loha") else (family,):
        before, plain = look(f), lora_file.probe(f, PROMPTS)
        with trainables.adapter(f, LoraShape(rank=4, method=method), 0) as adapter:
            assert torch.equal(lora_file.probe(f, PROMPTS), plain)
            assert all(p.dtype == torch.float32 for p in adapter.parameters.values())
            assert adapter.text
            trained(f, adapter, 2)
            changed = lora_file.probe(f, PROMPTS)
            assert float((changed - plain).abs().max()) > 1e-3
            with adapter.off():
                assert torch.equal(lora_file.probe(f, PROMPTS), plain)
            assert torch.equal(lora_file.probe(f, PROMPTS), changed)
            with pytest.raises(KeyError):
                adapter.load({})
        assert same(look(f), before)
        assert torch.equal(lora_file.probe(f, PROMPTS), plain)


@pytest.mark.parametrize("method", METHODS)
def test_all_that_is_trained_gets_a_gradient(family: Family, method: str) -> None:
    with trainables.adapter(family, LoraShape(rank=4, method=method), 0) as adapter:
        trained(family, adapter)
        before = {name: p.detach().clone() for name, p in adapter.parameters.items()}
        for part in losses(family, adapter)(9):
            part.backward()
        moved = {name for name, p in adapter.parameters.items() if p.grad is not None and p.grad.any()}
        used = {name for name, p in adapter.parameters.items() if p.requires_grad}
        if method == "lora-drop":  # of each layer either its own or the common one
            assert moved < used
        elif method == "adalora":  # P and Q of ranks that were taken have no slope but the penalty's
            assert {name for name in used if not name.endswith("lora_l")} <= moved
        else:
            assert moved == used
        assert all(torch.equal(p, before[name]) for name, p in adapter.parameters.items())
    assert not any(p.requires_grad or p.grad is not None for net in family.trainable().values() for p in net.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_a_broken_run_ends_as_a_straight_one(family: Family, tmp_path: Path, method: str) -> None:
    shape = LoraShape(rank=4, method=method, share=0.7 if method == "lora-drop" else LoraShape.share)
    with trainables.adapter(family, shape, 0) as adapter:
        straight, held = trained(family, adapter), {k: t.clone() for k, t in adapter.buffers().items()}
    checkpoints = Checkpoints(tmp_path / "c")
    for stop in (3, 0):
        torch.manual_seed(stop)
        with trainables.adapter(family, shape, 0) as adapter:
            found = run(task(family, adapter, 6, checkpoints=checkpoints), stop)
            again = adapter.buffers()
            assert found is None or all(torch.equal(found.weights[k], t) for k, t in straight.items())
    assert straight.keys() == found.weights.keys()  # type: ignore[union-attr]
    assert all(torch.equal(again[k], t) for k, t in held.items())


@pytest.mark.parametrize(("method", "targets"), [*((m, "full") for m in METHODS), ("lora", "attention"), ("lokr", "attention")])
def test_the_file_does_what_was_trained(family: Family, tmp_path: Path, method: str, targets: str) -> None:
    path, shape = tmp_path / "a.safetensors", LoraShape(rank=3, alpha=1.5, targets=targets, method=method)
    with trainables.adapter(family, shape, 0) as adapter:
        weights, layers = trained(family, adapter, 8, lr=2e-2), len(adapter.layers)
        lora_file.write(path, adapter.file(weights), {})
    with trainables.adapter(family, shape, 0) as adapter:
        adapter.load(weights)
        said = lora_file.probe(family, PROMPTS)
    plain = lora_file.probe(family, PROMPTS)
    with lora_patch.lora(family, Patch("lora", Blob.of(path), options={"merged": False})):
        read = lora_file.probe(family, PROMPTS)
    matched = len(lora_patch.match(family, lora_patch.read(str(path)), str(path)))
    assert lora_file.compare(said, read, layers, matched).max_difference < 1e-5
    assert float((said - plain).abs().max()) > 1e-2
    kinds = {name for change in lora_patch.read(str(path)).values() for name in [change.weight.name if change.weight else ""]}
    assert kinds == ({"lora"} if method in PLAIN else {method})


@pytest.mark.parametrize("method", PLAIN)
def test_diffusers_reads_what_is_a_plain_lora(family: Any, tmp_path: Path, method: str) -> None:
    path = tmp_path / "a.safetensors"
    with trainables.adapter(family, LoraShape(rank=3, alpha=1.5, method=method), 0) as adapter:
        lora_file.write(path, adapter.file(trained(family, adapter, 8, lr=2e-2)), {})
        said = lora_file.probe(family, PROMPTS)
    networks = family.trainable()
    parts = networks["vae"], networks["text_encoder"], family.text.tokenizer, networks["unet"]
    before = look(family)
    with lora_patch.kept(m for net in networks.values() for m in net.modules()):
        pipeline = StableDiffusionPipeline(*parts, SCHEDULER, None, None, requires_safety_checker=False)
        pipeline.load_lora_weights(path)
        assert float((lora_file.probe(family, PROMPTS) - said).abs().max()) < 1e-5
    assert same(look(family), before)


def test_what_a_method_does_not_have_is_refused(family: Family) -> None:
    for shape, said in (
        (LoraShape(method="loha", init="pissa"), "init 'pissa' is for lora"), (LoraShape(method="vera", plus=4.0), "plus 4 is for methods"),
        (LoraShape(method="lora2"), "expected one of adalora"),
    ):
        with pytest.raises(ValueError, match=said), trainables.adapter(family, shape, 0):
            pass


def layer_of(adapter: Adapter) -> tuple[str, nn.Parameter]:
    return next((name, p) for name, p in adapter.parameters.items() if name.endswith("lora_up.weight"))


def test_lora_plus_moves_up_further(family: Family) -> None:
    moved = []
    for plus in (1.0, 8.0):
        with trainables.adapter(family, LoraShape(rank=4, plus=plus), 0) as adapter:
            name, _ = layer_of(adapter)
            moved.append(trained(family, adapter, 1, lr=1e-3)[name].abs().max())
    assert float(moved[1]) == pytest.approx(8 * float(moved[0]), rel=1e-3)


@pytest.mark.parametrize("method", trainables.OWN_START)
def test_pissa_trains_the_main_directions_and_writes_the_difference(family: Family, tmp_path: Path, method: str) -> None:
    plain = lora_file.probe(family, PROMPTS)
    with trainables.adapter(family, LoraShape(rank=3, init="pissa", method=method), 0) as adapter:
        assert float((lora_file.probe(family, PROMPTS) - plain).abs().max()) < 1e-5
        one = next(iter(adapter.layers.values()))
        scale = 3**0.5 if method == "rslora" else 1.0
        own = (scale * one.weights["lora_up.weight"].flatten(1) @ one.weights["lora_down.weight"].flatten(1)).detach()
        u, s, v = torch.linalg.svd(one.layer.weight.flatten(1))
        assert torch.allclose(own, u[:, :3] * s[:3] @ v[:3], atol=1e-5)
        weights = trained(family, adapter)
        lora_file.write(tmp_path / "a.safetensors", adapter.file(weights), {})
        said = lora_file.probe(family, PROMPTS)
    with lora_patch.lora(family, Patch("lora", Blob.of(tmp_path / "a.safetensors"))):
        assert float((lora_file.probe(family, PROMPTS) - said).abs().max()) < 1e-5
    assert float((said - plain).abs().max()) > 1e-2


def test_adalora_takes_ranks_down_to_the_budget_and_holds_its_matrices_orthogonal(family: Family) -> None:
    shape = LoraShape(rank=4, method="adalora")
    with trainables.adapter(family, shape, 0) as adapter:
        sizes = [len(one.weights["lora_l"]) for one in adapter.layers.values()]
        assert max(sizes) == 6
        assert float(adapter.penalty().detach()) < 1e-8  # type: ignore[union-attr]
        weights = trained(family, adapter, 20)
        left = [int(t.count_nonzero()) for name, t in weights.items() if name.endswith("lora_l")]
        assert sum(left) == sum(min(4, size) for size in sizes) < sum(sizes)
        assert len(set(left)) > 2  # not every layer the same
        file = adapter.file(weights)
        ranks = [len(t) for name, t in file.items() if name.endswith("lora_down.weight")]
        assert ranks == [max(n, 1) for n in left]
        budgets = [adapter.budget(done, 100) for done in range(10, 71)]  # type: ignore[attr-defined]
        assert budgets == sorted(budgets, reverse=True)
        assert (budgets[0], budgets[-1]) == (sum(sizes), sum(left))
        p = adapter.parameters[next(n for n in weights if n.endswith("lora_p"))]
        p.data.mul_(1.5)
        first = adapter.penalty()
        first.backward()  # type: ignore[union-attr]
        p.data.sub_(p.grad * 0.5)  # type: ignore[operator]
        assert 0 < float(adapter.penalty().detach()) < float(first.detach())  # type: ignore[union-attr]


def test_vera_trains_two_vectors_a_layer_over_common_matrices(family: Family) -> None:
    with trainables.adapter(family, LoraShape(rank=5, method="vera"), 0) as adapter:
        assert {p.ndim for p in adapter.parameters.values()} == {1}
        weights = trained(family, adapter)
        file = adapter.file(weights)
        found = []
        for name, one in adapter.layers.items():
            d, b = weights[f"{name}.vera_lambda_d"], weights[f"{name}.vera_lambda_b"]
            found.append((file[f"{name}.lora_down.weight"].flatten(1) / d[:, None], file[f"{name}.lora_up.weight"].flatten(1) / b[:, None]))
            assert found[-1][1].shape == (one.layer.weight.shape[0], 5)
        (a, b), (c, d) = found[0], max(found, key=lambda pair: pair[0].shape[1])
        assert torch.allclose(a, c[:, : a.shape[1]], rtol=1e-4)
        assert torch.allclose(b[: len(d)], d[: len(b)], rtol=1e-4)


def test_lora_drop_keeps_the_layers_that_say_most_and_shares_among_the_others(family: Family) -> None:
    with trainables.adapter(family, LoraShape(rank=4, method="lora-drop", share=0.6), 0) as adapter:
        weights = trained(family, adapter, 20)
        sums, kept = adapter.buffers()["sums"], weights["lora_drop.kept"].bool()
        assert 0 < int(kept.sum()) < len(kept)
        assert float(sums[kept].min()) >= float(sums[~kept].max())
        assert float(sums[kept].sum()) >= 0.6 * float(sums.sum()) > float(sums[kept].sum() - sums[kept].min())
        file, of = adapter.file(weights), {}
        for (name, one), own in zip(adapter.layers.items(), kept.tolist(), strict=True):
            up = file[f"{name}.lora_up.weight"]
            assert torch.equal(up, weights[f"{name}.lora_up.weight"]) == own
            if not own:
                assert torch.equal(of.setdefault(one.layer.weight.shape, up), up)
                assert up.any()
        assert len(of) < int((~kept).sum())


def test_lora_drop_measures_what_a_layer_says(family: Family) -> None:
    with trainables.adapter(family, LoraShape(rank=4, method="lora-drop"), 0) as adapter:
        torch.manual_seed(0)
        adapter.load({n: p if n == "lora_drop.kept" else torch.randn_like(p) * 0.1 for n, p in adapter.parameters.items()})
        for at, one in enumerate(adapter.layers.values()):
            inner = one.layer.weight.shape[1]
            x = torch.randn(2, inner, 5, 5) if one.layer.weight.ndim == 4 else torch.randn(2, 5, inner)
            said = one.layer(x)
            with adapter.off():
                assert float(adapter.buffers()["sums"][at]) == pytest.approx(float((said - one.layer(x)).detach().square().sum()), rel=1e-3)


def test_delta_lora_moves_the_frozen_weight_as_the_paper_does() -> None:
    """Against the paper's algorithm, which writes into the weight: the same steps, the same outputs."""
    from safelight.train.trainables.adapter import Spot
    from safelight.train.trainables.methods import delta_lora

    torch.manual_seed(0)
    layer, x, y = nn.Linear(6, 5).requires_grad_(False), torch.randn(4, 6), torch.randn(4, 5)
    adapter = delta_lora.method([Spot("a", layer, False, torch.device("cpu"))], LoraShape(rank=2, alpha=3.0), 0)
    down, up = (adapter.parameters[f"a.lora_{n}.weight"].detach().clone().requires_grad_() for n in ("down", "up"))
    weight, steps = layer.weight.detach().clone(), 20
    adapter.put_on()
    ours = torch.optim.SGD([p for p in adapter.parameters.values() if p.requires_grad], 0.01)
    theirs = torch.optim.SGD([down, up], 0.01)
    for step in range(steps):
        said = x @ (weight + 1.5 * up @ down).t() + layer.bias
        assert torch.allclose(layer(x), said, atol=1e-5)
        before = (up @ down).detach()
        for optimizer, out in ((ours, layer(x)), (theirs, said)):
            optimizer.zero_grad()
            (out - y).square().sum().backward()
            optimizer.step()
        adapter.after_step(step, steps)
        if step + 1 > delta_lora.BEFORE * steps:
            weight += delta_lora.LAMBDA * 1.5 * ((up @ down).detach() - before)
    assert float((weight - layer.weight).abs().max()) > 0.1
    file = adapter.file(adapter.parameters)
    whole = file["a.alpha"] / len(file["a.lora_down.weight"]) * file["a.lora_up.weight"] @ file["a.lora_down.weight"]
    assert torch.allclose(layer.weight + whole, weight + 1.5 * up @ down, atol=1e-5)


def test_lora_fa_keeps_no_input_for_the_backward_pass(family: Family) -> None:
    kept = {}
    for method in ("lora", "lora-fa"):
        with trainables.adapter(family, LoraShape(rank=2, method=method), 0) as adapter:
            one = next(c for c in adapter.layers.values() if c.layer.weight.ndim == 4 and c.layer.weight.shape[2] == 3)
            other = next(c for c in adapter.layers.values() if c.layer.weight.ndim == 2)
            sizes: list[int] = []
            pack = torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t)  # noqa: B023
            with pack:
                conv, flat = torch.randn(2, one.layer.weight.shape[1], 16, 16), torch.randn(512, other.layer.weight.shape[1])
                one(conv.requires_grad_()), other(flat.requires_grad_())
            kept[method] = sum(n in (conv.numel(), flat.numel()) for n in sizes)
    assert kept["lora"] >= 2
    assert kept["lora-fa"] == 0
