"""Small real models with random weights, written as diffusers-layout folders; the same seed writes the same bytes."""
from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

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
    named = dict(zip(("pad_token", "bos_token", "eos_token"), marks, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=window, clean_up_tokenization_spaces=False, **named)


def unet(channels: int, sample: int, width: int = 32) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=sample,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def vae(channels: int, factor: int, scale: float) -> AutoencoderKL:
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
    )


def text_encoder(words: PreTrainedTokenizerFast) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=words.model_max_length,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )


def write(folder: Path, *, prediction: str = "v_prediction", channels: int = 16, factor: int = 8, sample: int = 8, seed: int = 0) -> Path:
    """A whole model; `mini`'s layout by default (16 channels, f8, v, zero-terminal SNR, 48 tokens), only smaller."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        words = tokenizer(48)
        unet(channels, sample).save_pretrained(folder / "unet")
        vae(channels, factor, 1.0 if channels == 16 else 0.18215).save_pretrained(folder / "vae")
        text_encoder(words).save_pretrained(folder / "text_encoder")
        words.save_pretrained(folder / "tokenizer")
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler" if prediction == "flow" else "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction,
        "rescale_betas_zero_snr": prediction == "v_prediction",
    }
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


def mini(folder: Path, *, seed: int = 0) -> Path:
    """The embedded model's layout: v-prediction, 16 channels, f8, 64 px."""
    return write(folder, seed=seed)


def sd1(folder: Path, *, seed: int = 0) -> Path:
    """SD 1.x's layout: eps-prediction, 4 channels, f4, 32 px."""
    return write(folder, prediction="epsilon", channels=4, factor=4, sample=8, seed=seed)


def flow(folder: Path, *, seed: int = 0) -> Path:
    """The same parts with a flow-matching schedule, 32 px."""
    return write(folder, prediction="flow", channels=4, factor=4, sample=8, seed=seed)


LAYOUTS = {"mini": mini, "sd1": sd1, "flow": flow}


def load(folder: Path, *, device: torch.device, dtype: torch.dtype) -> Family:
    """The family of a folder written here, with its networks."""
    parts = open_source(folder)
    return find(parts.family)(parts, device=device, dtype=dtype)


def model(folder: Path) -> Model:
    """The value that names a folder written here."""
    parts = open_source(folder)
    return Model(parts.family, parts.source, parts.fingerprint())
