"""Captions of different lengths in one training batch: every row means what it means alone, whatever reads the tokens."""

import pytest
import torch

from safelight.families import Family
from safelight.families.joining import LENGTH, groups, join, repeats
from safelight.values import Cond
from tests import tiny

CAPTIONS = ["a red apple", "a girl with purple hair, " * 12, "night city", ""]  # the second has more than 75 tokens


@pytest.fixture(scope="module", params=["sd1", "sdxl", "kolors", "sd3"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tiny.LAYOUTS[request.param](tmp_path_factory.mktemp("models") / request.param)
    return tiny.load(folder, device=torch.device("cpu"), dtype=torch.float32)


def test_a_batch_of_captions_says_what_each_says_alone(family: Family) -> None:
    torch.manual_seed(0)
    alone = [family.encode_text([c]) for c in CAPTIONS]
    if family.name != "kolors":
        assert len({c.tokens.shape[1] for c in alone}) == 2
    x, sigma = torch.randn(4, family.channels, 8, 8), family.sigmas[[20, 300, 600, 990]]
    wanted = torch.cat([family.predict(x[i : i + 1], sigma[i : i + 1], c) for i, c in enumerate(alone)])
    for cond in (join(alone, repeated=repeats(family)), family.encode_text(CAPTIONS)):
        assert torch.allclose(family.predict(x, sigma, cond), wanted, atol=2e-5)


def test_gradients_reach_the_network_and_every_row(family: Family) -> None:
    torch.manual_seed(1)
    cond = join([family.encode_text([c]) for c in CAPTIONS], repeated=repeats(family))
    x, sigma = torch.randn(4, family.channels, 8, 8, requires_grad=True), family.sigmas[[20, 300, 600, 990]]
    family.predict(x, sigma, cond).square().mean(dim=(1, 2, 3)).sum().backward()
    assert x.grad is not None and (x.grad.flatten(1).abs().amax(dim=1) > 0).all()


def test_joined_batches_are_joined_again() -> None:
    short, long = Cond(torch.ones(1, 2, 3)), Cond(torch.ones(2, 5, 3) * 2)
    both = join([short, long], repeated=False)
    assert both.tokens.shape == (3, 5, 3) and both.extras[LENGTH].tolist() == [[2], [5], [5]]
    more = join([both, Cond(torch.ones(1, 7, 3) * 3)], repeated=False)
    assert more.extras[LENGTH].tolist() == [[2], [5], [5], [7]] and float(more.tokens[0].sum()) == 6
    assert [(rows.tolist(), c.tokens.shape[1]) for rows, c in groups(more)] == [([0], 2), ([1, 2], 5), ([3], 7)]
    assert LENGTH not in join([short, short], repeated=False).extras
    assert join([short, long], repeated=True).tokens.shape == (3, 10, 3)
