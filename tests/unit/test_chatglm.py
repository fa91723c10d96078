"""ChatGLM's words without sentencepiece, and its weights in 8 and 4 bits."""
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from safelight import families
from safelight.families import Family, sentencepieces
from safelight.families.chatglm import LAYERS
from safelight.families.sources import open_source
from safelight.families.weight_only import WeightOnly, packed, quantized, unpacked
from safelight.values import Part
from tests import tiny

CPU = torch.device("cpu")


def test_words_are_merged_by_score_and_strange_letters_become_bytes(tmp_path: Path) -> None:
    known = tiny.sentencepiece_model(tmp_path / "tokenizer.model")
    words = sentencepieces.read(tmp_path / "tokenizer.model")
    assert words.get_vocab_size() == known
    assert words.encode("red").tokens == ["▁red"]
    assert words.encode("hed").tokens == ["▁h", "ed"]  # "ed" has the better score, and "▁hed" is no piece
    assert words.encode("🎨").ids[1:] == [3 + b for b in "🎨".encode()]
    assert words.encode("").ids == []
    read = words.encode("a  red")
    assert words.decode(read.ids, skip_special_tokens=False).replace(" ", "").replace("▁", "") == "ared"


@pytest.mark.parametrize("raw", [b"\xff" * 40, b"\x0a\x7fshort", b"", bytes([0x0A, 2, 0x0A, 5]), b"\x0b\x00"])
def test_other_files_are_no_words(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(raw)
    with pytest.raises(ValueError, match="tokenizer"):
        sentencepieces.read(tmp_path / "tokenizer.model")


def by_hand(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The layout number by number: the upper half of a byte first, two's complement."""
    out = []
    for row, s in zip(weight.tolist(), scale.tolist(), strict=True):
        halves = [h for b in row for h in ((b >> 4), (b & 15) - 16 * ((b & 15) > 7))] if bits == 4 else row
        out.append([h * s for h in halves])
    return torch.tensor(out)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_layer_of_few_bits(bits: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(12, 5).requires_grad_(False)
    small = WeightOnly(linear, bits)
    small.weight.data, small.weight_scale.data = packed(linear.weight, bits)
    assert small.weight.dtype == torch.int8 and small.weight.shape == (5, 12 * bits // 8)
    whole = by_hand(small.weight, small.weight_scale, bits)
    assert unpacked(small.weight, bits).abs().max() == 2 ** (bits - 1) - 1
    assert torch.allclose(whole, linear.weight, atol=float(linear.weight.abs().max()) / (2**bits - 2) * 1.01)
    x = torch.randn(3, 12)
    assert torch.allclose(small(x), nn.functional.linear(x, whole, linear.bias), atol=1e-6)
    with pytest.raises(ValueError, match="3 bits"):
        WeightOnly(linear, 3)


def few_bits(folder: Path, bits: int) -> Path:
    """The text encoder's files as a quantized model has them."""
    place = folder / "text_encoder"
    weights = {k: t.half() for k, t in load_file(place / "model.safetensors").items()}
    save_file(quantized(weights, LAYERS, bits), place / "model.safetensors", {"format": "pt"})
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "quantization_bit": bits}))
    return folder


@pytest.mark.parametrize(("bits", "near"), [(8, 0.03), (4, 0.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kolors_reads_a_text_encoder_of_few_bits(tmp_path: Path, bits: int, near: float, dtype: torch.dtype) -> None:
    plain: Family = tiny.load(tiny.kolors(tmp_path / "m"), device=CPU, dtype=torch.float32)
    said = plain.encode_text(["a red apple", "一个紫色短发的女孩"])
    small: Family = tiny.load(few_bits(tmp_path / "m", bits), device=CPU, dtype=dtype)
    layers = [m for m in small.trainable()["text_encoder"].modules() if isinstance(m, WeightOnly)]
    assert len(layers) == 3 * len(LAYERS)
    assert all(layer.weight.dtype == torch.int8 for layer in layers)
    told = small.encode_text(["a red apple", "一个紫色短发的女孩"])
    for a, b in ((said.tokens, told.tokens), (said.extras["pooled"], told.extras["pooled"])):
        error = float((a - b)[:, -8:].norm() / a[:, -8:].norm()) if a.ndim == 3 else float((a - b).norm() / a.norm())
        assert 1e-4 < error < near + (0.02 if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize("bits", [0, 8, 4])
def test_chatglm_in_a_file_of_its_own(tmp_path: Path, bits: int) -> None:
    folder = tiny.kolors(tmp_path / "m")
    if bits:
        few_bits(folder, bits)
    whole = tiny.load(folder, device=CPU, dtype=torch.float32)
    file = (folder / "text_encoder" / "model.safetensors").rename(tmp_path / "chatglm3.safetensors")
    parts = open_source(folder, [Part("text_encoder", str(file), "")])
    loose = families.find("kolors")(parts, device=CPU, dtype=torch.float32)
    a, b = (f.encode_text(["a red apple", "一个紫色短发的女孩"]) for f in (whole, loose))
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.extras["pooled"], b.extras["pooled"])


def test_words_may_lie_beside_the_text_encoder(tmp_path: Path) -> None:
    folder = tiny.kolors(tmp_path / "m")
    (folder / "tokenizer" / "tokenizer.model").rename(folder / "text_encoder" / "tokenizer.model")
    assert tiny.load(folder, device=CPU, dtype=torch.float32).tokens("red") == 1
    (folder / "text_encoder" / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.model"):
        tiny.load(folder, device=CPU, dtype=torch.float32)
