"""Models that differ in a part have the others in common; networks that do not fit together on a device take turns there."""
import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import safelight as sl
from safelight import runtime
from safelight.families import sharing
from safelight.families.sharing import HEADROOM, Turn, by_turns, crowded, size
from safelight.runtime import lease
from safelight.values import Model
from tests import tiny
from tests.patching import look, same, write

F32 = torch.float32


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    runtime.release()
    sharing._by_turns.clear()


@pytest.fixture
def two(tmp_path: Path) -> tuple[Model, Model]:
    """A model, and the same with another autoencoder."""
    base, other = tiny.sd1(tmp_path / "base"), tiny.sd1(tmp_path / "other", seed=1)
    return sl.model(str(base)), sl.model(str(base), vae=str(other / "vae"))


def test_the_same_base_with_another_part_is_loaded_once(two: tuple[Model, Model]) -> None:
    plain, mixed = two
    with lease(plain, dtype=F32) as a:
        own = dict(a.trainable())
    with lease(mixed, dtype=F32) as b:
        found = b.trainable()
        assert a is not b and own.keys() == found.keys()
        assert found["unet"] is own["unet"] and found["text_encoder"] is own["text_encoder"]
        assert found["vae"] is not own["vae"]
    with lease(plain, dtype=torch.bfloat16) as c:
        assert c.trainable()["unet"] is not own["unet"]


def test_a_whole_model_has_parts_in_common_with_its_copy(tmp_path: Path) -> None:
    first = tiny.sd1(tmp_path / "a")
    second = Path(shutil.copytree(first, tmp_path / "b"))
    shutil.rmtree(second / "vae")
    shutil.copytree(tiny.sd1(tmp_path / "c", seed=1) / "vae", second / "vae")
    with lease(sl.model(str(first)), dtype=F32) as a:
        pass
    with lease(sl.model(str(second)), dtype=F32) as b:
        assert a.trainable()["unet"] is b.trainable()["unet"] and a.trainable()["vae"] is not b.trainable()["vae"]


def test_who_holds_a_part_keeps_it_to_himself(two: tuple[Model, Model], tmp_path: Path) -> None:
    plain, mixed = two
    with lease(plain, dtype=F32) as a:
        before, patch = look(a), write(a, tmp_path / "a.safetensors")
    with lease(plain.with_patch(patch), dtype=F32) as a:
        with lease(mixed, dtype=F32) as b:
            assert b.trainable()["unet"] is not a.trainable()["unet"]
            assert torch.equal(b.trainable()["unet"].state_dict()["conv_in.weight"], before["unet.state"]["conv_in.weight"])
    assert same(look(a), before)
    with lease(mixed.with_patch(patch), dtype=F32) as again:
        assert again is b
    with lease(plain, dtype=F32) as c:
        assert same(look(c), before)


def test_warm_models_that_share_are_parted_when_both_are_held(two: tuple[Model, Model]) -> None:
    plain, mixed = two
    with lease(plain, dtype=F32) as a, torch.no_grad():
        said = a.encode_text(["a cat"]).tokens
    with lease(mixed, dtype=F32) as b:
        assert a.trainable()["unet"] is b.trainable()["unet"]
        with lease(plain, dtype=F32, train=True) as c:
            assert c is not a and c.trainable()["unet"] is not b.trainable()["unet"]
            assert torch.allclose(c.encode_text(["a cat"]).tokens, said, atol=1e-6)


def test_forgotten_networks_are_not_kept(two: tuple[Model, Model]) -> None:
    runtime.release()
    gc.collect()
    before = set(sharing._built)  # of tests before this one, whose fixtures live on
    for model in two:
        with lease(model, dtype=F32):
            pass
    runtime.release()
    gc.collect()
    assert set(sharing._built) <= before


def test_two_towers_of_one_folder_are_two(tmp_path: Path) -> None:
    folder = tiny.sdxl(tmp_path / "m")
    model = sl.model(str(folder), text_encoder_2=str(folder / "text_encoder_2"))
    with lease(model, dtype=F32) as f:
        assert f.trainable()["text_encoder"] is not f.trainable()["text_encoder_2"]


# Networks that take turns.


def test_turns_are_taken_where_little_is_left_and_much_is_won() -> None:
    unet, text, vae = 5 * 2**30, 2 * 2**30, 2**28
    assert crowded([unet, text, vae], 2**30)
    assert crowded([unet, text, vae], 0)
    assert not crowded([unet, text, vae], HEADROOM)
    assert not crowded([unet, text, vae], None)
    assert not crowded([2**24, 2**22], 2**30)  # a small model's turns would win nothing
    assert size(nn.Linear(3, 5)) == 4 * (15 + 5)


@pytest.mark.parametrize("layout", ["sd1", "sdxl", "kolors", "sd3"])
def test_a_model_whose_networks_take_turns_says_the_same(tmp_path: Path, layout: str) -> None:
    model = tiny.model(tiny.LAYOUTS[layout](tmp_path / "m"))
    x = torch.randn(1, 16 if layout == "sd3" else 4, 8, 8)

    def said() -> tuple[torch.Tensor, ...]:
        with lease(model, dtype=F32) as f, torch.no_grad():
            pixels = f.decode(f.denoise(x, f.sigmas[[500]], f.encode_text(["a red apple"])))
            return pixels, f.encode_image(pixels)

    before = said()
    with lease(model, dtype=F32) as f:
        networks = dict(f.trainable())
        patch = write(f, tmp_path / "a.safetensors")
    by_turns(networks.values(), torch.device("cpu"))
    assert all(isinstance(n._hf_hook, Turn) for n in networks.values())
    assert all(torch.equal(a, b) for a, b in zip(before, said(), strict=True))
    with lease(model, dtype=F32) as f:
        clean = look(f)
    with lease(model.with_patch(patch), dtype=F32):
        pass
    assert same(look(f), clean)


def test_a_network_comes_to_the_device_and_the_last_one_leaves_it() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    by_turns([first, second], torch.device("meta"))
    assert first(torch.zeros(1, 2)).device.type == "meta"
    assert {p.device.type for p in first.parameters()} == {"meta"} and {p.device.type for p in second.parameters()} == {"cpu"}
    with pytest.raises(NotImplementedError, match="meta tensor"):  # the first is moved away; from there nothing can come back
        second(torch.zeros(1, 2))


@pytest.mark.gpu
def test_on_a_gpu_one_network_is_there_at_a_time(tmp_path: Path) -> None:
    folder, cuda = tiny.sdxl(tmp_path / "m"), torch.device("cuda", 0)
    family = tiny.load(folder, device=cuda, dtype=F32)
    networks = family.trainable()
    x, sigma = torch.randn(1, 4, 8, 8), family.sigmas[[500]]
    before = family.decode(family.denoise(x, sigma, family.encode_text(["a"])))
    by_turns(networks.values(), cuda)
    after = family.decode(family.denoise(x, sigma, family.encode_text(["a"])))
    assert torch.equal(before, after)
    assert [name for name, n in networks.items() if next(n.parameters()).device.type == "cuda"] == ["vae"]
