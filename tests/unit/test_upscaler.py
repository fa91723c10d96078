"""Upscalers against the papers' networks written as modules, from files under every name they go by."""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu, pixel_unshuffle

from safelight.computing import computing
from safelight.families.upscaler import Upscaler
from safelight.op import load_ops
from safelight.values import Image

CPU = torch.device("cpu")
OPS = load_ops()


class Dense(nn.Module):
    """Five convolutions, each of which sees all before it."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        for i in range(1, 6):
            setattr(self, f"conv{i}", nn.Conv2d(width + (i - 1) * growth, growth if i < 5 else width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for i in range(1, 5):
            seen.append(leaky_relu(getattr(self, f"conv{i}")(torch.cat(seen, 1)), 0.2))
        return x + 0.2 * self.conv5(torch.cat(seen, 1))


class Block(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (Dense(width, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class Net(nn.Module):
    """ESRGAN's generator; `fold` pixels a side become one place first."""

    def __init__(self, fold: int = 1, width: int = 6, growth: int = 4, ups: int = 2) -> None:
        super().__init__()
        self.fold, self.ups = fold, ups
        self.conv_first = nn.Conv2d(3 * fold**2, width, 3, padding=1)
        self.body = nn.Sequential(Block(width, growth), Block(width, growth))
        self.conv_body, self.conv_hr = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        for i in range(ups):
            setattr(self, f"conv_up{i + 1}", nn.Conv2d(width, width, 3, padding=1))
        self.conv_last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv_first(pixel_unshuffle(x, self.fold))
        h = first + self.conv_body(self.body(first))
        for i in range(self.ups):
            h = leaky_relu(getattr(self, f"conv_up{i + 1}")(interpolate(h, scale_factor=2)), 0.2)
        return self.conv_last(leaky_relu(self.conv_hr(h), 0.2))


def made(**shape: int) -> Net:
    torch.manual_seed(3)
    net = Net(**shape)
    nn.init.normal_(net.conv_last.weight, std=0.3)
    nn.init.constant_(net.conv_last.bias, 0.5)
    return net


def oldest(tensors: dict[str, Tensor], ups: int) -> dict[str, Tensor]:
    """As the first ESRGAN files name them."""
    ends = {f"conv_up{i}": 3 * i for i in range(1, ups + 1)} | {"conv_first": 0, "conv_hr": 3 * ups + 2, "conv_last": 3 * ups + 4}
    out = {}
    for name, tensor in tensors.items():
        head, _, leaf = name.rpartition(".")
        new = re.sub(r"body\.(\d)\.rdb(\d)\.conv(\d)", r"1.sub.\1.RDB\2.conv\3.0", head).replace("conv_body", "1.sub.2")
        out[f"model.{ends.get(head, new)}.{leaf}"] = tensor
    return out


def second(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As BasicSR's first version does."""
    words = (("conv_body", "trunk_conv"), ("body.", "RRDB_trunk."), ("rdb", "RDB"), ("conv_up", "upconv"), ("conv_hr", "HRconv"))
    out = {}
    for name, tensor in tensors.items():
        for ours, theirs in words:
            name = name.replace(ours, theirs)
        out[name] = tensor
    return out


def said(path: Path, pixels: Tensor, *, tile: int = 512, overlap: int = 32) -> Tensor:
    return Upscaler(path, device=CPU, dtype=torch.float32)(pixels, tile=tile, overlap=overlap)


@pytest.mark.parametrize("names", ["new", "oldest", "second", "averaged"])
@pytest.mark.parametrize("shape", [{}, {"ups": 1}, {"ups": 3}, {"fold": 2}, {"fold": 4}])
def test_the_papers_network_under_every_name(tmp_path: Path, names: str, shape: dict[str, int]) -> None:
    net = made(**shape)
    tensors = {k: t.clone() for k, t in net.state_dict().items()}
    forms = {"new": tensors, "oldest": oldest(tensors, net.ups), "second": second(tensors)}
    forms["averaged"] = {f"params_ema.{k}": t for k, t in tensors.items()} | {f"params.{k}": t * 0 for k, t in tensors.items()}
    save_file(forms[names], tmp_path / "x.safetensors")
    pixels = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = net(pixels).clamp(0, 1)
    assert wanted.std() > 0.02 and torch.allclose(said(tmp_path / "x.safetensors", pixels), wanted, atol=1e-6)


def test_sides_that_do_not_fold_are_filled_up_and_cut_again(tmp_path: Path) -> None:
    net = made(fold=2)
    save_file(net.state_dict(), tmp_path / "x.safetensors")
    pixels = torch.rand(1, 3, 11, 14, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = net(nn.functional.pad(pixels, (0, 2, 0, 1), "reflect")).clamp(0, 1)[..., :22, :28]
    assert torch.allclose(said(tmp_path / "x.safetensors", pixels), wanted, atol=1e-6)


def test_the_compact_form(tmp_path: Path) -> None:
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.PReLU(8), nn.Conv2d(8, 8, 3, padding=1), nn.PReLU(8),
                           nn.Conv2d(8, 27, 3, padding=1))
    save_file({f"body.{k}": t for k, t in layers.state_dict().items()}, tmp_path / "x.safetensors")
    pixels = torch.rand(1, 3, 10, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = (nn.functional.pixel_shuffle(layers(pixels), 3) + interpolate(pixels, scale_factor=3)).clamp(0, 1)
    assert torch.allclose(said(tmp_path / "x.safetensors", pixels), wanted, atol=1e-6)


def test_tiles_join_without_a_seam(tmp_path: Path) -> None:
    """Inside the overlap both tiles know nearly all that they need; beyond a picture's edge nothing is known."""
    save_file(made().state_dict(), tmp_path / "x.safetensors")
    x, y = torch.meshgrid(torch.linspace(0, 1, 150), torch.linspace(0, 1, 130), indexing="ij")
    pixels = torch.stack([x, y, (9 * x * y).sin().abs()])[None]
    whole = said(tmp_path / "x.safetensors", pixels)
    apart = [(said(tmp_path / "x.safetensors", pixels, tile=64, overlap=n) - whole).abs().max() for n in (0, 32)]
    assert apart[1] < apart[0] / 4


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"conv_first.weight": torch.zeros(4, 1, 3, 3), "conv_last.weight": torch.zeros(1, 4, 3, 3)}, tmp_path / "grey.safetensors")
    save_file({"lora.down": torch.zeros(4, 4)}, tmp_path / "lora.safetensors")
    more = made().state_dict() | {"body.0.rdb1.conv1x1.weight": torch.zeros(4, 6, 1, 1)}  # ESRGAN+, which would be half used
    save_file(more, tmp_path / "plus.safetensors")
    for name in ("grey", "lora", "plus"):
        with pytest.raises(ValueError, match=rf"{name}\.safetensors: .* expected an upscaler"):
            Upscaler(tmp_path / f"{name}.safetensors", device=CPU, dtype=torch.float32)


def test_the_op_takes_a_pickle_and_keeps_what_a_picture_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_HOME", str(tmp_path / "home"))
    net = made()
    torch.save({"params_ema": net.state_dict()}, tmp_path / "x.pth")
    image = Image(np.random.default_rng(0).random((2, 8, 9, 3), dtype=np.float32), ({"seed": 1}, {"seed": 2}))
    with computing("cpu", "float32"):
        large = OPS["upscale_image"](image, network=tmp_path / "x.pth")
    assert large.pixels.shape == (2, 32, 36, 3) and [i["seed"] for i in large.info] == [1, 2]
    with torch.no_grad():
        wanted = net(torch.from_numpy(image.pixels).movedim(-1, 1)).clamp(0, 1).movedim(1, -1)
    assert np.allclose(large.pixels, wanted.numpy(), atol=1e-6)
