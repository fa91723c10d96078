"""Patches, guidance and noise levels that meet each other."""
from __future__ import annotations

import json
import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel

import safelight
from safelight.families import Family
from safelight.families.parametrisation import Parametrisation
from safelight.families.sources import open_source
from safelight.patches import find, rows
from safelight.patches.rows import ALONE, NEGATIVE, SKIPPED, WEAK
from safelight.sampling import regions
from safelight.sampling.guidance import CFG, Changed, Off
from safelight.sampling.process import process
from safelight.values import NO_FILE, Blob, Cond, Part, Patch, digest
from tests import tiny

CPU = torch.device("cpu")


def patch(kind: str, **options: Any) -> Patch:
    return Patch(kind, NO_FILE, options=options)


def load(folder: Path) -> Family:
    return tiny.load(folder, device=CPU, dtype=torch.float32)


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sd1(tmp_path_factory.mktemp("sd1") / "m")


@pytest.fixture(scope="module")
def cosxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SDXL that changes pictures, of continuous levels."""
    folder, words = tmp_path_factory.mktemp("cosxl") / "m", tiny.tokenizer(48)
    tiny.save(folder, 0, {
        "unet": lambda: tiny.sized(in_channels=8), "vae": lambda: tiny.vae(4, 4, 0.13025), "tokenizer": lambda: words,
        "text_encoder": lambda: CLIPTextModel(tiny.clip_config(words, num_hidden_layers=3)),
        "text_encoder_2": lambda: tiny.projected(words, 48), "tokenizer_2": lambda: words})
    (folder / "scheduler").mkdir()
    levels = {"prediction_type": "v_prediction", "sigma_data": 1.0, "sigma_min": 0.002, "sigma_max": 120.0}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "EDMEulerScheduler", **levels}))
    tiny.finish(folder, "StableDiffusionXLInstructPix2PixPipeline")
    return folder


def answer(family: Family, marks: list[int]) -> Tensor:
    x = torch.randn(len(marks), family.channels, 16, 16, generator=torch.Generator().manual_seed(0))
    words = torch.randn(len(marks), 7, 32, generator=torch.Generator().manual_seed(1))
    cond = Cond(words, {WEAK: torch.tensor(marks), NEGATIVE: torch.zeros(len(marks), dtype=torch.bool)})
    return family.denoise(x, torch.full((len(marks),), 2.0), cond)


def test_a_weak_row_stays_one_when_its_places_come_in_tiles(sd1: Path) -> None:
    family = load(sd1)
    alone, tiled = patch("weak", how="alone"), patch("attention", how="tiled", tile=32, swap=1, depth=3, grow=0)
    said = []
    for order in ((tiled, alone), (alone, tiled)):
        with ExitStack() as on:
            for one in order:
                on.enter_context(find(one.kind)(family, one))
            said.append(answer(family, [0, ALONE]))
    assert torch.allclose(said[0][0], said[1][0], atol=1e-5)
    assert not torch.allclose(said[1][1], answer(family, [0, 0])[1], atol=1e-3)


def test_two_blurs_leave_the_family_as_it_was(sd1: Path) -> None:
    family = load(sd1)
    before = dict(vars(family))
    with ExitStack() as on:
        for sigma in (2.0, 3.0):
            on.enter_context(find("weak")(family, patch("weak", how="blurred", sigma=sigma)))
    assert vars(family) == before


def test_a_hypernetwork_follows_the_network_to_where_that_works(sd1: Path, tmp_path: Path) -> None:
    family = load(sd1)
    net: Any = family.trainable()["unet"]
    widths = {m.to_k.weight.shape[1] for n, m in net.named_modules() if n.endswith((".attn1", ".attn2"))}
    save_file({f"{w}.{i}.linear.0.{part}": torch.zeros(size) for w in widths for i in (0, 1) for part, size in
               (("weight", (w, w)), ("bias", (w,)))}, tmp_path / "h.safetensors")
    with find("hypernetwork")(family, Patch("hypernetwork", Blob(str(tmp_path / "h.safetensors"), "x"), 1.0)):
        net.double()  # as when networks take turns on a device: they move after the patch entered
        out = net(torch.zeros(1, 4, 8, 8).double(), torch.tensor([1]), torch.zeros(1, 7, 32).double()).sample
    assert out.dtype == torch.float64


def test_a_network_of_continuous_levels_is_shown_a_picture_as_it_was_taught(cosxl: Path, tmp_path: Path) -> None:
    family, seen = load(cosxl), []
    family.trainable()["unet"].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    cond = family.encode_text(["a"])
    shown = replace(cond, extras={**cond.extras, "original": torch.ones(1, 4, 8, 8)})
    family.denoise(torch.zeros(1, 4, 8, 8), torch.tensor([1.0]), shown)
    assert torch.equal(seen[0][:, 4:], torch.ones(1, 4, 8, 8))


@pytest.mark.parametrize(("told", "kind"), [("eps", "eps"), ("v", "v")])
def test_what_is_said_of_the_levels_counts_whatever_the_files_say(cosxl: Path, tmp_path: Path, told: str, kind: str) -> None:
    for folder in (cosxl, tiny.sd3(tmp_path / "sd3")):
        parts = open_source(folder, [Part("scheduler", told, digest(told))])
        read = Parametrisation.read(parts.config("scheduler"), CPU)
        assert (read.prediction, read.clock) == (kind, "index") and 14 < float(read.sigmas[-1]) < 15


def test_a_shift_is_a_flows(sd1: Path) -> None:
    with pytest.raises(ValueError, match=r"shift=3 with prediction=v"):
        safelight.model(str(sd1), prediction="v", shift=3)


def test_shares_of_the_way_are_the_same_for_conditions_and_patches(sd1: Path) -> None:
    parts = open_source(sd1, [Part("scheduler", "angle-v", digest("angle-v"))])
    from safelight.families import find as family_of

    family = family_of(parts.family)(parts, device=CPU, dtype=torch.float32)
    for share in (0.2, 0.5, 0.8):
        wanted = math.exp(math.log(500) + share * (math.log(0.03) - math.log(500)))
        assert regions.level(process(family), share) == pytest.approx(wanted, rel=2e-3)
        assert rows.level(family, share) == pytest.approx(wanted, rel=2e-3)


def test_rows_of_other_lengths_keep_their_marks(tmp_path: Path) -> None:
    family = load(tiny.sd3(tmp_path / "sd3"))
    cond = family.encode_text(["a girl", "a girl with purple hair, a man with red hair in a blue coat " * 6])
    marked = Cond(cond.tokens, {**cond.extras, WEAK: torch.tensor([0, SKIPPED]), NEGATIVE: torch.tensor([False, False])})
    x, sigma = torch.randn(2, family.channels, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 0.5])
    plain = family.denoise(x, sigma, marked)
    with find("weak")(family, patch("weak", how="skipped", layers=[0])):
        weak = family.denoise(x, sigma, marked)
    assert torch.equal(weak[0], plain[0]) and not torch.allclose(weak[1], plain[1], atol=1e-4)


def test_changes_that_lack_something_say_what() -> None:
    cond = Cond(torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="dual needs a third condition"):
        Changed(CFG(3.0), {"dual": 1.0})
    with pytest.raises(ValueError, match="guide=off"):
        Changed(Off(), {"dual": 1.0}, cond)
    with pytest.raises(ValueError, match="blur or a third condition needs a negative prompt"):
        Changed(CFG(1.0), {"blur": 1.0}).conds(cond, None)
