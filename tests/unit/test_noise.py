"""Random numbers: the same as ComfyUI's for the same seed, and nobody else's disturbed."""
from __future__ import annotations

import pytest
import torch
import torchsde

from safelight.sampling.noise import SEEDS, Fresh, Tree, draw_seed, generator, start_noise

SHAPE = (2, 4, 8, 8)


@pytest.mark.parametrize("seed", [0, 7, 2**32, 2**53 - 1, 2**64 - 1])
def test_the_start_is_torchs_own_draw(seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        assert torch.equal(start_noise(SHAPE, seed), torch.randn(SHAPE))


def test_rows_are_pictures_of_a_larger_batch() -> None:
    source = generator(3)
    drawn = [torch.randn(1, *SHAPE[1:], generator=source) for _ in range(4)]
    assert torch.equal(start_noise(SHAPE, 3, [3, 1]), torch.cat([drawn[3], drawn[1]]))
    with pytest.raises(ValueError, match=r"rows \[0\] for a batch of 2"):
        start_noise(SHAPE, 3, [0])


def test_fresh_noise_follows_the_next_seed_and_not_the_start() -> None:
    x = torch.zeros(SHAPE, dtype=torch.float64)
    noise = Fresh(x, 5)
    first, second = noise(2.0, 1.0), noise(1.0, 0.5)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        assert torch.equal(first.float(), torch.randn(SHAPE))
        assert torch.equal(second.float(), torch.randn(SHAPE))
    assert first.dtype == x.dtype
    assert not torch.equal(first.float(), start_noise(SHAPE, 5))
    assert Fresh(x, SEEDS - 1)(2.0, 1.0).isfinite().all()


def test_the_tree_is_one_brownian_path() -> None:
    sigmas = [14.0, 6.0, 3.0, 1.0, 0.03, 0.0]
    tree = Tree(torch.zeros(SHAPE), 5, sigmas)
    whole = tree(14.0, 1.0) * 13**0.5
    parts = tree(14.0, 6.0) * 8**0.5 + tree(6.0, 3.0) * 3**0.5 + tree(3.0, 1.0) * 2**0.5
    assert torch.allclose(whole, parts, atol=1e-3)
    path = torchsde.BrownianTree(torch.tensor(0.03), torch.zeros(SHAPE), torch.tensor(14.0), entropy=5)
    assert torch.allclose(tree(6.0, 3.0), -path(torch.tensor(3.0), torch.tensor(6.0)) / 3**0.5)


def test_the_trees_noise_is_normal() -> None:
    tree = Tree(torch.zeros(1, 4, 64, 64), 5, [14.0, 0.03, 0.0])
    for s, t in ((14.0, 0.03), (14.0, 6.0), (0.5, 0.4)):
        drawn = tree(s, t)
        assert abs(float(drawn.mean())) < 0.03 and float(drawn.std()) == pytest.approx(1, abs=0.03)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    start_noise(SHAPE, 1, [0, 5])
    Fresh(torch.zeros(SHAPE), 1)(2.0, 1.0)
    Tree(torch.zeros(SHAPE), 1, [14.0, 0.03])(14.0, 1.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_drawn_seed_survives_json() -> None:
    seeds = {draw_seed() for _ in range(64)}
    assert len(seeds) > 60 and all(0 <= s < 2**53 and int(float(s)) == s for s in seeds)
