"""Which noise levels a network was taught, said by ComfyUI's nodes, by marks in files and by a configuration beside one."""
from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CosineDPMSolverMultistepScheduler, EDMEulerScheduler
from safetensors.torch import load_file
from torch import Tensor

import safelight
from safelight import runtime
from safelight.comfy import NODES, Places, PromptError, translate
from safelight.families.parametrisation import Parametrisation
from safelight.families.sources import PREDICTIONS, open_source
from safelight.folders import roots
from safelight.sampling.process import Exploding, process
from safelight.train.objectives import weight
from safelight.train.settings import Objective
from tests import checkpoints
from tests.comfy.prompts import node, places
from tests.comfy.test_custom import BASE, SIDES, picture
from tests.gaussian import Plain

WAY = {"seed": 11, "steps": 3, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
K = node("KSampler", **{**SIDES, "model": ["c", 0]}, **WAY)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    yield places(tmp_path_factory.mktemp("comfy"))
    runtime.release()


def usual(kind: str, **given: Any) -> dict[str, Any]:
    """A node with its defaults."""
    return node(kind, **{"model": ["m", 0], **{i.name: i.default for i in NODES[kind].inputs if i.widget}, **given})


@pytest.mark.parametrize(("kind", "sampling", "said"), [
    ("EDM", "edm", {"prediction": "edm", "sigma_max": 120.0, "sigma_min": 0.002}),
    ("EDM", "v_prediction", {"prediction": "edm-v", "sigma_max": 120.0, "sigma_min": 0.002}),
    ("EDM", "eps", {"prediction": "edm-eps", "sigma_max": 120.0, "sigma_min": 0.002}),
    ("V", "v_prediction", {"prediction": "angle-v", "sigma_max": 500.0, "sigma_min": 0.03})])
def test_levels_without_steps(here: Places, tmp_path: Path, kind: str, sampling: str, said: dict[str, Any]) -> None:
    changed = usual(f"ModelSamplingContinuous{kind}", sampling=sampling)
    made: Any = translate({**BASE, "k": K, "c": changed}, here).graph
    model = made[made["k"]["inputs"]["model"][0]]["inputs"]
    assert {k: model[k] for k in said} == said and "shift" not in model
    plain = picture(here, tmp_path / "0", k=node("KSampler", **SIDES, **WAY))
    assert (picture(here, tmp_path / "1", k=K, c=changed) != plain).any()


def test_the_last_word_counts(here: Places) -> None:
    first = usual("ModelSamplingContinuousV", sampling="v_prediction")
    second = usual("ModelSamplingDiscrete", model=["a", 0], sampling="eps")
    made: Any = translate({**BASE, "k": K, "a": first, "c": second}, here).graph
    said = made[made["k"]["inputs"]["model"][0]]["inputs"]
    assert said["prediction"] == "eps" and not said.keys() & {"sigma_min", "sigma_max"}
    with pytest.raises(PromptError, match="Cosmos"):
        translate({**BASE, "k": K, "c": usual("ModelSamplingContinuousEDM", sampling="cosmos_rflow")}, here)


@pytest.mark.parametrize(("told", "reference"), [
    ("edm", EDMEulerScheduler(sigma_max=80.0, sigma_data=0.5, prediction_type="epsilon")),
    ("edm-v", EDMEulerScheduler(sigma_max=120.0, sigma_data=1.0, prediction_type="v_prediction")),
    ("angle-v", CosineDPMSolverMultistepScheduler(sigma_min=0.03, sigma_max=500.0, sigma_data=1.0, prediction_type="v_prediction"))])
def test_what_the_network_is_fed_and_says(told: str, reference: Any) -> None:
    way = Parametrisation.read(PREDICTIONS[told], torch.device("cpu"))
    x, out = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for s in (0.03, 0.7, 40.0):
        sigma = torch.full((3,), s)
        torch.testing.assert_close(way.scale_input(x, sigma), reference.precondition_inputs(x, torch.tensor(s)))
        torch.testing.assert_close(way.x0(x, out, sigma), reference.precondition_outputs(x, out, torch.tensor(s)))
        torch.testing.assert_close(way.timestep(sigma)[0], torch.as_tensor(reference.precondition_noise(torch.tensor(s))).float())


@pytest.mark.parametrize("told", ["edm", "edm-v", "edm-eps", "angle-v"])
def test_what_it_learns_to_say_is_the_picture(told: str) -> None:
    """And an error of it weighs as the error of x0 that it is."""
    way = Parametrisation.read(PREDICTIONS[told], torch.device("cpu"))
    x0, noise, error = torch.randn(3, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 1.0, 8.0])
    x, said = way.noised(x0, noise, sigma), way.target(x0, noise, sigma)
    torch.testing.assert_close(way.x0(x, said, sigma), x0, atol=2e-5, rtol=1e-5)

    def squared(e: Tensor) -> Tensor:
        return (e**2).mean(dim=(1, 2, 3))

    wrong = squared(way.x0(x, said + error, sigma) - x0) * sigma**-2
    torch.testing.assert_close(weight(Objective(weigh="snr"), way.prediction, sigma) * squared(error), wrong, atol=0, rtol=1e-3)


def test_time_of_an_angle() -> None:
    way = process(Plain(prediction="v", clock="angle"))
    assert isinstance(way, Exploding) and way.angular
    first, last = way.span
    assert way.at(torch.tensor(first)) == pytest.approx(way.table[-1], rel=1e-5)
    half = (math.atan(way.table[-1]) + math.atan(way.table[0])) / 2
    assert way.at(torch.tensor((first + last) / 2)) == pytest.approx(math.tan(half), rel=1e-5)


def test_ends_of_other_levels_are_refused(here: Places) -> None:
    with pytest.raises(ValueError, match=r"sigma_max=80\.0 with prediction=v"):
        safelight.model("mini", prediction="v", sigma_max=80.0)
    keys = {safelight.model("mini", prediction="edm-v", sigma_max=high).key for high in (None, 80.0, 90.0)}
    assert len(keys) == 3
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        Parametrisation.read({**PREDICTIONS["edm"], "sigma_min": 90.0}, torch.device("cpu"))


def test_marks_in_a_file(here: Places, tmp_path: Path) -> None:
    path = tmp_path / "cos.safetensors"
    ends = {"edm_vpred.sigma_max": torch.tensor(100.0), "edm_vpred.sigma_min": torch.tensor(0.01)}
    checkpoints.save(path, {**load_file(here.models.find("checkpoints", "tiny")), **ends}, None)
    way = Parametrisation.read(open_source(path).config("scheduler"), torch.device("cpu"))
    assert (way.prediction, way.clock, len(way.sigmas)) == ("v", "log", 1000)
    assert way.sigmas[[0, -1]].tolist() == pytest.approx([0.01, 100.0])


def test_a_configuration_beside_a_file(here: Places, tmp_path: Path) -> None:
    configs = tmp_path / "models" / "configs"
    configs.mkdir(parents=True)
    params = "model:\n  params:\n    {}\n    cond_stage_config:\n      params:\n        {}\n"
    (configs / "v.yaml").write_text(params.format("parameterization: v", "layer_idx: -2"))
    (configs / "plain.yaml").write_text(params.format("linear_start: 0.00085", "freeze: true"))
    (configs / "other.yaml").write_text("- 1\n")
    (configs / "notes.txt").write_text("no entry")
    there = Places(roots(tmp_path / "models", here.models.find("checkpoints", "tiny").parents[1]), here.input, here.output)
    assert there.models.names("configs") == ["other.yaml", "plain.yaml", "v.yaml"]

    def graph(config: str) -> Any:
        loader = node("CheckpointLoader", config_name=config, ckpt_name="tiny.safetensors")
        return translate({**BASE, "m": loader, "k": node("KSampler", **SIDES, **WAY)}, there).graph

    v, plain = graph("v.yaml"), graph("plain.yaml")
    assert v[v["k"]["inputs"]["model"][0]]["inputs"]["prediction"] == "v" and v["p"]["inputs"]["skip"] == 1
    assert "prediction" not in plain[plain["k"]["inputs"]["model"][0]]["inputs"] and not plain["p"]["inputs"].get("skip")
    with pytest.raises(PromptError, match=r"other\.yaml: expected a configuration"):
        graph("other.yaml")
