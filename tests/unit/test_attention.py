"""Attention in bfloat16 without torch's fused kernel: as exact as that kernel, and only where it is meant."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as fused

from safelight.families import attention
from tests import tiny

CPU = torch.device("cpu")


def _given(queries: int, keys: int, wide: int, *, apart: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Float32 heads whose scores lie `apart` and whose keys share a large mean, as trained ones do."""
    source = torch.Generator().manual_seed(queries + keys)
    q, k, v = (torch.randn(2, 3, n, wide, generator=source) for n in (queries, keys, keys))
    return q * apart, k + 3, v


def _error(found: Tensor, true: Tensor) -> float:
    return float((found.float() - true).abs().mean() / true.abs().mean())


@pytest.mark.parametrize(("queries", "keys", "wide"), [(700, 1024, 40), (512, 512, 64), (33, 2048, 160)])
@pytest.mark.parametrize("apart", [0.5, 2.0, 6.0])
def test_as_exact_as_the_fused_kernel(queries: int, keys: int, wide: int, apart: float) -> None:
    heads = _given(queries, keys, wide, apart=apart)
    true = fused(*heads)
    half = tuple(h.bfloat16() for h in heads)
    ours = attention.attend(*half, wide**-0.5)
    assert ours.shape == true.shape and ours.dtype == torch.bfloat16
    assert _error(ours, true) < 1.6 * _error(fused(*half), true)


def test_rows_are_cut_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = tuple(h.bfloat16() for h in _given(100, 512, 32))
    whole = attention.attend(*heads, 0.2)
    monkeypatch.setattr(attention, "CACHED", 512 * 7)
    assert _error(attention.attend(*heads, 0.2), whole.float()) < 2e-3


def test_a_scale_is_heeded_and_other_calls_go_to_torch() -> None:
    q, k, v = (h.bfloat16() for h in _given(64, 512, 32))
    mask = torch.zeros(64, 512, dtype=torch.bfloat16)
    asked = {"masked": {"attn_mask": mask}, "causal": {"is_causal": True}, "scaled": {"scale": 0.05}, "even": {"scale": 0.0}, "plain": {}}
    torchs = {name: fused(q, k, v, **more) for name, more in asked.items()}
    with torch.no_grad(), attention._Attend(many=attention.attend):
        here = {name: fused(q, k, v, **more) for name, more in asked.items()}
        short = fused(q, k[:, :, :77], v[:, :, :77])
        exact = fused(q.float(), k.float(), v.float())
        shared = fused(q, k, v[:1])
    assert torch.equal(shared, fused(q, k, v[:1]))
    assert _error(here["even"], v.float().mean(dim=2, keepdim=True).expand(-1, -1, 64, -1)) < 0.01
    assert torch.equal(here["masked"], torchs["masked"]) and torch.equal(here["causal"], torchs["causal"])
    assert not torch.equal(here["plain"], torchs["plain"])
    assert _error(here["scaled"], torchs["scaled"].float()) < 0.01 < _error(here["scaled"], torchs["plain"].float())
    assert torch.equal(short, fused(q, k[:, :, :77], v[:, :, :77]))
    assert torch.equal(exact, fused(q.float(), k.float(), v.float()))


def test_nothing_changes_for_gradients_or_in_float32() -> None:
    q, k, v = (h.bfloat16() for h in _given(64, 512, 32))
    with attention.fast(CPU, torch.bfloat16):  # a gradient may be wanted
        before = fused(q, k, v)
    assert torch.equal(before, fused(q, k, v))
    with torch.no_grad(), attention.fast(CPU, torch.float32):
        assert torch.equal(fused(q, k, v), before)


@pytest.mark.skipif(not attention.wanted(CPU, torch.bfloat16), reason="this CPU's fused kernel is the faster one")
def test_it_is_used_where_it_is_faster() -> None:
    q, k, v = (h.bfloat16() for h in _given(64, 512, 32))
    with torch.no_grad(), attention.fast(CPU, torch.bfloat16):
        assert torch.equal(fused(q, k, v), attention.attend(q, k, v, 32**-0.5))


@pytest.mark.skipif(not attention.wanted(CPU, torch.bfloat16), reason="this CPU's fused kernel is the faster one")
@pytest.mark.parametrize("layout", ["sd1", "sd3"])
def test_denoisers_use_it_and_stay_as_exact(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.LAYOUTS[layout](tmp_path / "m")
    exact, half = (tiny.load(folder, device=CPU, dtype=d) for d in (torch.float32, torch.bfloat16))
    x, sigma = torch.randn(1, exact.channels, 16, 16, generator=torch.Generator().manual_seed(0)), exact.sigmas[[500]]
    with torch.no_grad():
        cond = exact.encode_text(["a red apple"])
        true = exact.predict(x, sigma, cond)
        monkeypatch.setattr(attention, "WORTH", 64)
        ours = half.predict(x, sigma, cond)
        monkeypatch.setattr(attention, "WORTH", 10**9)
        torchs = half.predict(x, sigma, cond)
    assert not torch.equal(ours, torchs)
    assert _error(ours, true) < 1.1 * _error(torchs, true)


@pytest.mark.skipif(not attention.wanted(CPU, torch.bfloat16), reason="this CPU's fused kernel is the faster one")
def test_the_autoencoder_uses_it_and_is_as_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.sd1(tmp_path / "sd1")
    shape = {**AutoencoderKL.load_config(folder / "vae"), "mid_block_add_attention": True}
    AutoencoderKL.from_config(shape).save_pretrained(folder / "vae")
    exact, half = (tiny.load(folder, device=CPU, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    z = torch.randn(1, exact.channels, 24, 32, generator=torch.Generator().manual_seed(1))
    asked: list[int] = []
    attend = attention.attend
    monkeypatch.setattr(attention, "attend", lambda q, k, v, scale: asked.append(k.shape[2]) or attend(q, k, v, scale))
    true, ours = exact.decode(z), half.decode(z)
    assert asked == [24 * 32]
    monkeypatch.setattr(attention, "WORTH", 10**9)
    assert _error(ours, true) < 1.1 * _error(half.decode(z), true)


@pytest.mark.parametrize("keys", [64, 640])
def test_training_attends_as_torch_does_and_learns_the_same(keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(attention, "whole", lambda q, k, v, scale, real=attention.whole: asked.append(k.shape[2]) or real(q, k, v, scale))
    torch.manual_seed(0)
    layer = Attention(query_dim=24, heads=3, dim_head=8, processor=attention.Processor())
    x, text = torch.randn(2, 40, 24, requires_grad=True), torch.randn(2, keys, 24)
    layer(x, encoder_hidden_states=text).square().sum().backward()
    assert asked == ([keys] if keys < attention.WORTH else []) and x.grad is not None
    found, layer.processor = x.grad.clone(), AttnProcessor2_0()
    x.grad = None
    layer(x, encoder_hidden_states=text).square().sum().backward()
    assert _error(found, x.grad) < 1e-5
    with torch.no_grad():
        attention.Processor()(layer, x, text)
    assert len(asked) <= 1, "without a gradient torch's own kernel is faster"


@pytest.mark.parametrize(("queries", "keys", "wide"), [(700, 1024, 40), (512, 512, 64), (33, 2048, 160)])
@pytest.mark.parametrize("apart", [0.5, 2.0, 6.0])
def test_gradients_are_nearly_as_exact_as_the_fused_kernels(
    queries: int, keys: int, wide: int, apart: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "CACHED", keys * 150)  # several blocks of rows
    given = _given(queries, keys, wide, apart=apart)
    weight = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(1))

    def gradients(how: attention.Attention, dtype: torch.dtype) -> tuple[Tensor, ...]:
        heads = [h.to(dtype).requires_grad_() for h in given]
        said = how(*heads, wide**-0.5)
        return torch.autograd.grad(said, heads, weight.to(dtype))

    def kernel(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return fused(q, k, v, scale=scale)

    true = gradients(kernel, torch.float32)
    theirs, ours = gradients(kernel, torch.bfloat16), gradients(attention.Taught.apply, torch.bfloat16)
    for mine, other, exact in zip(ours, theirs, true, strict=True):
        assert mine.shape == exact.shape and mine.dtype == torch.bfloat16
        assert _error(mine, exact) < 1.6 * _error(other, exact)
