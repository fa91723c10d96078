"""What a prompt becomes, and what is said of one that cannot run. No network is loaded: files are only looked for."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image as Pil
from safetensors.torch import save_file

from safelight.cli import cli
from safelight.comfy import NODES, Places, PromptError, is_prompt, problems, translate
from safelight.comfy.run import next_name
from safelight.comfy.translate import with_settings
from safelight.folders import roots
from safelight.op import load_ops
from safelight.spec import InputError
from tests.comfy.prompts import ROOT, node, shipped


@pytest.fixture
def here(tmp_path: Path) -> Places:
    names = {
        "checkpoints": ["tiny", "inpaint", "xl"], "vae": ["other"], "loras": ["one", "two"], "controlnet": ["edges"],
        "embeddings": ["mood"], "diffusion_models": ["net"], "text_encoders": ["l", "g"],
    }
    for kind, files in names.items():
        for name in files:
            path = tmp_path / "models" / kind / f"{name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"a": torch.zeros(1)}, path)
    (tmp_path / "input").mkdir()
    Pil.new("RGB", (8, 8)).save(tmp_path / "input" / "hole.png")
    return Places(roots(tmp_path / "models"), tmp_path / "input", tmp_path / "out")


def graph(prompt: dict[str, Any], here: Places) -> dict[str, Any]:
    return {key: (entry["class_type"], entry["inputs"]) for key, entry in translate(prompt, here).graph.items()}


def faults(prompt: dict[str, Any], here: Places) -> list[tuple[str, str, str]]:
    with pytest.raises(PromptError) as caught:
        translate(prompt, here)
    return [(f.node, f.type, f.details) for f in caught.value.faults]


@pytest.mark.parametrize("name", sorted(p.stem for p in ROOT.glob("*.json") if p.stem != "clip_skip"))
def test_what_a_prompt_becomes_is_a_graph_of_ours(here: Places, name: str) -> None:
    prompt = shipped(name)
    assert is_prompt(prompt)
    found = translate(prompt, here)
    assert set(found.origin) == set(found.graph) and set(found.origin.values()) <= set(prompt)
    made = [p for p in problems(prompt, here) if p.kind != "no_such_op"]
    assert not made, made


def test_nodes_keep_their_ids_and_several_outputs_are_several_nodes(here: Places) -> None:
    found = graph(shipped("image_to_image"), here)
    assert found["5"][0] == "sample" and found["5"][1]["model"] == ["1", 0] and found["5"][1]["latent"] == ["8", 0]
    assert found["4"] == ("load_image", {"path": str(here.input / "hole.png"), "raw": True})
    assert found["4.mask"][0] == "load_mask"
    assert "7" not in found and found["6"] == ("decode", {"model": ["1", 0], "latent": ["5", 0]})


def test_one_lora_for_both_networks_is_one_model(here: Places) -> None:
    found = graph(shipped("two_loras"), here)
    assert found["8"][1]["strength"] == 0.8 and found["8"][1]["text_strength"] == 0.6
    assert found["2"][1]["model"] == found["5"][1]["model"] == ["9", 0]
    prompt = shipped("two_loras")
    prompt["9"]["inputs"]["clip"] = ["1", 1]  # from one loader the denoiser, from another the text encoder
    found = graph(prompt, here)
    assert (found["9"][1]["strength"], found["9"][1]["text_strength"]) == (-0.4, 0.0)
    assert (found["9.clip"][1]["strength"], found["9.clip"][1]["text_strength"]) == (0.0, 1.0)
    assert found["5"][1]["model"] == ["9", 0] and found["2"][1]["model"] == ["9.clip", 0] and found["9.clip"][1]["model"] == ["1", 0]


def test_parts_join_the_model_beside_them(here: Places) -> None:
    prompt = shipped("text_to_image")
    prompt["1"] = node("UNETLoader", unet_name="net.safetensors", weight_dtype="default")
    prompt["a"] = node("DualCLIPLoader", clip_name1="l.safetensors", clip_name2="g.safetensors", type="sdxl")
    prompt["b"] = node("VAELoader", vae_name="other.safetensors")
    for i in "23":
        prompt[i]["inputs"]["clip"] = ["a", 0]
    prompt["6"]["inputs"]["vae"] = ["b", 0]
    found = graph(prompt, here)
    base = here.models
    assert found["1"] == ("model", {
        "name": str(base.find("diffusion_models", "net")), "text_encoder": str(base.find("text_encoders", "l")),
        "text_encoder_2": str(base.find("text_encoders", "g")), "vae": str(base.find("vae", "other")),
    })
    assert not {"a", "b"} & set(found)
    assert found["2"][1]["model"] == found["6"][1]["model"] == ["1", 0]


def test_a_part_beside_the_checkpoints_own_is_a_model_of_its_own(here: Places) -> None:
    prompt = shipped("vae_and_embedding")
    prompt["9"] = node("VAEDecode", samples=["5", 0], vae=["1", 2])
    prompt["10"] = node("PreviewImage", images=["9", 0])
    found = graph(prompt, here)
    assert "vae" not in found["1"][1] and found["8"][1]["vae"] == str(here.models.find("vae", "other"))
    assert found["6"][1]["model"] == ["8", 0] and found["9"][1]["model"] == ["1", 0]


def test_a_vae_goes_to_the_model_whose_latents_it_decodes(here: Places) -> None:
    prompt = shipped("vae_and_embedding")
    prompt["20"] = node("CheckpointLoaderSimple", ckpt_name="xl.safetensors")
    prompt["21"] = node("CLIPTextEncode", text="", clip=["20", 1])
    prompt["22"] = node("KSampler", **{**prompt["5"]["inputs"], "model": ["20", 0], "positive": ["21", 0], "latent_image": ["5", 0]})
    prompt["6"]["inputs"]["samples"] = ["22", 0]
    found = graph(prompt, here)
    assert "vae" not in found["1"][1] and "vae" in found["20"][1]
    assert found["6"][1]["model"] == ["20", 0]


def test_controls_go_to_the_model_of_the_samplers_that_read_them(here: Places) -> None:
    found = graph(shipped("two_controlnets"), here)
    assert found["5"][1]["model"] == ["5.control1", 0]
    assert found["5.control"][1]["start"] == 0.1 and found["5.control1"][1]["strength"] == 0.5
    prompt = shipped("two_controlnets")
    prompt["5"]["inputs"]["negative"] = ["10", 1]
    found = graph(prompt, here)
    assert "side" not in found["5.control"][1] and found["5.control1"][1]["side"] == "positive"


OLD = {"class_type": "ControlNetApply", "inputs": {"control_net": ["8", 0], "image": ["9", 0], "strength": 0.7}}


def old(on: str) -> dict[str, Any]:
    return {**OLD, "inputs": {**OLD["inputs"], "conditioning": [on, 0]}}


@pytest.mark.parametrize(
    ("positive", "negative", "sides"),
    [
        ((old("2"), "20"), ("3", "3"), {"0.7": "both"}),  # the old node's reaches over
        (("2", "2"), (old("3"), "21"), {"0.7": "negative"}),  # but not from the negative side
        ((old("10"), "20"), ("3", "3"), {"0.8": "both", "0.7": "both"}),  # with all that the condition carries
        ((old("10"), "20"), ("10", "10"), {"0.8": "both", "0.7": "positive"}),  # unless the negative one has its own
    ],
)
def test_what_steers_which_side_is_what_comfyui_makes_of_it(here: Places, positive: Any, negative: Any, sides: dict[str, str]) -> None:
    prompt = shipped("two_controlnets")
    for name, (made, key) in (("positive", positive), ("negative", negative)):
        if isinstance(made, dict):
            prompt[key] = made
        prompt["5"]["inputs"][name] = [key, 1 if key == "10" and name == "negative" else 0]
    found = [inputs for made, inputs in graph(prompt, here).values() if made == "with_control"]
    assert {str(inputs["strength"]): inputs.get("side", "both") for inputs in found} == sides


def test_a_prompt_only_against_is_told_so(here: Places) -> None:
    found = graph(shipped("two_stage"), here)
    assert found["2"][1]["negative"] is False and found["3"][1]["negative"] is False, "each is wanted by one of the two"
    assert graph(shipped("text_to_image"), here)["3"][1]["negative"] is True


def test_literals_may_come_from_nodes(here: Places) -> None:
    prompt = shipped("text_to_image")
    prompt["10"] = node("PrimitiveInt", value=7)
    prompt["11"] = node("StringConcatenate", string_a="a cat", string_b="asleep", delimiter=", ")
    prompt["5"]["inputs"]["seed"], prompt["2"]["inputs"]["text"] = ["10", 0], ["11", 0]
    found = graph(prompt, here)
    assert found["5"][1]["seed"] == 7 and found["2"][1]["text"] == "a cat, asleep"


def test_values_are_taken_as_comfyui_takes_them(here: Places) -> None:
    prompt = shipped("text_to_image")
    prompt["5"]["inputs"] |= {"seed": "3", "steps": 4.7, "cfg": "5.5", "unknown": 1}
    prompt["2"]["inputs"]["text"] = 5
    found = graph(prompt, here)
    assert (found["5"][1]["seed"], found["5"][1]["steps"], found["5"][1]["scale"]) == (3, 4, 5.5)
    assert found["2"][1]["text"] == "5"


WRONG: list[tuple[dict[str, Any], tuple[str, str, str]]] = [
    ({"5": {"steps": 0}}, ("5", "value_smaller_than_min", "steps")),
    ({"5": {"cfg": 101}}, ("5", "value_bigger_than_max", "cfg")),
    ({"5": {"steps": "many"}}, ("5", "invalid_input_type", "steps, many, invalid literal for int() with base 10: 'many'")),
    ({"5": {"model": ["2", 0]}}, ("5", "return_type_mismatch", "model, received_type(CONDITIONING) mismatch input_type(MODEL)")),
    ({"5": {"model": ["1", 7]}}, ("5", "return_type_mismatch", "model, received_type(no slot 7) mismatch input_type(MODEL)")),
    ({"5": {"model": 3}}, ("5", "bad_linked_input", "model")),
    ({"5": {"model": ["1", 0, 0]}}, ("5", "bad_linked_input", "model")),
    ({"5": {"model": ["99", 0]}}, ("5", "bad_linked_input", "model, '99'")),
    ({"4": {"width": ["6", 0]}}, ("4", "return_type_mismatch", "width, received_type(IMAGE) mismatch input_type(INT)")),
]


@pytest.mark.parametrize(("changes", "fault"), WRONG[:-1], ids=[w[1][1] for w in WRONG[:-1]])
def test_wrong_inputs_are_told_by_node(here: Places, changes: dict[str, Any], fault: tuple[str, str, str]) -> None:
    prompt = shipped("text_to_image")
    for key, inputs in changes.items():
        prompt[key]["inputs"] |= inputs
    assert faults(prompt, here) == [fault]


def test_all_that_is_wrong_is_told_at_once(here: Places) -> None:
    prompt = shipped("text_to_image")
    prompt["1"]["inputs"]["ckpt_name"] = "tinny.safetensors"
    del prompt["5"]["inputs"]["seed"]
    prompt["5"]["inputs"]["sampler_name"] = "eulr"
    found = {(node, kind) for node, kind, _ in faults(prompt, here)}
    assert found == {("1", "value_not_in_list"), ("5", "required_input_missing"), ("5", "value_not_in_list")}
    with pytest.raises(PromptError, match=r"node 1 \(CheckpointLoaderSimple\): Value not in list: ckpt_name: .*did you mean 'tiny"):
        translate(prompt, here)


def test_unknown_classes_cycles_and_prompts_without_an_end(here: Places) -> None:
    prompt = shipped("text_to_image")
    unknown = prompt | {"8": node("KSamplr", model=["1", 0])}
    assert faults(unknown, here) == [("8", "missing_node_type", "no such node class here")]
    with pytest.raises(PromptError, match=r"node 8 .*'KSamplr' not found.*did you mean 'KSampler'"):
        translate(unknown, here)
    assert faults(prompt | {"8": {"inputs": {}}}, here)[0][:2] == ("8", "invalid_prompt")
    assert faults({k: e for k, e in prompt.items() if k != "7"}, here)[0][1] == "prompt_no_outputs"
    round_trip = shipped("text_to_image")
    round_trip["5"]["inputs"]["latent_image"] = ["8", 0]
    round_trip["8"] = node("LatentFlip", samples=["5", 0], flip_method="x-axis: vertically")
    assert faults(round_trip, here)[0][1] == "dependency_cycle"


def test_nodes_that_nothing_needs_are_not_looked_at(here: Places) -> None:
    prompt = shipped("text_to_image") | {"8": node("VAELoader", vae_name="none")}
    assert "8" not in graph(prompt, here)


def test_pictures_are_looked_for_where_they_may_be(here: Places) -> None:
    prompt = shipped("image_to_image")
    for name, says in (("none.png", "Invalid image file"), ("../hole.png", "no name below"), ("hole.png [output]", "Invalid image file")):
        prompt["4"]["inputs"]["image"] = name
        assert says in faults(prompt, here)[0][2], name
    prompt["4"]["inputs"]["image"] = "hole.png [input]"
    assert graph(prompt, here)["4"][1]["path"] == str(here.input / "hole.png")


def test_a_part_without_a_model_says_so(here: Places) -> None:
    prompt = {
        "1": node("VAELoader", vae_name="other.safetensors"), "2": node("LoadImage", image="hole.png"),
        "3": node("VAEEncode", pixels=["2", 0], vae=["1", 0]), "4": node("VAEDecode", samples=["3", 0], vae=["1", 0]),
        "5": node("SaveImage", images=["4", 0], filename_prefix="x"),
    }
    assert faults(prompt, here)[0][0] == "1"


def test_settings_from_the_command_line() -> None:
    prompt = shipped("text_to_image")
    assert with_settings(prompt, ["KSampler.steps=3", "2.text=a=b"])["5"]["inputs"]["steps"] == "3"
    assert with_settings(prompt, ["2.text=a=b"])["2"]["inputs"]["text"] == "a=b"
    for told in ("CLIPTextEncode.text=x", "9.text=x", "text=x"):
        with pytest.raises(InputError, match="set"):
            with_settings(prompt, [told])


def test_numbers_of_files_go_on_from_the_highest(tmp_path: Path) -> None:
    assert next_name(tmp_path, "a/b", (8, 8)) == (tmp_path / "a", "b", 1)
    for name in ("b_00004_.png", "b_x.png", "bb_00009_.png", "B_00006_.png"):
        (tmp_path / "a" / name).touch()
    assert next_name(tmp_path, "a/b", (8, 8))[2] == 7
    with pytest.raises(ValueError, match="leads out"):
        next_name(tmp_path, "/etc/x", (8, 8))


def test_the_command_says_what_is_wrong_by_node(here: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_MODELS", "")
    (tmp_path / "p.json").write_text(json.dumps({"client_id": "x", "prompt": shipped("text_to_image")}))
    given = ["run", str(tmp_path / "p.json"), "--models", str(tmp_path / "models"), "--check", "--set", "KSampler.steps=0"]
    result = CliRunner().invoke(cli, given)
    assert isinstance(result.exception, PromptError) and "node 5 (KSampler)" in str(result.exception)


def test_every_class_says_what_it_takes(here: Places) -> None:
    for name, known in NODES.items():
        told = known.object_info(here)
        assert told["name"] == name and json.loads(json.dumps(told)) == told
        assert all(len(v) in (1, 2) for kind, group in told["input"].items() if kind != "hidden" for v in group.values())
    sampler = NODES["KSampler"].object_info(here)["input"]["required"]
    assert sampler["seed"] == ["INT", {"min": 0, "max": 2**64 - 1, "default": 0, "control_after_generate": True}]
    assert "euler" in sampler["sampler_name"][0] and "karras" in sampler["scheduler"][0]
    assert NODES["VAELoader"].object_info(here)["input"]["required"]["vae_name"] == [["other.safetensors"]]


def test_no_class_has_the_name_of_an_op() -> None:
    assert not set(NODES) & set(load_ops())
