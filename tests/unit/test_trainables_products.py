"""The thin products beside frozen layers: values and gradients are those of the plain formulas, and of peft's kinds."""
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from safelight.train.settings import LoraShape
from safelight.train.trainables.adapter import Adapter, Spot
from safelight.train.trainables.methods import dora, loha, lokr, lora
from safelight.train.trainables.products import beside

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (2, 3, 6)), "no bias": (lambda: nn.Linear(6, 5, bias=False), (4, 6)),
    "conv": (lambda: nn.Conv2d(6, 5, 3, padding=1), (2, 6, 8, 8)), "strided": (lambda: nn.Conv2d(6, 5, 3, stride=2), (2, 6, 9, 9)),
    "circular": (lambda: nn.Conv2d(6, 5, 3, padding=1, padding_mode="circular"), (2, 6, 8, 8)),
}


def pieces(name: str) -> tuple[Any, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    make, size = LAYERS[name]
    layer = make().requires_grad_(False)
    out, *inner = layer.weight.shape
    return layer, torch.randn(size, requires_grad=True), torch.randn(2, *inner), torch.randn(out, 2, *[1] * (len(inner) - 1))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_are_those_of_the_changed_weight(name: str, frozen: bool) -> None:
    layer, x, down, up = pieces(name)
    down, up = down.requires_grad_(not frozen), up.requires_grad_()
    said = beside(layer, x, down, up, 1.5)
    moved = layer.weight + (1.5 * up.flatten(1) @ down.flatten(1)).view(layer.weight.shape)
    wanted = torch.func.functional_call(layer, {"weight": moved}, (x,))
    assert torch.allclose(said, wanted, atol=1e-5)
    weight = torch.randn_like(said)
    some = (x, up) if frozen else (x, up, down)
    for ours, theirs in zip(torch.autograd.grad(said, some, weight), torch.autograd.grad(wanted, some, weight), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


KINDS = {
    "lora": (lora, LoraConfig, {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}),
    "dora": (dora, LoraConfig, {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight", "dora_scale": "magnitude"}),
    "loha": (loha, LoHaConfig, {f"hada_w{n}": f"hada_w{n}" for n in ("1_a", "1_b", "2_a", "2_b")}),
}


@pytest.mark.parametrize("kind", ["lora", "dora", "loha"])
@pytest.mark.parametrize("name", ["linear", "conv"])
def test_the_maths_and_the_gradients_are_pefts(name: str, kind: str) -> None:
    layer, x, _, _ = pieces(name)
    method, config, names = KINDS[kind]
    adapter: Adapter = method.method([Spot("a", layer, False, torch.device("cpu"))], LoraShape(rank=2, alpha=3.0), 0)  # type: ignore[attr-defined]
    model = nn.ModuleDict({"a": pieces(name)[0]})
    more = {"lora_alpha": 3.0, "use_dora": kind == "dora"} if config is LoraConfig else {"alpha": 3.0}
    inject_adapter_in_model(config(r=2, target_modules=["a"], **more), model)
    theirs = {n.replace("lora_magnitude_vector", "magnitude").replace(".default", ""): p for n, p in model.named_parameters()}
    pairs = [(adapter.parameters[f"a.{o}"], next(p for n, p in theirs.items() if t in n)) for o, t in names.items()]
    for ours, other in pairs:
        other.data.copy_((ours + torch.randn_like(ours) * 0.1).view(other.shape))
        ours.data.copy_(other.data.view(ours.shape))
    adapter.put_on()
    said, wanted = layer(x), model["a"](x)
    assert torch.allclose(said, wanted, atol=1e-5)
    weight = torch.randn_like(said)
    mine = torch.autograd.grad(said, [x, *(a for a, _ in pairs)], weight)
    for ours, other in zip(mine, torch.autograd.grad(wanted, [x, *(b for _, b in pairs)], weight), strict=True):
        assert torch.allclose(ours.flatten(), other.flatten(), atol=1e-4)


def test_lokr_is_a_kronecker_product_whole_where_that_is_smaller() -> None:
    layer = nn.Linear(64, 36).requires_grad_(False)
    for rank, ends in ((1, {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}), (6, {"lokr_w1", "lokr_w2"})):
        adapter = lokr.method([Spot("a", layer, False, torch.device("cpu"))], LoraShape(rank=rank, alpha=2.0), 0)
        assert {name.removeprefix("a.") for name in adapter.parameters} == ends
        w = {name.removeprefix("a."): p.data.normal_() for name, p in adapter.parameters.items()}
        large = w["lokr_w2"] if rank == 6 else 2.0 * w["lokr_w2_a"] @ w["lokr_w2_b"]
        adapter.put_on()
        x = torch.randn(3, 64)
        assert torch.allclose(layer(x), x @ (layer.weight + torch.kron(w["lokr_w1"], large)).t() + layer.bias, atol=1e-4)
        with adapter.off():
            assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
