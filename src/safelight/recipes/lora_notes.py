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

from safelight.reporting.model_card import hub_name
from safelight.train import lora_file
from safelight.train.captions import frequencies
from safelight.train.lessons import Lesson
from safelight.train.loop import Trained
from safelight.values import Model, canonical

if TYPE_CHECKING:
    from torch import Tensor

    from safelight.families import Family
    from safelight.recipes.lora import Plan

OPTIMIZERS = {
    "adamw": "torch.optim.adamw.AdamW", "adamw8bit": "bitsandbytes.optim.adamw.AdamW8bit", "prodigy": "prodigyopt.prodigy.Prodigy",
    "schedulefree": "schedulefree.adamw_schedulefree.AdamWScheduleFree", "adafactor": "transformers.optimization.Adafactor",
    "lion": "lion_pytorch.lion_pytorch.Lion",
}
LYCORIS = {"loha": {"algo": "loha"}, "lokr": {"algo": "lokr"}, "dora": {"algo": "lora", "dora_wd": "True"}}
THUMBNAIL, TAGS = 256, 8


def metadata(family: Family, model: Model, *, lesson: Lesson, plan: Plan, trained: Trained, samples: Path,
             tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """kohya's names, as far as they are known, then modelspec's, then ours. `samples` is the folder that samples were drawn into. Rank and
    alpha are those of the file's `tensors`: PiSSA and Delta-LoRA write twice the rank, rsLoRA another alpha."""
    shape, opt, seen, aim = plan.shape, plan.optimizer, plan.batches, plan.objective
    rank = max((len(t) for name, t in tensors.items() if name.endswith("lora_down.weight")), default=shape.rank)
    alpha = max(float(t) for name, t in tensors.items() if name.endswith(".alpha"))
    args = LYCORIS.get(shape.method, {}) | ({"conv_dim": str(rank), "conv_alpha": f"{alpha:g}"} if shape.targets == "full" else {})
    args |= {"loraplus_lr_ratio": f"{shape.plus:g}"} if shape.plus != 1 else {}
    decay = "constant" if opt.kind == "schedulefree" else {"restarts": "cosine_with_restarts"}.get(opt.decay, opt.decay)
    kohya = {
        "ss_network_module": "lycoris.kohya" if shape.method in LYCORIS else "networks.lora", "ss_network_args": json.dumps(args),
        "ss_network_dim": rank, "ss_network_alpha": f"{alpha:g}", "ss_output_name": lesson.trigger or "lora", "ss_seed": plan.seed,
        "ss_base_model_version": lora_file.base_version(family), "ss_v2": lora_file.base_version(family) == "sd_v2",
        "ss_sd_model_name": Path(model.source).name, "ss_sd_model_hash": model.fingerprint, "ss_optimizer": OPTIMIZERS[opt.kind],
        "ss_learning_rate": f"{opt.lr:g}", "ss_unet_lr": f"{opt.lr:g}", "ss_text_encoder_lr": f"{opt.lr:g}" if shape.text_encoder else None,
        "ss_lr_scheduler": decay, "ss_lr_warmup_steps": opt.warmup,
        "ss_max_grad_norm": f"{opt.clip:g}", "ss_max_train_steps": seen.steps, "ss_steps": trained.step, "ss_total_batch_size": seen.batch,
        "ss_min_snr_gamma": aim.min_snr or None, "ss_noise_offset": aim.noise_offset, "ss_prior_loss_weight": aim.prior_weight,
        "ss_caption_dropout_rate": seen.drop, "ss_gradient_checkpointing": opt.checkpointing, "ss_shuffle_caption": seen.shuffle,
        "ss_keep_tokens": seen.keep, "ss_enable_bucket": seen.buckets, "ss_resolution": f"({lesson.side}, {lesson.side})",
        "ss_num_train_images": len(lesson.learn), "ss_num_reg_images": 0, **_data(family, lesson, plan),
    }
    said = Counter(tag for k in lesson.learn.kept for tag in frequencies(k.captions[:1]))
    spec = lora_file.modelspec(family, f"{lesson.trigger or 'LoRA'} for {Path(model.source).name}", lesson.side) | {
        "modelspec.tags": ", ".join(tag for tag, _ in said.most_common(TAGS)), "modelspec.trigger_phrase": lesson.trigger,
        "modelspec.thumbnail": _look(trained, samples), "safelight.base": hub_name(model.source)}
    own = {"safelight.trigger": lesson.trigger, "safelight.settings": canonical(plan)}
    return {k: str(v) for k, v in kohya.items()} | {k: v for k, v in spec.items() if v} | own


def _data(family: Family, lesson: Lesson, plan: Plan) -> dict[str, str]:
    """The pictures that are learned as kohya tells of them, as JSON: one dataset with one folder."""
    kept, batches = lesson.learn.kept, plan.batches
    repeats, shapes = max(k.repeats for k in kept), sorted(Counter(k.shape for k in kept).items())
    folder, tags = f"{repeats}_{lesson.trigger or 'pictures'}", frequencies([k.captions[0] for k in kept])
    sizes = {str(i): {"resolution": [w * family.factor, h * family.factor], "count": n} for i, ((h, w), n) in enumerate(shapes)}
    buckets = {"buckets": sizes, "mean_img_ar_error": 0} if batches.buckets else None
    subset = {"img_count": len(kept), "num_repeats": repeats, "image_dir": folder, "is_reg": False, "keep_tokens": batches.keep,
              "shuffle_caption": batches.shuffle, "flip_aug": batches.flip}
    whole = {"is_dreambooth": True, "batch_size_per_device": batches.batch, "num_train_images": sum(k.repeats for k in kept),
             "num_reg_images": 0, "resolution": [lesson.side, lesson.side], "enable_bucket": batches.buckets, "bucket_info": buckets,
             "subsets": [subset], "tag_frequency": {folder: tags}}
    told: dict[str, Any] = {"ss_datasets": [whole], "ss_dataset_dirs": {folder: {"n_repeats": repeats, "img_count": len(kept)}},
                            "ss_tag_frequency": {folder: tags}, "ss_bucket_info": buckets}
    return {k: json.dumps(v, ensure_ascii=False) for k, v in told.items()}


def _look(trained: Trained, samples: Path) -> str:
    """A sample of the step that was kept, small, as modelspec's thumbnail; nothing when none was drawn."""
    drawn, held = [s for s in trained.record.get("samples", []) if s["step"] == trained.step], BytesIO()
    if not drawn:
        return ""
    with Pil.open(samples / Path(drawn[0]["file"]).name) as picture:
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        picture.save(held, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}"
