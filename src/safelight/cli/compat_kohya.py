"""sd-scripts' arguments as tables, and what each is here."""
from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safelight.values import Blob

FOLDER = re.compile(r"(\d+)_(.+)")

ARGUMENTS: dict[str, Any] = {
    "config_file": str, "dataset_config": str, "pretrained_model_name_or_path": str, "vae": str, "train_data_dir": str, "reg_data_dir": str,
    "output_dir": str, "output_name": str, "resolution": str, "train_batch_size": 1, "max_train_steps": 1600, "max_train_epochs": int,
    "save_every_n_epochs": int, "save_every_n_steps": int, "learning_rate": 2e-6, "unet_lr": float, "text_encoder_lr": float,
    "lr_scheduler": "constant", "lr_warmup_steps": 0, "lr_scheduler_num_cycles": 1, "lr_scheduler_power": 1.0, "optimizer_type": "",
    "use_8bit_adam": False, "use_lion_optimizer": False, "optimizer_args": [], "max_grad_norm": 1.0, "network_module": "networks.lora",
    "network_dim": int, "network_alpha": 1.0, "network_args": [], "network_train_unet_only": False, "seed": int, "mixed_precision": "no",
    "gradient_checkpointing": False, "gradient_accumulation_steps": 1, "caption_extension": ".caption", "shuffle_caption": False,
    "keep_tokens": 0, "caption_dropout_rate": 0.0, "caption_tag_dropout_rate": 0.0, "flip_aug": False, "random_crop": False,
    "enable_bucket": False, "min_snr_gamma": float, "debiased_estimation_loss": False, "noise_offset": float, "ip_noise_gamma": float,
    "multires_noise_discount": 0.3, "multires_noise_iterations": int, "loss_type": "l2", "huber_c": 0.1, "huber_schedule": "snr",
    "min_timestep": int, "max_timestep": int, "masked_loss": False, "prior_loss_weight": 1.0, "v_parameterization": False,
    "zero_terminal_snr": False, "clip_skip": int,
}
"""What is honoured, with that program's defaults, or the type of what has none."""

HARMLESS = tuple("""
xformers sdpa mem_eff_attn cache_latents cache_latents_to_disk vae_batch_size cache_text_encoder_outputs cache_text_encoder_outputs_to_disk
max_data_loader_n_workers persistent_data_loader_workers lowram highvram logging_dir log_with log_prefix log_tracker_name wandb_api_key
save_model_as save_precision training_comment no_metadata v2 max_token_length no_half_vae bucket_no_upscale min_bucket_reso max_bucket_reso
bucket_reso_steps save_last_n_epochs save_state sample_every_n_epochs sample_every_n_steps sample_prompts sample_sampler metadata_title
metadata_author metadata_description metadata_license metadata_tags dynamo_backend torch_compile console_log_level
""".split())  # noqa: SIM905, a table
"""What changes how it runs, or what is written about it, and not what is learned; buckets have our own table's bounds."""

REFUSED = tuple("""
network_weights base_weights base_weights_multiplier dim_from_weights network_dropout network_train_text_encoder_only scale_weight_norms
color_aug face_crop_aug_range token_warmup_min token_warmup_step caption_prefix caption_suffix secondary_separator keep_tokens_separator
enable_wildcard weighted_captions caption_dropout_every_n_epochs in_json metadata_file adaptive_noise_scale v_pred_like_loss full_fp16
scale_v_pred_loss_like_noise_pred full_bf16 fp8_base resume initial_epoch initial_step lr_scheduler_type lr_scheduler_args alpha_mask
conditioning_data_dir train_text_encoder stop_text_encoder_training deepspeed
""".split())  # noqa: SIM905, a table
"""What changes the result and is not here; an error when it is asked for."""

ALONE = ("image_dir", "num_repeats", "class_tokens", "caption_extension", "is_reg")
"""What a folder of a dataset's TOML may have of its own; the rest holds for the whole run."""

KNOWN = ARGUMENTS | dict.fromkeys((*HARMLESS, *REFUSED), object)
DEFAULTS = {name: None if isinstance(value, type) else value for name, value in ARGUMENTS.items()}

OPTIMIZERS = {"": "adamw", "adamw": "adamw", "adamw8bit": "adamw8bit", "lion": "lion", "prodigy": "prodigy", "adafactor": "adafactor",
              "adamwschedulefree": "schedulefree"}
SCHEDULES = {"constant": "constant", "constant_with_warmup": "constant", "cosine": "cosine", "linear": "linear",
             "cosine_with_restarts": "restarts", "polynomial": "polynomial"}
PRODIGY = {"decouple": True, "use_bias_correction": True, "safeguard_warmup": True, "d0": 1e-6, "eps": 1e-8, "beta3": None}
"""What Prodigy is here, by its arguments; some are another thing there when they are not given."""
METHODS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr"}


@dataclass
class Job:
    """A translated command: settings of train_lora by flat name, the seed, steps between kept files (0: none), the dtype (empty: chosen),
    and what is to be told of what was asked."""

    knobs: dict[str, Any]
    seed: int = 0
    every: int = 0
    dtype: str = ""
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def kept(files: Mapping[str, Blob]) -> list[tuple[int, Blob]]:
    """The weights a training kept on the way, by step."""
    return [(int(Path(name).stem.removeprefix("step-")), blob) for name, blob in sorted(files.items()) if name.startswith("steps/")]


def parts(a: Mapping[str, Any]) -> dict[str, str]:
    """Settings of `model` beside the name."""
    v = "v-zsnr" if a["zero_terminal_snr"] else "v"
    return ({"vae": a["vae"]} if a["vae"] else {}) | ({"prediction": v} if a["v_parameterization"] else {})


def job(a: Mapping[str, Any], count: int, plain: Mapping[str, Any]) -> Job:
    """Arguments as settings, for `count` pictures with their repeats."""
    batch, one = int(a["train_batch_size"]) * int(a["gradient_accumulation_steps"]), int(a["train_batch_size"])
    epoch, problems = math.ceil(count / batch), [f"{name} = {a[name]!r}: it is not done here" for name in REFUSED if a.get(name)]
    steps = epoch * int(a["max_train_epochs"]) if a["max_train_epochs"] else int(a["max_train_steps"])
    knobs = {
        **plain, **_shape(a, problems), **_optimizer(a, steps, problems), **_objective(a, problems), "steps": steps, "batch": batch,
        "at_once": one if batch > one else 0, "size": _side(a["resolution"], problems), "drop": float(a["caption_dropout_rate"]),
        "buckets": bool(a["enable_bucket"]), "crops": 16 if a["random_crop"] else 1, "flip": bool(a["flip_aug"]),
        "shuffle": bool(a["shuffle_caption"]), "keep": int(a["keep_tokens"]), "drop_parts": float(a["caption_tag_dropout_rate"]),
    }
    notes = [f"{name}: it changes nothing that is learned here" for name in HARMLESS if a.get(name)]
    notes += ["seed: 0, since none is given; that program draws one"] if a["seed"] is None else []
    notes += ["mixed_precision fp16: the LoRA is float32 over the model in the device's own type"] if a["mixed_precision"] == "fp16" else []
    given = _pairs(a, "optimizer_args")
    notes += [f"Prodigy: {name} is {PRODIGY[name]} here" for name in ("use_bias_correction", "safeguard_warmup")
              if knobs["kind"] == "prodigy" and name not in given]
    if a["reg_data_dir"]:
        problems.append(f"reg_data_dir = {a['reg_data_dir']!r}: here the model draws the pictures of the class; see train-dreambooth")
    every = int(a["save_every_n_steps"] or 0) or epoch * int(a["save_every_n_epochs"] or 0)
    return Job(knobs, int(a["seed"] or 0), every, {"bf16": "bfloat16", "no": "float32"}.get(a["mixed_precision"], ""), notes, problems)


def _pairs(a: Mapping[str, Any], name: str) -> dict[str, str]:
    return {k.strip(): v.strip() for k, _, v in (str(pair).partition("=") for pair in a[name] or [])}


def _shape(a: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """rank, alpha, targets, method, text_encoder."""
    rank, alpha, args = int(a["network_dim"] or 4), float(a["network_alpha"] or 0), _pairs(a, "network_args")
    lycoris = a["network_module"] == "lycoris.kohya"
    algorithm, dora = args.pop("algo", "lora"), args.pop("dora_wd", "").lower() == "true"
    conv, conv_alpha = args.pop("conv_dim", ""), args.pop("conv_alpha", "")
    plus = float(args.pop("loraplus_lr_ratio", 1.0))
    if not (lycoris or a["network_module"] == "networks.lora") or (dora and METHODS.get(algorithm) != "lora") or algorithm not in METHODS:
        problems.append(f"network_module = {a['network_module']!r}, algo {algorithm}: expected networks.lora, or lycoris.kohya with one of "
                        f"{', '.join(METHODS)}")
    if conv and (int(conv) != rank or float(conv_alpha or 1) != (alpha or rank)):
        problems.append(f"network_args conv_dim={conv}, conv_alpha={conv_alpha or 1}: expected network_dim {rank}, network_alpha {alpha:g}")
    problems += [f"network_args {name}={value}: it is not done here" for name, value in args.items()]
    lr, tower = (float(a["learning_rate"] if a[name] is None else _first(a[name])) for name in ("unet_lr", "text_encoder_lr"))
    text = not a["network_train_unet_only"] and tower > 0
    if text and tower != lr:
        problems.append(f"text_encoder_lr = {tower:g}: expected the U-Net's {lr:g}, or 0, which does not train it")
    return {"rank": rank, "alpha": alpha or float(rank), "targets": "full" if conv or lycoris else "transformer", "text_encoder": text,
            "method": "dora" if dora else METHODS.get(algorithm, "lora"), "plus": plus, "lr": lr}


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def _optimizer(a: Mapping[str, Any], steps: int, problems: list[str]) -> dict[str, Any]:
    named = "adamw8bit" if a["use_8bit_adam"] else "lion" if a["use_lion_optimizer"] else str(a["optimizer_type"]).lower()
    told: dict[str, Any] = {"weight_decay": 0.01 if named in ("", "adamw", "adamw8bit") else 0.0,
                            "betas": (0.9, 0.99) if named == "lion" else (0.9, 0.999)}
    fixed = PRODIGY if named == "prodigy" else {}
    told |= {"d_coef": 1.0} if fixed else {}
    for name, value in _pairs(a, "optimizer_args").items():
        if name in told:
            told[name] = ast.literal_eval(value)
        elif name not in fixed or ast.literal_eval(value) != fixed[name]:
            problems.append(f"optimizer_args {name}={value}: expected {', '.join(told)}{''.join(f', {k}={v}' for k, v in fixed.items())}")
    if named not in OPTIMIZERS or a["lr_scheduler"] not in SCHEDULES:
        problems.append(f"optimizer_type = {named!r}, lr_scheduler = {a['lr_scheduler']!r}: expected one of "
                        f"{', '.join(filter(None, OPTIMIZERS))} and of {', '.join(SCHEDULES)}")
    warmup = float(a["lr_warmup_steps"] or 0)
    return {"kind": OPTIMIZERS.get(named, "adamw"), "weight_decay": told["weight_decay"], "betas": list(told["betas"]),
            "d_coef": float(told.get("d_coef", 1.0)),
            "clip": float(a["max_grad_norm"]), "decay": SCHEDULES.get(a["lr_scheduler"], "constant"),
            "warmup": round(warmup * steps if warmup < 1 else warmup), "cycles": int(a["lr_scheduler_num_cycles"] or 1),
            "power": float(a["lr_scheduler_power"] or 1), "checkpointing": bool(a["gradient_checkpointing"])}


def _objective(a: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    if (a["clip_skip"] or 1) != 1:
        problems.append(f"clip_skip = {a['clip_skip']}: the text encoder's last layer is what is read")
    if a["zero_terminal_snr"] and not a["v_parameterization"]:
        problems.append("zero_terminal_snr: expected v_parameterization with it")
    if a["loss_type"] not in ("l2", "l1", "huber"):
        problems.append(f"loss_type = {a['loss_type']!r}: expected l2, l1 or huber")
    falls = {"constant": "constant", "exponential": "time", "snr": "snr"}
    return {"weigh": "debiased" if a["debiased_estimation_loss"] else "min_snr", "min_snr": float(a["min_snr_gamma"] or 0),
            "noise_offset": float(a["noise_offset"] or 0), "perturb": float(a["ip_noise_gamma"] or 0),
            "pyramid": float(a["multires_noise_discount"]) if a["multires_noise_iterations"] else 0.0,
            "loss": a["loss_type"] if a["loss_type"] in ("l2", "l1", "huber") else "l2", "huber": float(a["huber_c"]),
            "huber_falls": falls.get(a["huber_schedule"], "snr"), "lowest": (a["min_timestep"] or 0) / 1000,
            "highest": (a["max_timestep"] or 1000) / 1000, "unmasked": 0.0 if a["masked_loss"] else 1.0}


def _side(resolution: Any, problems: list[str]) -> int:
    sides = [int(n) for n in (resolution if isinstance(resolution, list) else re.findall(r"\d+", str(resolution or 512)))]
    if len(set(sides)) != 1:
        problems.append(f"resolution = {resolution!r}: expected a square; with enable_bucket pictures keep their shapes")
    return sides[0]
