"""LoRAs made narrower, added up, and made of other adapters and of models: against the dense differences, and with the error told."""
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import safelight as sl
from safelight.families import Family
from safelight.patches import lora as lora_patch
from safelight.train import lora_file, trainables
from safelight.train.settings import LoraShape
from safelight.values import Blob, Model, Patch
from tests import tiny

PROMPTS = ["a red apple", ""]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny.model(tiny.sd1(tmp_path_factory.mktemp("m") / "m"))


@pytest.fixture(scope="module")
def family(named: Model) -> Family:
    return tiny.load(Path(named.source), device=torch.device("cpu"), dtype=torch.float32)


def made(family: Family, path: Path, seed: int, **shape: Any) -> Patch:
    """A file of a method, with random numbers."""
    with trainables.adapter(family, LoraShape(**{"rank": 4, **shape}), seed) as adapter:
        torch.manual_seed(seed)
        weights = {n: p + torch.randn_like(p) * 0.1 for n, p in adapter.parameters.items()}
        lora_file.write(path, adapter.file(weights), {"ss_network_dim": "4", "safelight.trigger": "ink"})
    return Patch("lora", Blob.of(path))


def deltas(family: Family, patch: Patch) -> dict[str, Tensor]:
    """What a file adds to each layer."""
    found = lora_patch.match(family, lora_patch.read(patch.weights.path), patch.weights.path)
    return {name: change.weight.delta(place.layer.weight) for name, [(place, change)] in found.items() if change.weight}


def apart(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[float, float]:
    """The largest difference, and the relative one over all layers."""
    assert ours.keys() == theirs.keys()
    gone = [ours[k] - theirs[k] for k in theirs]
    lost, whole = (sum(float(t.double().square().sum()) for t in some) for some in (gone, theirs.values()))
    return max(float(t.abs().max()) for t in gone), (lost / whole) ** 0.5


@pytest.mark.parametrize("shape", [{"alpha": 1.5}, {"targets": "attention", "text_encoder": False}])
def test_the_same_rank_is_the_same_and_a_smaller_one_tells_what_is_lost(family: Family, tmp_path: Path, shape: dict[str, Any]) -> None:
    whole = made(family, tmp_path / "a.safetensors", 1, **shape)
    same = sl.resize_lora(whole, rank=4, keep=1.0)
    assert apart(deltas(family, same), deltas(family, whole))[0] < 1e-6
    assert same.info["error"] < 1e-12
    half = sl.resize_lora(whole, rank=2, keep=1.0)
    assert half.info["ranks"] == [2]
    assert apart(deltas(family, half), deltas(family, whole))[1] == pytest.approx(half.info["error"], rel=1e-4)
    name = next(iter(deltas(family, whole)))
    u, s, v = torch.linalg.svd(deltas(family, whole)[name].flatten(1))
    assert torch.allclose(deltas(family, half)[name].flatten(1), u[:, :2] * s[:2] @ v[:2], atol=1e-6)
    with safe_open(half.weights.path, "pt") as f:
        told = f.metadata()
    assert (told["ss_network_dim"], told["safelight.trigger"], float(told["safelight.error"])) == (
        "2", "ink", pytest.approx(half.info["error"], rel=1e-3))


def test_a_share_of_the_squares_leaves_each_layer_its_own_ranks(family: Family, tmp_path: Path) -> None:
    whole = made(family, tmp_path / "a.safetensors", 1, method="adalora")
    less = sl.resize_lora(whole, keep=0.8)
    assert len(less.info["ranks"]) > 1
    assert 0 < less.info["error"] <= 0.2**0.5
    ours, theirs = deltas(family, less), deltas(family, whole)
    assert apart(ours, theirs)[1] == pytest.approx(less.info["error"], rel=1e-4)
    assert all(float(ours[k].square().sum()) >= 0.8 * float(theirs[k].square().sum()) - 1e-6 for k in ours)
    assert len({float(t) for k, t in load_file(less.weights.path).items() if k.endswith("alpha")}) == 1


def test_two_merged_are_both_applied(named: Model, family: Family, tmp_path: Path) -> None:
    a, b = made(family, tmp_path / "a.safetensors", 1, alpha=2.0), made(family, tmp_path / "b.safetensors", 2, rank=3, text_encoder=False)
    both = sl.merge_loras([a, b], weights=[0.7, -0.4])
    assert both.info["ranks"] == [4, 7]
    ours, (one, two) = deltas(family, both), (deltas(family, p) for p in (a, b))
    assert apart(ours, {k: 0.7 * t + (-0.4 * two[k] if k in two else 0) for k, t in one.items()})[0] < 1e-6
    said = []
    for patches in ([(both, 1.0)], [(a, 0.7), (b, -0.4)]):
        put = named
        for patch, strength in patches:
            put = sl.with_lora(put, patch, strength=strength)
        with sl.runtime.lease(put, dtype=torch.float32) as f:
            said.append(lora_file.probe(f, PROMPTS))
    assert float((said[0] - said[1]).abs().max()) < 1e-5
    narrow = sl.merge_loras([a, b], rank=4)
    assert apart(deltas(family, narrow), deltas(family, sl.merge_loras([a, b])))[1] == pytest.approx(narrow.info["error"], rel=1e-4)
    with pytest.raises(ValueError, match="1 weights for 2"):
        sl.merge_loras([a, b], weights=[1.0])


@pytest.mark.parametrize("method", ["loha", "lokr", "dora", "lora"])
def test_any_kind_is_a_lora_of_enough_ranks(named: Model, family: Family, tmp_path: Path, method: str) -> None:
    given = made(family, tmp_path / "a.safetensors", 3, method=method, targets="transformer")
    whole = sl.as_lora(given, named, rank=None)
    assert apart(deltas(family, whole), deltas(family, given))[0] < 1e-5
    assert whole.info["error"] < 1e-6
    assert lora_patch.describe(whole.weights.path)["kinds"] == ["lora"]
    few = sl.as_lora(given, named, rank=3)
    assert 0 < few.info["error"] < 1
    assert apart(deltas(family, few), deltas(family, given))[1] == pytest.approx(few.info["error"], rel=1e-4)
    if method != "lora":
        with pytest.raises(ValueError, match=f"is {method}; expected plain LoRA, which as_lora makes"):
            sl.resize_lora(given)


def test_what_no_lora_can_hold_counts_as_lost(named: Model, family: Family, tmp_path: Path) -> None:
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_"
    save_file({f"{key}norm1.diff": torch.ones(64), f"{key}attn1_to_q.diff": torch.eye(64)}, tmp_path / "a.safetensors")
    kept = sl.as_lora(Patch("lora", Blob.of(tmp_path / "a.safetensors")), named, rank=None)
    assert kept.info["layers"] == 1
    assert kept.info["error"] == pytest.approx(0.5**0.5)


def test_the_difference_of_two_models(named: Model, family: Family, tmp_path: Path) -> None:
    given = made(family, tmp_path / "a.safetensors", 3, targets="full")
    tuned = sl.with_lora(named, given)
    found = sl.extract_lora(named, tuned, rank=4)
    assert apart(deltas(family, found), deltas(family, given))[0] < 1e-5
    assert found.info["error"] < 1e-5
    assert sl.extract_lora(named, tuned, rank=2).info["error"] > 0.1
    with pytest.raises(ValueError, match="no linear or convolution layer"):
        sl.extract_lora(named, named)


def test_names_of_other_programs_stay(family: Family, tmp_path: Path) -> None:
    head = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    torch.manual_seed(0)
    save_file({f"{head}.lora_A.weight": torch.randn(3, 64), f"{head}.lora_B.weight": torch.randn(64, 3)}, tmp_path / "a.safetensors")
    whole = Patch("lora", Blob.of(tmp_path / "a.safetensors"))
    less = sl.resize_lora(whole, rank=2)
    assert load_file(less.weights.path).keys() == load_file(whole.weights.path).keys()
    same = sl.resize_lora(whole, rank=3, keep=1.0)
    assert apart(deltas(family, same), deltas(family, whole))[0] < 1e-5
