"""Decoding and encoding where memory is short: one picture at a time, then tiles that are blended before they are cut off."""
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from safelight.families import memory
from safelight.families.latents import HELD, Autoencoder
from safelight.families.sources import open_source
from safelight.families.tiles import three_ways
from tests import tiny

CPU = torch.device("cpu")
MB = 2**20


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Autoencoder:
    """A decoder whose pictures go far beyond 0 and 1."""
    made = Autoencoder(open_source(tiny.sd1(tmp_path_factory.mktemp("models") / "m")), device=CPU, dtype=torch.float32)
    for p in made.net.decoder.parameters():
        p *= 3
    return made


def feathered(z: Tensor, images: Autoencoder, shape: tuple[int, int], overlap: int) -> Tensor:
    """ComfyUI's rule, place by place: tiles begin every side less the overlap, and weigh 1/n, 2/n, ... from each edge on."""
    f, (high, wide) = images.factor, z.shape[-2:]
    total, weights = torch.zeros(1, 3, high * f, wide * f), torch.zeros(1, 1, high * f, wide * f)
    places = [range(0, n - overlap, t - overlap) if n > t else [0] for n, t in zip((high, wide), shape, strict=True)]
    for y, x in product(*places):
        part = images.net.decode(z[..., y : y + shape[0], x : x + shape[1]]).sample
        sides = []
        for n in part.shape[-2:]:
            soft = overlap * f if n > overlap * f else 1
            sides.append(torch.tensor([min(i + 1, soft) / soft * min(n - i, soft) / soft for i in range(n)]))
        weight = sides[0][:, None] * sides[1]
        total[..., y * f : y * f + part.shape[2], x * f : x * f + part.shape[3]] += part * weight
        weights[..., y * f : y * f + part.shape[2], x * f : x * f + part.shape[3]] += weight
    return total / weights


@pytest.mark.parametrize("size", [(40, 24), (17, 31), (8, 12)])
def test_tiles_are_blended_before_they_are_cut_off(images: Autoencoder, size: tuple[int, int]) -> None:
    z = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(1))
    raw = z / images.scale
    ways = [feathered(raw, images, shape, 4) for shape in ((8, 32), (32, 8), (16, 16))]
    wanted = sum(ways, torch.zeros(())) / 3 / 2 + 0.5
    assert ((wanted < 0) | (wanted > 1)).float().mean() > 0.2
    found = images.decode(z, tile=64, overlap=16)
    assert torch.allclose(found, wanted.clamp(0, 1).movedim(1, -1), atol=1e-5)


def test_what_fits_into_every_tile_is_decoded_once(images: Autoencoder) -> None:
    z = torch.randn(2, 4, 8, 7, generator=torch.Generator().manual_seed(1))
    asked: list[Tensor] = []
    made = three_ways(z, lambda t: (asked.append(t), t * 2)[1], tile=16, overlap=4, scale=1)
    assert torch.equal(made, z * 2) and len(asked) == 2
    assert torch.allclose(images.decode(z, tile=64, overlap=16), images.decode(z), atol=1e-5)


def need(images: Autoencoder, side: int) -> int:
    return HELD * 16 * 4 * side**2  # sixteen channels in float32


def test_what_fits_is_done_at_once_and_what_does_not_in_parts(images: Autoencoder, caplog: pytest.LogCaptureFixture) -> None:
    z = torch.randn(3, 4, 48, 48, generator=torch.Generator().manual_seed(2))
    each = need(images, 192)
    whole = images.decode(z)
    assert torch.equal(images.decode(z, free=3 * each), whole) and not caplog.records
    assert torch.allclose(images.decode(z, free=2 * each), whole, atol=1e-5)
    assert "memory is short for 3 at once; doing it 1 at once" in caplog.messages[-1]
    tiled = images.decode(z, free=each - 1)
    assert "in tiles of 128 pixels" in caplog.messages[-1]
    assert torch.equal(tiled, images.decode(z, tile=128, overlap=32)) and not torch.equal(tiled, whole)
    assert torch.equal(images.decode(z, free=0), tiled)  # the last way is tried whatever is free
    pixels = whole
    assert torch.allclose(images.encode(pixels, free=each), images.encode(pixels), atol=1e-5)
    assert "doing it 1 at once" in caplog.messages[-1]
    assert torch.equal(images.encode(pixels, free=0), images.encode(pixels, tile=128, overlap=32))


@contextmanager
def at_most(more: int) -> Iterator[None]:
    """No more than so many bytes of new memory for this process."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="the limit needs Linux")
def test_running_out_of_memory_leads_to_tiles(images: Autoencoder, caplog: pytest.LogCaptureFixture) -> None:
    z = torch.randn(1, 4, 224, 224)  # 896 pixels a side: 51 MB for a layer's output
    images.decode(z[..., :32, :32])
    with at_most(120 * MB):
        found = images.decode(z, free=2**60)
    assert found.shape == (1, 896, 896, 3)
    assert any("doing it in tiles" in m for m in caplog.messages)
    with at_most(4 * MB), pytest.raises((RuntimeError, MemoryError), match=r"allocate|bad_alloc|primitive|^$"):
        images.decode(z, free=2**60)


def test_other_errors_are_not_taken_for_a_lack_of_memory(images: Autoencoder) -> None:
    with pytest.raises(RuntimeError, match="channels"):
        images.decode(torch.randn(2, 5, 8, 8))


def test_free_memory_is_a_plausible_number() -> None:
    found = memory.free(CPU)
    if Path("/proc/meminfo").is_file():
        total = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
        assert found is not None and 0 < found < total * 1024
    assert memory.free(torch.device("meta")) is None


def test_a_container_has_its_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    before = memory.free(CPU)
    for name, text in {"max": "9000000\n", "current": "5000000\n", "stat": "anon 4\ninactive_file 1000000\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory.free(CPU) == 5_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert before is None or memory.free(CPU) != 5_000_000


def test_how_a_lack_of_memory_is_told() -> None:
    said = ["[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
            "MPS backend out of memory (MPS allocated: 1 GB)", "CUDA error: out of memory"]
    assert all(memory.ran_out(RuntimeError(text)) for text in said)
    assert memory.ran_out(torch.OutOfMemoryError("x")) and memory.ran_out(MemoryError())
    assert not memory.ran_out(RuntimeError("shape mismatch"))
