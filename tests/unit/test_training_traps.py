"""What a user may get wrong is told or refused, and a wrong caption shows."""
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safelight.families import Family
from safelight.limits import FAR
from safelight.recipes.lora import Plan, train_lora
from safelight.train import held_out, trainables
from safelight.train.loop import recomputing
from safelight.train.settings import Batches, LoraShape, Objective, Optimizer, Watch
from safelight.train.trainables.methods import lora_drop
from safelight.values import Dataset, Model
from tests import tiny

PLAN = Plan(LoraShape(rank=2), Optimizer(), Batches(steps=20, batch=2), Objective(), Watch(), 0)


def test_two_swapped_captions_are_the_doubtful_ones() -> None:
    g = torch.Generator().manual_seed(0)
    untold = torch.rand(30, 8, generator=g) + 0.5  # some pictures are harder than others, which says nothing of captions
    told = untold * (0.9 + 0.02 * torch.randn(30, 8, generator=g))
    told[[4, 17]] = untold[[4, 17]] * 1.05
    found = held_out.doubtful(told.double(), untold.double())
    assert {i for i, _ in found[:2]} == {4, 17}
    assert [far > FAR for _, far in found] == [True, True, *[False] * 8]


@pytest.mark.parametrize(("shape", "optimizer", "says"), [
    ({"method": "adalora"}, {"average": 0.99}, "adalora takes ranks away"),
    ({"method": "adalora"}, {"kind": "schedulefree"}, "adalora takes ranks away"),
])
def test_ranks_that_are_taken_away_do_not_go_with_averages(shape: Any, optimizer: Any, says: str, tmp_path: Path) -> None:
    plan = replace(PLAN, shape=LoraShape(**shape), optimizer=Optimizer(**optimizer))
    with pytest.raises(ValueError, match=says):
        next(train_lora(Model("sd", "nowhere", ""), Dataset(()), plan, tmp_path, "{}"))


@pytest.mark.parametrize("wrong", [{"lowest": 0.5, "highest": 0.5}, {"lowest": 0.9, "highest": 0.1}, {"times": "mode", "spread": 2.0}])
def test_noise_levels_that_are_none_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        Objective(**wrong)


def test_a_share_is_for_lora_drop_alone(tmp_path: Path) -> None:
    family = tiny.load(tiny.mini(tmp_path / "m"), device=torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(ValueError, match=r"share 0\.5 is for lora-drop"), trainables.adapter(family, LoraShape(share=0.5), 0):
        pass


def test_layers_that_are_computed_twice_count_once(tmp_path: Path) -> None:
    """LoRA-drop's importance, without and with gradient checkpointing."""
    family = tiny.load(tiny.mini(tmp_path / "m"), device=torch.device("cpu"), dtype=torch.float32)
    once, twice = measured(family, again=False), measured(family, again=True)
    assert once.any()
    assert torch.allclose(once, twice)


def measured(family: Family, *, again: bool) -> torch.Tensor:
    net: Any = family.trainable()["unet"]
    with trainables.adapter(family, LoraShape(rank=2, method="lora-drop", text_encoder=False), 0) as adapter:
        assert isinstance(adapter, lora_drop.Dropping)
        for p in (p for name, p in adapter.parameters.items() if name.endswith("lora_up.weight")):
            p.data.fill_(0.01)
        net.train()
        with recomputing([net] if again else []):
            z = torch.randn(1, family.channels, 4, 4, generator=torch.Generator().manual_seed(0))
            family.predict(z, torch.ones(1), family.encode_text(["x"])).square().mean().backward()
        return adapter.book["sums"].clone()
