"""A saved LoRA does in other programs what it does here: in diffusers' own loaders and pipeline, in every layout."""
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

from bench import roundtrip
from safelight.patches import lora as patch_lora
from safelight.recipes import lora as recipe
from safelight.recipes import portable
from safelight.train import lora_file, trainables
from safelight.train.loop import Trained
from safelight.train.settings import Batches, LoraShape, Objective, Optimizer, Watch
from safelight.values import Blob, Patch
from tests import tiny

PROMPTS = ["a red apple", ""]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.loader(tmp_path_factory.mktemp("families"))


def finish(work: Any) -> Any:
    """The value and the events of a generator."""
    events = []
    while True:
        try:
            events.append(next(work))
        except StopIteration as stop:
            return stop.value, events


@pytest.mark.parametrize("layout", ["sd1", "mini"])
@pytest.mark.parametrize("targets", ["attention", "full"])
def test_diffusers_reads_our_file_to_the_same_output(tmp_path: Path, layout: str, targets: str) -> None:
    family: Any = tiny.load(tiny.LAYOUTS[layout](tmp_path / "m"), device=torch.device("cpu"), dtype=torch.float32)
    file = tmp_path / "lora.safetensors"
    with trainables.adapter(family, LoraShape(rank=3, alpha=1.5, targets=targets, text_encoder=targets == "full"), 0) as adapter:
        torch.manual_seed(2)
        weights = {n: torch.randn_like(p) * 0.05 for n, p in adapter.parameters.items()}
        adapter.load(weights)
        lora_file.write(file, adapter.file(weights), {})
        ours = lora_file.probe(family, PROMPTS)
    plain = lora_file.probe(family, PROMPTS)
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    networks = family.trainable()
    parts = networks["vae"], networks["text_encoder"], family.text.tokenizer, networks["unet"], scheduler
    pipeline = StableDiffusionPipeline(*parts, None, None, requires_safety_checker=False)
    pipeline.load_lora_weights(file)
    theirs = lora_file.probe(family, PROMPTS)
    assert float((ours - plain).abs().max()) > 1e-2
    assert float((ours - theirs).abs().max()) < 1e-5


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "comfyui"])
@pytest.mark.parametrize("method", ["LoCon", "DoRA", "LoKr"])
@pytest.mark.parametrize("name", ["sdxl", "kolors", "sd3"])
def test_every_layout_reads_back(families: Any, tmp_path: Path, name: str, method: str, layout: str) -> None:
    family = families(name)
    file, written = tmp_path / "kohya.safetensors", tmp_path / "written.safetensors"
    lora_file.write(file, roundtrip.adapter(family, method), {"sshs_model_hash": "", "ss_seed": "5"})
    if layout == "diffusers" and method not in ("LoCon", "DoRA"):
        with pytest.raises(ValueError, match="has no names for"):
            portable.export(family, file, layout, written)
        return
    plain = lora_file.probe(family, PROMPTS)
    keys = portable.export(family, file, layout, written)
    seen = []
    for each in (file, written):
        changes = patch_lora.read(str(each))
        assert len(patch_lora.match(family, changes, str(each))) == len(changes)
        with patch_lora.lora(family, Patch("lora", Blob.of(each), options={"merged": False})):
            seen.append(lora_file.probe(family, PROMPTS))
    assert float((seen[0] - plain).abs().max()) > 1e-2 and float((seen[0] - seen[1]).abs().max()) < 1e-5
    told = patch_lora.file.opened(str(written)).metadata
    assert told["ss_seed"] == "5" and told["sshs_model_hash"] == lora_file.tensor_hash(load_file(written))
    if layout == "diffusers":
        with portable.by_diffusers(family, written) as (used, total):
            assert used == total == len(keys)
            assert float((lora_file.probe(family, PROMPTS) - seen[0]).abs().max()) < 1e-5
        assert torch.equal(lora_file.probe(family, PROMPTS), plain), "the model is what it was"


def test_names_are_those_of_each_program(families: Any, tmp_path: Path) -> None:
    family, file = families("kolors"), tmp_path / "kohya.safetensors"
    lora_file.write(file, roundtrip.adapter(family, "LoRA"), {})
    first = {layout: portable.export(family, file, layout, tmp_path / f"x.{layout}")[0] for layout in portable.LAYOUTS}
    path = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"
    assert first == {
        "kohya": f"lora_unet_{path.replace('.', '_')}.alpha",
        "diffusers": f"unet.{path}.lora_A.weight",
        "comfyui": "diffusion_model.input_blocks.3.1.transformer_blocks.0.attn1.to_k.alpha",
        "diffsynth": "blocks.5.transformer_blocks.0.attn1.to_k.lora_A.default.weight",
    }
    with pytest.raises(ValueError, match="expected one of kohya, diffusers"):
        portable.export(family, file, "a1111", tmp_path / "x")
    lora_file.write(file, roundtrip.adapter(family, "LoCon"), {})
    with pytest.raises(ValueError, match="attention blocks, not unet"):
        portable.export(family, file, "diffsynth", tmp_path / "x")


def test_a_file_that_is_not_what_was_trained_is_not_kept(tmp_path: Path) -> None:
    model, file = tiny.model(tiny.sd1(tmp_path / "m")), tmp_path / "lora.safetensors"
    plan = recipe.Plan(LoraShape(rank=2, alpha=1.0), Optimizer(), Batches(), Objective(), Watch(), 0)
    family = tiny.load(tmp_path / "m", device=torch.device("cpu"), dtype=torch.float32)
    with trainables.adapter(family, plan.shape, 0) as adapter:
        weights = {n: torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.05 for n, p in adapter.parameters.items()}
        tensors = adapter.file(weights)
    trained = Trained(weights, 1, {})
    lora_file.write(file, tensors, {})
    (proof, readers), events = finish(recipe.prove(model, file, plan, trained, PROMPTS))
    assert proof.matched == proof.total == len(adapter.layers) and proof.max_difference <= 1e-5
    assert [(r.reader, r.matched == r.total > 0, r.sound) for r in readers] == [("safelight", True, True), ("diffusers", True, True)]
    assert all(r.max_difference <= 1e-5 and r.pictures <= 1e-5 for r in readers)
    assert sum("read back by" in str(e) for e in events) == 2
    key = next(k for k in tensors if k.endswith("lora_up.weight"))
    lora_file.write(file, tensors | {key: tensors[key] * 1.5}, {})
    with pytest.raises(ValueError, match="is not what was trained"):
        finish(recipe.prove(model, file, plan, trained, PROMPTS))
    lora_file.write(file, {k: t for k, t in tensors.items() if not k.startswith(key.partition(".")[0])}, {})
    with pytest.raises(ValueError, match=f"{proof.total - 1} of {proof.total} layers"):
        finish(recipe.prove(model, file, plan, trained, PROMPTS))
