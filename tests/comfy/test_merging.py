"""Merging nodes against the arithmetic of the weights, and a merged model saved and read again."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from safelight import comfy, runtime
from safelight.comfy import Places, PromptError, translate
from safelight.computing import computing
from safelight.engine import finish, run
from safelight.folders import roots
from safelight.op import load_ops
from safelight.patches.full import homes
from safelight.store import Store
from tests import tiny
from tests.comfy.prompts import node

Weights = dict[str, torch.Tensor]


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Places]:
    for i, name in enumerate("abc"):
        tiny.sd1(tmp_path / "models" / "diffusers" / name, seed=i)
    with computing("cpu", "float32"):
        yield Places(roots(tmp_path / "models"), tmp_path / "input", tmp_path / "out")
    runtime.release()


def loaders() -> dict[str, Any]:
    return {name: node("DiffusersLoader", model_path=name) for name in "abc"}


def weights(here: Places, store: Store, **added: Any) -> Weights:
    """Of the model behind the node `end`, or of its second slot's."""
    slot = 1 if added["end"]["class_type"].startswith("CLIP") else 0
    prompt = loaders() | added | {
        "t": node("CLIPTextEncode", clip=["end", 0] if slot else ["a", 1], text="x"),
        "l": node("EmptyLatentImage", width=32, height=32, batch_size=1),
        "k": node("KSampler", model=["a", 0] if slot else ["end", 0], seed=1, steps=1, cfg=1.0, sampler_name="euler", scheduler="normal",
                  positive=["t", 0], negative=["t", 0], latent_image=["l", 0], denoise=1.0),
        "d": node("VAEDecode", samples=["k", 0], vae=["a", 2]), "s": node("PreviewImage", images=["d", 0]),
    }
    told = translate(prompt, here).graph
    wanted = told["t" if slot else "k"]["inputs"]["model"][0]
    model = finish(run(told, store, [wanted], ops=load_ops()))[wanted]
    return of(model)


def of(model: Any) -> Weights:
    with runtime.lease(model, holder="test") as family:
        return {name: getattr(*places[0]).detach().clone() for name, places in homes(family).items()}


def own(here: Places, name: str) -> Weights:
    return of(load_ops()["model"](str(here.models.find("diffusers", name))))


def near(a: Weights, b: Weights) -> bool:
    return all(torch.allclose(a[name], b[name], atol=2e-6) for name in b)


def test_the_sum_of_shares(here: Places, tmp_path: Path) -> None:
    a, b = own(here, "a"), own(here, "b")
    found = weights(here, Store(tmp_path / "store"), end=node("ModelMergeSimple", model1=["a", 0], model2=["b", 0], ratio=0.3))
    mixed = {n: 0.3 * a[n] + 0.7 * b[n] for n in a if n.startswith("unet.")}
    assert near(found, mixed) and near(found, {n: t for n, t in a.items() if not n.startswith("unet.")})
    assert not near(found, b)


def test_blocks_have_their_own_shares(here: Places, tmp_path: Path) -> None:
    a, b = own(here, "a"), own(here, "b")
    end = node("ModelMergeBlocks", model1=["a", 0], model2=["b", 0], input=1.0, middle=0.25, out=0.0)
    found = weights(here, Store(tmp_path / "store"), end=end)
    shares = {"mid_block": 0.25, "up_blocks": 0.0, "conv_out": 0.0, "conv_norm_out": 0.0}
    wanted = {n: (s := shares.get(n.split(".")[1], 1.0)) * a[n] + (1 - s) * b[n] for n in a if n.startswith("unet.")}
    assert near(found, wanted)


def test_a_difference_moves_to_a_third_model(here: Places, tmp_path: Path) -> None:
    a, b, c = (own(here, name) for name in "abc")
    more = node("ModelMergeSubtract", model1=["b", 0], model2=["c", 0], multiplier=0.5)
    found = weights(here, Store(tmp_path / "store"), more=more, end=node("ModelMergeAdd", model1=["more", 0], model2=["a", 0]))
    assert near(found, {n: a[n] + 0.5 * (b[n] - c[n]) for n in a if n.startswith("unet.")})
    with pytest.raises(PromptError, match=r"node k \(KSampler\).*added to a third"):
        weights(here, Store(tmp_path / "store"), end=more)
    with pytest.raises(PromptError, match="sum of two whole models"):
        weights(here, Store(tmp_path / "store"), end=node("ModelMergeAdd", model1=["b", 0], model2=["a", 0]))


def test_text_encoders_merge_apart_and_both_are_saved(here: Places, tmp_path: Path) -> None:
    a, b, store = own(here, "a"), own(here, "b"), Store(tmp_path / "store")
    text = node("CLIPMergeSimple", clip1=["a", 1], clip2=["b", 1], ratio=0.75)
    found = weights(here, store, end=text)
    mixed = {n: 0.75 * a[n] + 0.25 * b[n] for n in a if n.startswith("text_encoder.")}
    assert near(found, mixed) and near(found, {n: t for n, t in a.items() if n.startswith("unet.")})
    prompt = loaders() | {
        "m": node("ModelMergeSimple", model1=["a", 0], model2=["b", 0], ratio=0.5), "t": text,
        "s": node("CheckpointSave", model=["m", 0], clip=["t", 0], vae=["a", 2], filename_prefix="mine/both"),
    }
    (index,) = finish(comfy.run(prompt, here, store=store))["s"]
    assert index.parent == here.output / "mine" / "both_00001_"
    again = of(load_ops()["model"](str(index.parent)))
    assert near(again, mixed) and near(again, {n: (a[n] + b[n]) / 2 for n in a if n.startswith("unet.")})
    prompt["s"]["inputs"]["vae"] = ["b", 2]
    with pytest.raises(PromptError, match="several models"):
        translate(prompt, here)
