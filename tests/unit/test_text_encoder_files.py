"""Text encoders as people have them: T5 inside a checkpoint and beside it, ChatGLM in pickled shards, configurations that name code."""
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from safelight.families import Family, clip_words, find
from safelight.families.chatglm import ChatGLMModel
from safelight.families.checkpoint import About, Loose, about
from safelight.families.sources import open_source, read_config
from safelight.families.weight_file import WeightFile
from safelight.values import Part
from tests import checkpoints as c
from tests import tiny

CPU, F32 = torch.device("cpu"), torch.float32
T5 = "text_encoders.t5xxl.transformer."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sd3(tmp_path_factory.mktemp("models") / "sd3")


@pytest.fixture(scope="module")
def reader() -> T5EncoderModel:
    """A small T5 with all of T5's words."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        told = {"d_model": 96, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "feed_forward_proj": "gated-gelu"}
        return T5EncoderModel(T5Config(vocab_size=32128, **told)).eval().requires_grad_(False)


def tensors(reader: T5EncoderModel, *, both: bool = True) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in reader.state_dict().items() if both or n != "encoder.embed_tokens.weight"}


def checkpoint(path: Path, folder: Path, more: dict[str, Tensor]) -> Path:
    """SD 3's transformer and more in one file."""
    old = c.joint_names(load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors"), 2)
    return c.save(path, {f"model.diffusion_model.{n}": t for n, t in old.items()} | more)


def loaded(file: Path, folder: Path, *more: Part, dtype: torch.dtype = F32) -> Family:
    for n in ("", "_2"):
        shutil.copytree(folder / f"tokenizer{n}", folder / f"text_encoder{n}", dirs_exist_ok=True)
    parts = [Part(p, str(folder / p), "") for p in ("vae", "text_encoder", "text_encoder_2")]
    return find("sd3")(open_source(file, [*parts, *more]), device=CPU, dtype=dtype)


def expected(reader: T5EncoderModel, prompt: str) -> Tensor:
    words = PreTrainedTokenizerFast.from_pretrained(clip_words.t5_folder())
    ids = words(prompt, padding="max_length", max_length=77)["input_ids"]
    return reader(input_ids=torch.tensor([ids])).last_hidden_state


def test_t5s_words_are_as_published() -> None:
    words = PreTrainedTokenizerFast.from_pretrained(clip_words.t5_folder())
    assert words("The house is wonderful.")["input_ids"] == [37, 629, 19, 1627, 5, 1]
    assert (words.pad_token_id, words.eos_token_id, words.unk_token_id) == (0, 1, 2)


@pytest.mark.parametrize("both", [True, False])
def test_t5_inside_a_checkpoint_and_beside_it(both: bool, folder: Path, reader: T5EncoderModel, tmp_path: Path) -> None:
    state = tensors(reader, both=both)
    inside = checkpoint(tmp_path / "in.safetensors", folder, {T5 + n: t for n, t in state.items()})
    without = checkpoint(tmp_path / "out.safetensors", folder, {})
    alone = c.save(tmp_path / "t5.safetensors", state)
    assert about(inside) == About("sd3", "model") and about(alone) == About("", "text_encoder")
    one, two = loaded(inside, folder), loaded(without, folder, Part("text_encoder_3", str(alone), ""))
    none = loaded(without, folder)
    assert "text_encoder_3" not in none.trainable()
    short = none.encode_text(["a red apple"]).tokens.shape[1]
    for f in (one, two):
        found = f.encode_text(["a red apple"]).tokens
        assert torch.allclose(found[:, short:], expected(reader, "a red apple"), atol=1e-5)
        shared, table = (f.trainable()["text_encoder_3"].get_parameter(n) for n in ("shared.weight", "encoder.embed_tokens.weight"))
        assert shared.data_ptr() == table.data_ptr()
    half = loaded(inside, folder, dtype=torch.float16).trainable()["text_encoder_3"]
    kinds = {n: p.dtype for n, p in half.named_parameters()}
    assert kinds["encoder.block.0.layer.1.DenseReluDense.wo.weight"] == F32  # it overflows in float16
    assert kinds["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"] == torch.float16


def test_t5_with_scales_of_8_bits_is_refused_by_name(reader: T5EncoderModel, tmp_path: Path) -> None:
    name = "encoder.block.0.layer.0.SelfAttention.q.scale_weight"
    path = c.save(tmp_path / "t5.safetensors", {**tensors(reader), name: torch.ones(())})
    with pytest.raises(ValueError, match=r"1 unknown \(encoder.block.0.layer.0.SelfAttention.q.scale_weight\)"):
        Loose(path, "text_encoder_3").build("text_encoder_3", T5EncoderModel, device=CPU, dtype=F32)


# Pickled shards.


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Kolors with its text encoder as published: shards of a pickle, and a table of them."""
    folder = tiny.kolors(tmp_path / "kolors")
    at = folder / "text_encoder"
    state = load_file(at / "model.safetensors")
    (at / "model.safetensors").unlink()
    names = sorted(state)
    table = {}
    for i in range(3):
        file = f"pytorch_model-{i + 1:05}-of-00003.bin"
        torch.save({n: state[n] for n in names[i::3]}, at / file)
        table |= dict.fromkeys(names[i::3], file)
    (at / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return folder


def text_of(folder: Path) -> Any:
    return open_source(folder).build("text_encoder", ChatGLMModel, device=CPU, dtype=F32)


@pytest.mark.parametrize("table", [True, False])
def test_pickled_shards_are_one_text_encoder(table: bool, sharded: Path, tmp_path: Path) -> None:
    if not table:
        (sharded / "text_encoder" / "pytorch_model.bin.index.json").unlink()
    whole = text_of(tiny.kolors(tmp_path / "whole")).state_dict()
    found = text_of(sharded).state_dict()
    assert found.keys() == whole.keys() and all(torch.equal(found[n], t) for n, t in whole.items())
    assert tiny.load(sharded, device=CPU, dtype=F32).encode_text(["一个女孩"]).tokens.shape[1] == 256


def lose_one(at: Path) -> None:
    (at / "pytorch_model-00002-of-00003.bin").unlink()


def lose_one_and_the_table(at: Path) -> None:
    lose_one(at)
    (at / "pytorch_model.bin.index.json").unlink()


def twice(at: Path) -> None:
    shutil.copy(at / "pytorch_model-00001-of-00003.bin", at / "pytorch_model-00002-of-00003.bin")


def far(at: Path) -> None:
    (at / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": "../x.bin"}}))


@pytest.mark.parametrize(("spoil", "says"), [
    (lose_one, "does not lie beside it"), (lose_one_and_the_table, "2 .bin files that are neither one nor all"), (twice, "missing"),
    (far, "does not lie beside it|no name below"),
])
def test_shards_that_are_not_whole_are_refused(spoil: Callable[[Path], None], says: str, sharded: Path) -> None:
    spoil(sharded / "text_encoder")
    with pytest.raises(ValueError, match=says):
        text_of(sharded)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["CANARY"],)


def test_a_shard_that_calls_something_calls_nothing(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    at = sharded / "text_encoder" / "pytorch_model-00003-of-00003.bin"
    torch.save({**torch.load(at), "more": Evil()}, at)
    assert text_of(sharded).state_dict()
    assert not (tmp_path / "canary").exists()


def test_shards_need_every_tensor_once(tmp_path: Path) -> None:
    one, two = (tmp_path / f"{i}.safetensors" for i in range(2))
    save_file({"a": torch.zeros(2), "b": torch.ones(3)}, one)
    save_file({"c": torch.full((4,), 2.0)}, two)
    both = WeightFile(one, two)
    assert both.shapes == {"a": (2,), "b": (3,), "c": (4,)}
    assert [both.read(n).tolist() for n in "ac"] == [[0, 0], [2, 2, 2, 2]]
    with pytest.raises(ValueError, match="another shard"):
        WeightFile(one, two, c.save(tmp_path / "3.safetensors", {"b": torch.zeros(3)}))


# Configurations that name code.


CODE = "import os\nos.mkdir(os.environ['CANARY'])\nclass ChatGLMModel: pass\nclass ChatGLMConfig: pass\n"


@pytest.mark.parametrize("named", ["modeling_chatglm.ChatGLMModel", "evil.ChatGLMModel", "someone/repo--evil.ChatGLMModel"])
def test_code_beside_a_configuration_is_named_and_never_run(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    folder = tiny.kolors(tmp_path / "m")
    plain = text_of(folder).state_dict()
    for part in ("text_encoder", "unet", "vae"):
        path = folder / part / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoModel": named, "AutoConfig": "evil.ChatGLMConfig"}}))
        for name in ("modeling_chatglm", "evil", "configuration_chatglm"):
            (folder / part / f"{name}.py").write_text(CODE)
    found = tiny.load(folder, device=CPU, dtype=F32).trainable()["text_encoder"]
    assert type(found) is ChatGLMModel and all(torch.equal(t, plain[n]) for n, t in found.state_dict().items())
    assert not (tmp_path / "canary").exists()
    said = [r.getMessage() for r in caplog.records if r.name == "safelight.families.sources"]
    assert len(said) == 3 and all(named in m and "never run" in m for m in said)


def test_an_auto_map_is_left_out_at_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"x": [{"auto_map": {"AutoModel": "a.B"}, "y": 1}], "auto_map": 7}))
    assert read_config(path) == {"x": [{"y": 1}]}


def test_a_u_net_of_one_level_by_its_first_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = UNet2DConditionModel(
        block_out_channels=(64,), down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), layers_per_block=2,
        cross_attention_dim=32, attention_head_dim=8, sample_size=8,
    ).eval().requires_grad_(False)
    path = c.save(tmp_path / "x.safetensors", {f"model.diffusion_model.{n}": t for n, t in c.unet_names(net).items()})
    found = open_source(path).build("unet", UNet2DConditionModel, device=CPU, dtype=F32)
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 32)
    said = [n(x, torch.tensor([500]), encoder_hidden_states=text).sample for n in (found, net)]
    assert torch.allclose(*said, atol=1e-5)
