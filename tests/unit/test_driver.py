"""The driver: many trajectories through shared forward passes, each the same as alone."""
from __future__ import annotations

import gc
import io
import weakref
from base64 import b64decode
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from safelight.events import Ask, Event, Preview, Progress
from safelight.families import Family
from safelight.sampling.driver import answer, asking, drive
from safelight.sampling.guidance import CFG, Off, Rescale
from safelight.sampling.process import process
from safelight.sampling.request import Request, blank
from safelight.sampling.samplers import SAMPLERS
from safelight.sampling.schedules import plan
from safelight.values import Cond
from tests import tiny
from tests.gaussian import Plain, finish, flow_table

CPU = torch.device("cpu")


def cond(value: float, tokens: int = 3, batch: int = 1) -> Cond:
    return Cond(torch.full((batch, tokens, 2), value))


def request(**changes: Any) -> Request:
    """A plain text-to-image one."""
    family = Plain()
    made: dict[str, Any] = {
        "cond": cond(0.8),
        "negative": cond(-0.3),
        "latent": blank(family, 64, 64),
        "sigmas": plan(process(family), 5, schedule="karras"),
        "seed": 7,
        "guidance": CFG(3.0),
    }
    return Request(**made | changes)


def alone(family: Family, r: Request) -> Tensor:
    return finish(drive(family, [r], rows=1))[0][0]


@pytest.fixture(scope="module", params=sorted(tiny.LAYOUTS))
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder: Path = tiny.LAYOUTS[request.param](tmp_path_factory.mktemp("models") / request.param)
    return tiny.load(folder, device=CPU, dtype=torch.float32)


def mixed(family: Family) -> list[Request]:
    """Different samplers, steps, guidances, prompt lengths, batches, masks and starts."""
    way, size = process(family), family.size
    short, long = family.encode_text(["a cat"]), family.encode_text(["a girl with purple hair, " * 12])
    nothing = family.encode_text([""])
    assert long.tokens.shape[1] > short.tokens.shape[1] or family.name == "kolors"  # which has 256, always
    picture = torch.randn(blank(family, size, size).shape, generator=torch.Generator().manual_seed(4))
    half = torch.zeros(1, 1, size, size)
    half[..., : size // 2] = 1

    def made(sampler: str, steps: int, seed: int, denoise: float = 1.0, **more: Any) -> Request:
        sigmas = plan(way, steps, schedule="sgm_uniform", sampler=sampler, denoise=denoise)
        usual: dict[str, Any] = {"cond": short, "negative": nothing, "latent": blank(family, size, size)}
        return Request(**usual | more, seed=seed, sampler=sampler, sigmas=sigmas)

    return [
        made("euler", 4, 1),
        made("dpmpp_2m", 6, 2, guidance=CFG(4.0)),
        made("heun", 3, 3, cond=long, guidance=Rescale(6.0, 0.5)),
        made("dpmpp_2m_sde", 5, 4, negative=None, guidance=Off()),
        made("euler_ancestral", 5, 5, latent=blank(family, size, size, 2)),
        made("uni_pc", 4, 6, latent=picture, denoise=0.5),
        made("ddim", 4, 7, latent=picture, mask=half),
        made("dpmpp_2m_cfg_pp", 4, 8, cond=long, guidance=CFG(1.0)),
    ]


def test_together_is_as_alone(network: Family) -> None:
    requests = mixed(network)
    together, said = finish(drive(network, requests, rows=12))
    for r, got in zip(requests, together, strict=True):
        want = alone(network, r)
        assert got.shape == r.latent.shape and got.isfinite().all()
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max().clamp(min=1)))
    steps = [e.step for e in said if isinstance(e, Progress)]
    assert steps == sorted(set(steps)) and steps[-1] == sum(r.steps for r in requests)
    assert {e.total for e in said if isinstance(e, Progress)} == {steps[-1]}


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_together_is_as_alone(sampler: str, kind: str) -> None:
    family = Plain(kind, flow_table(3.0)) if kind == "flow" else Plain()
    requests = [
        request(sampler=sampler, seed=s, sigmas=plan(process(family), n, sampler=sampler), cond=cond(0.2 * s), guidance=g)
        for s, n, g in ((1, 4, CFG(3.0)), (2, 6, Off()), (3, 5, CFG(1.5)))
    ]
    together, _ = finish(drive(family, requests))
    for r, got in zip(requests, together, strict=True):
        assert torch.allclose(got, alone(family, r), atol=1e-5)


def test_one_forward_pass_holds_all_that_fits() -> None:
    family = Plain()
    finish(drive(family, [request(seed=s) for s in range(4)], rows=8))
    assert family.passes == [8] * 5
    family = Plain()
    finish(drive(family, [request(seed=s) for s in range(5)], rows=4))
    assert max(family.passes) == 4
    assert family.passes == [4] * 10 + [2] * 5  # two, two, then the one that is left


def test_a_new_request_starts_when_one_ends() -> None:
    family = Plain()
    long, short = (plan(process(family), n, schedule="karras") for n in (6, 2))
    finish(drive(family, [request(sigmas=s) for s in (long, short, short, short)], rows=4))
    assert family.passes == [4] * 6


def test_a_batch_larger_than_a_pass_is_cut() -> None:
    family = Plain()
    r = request(latent=blank(family, 64, 64, 5))
    latents, _ = finish(drive(family, [r], rows=4))
    assert set(family.passes) == {4, 2} and latents[0].shape[0] == 5
    assert torch.allclose(latents[0], finish(drive(Plain(), [r], rows=64))[0][0], atol=1e-6)


def test_scale_one_asks_no_negative_prompt() -> None:
    family = Plain()
    one, _ = finish(drive(family, [request(guidance=CFG(1.0))]))
    assert set(family.passes) == {1}
    off, _ = finish(drive(family, [request(guidance=Off(), negative=None)]))
    assert torch.equal(one[0], off[0])


@pytest.mark.parametrize(("lengths", "passes"), [((2, 3), [4] * 5), ((2, 9), [2] * 10)])
def test_prompts_of_other_lengths_share_a_pass_where_repeating_is_harmless(lengths: tuple[int, int], passes: list[int]) -> None:
    class Repeating(Plain):
        repeats_tokens = True

    requests = [request(seed=n, cond=cond(0.8, n), negative=cond(-0.3, n)) for n in lengths]
    family, other = Repeating(), Plain()
    got, _ = finish(drive(family, requests))
    assert family.passes == passes
    want, _ = finish(drive(other, requests))
    assert other.passes == [2] * 10
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, want, strict=True))


def test_extras_travel_with_their_rows() -> None:
    class Pooled(Plain):
        def denoise(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
            return super().denoise(x, sigma, cond) + cond.extras["pooled"].view(-1, 1, 1, 1)

    def with_pooled(value: float) -> Cond:
        return Cond(torch.zeros(1, 3, 2), {"pooled": torch.full((1, 1), value)})

    requests = [request(cond=with_pooled(v), negative=with_pooled(0.0), latent=blank(Plain(), 64, 64, 2)) for v in (0.5, -0.5)]
    got, _ = finish(drive(Pooled(), requests))
    assert float(got[0].mean()) > 0.5 and float(got[1].mean()) < -0.5


def to_next_ask(job: Generator[Event, Any, list[Tensor]], reply: list[Tensor]) -> Event:
    event = job.send(reply)
    while not isinstance(event, Ask):
        event = next(job)
    return event


def test_jobs_are_answered_together() -> None:
    """What a worker does with several jobs: their asks in one pass, each job's own answers back."""
    family = Plain()
    first, second = [request(seed=1), request(seed=2)], [request(seed=3, sigmas=plan(process(family), 3, schedule="karras"))]
    jobs = {"a": asking(family, first), "b": asking(family, second)}
    asks = {name: next(job) for name, job in jobs.items()}
    results: dict[str, list[Tensor]] = {}
    while asks:
        replies = answer(list(asks.values()))  # type: ignore[arg-type]
        for name, reply in zip(list(asks), replies, strict=True):
            try:
                asks[name] = to_next_ask(jobs[name], reply)
            except StopIteration as end:
                results[name] = end.value
                del asks[name]
    assert family.passes[:3] == [6, 6, 6] and family.passes[3:] == [4, 4]
    for r, got in zip([*first, *second], [*results["a"], *results["b"]], strict=True):
        assert torch.allclose(got, alone(Plain(), r), atol=1e-6)


def test_families_are_never_mixed() -> None:
    a, b = Plain(), Plain()
    asks = [next(asking(f, [request()])) for f in (a, b)]
    answer(asks)  # type: ignore[arg-type]
    assert a.passes == b.passes == [2]


def test_an_ask_wants_an_answer() -> None:
    job = asking(Plain(), [request()])
    next(job)
    with pytest.raises(TypeError, match="an Ask of 2 queries must be answered"):
        next(job)


def test_cancelling_anywhere_leaves_nothing() -> None:
    requests = [request(seed=s, sampler=n, preview=1) for s, n in enumerate(["euler_ancestral", "dpmpp_2m_sde", "heun"])]
    want, said = finish(drive(Plain(), requests))
    state = torch.get_rng_state()
    for stop in range(0, len(said), 3):
        family = Plain()
        work = drive(family, requests)
        for _ in range(stop + 1):
            next(work)
        work.close()
        left = weakref.ref(family)
        del work, family
        gc.collect()
        assert left() is None
    assert torch.equal(torch.get_rng_state(), state)
    again, _ = finish(drive(Plain(), requests))
    assert all(torch.equal(a, b) for a, b in zip(again, want, strict=True))


def test_a_failing_network_closes_every_trajectory() -> None:
    class Failing(Plain):
        def denoise(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
            if len(self.passes) == 2:
                raise RuntimeError("out of memory")
            return super().denoise(x, sigma, cond)

    family = Failing()
    work = drive(family, [request(), request()])
    with pytest.raises(RuntimeError, match="out of memory"):
        finish(work)
    left = weakref.ref(family)
    del work, family
    gc.collect()
    assert left() is None


def test_no_step_gives_the_latent_back() -> None:
    picture = torch.randn(1, 4, 8, 8)
    got, said = finish(drive(Plain(), [request(latent=picture, sigmas=[])]))
    assert torch.equal(got[0], picture) and said == []


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_denoise_keeps_the_more_the_less_is_walked(kind: str) -> None:
    family = Plain(kind, flow_table()) if kind == "flow" else Plain()
    picture = torch.full((1, 4, 8, 8), 2.0)
    moved = []
    for denoise in (0.1, 0.4, 0.8):
        sigmas = plan(process(family), 6, denoise=denoise)
        moved.append(float((alone(family, request(latent=picture, sigmas=sigmas, guidance=Off())) - picture).abs().mean()))
    assert moved == sorted(moved) and moved[0] < moved[-1] / 2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_outside_the_mask_nothing_changes(sampler: str) -> None:
    for family in (Plain(), Plain("flow", flow_table())):
        picture = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        mask = torch.zeros(1, 1, 64, 64)
        mask[..., 24:] = 1
        sigmas = plan(process(family), 5, sampler=sampler)
        got = alone(family, request(latent=picture, mask=mask, sampler=sampler, sigmas=sigmas))
        assert torch.equal(got[..., :2], picture[..., :2])
        assert (got[..., 4:] - picture[..., 4:]).abs().mean() > 0.1


def test_outside_the_mask_the_network_sees_the_original_under_the_noise_of_the_moment() -> None:
    family = Plain()
    picture = torch.randn(1, 4, 8, 8)
    r = request(latent=picture, mask=torch.zeros(1, 1, 8, 8), noise=torch.ones(1, 4, 8, 8))
    job = asking(family, [r])
    event = next(job)
    assert isinstance(event, Ask)
    seen = event.queries[0]
    assert torch.allclose(seen.x, picture + seen.sigma)


def test_a_soft_mask_blends_once() -> None:
    answers: list[Tensor] = []

    class Remembering(Plain):
        def denoise(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
            answers.append(super().denoise(x, sigma, cond))
            return answers[-1]

    picture = torch.full((1, 4, 8, 8), 5.0)
    half = alone(Remembering(), request(latent=picture, mask=torch.full((1, 1, 8, 8), 0.5), guidance=Off()))
    assert torch.equal(half, answers[-1] * 0.5 + picture * 0.5)


def test_a_walk_in_two_parts_is_the_walk() -> None:
    for family in (Plain(), Plain("flow", flow_table(3.0))):
        sigmas = plan(process(family), 6)
        whole = alone(family, request(sigmas=sigmas))
        first = alone(family, request(sigmas=sigmas[:4]))
        second = alone(family, request(sigmas=sigmas[3:], latent=first, noise=torch.zeros_like(first)))
        assert torch.allclose(whole, second, atol=1e-5)


def test_a_seed_is_drawn_and_shown() -> None:
    a, b = request(seed=-1), request(seed=-1)
    assert a.seed >= 0 and a.seed != b.seed
    assert torch.equal(alone(Plain(), a), alone(Plain(), replace(a)))


def test_previews_are_small_pictures_of_each_row() -> None:
    family = Plain()
    wide = blank(family, 128, 64, 2)
    _, said = finish(drive(family, [request(preview=2), request(preview=2, latent=wide), request()]))
    shown = [e for e in said if isinstance(e, Preview)]
    assert [e.index for e in shown] == [0, 1, 2] * 2
    sizes = [Image.open(io.BytesIO(b64decode(e.data))).size for e in shown]
    assert sizes == [(64, 64), (128, 64), (128, 64)] * 2


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sampler": "eular"}, "sampler 'eular' is not known"),
    ({"sigmas": [1.0, 2.0, 0.5]}, r"sigmas \[1.0, 2.0, 0.5\]; expected strictly falling"),
    ({"sigmas": [2.0, -1.0]}, "expected strictly falling numbers from 0 up"),
    ({"latent": torch.zeros(4, 8, 8)}, r"latent of shape \(4, 8, 8\); expected \(B, C, h, w\)"),
    ({"cond": cond(1.0, batch=3)}, "cond is a batch of 3 for 1 latents"),
    ({"mask": torch.zeros(8, 8)}, r"mask of shape \(8, 8\); expected \(1 or 1, 1, H, W\)"),
    ({"negative": None}, "scale 3 needs a negative prompt"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_cannot_be_walked_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        request(**changes)


@pytest.mark.parametrize("size", [(60, 64), (0, 64), (64, -8)])
def test_a_blank_latent_has_whole_cells(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected sides that are multiples of 8 for plain"):
        blank(Plain(), *size)


def test_gradients_are_not_kept(network: Family) -> None:
    got, _ = finish(drive(network, mixed(network)[:1]))
    assert not got[0].requires_grad and got[0].grad_fn is None
