"""What a LoRA's file says of itself: kohya's `ss_` names, modelspec 1.0.0, and what it was made from. No times: equal runs, equal bytes."""
from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image as Pil

from safelight import provenance
from safelight.reporting.model_card import hub_name
from safelight.train import lora_file
from safelight.train.captions import frequencies
from safelight.train.lessons import Lesson
from safelight.train.loop import Trained
from safelight.values import Dataset, Model, canonical

if TYPE_CHECKING:
    from safelight.families import Family
    from safelight.recipes.lora import Plan

OPTIMIZERS = {
    "adamw": "torch.optim.adamw.AdamW", "adamw8bit": "bitsandbytes.optim.adamw.AdamW8bit", "prodigy": "prodigyopt.prodigy.Prodigy",
    "schedulefree": "schedulefree.adamw_schedulefree.AdamWScheduleFree", "adafactor": "transformers.optimization.Adafactor",
    "lion": "lion_pytorch.lion_pytorch.Lion",
}
SCHEDULES = {"restarts": "cosine_with_restarts"}
ALGORITHMS = {"loha": "loha", "lokr": "lokr", "dora": "lora"}
THUMBNAIL = 256
TAGS = 8


def metadata(family: Family, model: Model, *, lesson: Lesson, plan: Plan, trained: Trained, samples: Path) -> dict[str, str]:
    """kohya's names, as far as they are known, then modelspec's, then ours; all strings. `samples` is the folder they were drawn into."""
    shape, opt, seen = plan.shape, plan.optimizer, plan.batches
    alpha = shape.rank if shape.alpha is None else shape.alpha
    conv = {} if shape.targets != "full" else {"conv_dim": str(shape.rank), "conv_alpha": f"{alpha:g}"}
    method = str(getattr(shape, "method", "lora"))
    algorithm = {"algo": ALGORITHMS[method]} | ({"dora_wd": "True"} if method == "dora" else {}) if method in ALGORITHMS else {}
    kohya = {
        "ss_network_module": "lycoris.kohya" if algorithm else "networks.lora", "ss_network_dim": shape.rank,
        "ss_network_alpha": f"{alpha:g}", "ss_network_args": json.dumps(algorithm | conv),
        "ss_base_model_version": lora_file.base_version(family), "ss_v2": lora_file.base_version(family) == "sd_v2",
        "ss_sd_model_name": Path(model.source).name, "ss_sd_model_hash": model.fingerprint, "ss_seed": plan.seed,
        "ss_learning_rate": f"{opt.lr:g}", "ss_unet_lr": f"{opt.lr:g}", "ss_text_encoder_lr": f"{opt.lr:g}" if shape.text_encoder else None,
        "ss_optimizer": OPTIMIZERS[opt.kind], "ss_lr_scheduler": SCHEDULES.get(opt.decay, opt.decay), "ss_lr_warmup_steps": opt.warmup,
        "ss_max_grad_norm": f"{opt.clip:g}", "ss_max_train_steps": seen.steps, "ss_steps": trained.step,
        "ss_min_snr_gamma": plan.objective.min_snr or None, "ss_caption_dropout_rate": seen.drop,
        "ss_noise_offset": plan.objective.noise_offset, "ss_prior_loss_weight": plan.objective.prior_weight,
        "ss_gradient_checkpointing": opt.checkpointing, "ss_output_name": lesson.trigger or "lora", **_data(family, lesson, plan),
    }
    title = f"{lesson.trigger or 'LoRA'} for {Path(model.source).name}"
    spec = lora_file.modelspec(family, title, lesson.side) | _look(trained, samples)
    said = Counter(tag for k in lesson.learn.kept for tag in frequencies(k.captions[:1]))
    spec |= {"modelspec.tags": ", ".join(tag for tag, _ in said.most_common(TAGS)), "modelspec.trigger_phrase": lesson.trigger}
    own = {"safelight.trigger": lesson.trigger, "safelight.settings": canonical(plan)}
    own |= {"safelight.base": name} if (name := hub_name(model.source)) else {}
    return {k: str(v) for k, v in kohya.items()} | {k: v for k, v in spec.items() if v} | own


def closed(notes: Mapping[str, str], data: Dataset, plan: Plan, tensors: str) -> dict[str, str]:
    """The notes with what seals them: hashes of the data, the settings and the tensors (`tensors`, hex)."""
    return {**notes, **provenance.notes(data, plan), "sshs_model_hash": tensors, provenance.TENSORS: f"0x{tensors}"}


def _data(family: Family, lesson: Lesson, plan: Plan) -> dict[str, Any]:
    """The pictures that are learned as kohya tells of them: one dataset with one folder."""
    kept, side = lesson.learn.kept, f"({lesson.side}, {lesson.side})"
    repeats = max(k.repeats for k in kept)
    folder, shapes = f"{repeats}_{lesson.trigger or 'pictures'}", sorted(Counter(k.shape for k in kept).items())
    buckets = {str(i): {"resolution": [w * family.factor, h * family.factor], "count": n} for i, ((h, w), n) in enumerate(shapes)}
    bucketed = {"buckets": buckets, "mean_img_ar_error": 0} if plan.batches.buckets else None
    tags = {folder: frequencies([k.captions[0] for k in kept])}
    some = {"img_count": len(kept), "num_repeats": repeats, "image_dir": folder, "is_reg": False,
            "keep_tokens": plan.batches.keep, "shuffle_caption": plan.batches.shuffle, "flip_aug": plan.batches.flip}
    whole = {"is_dreambooth": True, "batch_size_per_device": plan.batches.batch, "num_train_images": sum(k.repeats for k in kept),
             "num_reg_images": 0, "resolution": [lesson.side, lesson.side], "enable_bucket": plan.batches.buckets,
             "bucket_info": bucketed, "subsets": [some], "tag_frequency": tags}
    told = {"ss_datasets": [whole], "ss_dataset_dirs": {folder: {"n_repeats": repeats, "img_count": len(kept)}},
            "ss_tag_frequency": tags, "ss_bucket_info": bucketed}
    return {k: json.dumps(v, ensure_ascii=False) for k, v in told.items()} | {
        "ss_num_train_images": len(kept), "ss_num_reg_images": 0, "ss_resolution": side, "ss_total_batch_size": plan.batches.batch,
        "ss_enable_bucket": plan.batches.buckets, "ss_keep_tokens": plan.batches.keep, "ss_shuffle_caption": plan.batches.shuffle,
    }


def _look(trained: Trained, samples: Path) -> dict[str, str]:
    """A sample of the step that was kept, small, as modelspec's thumbnail; nothing when none was drawn."""
    drawn = [s for s in trained.record.get("samples", []) if s["step"] == trained.step]
    if not drawn:
        return {}
    held = BytesIO()
    with Pil.open(samples / Path(drawn[0]["file"]).name) as picture:
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        picture.save(held, "JPEG", quality=85)
    return {"modelspec.thumbnail": f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}"}
