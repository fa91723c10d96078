"""Guidance: what is asked, and how the answers become one."""
from __future__ import annotations

import pytest
import torch

from safelight.sampling.guidance import CFG, GUIDANCES, Off, Rescale
from safelight.values import Cond
from tests.gaussian import PROCESSES

PROMPT, NEGATIVE = Cond(torch.ones(1, 2, 2)), Cond(torch.zeros(1, 2, 2))
X, A, B = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))


def test_registered_by_name() -> None:
    assert set(GUIDANCES) == {"cfg", "rescale", "off"}
    assert all(g().name == name for name, g in GUIDANCES.items())


def test_what_is_asked() -> None:
    assert list(CFG(7).conds(PROMPT, NEGATIVE)) == [PROMPT, NEGATIVE]
    assert list(CFG(1).conds(PROMPT, NEGATIVE)) == [PROMPT] == list(CFG(1).conds(PROMPT, None))
    assert list(Rescale(1).conds(PROMPT, None)) == [PROMPT]
    assert list(Off().conds(PROMPT, NEGATIVE)) == [PROMPT]
    with pytest.raises(ValueError, match="scale 7 needs a negative prompt and got none"):
        CFG(7).conds(PROMPT, None)


def test_the_scale_runs_from_the_negative_through_the_prompt() -> None:
    way = PROCESSES["eps"]
    assert torch.allclose(CFG(0).combine(X, 2.0, [A, B], way), B)
    assert torch.allclose(CFG(3).combine(X, 2.0, [A, B], way), B + 3 * (A - B))
    assert torch.equal(CFG(1).combine(X, 2.0, [A], way), A)


@pytest.mark.parametrize("sigma", [0.05, 0.9, 14.0])
def test_guidance_of_x0_is_guidance_of_the_networks_output(sigma: float) -> None:
    for kind in ("eps", "flow"):
        if kind == "flow" and sigma > 1:
            continue
        way = PROCESSES[kind]
        a, b = way.output(X, A, sigma), way.output(X, B, sigma)
        guided = CFG(5).combine(X, sigma, [A, B], way)
        assert torch.allclose(way.output(X, guided, sigma), b + 5 * (a - b), rtol=1e-3, atol=1e-3)
        assert torch.allclose(way.from_output(X, a, sigma), A, atol=1e-4)


@pytest.mark.parametrize(("kind", "sigma"), [("eps", 2.0), ("flow", 0.6)])
def test_rescaled_guidance_keeps_each_pictures_spread(kind: str, sigma: float) -> None:
    way = PROCESSES[kind]

    def spread(x0: torch.Tensor) -> torch.Tensor:
        return way.output(X, x0, sigma).std(dim=(1, 2, 3))

    assert torch.allclose(spread(Rescale(9, 1.0).combine(X, sigma, [A, B], way)), spread(A), rtol=1e-4)
    assert torch.allclose(Rescale(9, 0.0).combine(X, sigma, [A, B], way), CFG(9).combine(X, sigma, [A, B], way), atol=1e-4)
    plain, half = CFG(9).combine(X, sigma, [A, B], way), Rescale(9, 0.5).combine(X, sigma, [A, B], way)
    assert (spread(A) < spread(half)).all() and (spread(half) < spread(plain)).all()


@pytest.mark.parametrize("sigma", [0.1, 3.0])
def test_v_is_what_a_v_network_is_trained_on(sigma: float) -> None:
    noise = (X - A) / sigma
    want = (noise - sigma * A) / (sigma**2 + 1) ** 0.5
    assert torch.allclose(PROCESSES["eps"].output(X, A, sigma), want, atol=1e-4)
