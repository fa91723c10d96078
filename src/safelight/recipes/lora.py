"""Train a LoRA (arXiv:2106.09685) on captioned pictures: from a model and a dataset to a patch that is proven to do what was trained.

Read `train_lora` from top to bottom; what it uses lies in `safelight.train`. Latents and captions are encoded once and kept; the LoRA's
weights are float32 over the model in its own dtype; a share of every batch holds the model to what it said before when the trigger is not
there (prior preservation, arXiv:2208.12242, with the model's own answers as target), so that the style stays where it is called.
"""
from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from safelight.events import Progress
from safelight.patches import lora as lora_patch
from safelight.recipes import denoising, shared
from safelight.runtime import lease
from safelight.spec import Work
from safelight.store import current
from safelight.train import lora_file, trainables
from safelight.train.captions import frequencies
from safelight.train.lessons import Lesson
from safelight.train.loop import Trained, train
from safelight.train.settings import Batches, LoraShape, Objective, Optimizer, Watch
from safelight.values import Blob, Dataset, Model, Patch, canonical

if TYPE_CHECKING:
    from safelight.families import Family


@dataclass(frozen=True)
class Plan:
    """All settings of a run."""

    shape: LoraShape
    optimizer: Optimizer
    batches: Batches
    objective: Objective
    watch: Watch
    seed: int


def train_lora(model: Model, data: Dataset, plan: Plan, work: Path, lineage: str) -> Work[Patch]:
    """The patch, with its curves, samples and proof in `files`. `work` is the run's own folder: called again after it was stopped, in any
    way, it goes on there, and ends with the very file an uninterrupted run writes. `lineage` is written into the file."""
    with lease(model, dtype=shared.training_dtype(), train=True, holder="train_lora") as family:
        lesson = yield from denoising.prepare("train_lora", family, model, data, plan)
        with trainables.adapter(family, plan.shape, plan.seed) as adapter:
            net = denoising.Net(family, adapter, lesson, plan)
            watcher = denoising.Watching(net, work / "samples")
            task = shared.training(adapter.parameters, net.losses, watcher, plan=plan, work=work)
            trained = yield from train(replace(task, evolving=net))
            tensors = adapter.file(trained.weights)
        notes = metadata(family, model, lesson, plan, trained) | {"safelight.lineage": lineage}
    notes["sshs_model_hash"] = lora_file.tensor_hash(tensors)
    file = work / "lora.safetensors"
    lora_file.write(file, tensors, notes)
    yield Progress(what="read the file back")
    proof = prove(model, file, plan, trained, [lesson.learn.kept[0].captions[0], ""])
    patch = finished(file, work / "samples", trained=trained, proof=proof, plan=plan, lesson=lesson)
    shutil.rmtree(work)
    return patch


def prove(model: Model, file: Path, plan: Plan, trained: Trained, prompts: Sequence[str]) -> lora_file.Proof:
    """Read the file back onto a fresh copy of the model in float32, and compare with the trained form. ValueError when they differ."""
    with lease(model, dtype=torch.float32, holder="train_lora") as family, trainables.adapter(family, plan.shape, plan.seed) as adapter:
        adapter.load(trained.weights)
        said, layers = lora_file.probe(family, prompts), len(adapter.layers)
    beside = Patch("lora", Blob.of(file), options={"merged": False})  # merging rounds the weights, which is no fault of the file's
    with lease(model.with_patch(beside), dtype=torch.float32, holder="train_lora") as family:
        read = lora_patch.read(str(file))
        return lora_file.compare(said, lora_file.probe(family, prompts), layers, len(lora_patch.match(family, read, str(file))))


def metadata(family: Family, model: Model, lesson: Lesson, plan: Plan, trained: Trained) -> dict[str, str]:
    """What other programs read of a LoRA (kohya's ss_ names, modelspec), and what Safelight does. No times: equal runs, equal bytes."""
    shape, opt, seen = plan.shape, plan.optimizer, plan.batches
    alpha = shape.rank if shape.alpha is None else shape.alpha
    conv = {} if shape.targets != "full" else {"conv_dim": str(shape.rank), "conv_alpha": f"{alpha:g}"}
    kohya = {
        "ss_network_module": "networks.lora", "ss_network_dim": shape.rank, "ss_network_alpha": f"{alpha:g}",
        "ss_network_args": json.dumps(conv),
        "ss_base_model_version": lora_file.base_version(family), "ss_v2": lora_file.base_version(family) == "sd_v2",
        "ss_sd_model_name": Path(model.source).name, "ss_sd_model_hash": model.fingerprint, "ss_seed": plan.seed,
        "ss_learning_rate": f"{opt.lr:g}", "ss_unet_lr": f"{opt.lr:g}", "ss_text_encoder_lr": f"{opt.lr:g}" if shape.text_encoder else None,
        "ss_optimizer": "torch.optim.adamw.AdamW", "ss_lr_scheduler": opt.decay, "ss_lr_warmup_steps": opt.warmup,
        "ss_max_grad_norm": f"{opt.clip:g}", "ss_max_train_steps": seen.steps, "ss_steps": trained.step, "ss_total_batch_size": seen.batch,
        "ss_num_train_images": len(lesson.learn), "ss_resolution": f"({lesson.side}, {lesson.side})",
        "ss_min_snr_gamma": plan.objective.min_snr or None, "ss_caption_dropout_rate": seen.drop,
        "ss_tag_frequency": json.dumps({"pictures": frequencies([k.captions[0] for k in lesson.learn.kept])}, ensure_ascii=False),
    }
    spec = lora_file.modelspec(family, f"{lesson.trigger or 'LoRA'} for {Path(model.source).name}", lesson.side)
    own = {"safelight.trigger": lesson.trigger, "safelight.settings": canonical(plan)}
    return {k: str(v) for k, v in kohya.items()} | spec | own


def finished(file: Path, samples: Path, *, trained: Trained, proof: lora_file.Proof, plan: Plan, lesson: Lesson) -> Patch:
    """The patch; everything that should outlive the run's folder is copied into the store."""
    files = shared.lasting(samples, trained.record, proof=vars(proof), settings=plan)
    info = {"name": lesson.trigger or "lora", "trigger": lesson.trigger, "steps": trained.step, "rank": plan.shape.rank}
    return Patch("lora", current().blob(file), files=files, info=info)
