"""Scores: the CLIP towers against transformers' own forward pass, the ranking of pictures, and the comparison of two runs."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from PIL import ImageFilter

from safelight.pictures import bytes8, floats, read, square
from safelight.scoring import METRICS, score
from safelight.scoring import clip as module
from safelight.scoring.clip import ClipTowers
from safelight.scoring.compare import compare
from safelight.values import Blob, Dataset, Image, Row, Scores
from tests import towers as small

PROMPTS = ["a girl with purple hair", "a red apple on white", "一个紫色短发的女孩", ""]
rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("towers"))


@pytest.fixture
def towers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ClipTowers:
    """The small pair in the embedded one's place."""
    monkeypatch.setattr(module, "embedded", lambda: folder / "clip")
    return ClipTowers.load()


def pictures(n: int = 4, side: int = 32) -> Image:
    return Image(rng.random((n, side, side, 3), dtype=np.float32), tuple({"prompt": PROMPTS[i % 3]} for i in range(n)))


def test_towers_agree_with_the_whole_model(towers: ClipTowers) -> None:
    """logits = scale x cosine, as CLIPModel itself computes them from the same tokens and pixels."""
    image = pictures()
    tokens = towers.tokenizer(PROMPTS[:3], padding=True, return_tensors="pt")
    pixels = torch.from_numpy((image.pixels * 2 - 1).transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        wanted = towers.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels).logits_per_image
    got = towers.scale * towers.image(image.pixels) @ towers.text(PROMPTS[:3]).T
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-4)


def test_embeddings_are_unit_float32_and_do_not_depend_on_the_batch(towers: ClipTowers) -> None:
    image = pictures(70)
    whole = towers.image(image.pixels)
    assert whole.dtype == np.float32 and whole.shape == (70, 24)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(whole[69], towers.image(image.pixels[69:])[0], atol=1e-5)
    together = towers.text(PROMPTS * 20)
    np.testing.assert_allclose(together[1], towers.text(PROMPTS[1:2])[0], atol=1e-5)  # padding does not matter
    assert towers.text([]).shape == (0, 24)
    assert towers.text(["word " * 500]).shape == (1, 24)


def test_classify_and_retrieve(towers: ClipTowers) -> None:
    image = pictures()
    chances = towers.classify(image.pixels, PROMPTS[:3])
    np.testing.assert_allclose(chances.sum(axis=1), 1, atol=1e-5)
    texts, pixels = towers.text(PROMPTS[:3]), towers.image(image.pixels)
    found = towers.retrieve(PROMPTS[0], image.pixels, 2)
    assert [i for i, _ in found] == list(np.argsort(-(pixels @ texts[0]))[:2]) and found[0][1] >= found[1][1]
    assert towers.retrieve(image.pixels[2], PROMPTS[:3], 1)[0][0] == int(np.argmax(texts @ pixels[2]))
    assert chances.argmax(axis=1).tolist() == [towers.retrieve(p, PROMPTS[:3], 1)[0][0] for p in image.pixels]


def test_pictures_of_another_size_lose_only_their_edges(towers: ClipTowers) -> None:
    middle = rng.random((1, 32, 32, 3), dtype=np.float32).round(1)
    wide = np.zeros((1, 32, 64, 3), np.float32)
    wide[:, :, 16:48] = middle
    np.testing.assert_allclose(towers.image(wide), towers.image(middle), atol=0.02)


def test_preprocessing_is_read_from_the_folder(towers: ClipTowers, folder: Path, tmp_path: Path) -> None:
    other = small.write(tmp_path, seed=0)
    (other / "clip" / "preprocessor.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}')
    pixels = pictures(1).pixels
    assert np.abs(ClipTowers.load(other / "clip").image(pixels) - towers.image(pixels)).max() > 1e-3


def test_missing_towers_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        ClipTowers.load(tmp_path)


def test_clip_score_is_the_cosine(towers: ClipTowers) -> None:
    image = pictures()
    got = score(image, ["clip"], prompts=PROMPTS[:1]).values["clip"]
    wanted = np.maximum(0, 100 * towers.image(image.pixels) @ towers.text(PROMPTS[:1])[0])
    np.testing.assert_allclose(got, wanted, atol=1e-3)
    assert score(image, ["clip"]).values["clip"][0] == pytest.approx(got[0])


EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "pixel-people").glob("person-??.png"))


def test_style_is_how_a_picture_is_drawn_not_what_it_shows() -> None:
    """Half of the example set is the dataset: the other half is near, in other colours and softened too; tilted it is far, and noise is."""
    data = Dataset(tuple(Row(Blob.of(p), p.name, 256, 256) for p in EXAMPLES[:15]))
    held = np.stack([floats(square(read(p), 128)) for p in EXAMPLES[15:]])
    smooth = np.stack([floats(np.asarray(Pil.fromarray(bytes8(p)).filter(ImageFilter.GaussianBlur(2)))) for p in held])
    turned = [Pil.fromarray(bytes8(p)).rotate(30, Pil.Resampling.BICUBIC).crop((24, 24, 104, 104)) for p in held]
    tilted = np.stack([floats(np.asarray(p)) for p in turned])
    groups = {"same": held, "recoloured": held[..., ::-1].copy(), "smooth": smooth, "tilted": tilted, "noise": pictures(5, 128).pixels}
    got = {name: np.mean(score(Image(p), ["style"], against=data).values["style"]) for name, p in groups.items()}
    assert min(got["same"], got["recoloured"], got["smooth"]) > 80 and max(got["tilted"], got["noise"]) < 55, got


@pytest.mark.parametrize(("by", "options", "said"), [
    (["clip"], {"prompts": ["", "a", "b", "c"]}, "picture 0 has none"), (["clip"], {"prompts": ["a", "b"]}, "got 2 for 4 pictures"),
    (["style"], {}, "needs a dataset"), (["beauty"], {}, "expected some of"), ([], {}, "got no metric")])
def test_errors(towers: ClipTowers, by: list[str], options: dict[str, list[str]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        score(Image(pictures().pixels), by, **options)  # type: ignore[arg-type]


def test_best_follows_the_scores() -> None:
    sharp = (np.indices((32, 32)).sum(0) % 2).astype(np.float32)[..., None].repeat(3, 2)
    image = Image(np.stack([sharp * 0.1, sharp, sharp * 0.5]), ({"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}))
    assert [i["prompt"] for i in score(image, ["sharpness"]).best(2).info] == ["b", "c"]


def test_a_comparison_knows_chance_from_change() -> None:
    image = pictures(40)
    base = rng.normal(20, 3, 40)
    before = Scores({"a": list(base), "b": list(base)}, image)
    after = Scores({"a": list(base + 2 + rng.normal(0, 1, 40)), "b": list(rng.permutation(base)), "c": [0.0] * 40}, image)
    better, same = compare(before, after)
    assert better.metric == "a" and better.clear and better.low > 1 and better.wins > 35 and better.difference == pytest.approx(2, abs=0.5)
    assert not same.clear and same.low < 0 < same.high
    with pytest.raises(ValueError, match="40 pictures before, 3 after"):
        compare(before, Scores({"a": [1.0] * 3}, pictures(3)))


def test_the_registry_is_what_the_op_offers() -> None:
    from safelight.op import load_ops

    choices = load_ops()["score"].spec.setting["by"].choices
    assert choices is not None and set(choices) == set(METRICS)
