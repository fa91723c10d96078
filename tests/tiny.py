"""Small real models with random weights, written as diffusers-layout folders; the same seed writes the same bytes."""
from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from safelight.families import Family, find
from safelight.families.sources import open_source
from safelight.values import Model

SAYINGS = ["a girl with purple hair", "a man with red hair in a blue coat", "a red apple on white", "night city", "一个紫色短发的女孩"]


def tokenizer(window: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with begin and end marks, as the embedded model's."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    marks = ["<pad>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(SAYINGS, trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $0 </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    named = dict(zip(("pad_token", "bos_token", "eos_token"), marks, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=window, clean_up_tokenization_spaces=False, **named)


def unet(channels: int, sample: int, width: int = 32, **changes: Any) -> UNet2DConditionModel:
    usual: dict[str, Any] = {
        "sample_size": sample,
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (width, 2 * width),
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**usual | changes)


def vae(channels: int, factor: int, scale: float, **changes: Any) -> AutoencoderKL:
    levels = factor.bit_length()
    widths = (8, 8, 16, 16)[-levels:]
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=widths,
        latent_channels=channels,
        norm_num_groups=4,
        layers_per_block=1,
        scaling_factor=scale,
        mid_block_add_attention=False,
        sample_size=64,
        **changes,
    )


def clip_config(words: PreTrainedTokenizerFast, **changes: Any) -> CLIPTextConfig:
    usual: dict[str, Any] = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": words.model_max_length,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    return CLIPTextConfig(**usual | changes)


def text_encoder(words: PreTrainedTokenizerFast) -> CLIPTextModel:
    return CLIPTextModel(clip_config(words))


def write(folder: Path, *, prediction: str = "v_prediction", channels: int = 16, factor: int = 8, sample: int = 8, seed: int = 0) -> Path:
    """A whole model; `mini`'s layout by default (16 channels, f8, v, zero-terminal SNR, 48 tokens), only smaller."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        words = tokenizer(48)
        unet(channels, sample).save_pretrained(folder / "unet")
        vae(channels, factor, 1.0 if channels == 16 else 0.18215).save_pretrained(folder / "vae")
        text_encoder(words).save_pretrained(folder / "text_encoder")
        words.save_pretrained(folder / "tokenizer")
    schedule(folder, prediction, rescale_betas_zero_snr=prediction == "v_prediction")
    return finish(folder, "StableDiffusionPipeline")


def schedule(folder: Path, prediction: str, **changes: Any) -> None:
    """scheduler/ with SD's table of noise levels."""
    usual = {
        "_class_name": "FlowMatchEulerDiscreteScheduler" if prediction == "flow" else "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction,
    }
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(usual | changes))


def finish(folder: Path, pipeline: str) -> Path:
    """model_index.json."""
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    return folder


def save(folder: Path, seed: int, parts: dict[str, Callable[[], Any]]) -> None:
    """Make each part, its weights drawn from the seed, and write it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, make in parts.items():
            make().save_pretrained(folder / name)


def mini(folder: Path, *, seed: int = 0) -> Path:
    """The embedded model's layout: v-prediction, 16 channels, f8, 64 px."""
    return write(folder, seed=seed)


def sd1(folder: Path, *, seed: int = 0) -> Path:
    """SD 1.x's layout: eps-prediction, 4 channels, f4, 32 px."""
    return write(folder, prediction="epsilon", channels=4, factor=4, sample=8, seed=seed)


def flow(folder: Path, *, seed: int = 0) -> Path:
    """The same parts with a flow-matching schedule, 32 px."""
    return write(folder, prediction="flow", channels=4, factor=4, sample=8, seed=seed)


def sd2(folder: Path, *, seed: int = 0) -> Path:
    """SD 2.x's layout: v-prediction on SD 1.x's table, OpenCLIP text (gelu), linear projections, f4, 32 px."""
    words = tokenizer(48)
    save(folder, seed, {
        "unet": lambda: unet(4, 8, use_linear_projection=True, attention_head_dim=[4, 8]),
        "vae": lambda: vae(4, 4, 0.18215),
        "text_encoder": lambda: CLIPTextModel(clip_config(words, hidden_act="gelu")),
        "tokenizer": lambda: words,
    })
    schedule(folder, "v_prediction")
    return finish(folder, "StableDiffusionPipeline")


def inpaint(folder: Path, *, seed: int = 0) -> Path:
    """An inpainting U-Net of 9 channels; the rest as SD 1.x."""
    words = tokenizer(48)
    save(folder, seed, {
        "unet": lambda: unet(4, 8, in_channels=9),
        "vae": lambda: vae(4, 4, 0.18215),
        "text_encoder": lambda: text_encoder(words),
        "tokenizer": lambda: words,
    })
    schedule(folder, "epsilon")
    return finish(folder, "StableDiffusionInpaintPipeline")


def taiyi(folder: Path, *, seed: int = 0) -> Path:
    """Taiyi's layout: Chinese BERT text, a window of 64 here; the rest as SD 1.x."""
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted({c for saying in SAYINGS for c in saying if c != " "} | set("abcdefghijklmnopqrstuvwxyz,.()"))
    words = BertTokenizer(vocab={w: i for i, w in enumerate([*marks, *letters, *(f"##{c}" for c in letters)])}, model_max_length=64)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64
    )
    save(folder, seed, {
        "unet": lambda: unet(4, 8),
        "vae": lambda: vae(4, 4, 0.18215),
        "text_encoder": lambda: BertModel(config),
        "tokenizer": lambda: words,
    })
    (folder / "tokenizer" / "tokenizer.json").unlink()  # Taiyi's own folder has the older file
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join(sorted(words.get_vocab(), key=words.get_vocab().__getitem__)))
    schedule(folder, "epsilon")
    return finish(folder, "StableDiffusionPipeline")


def projected(words: PreTrainedTokenizerFast, width: int) -> CLIPTextModelWithProjection:
    """A CLIP tower with a projection, as SDXL's second and SD3's two."""
    return CLIPTextModelWithProjection(clip_config(words, hidden_size=width, num_hidden_layers=3, projection_dim=width, hidden_act="gelu"))


def sized(**changes: Any) -> UNet2DConditionModel:
    """A U-Net that is told the picture's size: a pooled text of 48 and six numbers."""
    told = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 48 + 6 * 8}
    return unet(4, 8, **{"cross_attention_dim": 32 + 48, "use_linear_projection": True, **told, **changes})


def sdxl(folder: Path, *, seed: int = 0) -> Path:
    """SDXL's layout: two towers, size conditioning, f4, 32 px."""
    words = tokenizer(48)
    save(folder, seed, {
        "unet": sized,
        "vae": lambda: vae(4, 4, 0.13025),
        "text_encoder": lambda: CLIPTextModel(clip_config(words, num_hidden_layers=3)),
        "text_encoder_2": lambda: projected(words, 48),
        "tokenizer": lambda: words,
        "tokenizer_2": lambda: words,
    })
    schedule(folder, "epsilon")
    return finish(folder, "StableDiffusionXLPipeline")


def refiner(folder: Path, *, seed: int = 0) -> Path:
    """SDXL's refiner: the second tower alone, and an aesthetic score instead of the target size."""
    words = tokenizer(48)
    save(folder, seed, {
        "unet": lambda: sized(cross_attention_dim=48, projection_class_embeddings_input_dim=48 + 5 * 8),
        "vae": lambda: vae(4, 4, 0.13025),
        "text_encoder_2": lambda: projected(words, 48),
        "tokenizer_2": lambda: words,
    })
    schedule(folder, "epsilon")
    return finish(folder, "StableDiffusionXLImg2ImgPipeline")


def sentencepiece_model(path: Path) -> int:
    """A sentencepiece model file (BPE, byte fallback, no normalisation) of the sayings' letters and pairs; how many pieces it has."""

    def field(number: int, value: bytes | int) -> bytes:
        return varint(number << 3) + varint(value) if isinstance(value, int) else varint(number << 3 | 2) + varint(len(value)) + value

    def varint(n: int) -> bytes:
        return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])

    def piece(text: str, score: float, kind: int) -> bytes:
        return field(1, field(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + (field(3, kind) if kind != 1 else b""))

    words = [f"▁{w}" for saying in SAYINGS for w in saying.split()]
    letters = sorted({c for w in words for c in w})
    longer = sorted({w[i : i + n] for w in words for n in (2, 3, 4, 5) for i in range(len(w) - n + 1)}, key=lambda t: (len(t), t))
    normal = [*longer, *letters]
    pieces = [piece("<unk>", 0, 2), piece("<s>", 0, 3), piece("</s>", 0, 3), *(piece(f"<0x{b:02X}>", 0, 6) for b in range(256))]
    pieces += [piece(text, -float(i), 1) for i, text in enumerate(normal)]
    path.write_bytes(b"".join(pieces) + field(2, field(3, 2) + field(35, 1)) + field(3, field(1, b"identity") + field(3, 1) + field(4, 0)))
    return len(pieces)


def chatglm(vocabulary: int) -> ChatGLMModel:
    config = ChatGLMConfig(
        num_layers=3, padded_vocab_size=vocabulary, hidden_size=32, ffn_hidden_size=48, kv_channels=8, num_attention_heads=4,
        seq_length=512, multi_query_attention=True, multi_query_group_num=2, add_qkv_bias=True, original_rope=True,
        architectures=["ChatGLMModel"],
    )
    model = ChatGLMModel(config, empty_init=False)
    for name, weight in model.named_parameters():
        torch.nn.init.ones_(weight) if "layernorm" in name else torch.nn.init.normal_(weight, std=0.2)
    return model


def kolors(folder: Path, *, seed: int = 0) -> Path:
    """Kolors' layout: ChatGLM text, SDXL's U-Net with a projection of the text, 1100 noise levels, f4, 32 px."""
    (folder / "tokenizer").mkdir(parents=True)
    known = sentencepiece_model(folder / "tokenizer" / "tokenizer.model") + 9
    told = {"encoder_hid_dim": 32, "encoder_hid_dim_type": "text_proj", "cross_attention_dim": 40}
    save(folder, seed, {
        "unet": lambda: sized(projection_class_embeddings_input_dim=32 + 6 * 8, **told),
        "vae": lambda: vae(4, 4, 0.13025),
        "text_encoder": lambda: chatglm(known),
    })
    schedule(folder, "epsilon", beta_end=0.014, num_train_timesteps=1100)
    return finish(folder, "KolorsPipeline")


def sd3(folder: Path, *, seed: int = 0) -> Path:
    """SD 3.5's layout: a joint transformer, two towers with projections and T5, 16 channels with a shift, f4, 32 px."""
    words = tokenizer(48)
    t5_words = PreTrainedTokenizerFast(tokenizer_object=tokenizer(512)._tokenizer, eos_token="</s>", pad_token="<pad>")
    t5_words._tokenizer.post_processor = processors.TemplateProcessing(single="$0 </s>", special_tokens=[("</s>", 2)])
    t5 = T5Config(vocab_size=len(words), d_model=96, d_kv=16, d_ff=64, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
    save(folder, seed, {
        "transformer": lambda: SD3Transformer2DModel(
            sample_size=8, num_layers=2, attention_head_dim=8, num_attention_heads=4, joint_attention_dim=96, caption_projection_dim=32,
            pooled_projection_dim=80, pos_embed_max_size=24, dual_attention_layers=(0,), qk_norm="rms_norm",
        ),
        "vae": lambda: vae(16, 4, 1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": lambda: projected(words, 32),
        "text_encoder_2": lambda: projected(words, 48),
        "text_encoder_3": lambda: T5EncoderModel(t5),
        "tokenizer": lambda: words,
        "tokenizer_2": lambda: words,
        "tokenizer_3": lambda: t5_words,
    })
    schedule(folder, "flow", shift=3.0)
    return finish(folder, "StableDiffusion3Pipeline")


LAYOUTS = {f.__name__: f for f in (mini, sd1, flow, sd2, inpaint, taiyi, sdxl, refiner, kolors, sd3)}


def load(folder: Path, *, device: torch.device, dtype: torch.dtype) -> Family:
    """The family of a folder written here, with its networks."""
    parts = open_source(folder)
    return find(parts.family)(parts, device=device, dtype=dtype)


def loader(place: Path) -> Callable[[str], Family]:
    """Makes the model of a layout and loads it, float32 on the CPU, each layout once."""

    @cache
    def made(layout: str) -> Family:
        return load(LAYOUTS[layout](place / layout), device=torch.device("cpu"), dtype=torch.float32)

    return made


def model(folder: Path) -> Model:
    """The value that names a folder written here."""
    parts = open_source(folder)
    return Model(parts.family, parts.source, parts.fingerprint())
