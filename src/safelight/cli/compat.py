"""`compat`: other trainers' commands as they are. Settings are read, translated and run by train_lora; what cannot be honoured is told."""
from __future__ import annotations

import argparse
import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import click

from safelight.cli import compat_kohya as kohya
from safelight.cli.show import follow
from safelight.computing import computing
from safelight.op import load_ops
from safelight.spec import near
from safelight.store import current
from safelight.values import Caption, Dataset, Model, Patch, Row

DIFFSYNTH: dict[str, Any] = {
    "pretrained_unet_path": "", "pretrained_text_encoder_path": "", "pretrained_fp16_vae_path": "", "dataset_path": "",
    "lora_target_modules": "to_q,to_k,to_v,to_out", "output_path": "./", "steps_per_epoch": 500, "height": 1024, "width": 1024,
    "center_crop": False, "random_flip": False, "batch_size": 1, "dataloader_num_workers": 0, "precision": "16-mixed",
    "learning_rate": 1e-4, "lora_rank": 4, "lora_alpha": 4.0, "init_lora_weights": "kaiming", "use_gradient_checkpointing": False,
    "accumulate_grad_batches": 1, "training_strategy": "auto", "max_epochs": 1, "modelscope_model_id": "",
    "modelscope_access_token": "", "pretrained_lora_path": "", "use_swanlab": False, "swanlab_mode": "",
}
"""train_kolors_lora.py's arguments of 2024 and their defaults; the first four are required."""

PLAIN = {"held_out": 0.0, "samples": 0, "prior": 0.0, "betas": [0.9, 0.999], "warmup": 0, "clip": 0.0, "decay": "constant", "drop": 0.0}
"""What these trainers do not do unless asked: judge, draw, hold the model to what it was, warm up, clip, drop captions."""
AS_HERE = {"allow_extra_args": True, "ignore_unknown_options": True}


def made(op: str, **given: Any) -> Any:
    """What an op gives."""
    from safelight import engine

    return follow(engine.call(load_ops()[op], given, current()), None)


def train(job: kohya.Job, model: Model, data: Dataset) -> Patch:
    """Train as translated. ValueError with one list when something that changes the result cannot be honoured."""
    click.echo("".join(f"note: {line}\n" for line in job.notes), err=True, nl=False)
    if job.problems:
        raise ValueError("compat: this cannot be honoured, and would change the result:\n  " + "\n  ".join(job.problems))
    looks = {"every": min(job.every or job.knobs["steps"], job.knobs["steps"]), "files": job.every > 0}
    with computing(dtype=job.dtype) if job.dtype else nullcontext():
        patch: Patch = made("train_lora", model=model, data=data, seed=job.seed, **job.knobs, **looks)
    return patch


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}")


def read(prog: str, known: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """What was given of `known` arguments, by name their default or their type. ValueError for one nobody knows."""
    parser = _Parser(prog, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    how: Mapping[Any, dict[str, Any]] = {bool: {"action": "store_true"}, list: {"nargs": "*"}, object: {"nargs": "?", "const": True}}
    for name, default in known.items():
        kind = default if isinstance(default, type) else type(default)
        parser.add_argument(f"--{name}", **how.get(kind, {"type": kind}))
    found, left = parser.parse_known_args(list(words))
    if left:
        _unknown(f"{prog}: argument {left[0]}", left[0].lstrip("-").partition("=")[0], known)
    return vars(found)


def _unknown(what: str, name: str, known: Mapping[str, Any]) -> NoReturn:
    raise ValueError(f"{what} is unknown; {near(name, list(known))}".rstrip("; "))


def _listed(known: Mapping[str, Any]) -> str:
    return "Arguments: " + ", ".join(f"--{name}" + (f" ({v})" if v and not isinstance(v, type) else "") for name, v in known.items())


@click.group("compat")
def compat_group() -> None:
    """Run other trainers' commands as they are: same arguments, defaults and dataset folders."""


@compat_group.command("diffsynth-kolors-lora", context_settings=AS_HERE, epilog=_listed(DIFFSYNTH))
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def diffsynth_command(words: tuple[str, ...]) -> None:
    """DiffSynth-Studio's train_kolors_lora.py of 2024.

    Writes lightning_logs/version_N/checkpoints/epoch=E-step=S.ckpt under --output_path as that script does, and kolors-lora.safetensors.
    """
    a = DIFFSYNTH | read("diffsynth-kolors-lora", DIFFSYNTH, words)
    needed = list(DIFFSYNTH)[:4]
    if missing := [f"--{name}" for name in needed if not a[name]]:
        raise ValueError("diffsynth-kolors-lora: required: " + ", ".join(missing))
    unet, text, vae = (_settled(Path(a[name])) for name in needed[:3])
    whole = next((p for p in Path(unet).absolute().parents if (p / "model_index.json").is_file()), None)
    model = made("model", name=str(whole or a[needed[0]]), vae=vae, text_encoder=text, **({"unet": unet} if whole else {}))
    data = made("folder", path=str(Path(a["dataset_path"]) / "train" / "metadata.csv"))
    job = diffsynth_job(a)
    job.problems += [f"--pretrained_unet_path {unet}: a {model.family} model, not Kolors"] if model.family != "kolors" else []
    click.echo("\n".join(str(path) for path in _lightning(model, train(job, model, data), Path(a["output_path"]), job.every)))


def _settled(path: Path) -> str:
    """The folder of a file with its configuration beside it, else the file."""
    return str(path.parent if path.is_file() and (path.parent / "config.json").is_file() else path)


def diffsynth_job(a: Mapping[str, Any]) -> kohya.Job:
    """That script's arguments as settings here."""
    steps, several = math.ceil(a["steps_per_epoch"] / a["accumulate_grad_batches"]), a["accumulate_grad_batches"] > 1
    knobs = {
        **PLAIN, "rank": a["lora_rank"], "alpha": a["lora_alpha"], "targets": "attention", "text_encoder": False, "lr": a["learning_rate"],
        "init": a["init_lora_weights"], "steps": steps * a["max_epochs"], "batch": a["batch_size"] * a["accumulate_grad_batches"],
        "at_once": a["batch_size"] if several else 0, "size": max(a["height"], a["width"]), "crops": 1 if a["center_crop"] else 16,
        "flip": a["random_flip"], "checkpointing": a["use_gradient_checkpointing"],
    }
    wrong = {
        "height": a["height"] != a["width"] and "other than --width: pictures are cut to squares",
        "lora_target_modules": set(a["lora_target_modules"].split(",")) != {"to_q", "to_k", "to_v", "to_out"} and "expected all four",
        "precision": a["precision"] not in ("32", "16", "16-mixed", "bf16") and "expected 32, 16, 16-mixed or bf16",
        "pretrained_lora_path": a["pretrained_lora_path"] and "a training begins anew; a stopped one goes on by itself",
    }
    other = {
        "precision": a["precision"].startswith("16") and "the LoRA is float32 over the model in the device's own type; no loss scale",
        "center_crop": not a["center_crop"] and "random crops are 16 windows a picture, drawn once, so that latents can be kept",
        "training_strategy": a["training_strategy"] != "auto" and "one process; the result is the same",
        "dataloader_num_workers": a["dataloader_num_workers"] and "latents are kept; nothing waits for pictures",
        "modelscope_model_id": a["modelscope_model_id"] and "afterwards, `safelight push ms:OWNER/NAME FILE`",
        "use_swanlab": a["use_swanlab"] and "curves are in the record",
    }
    notes = [f"--{name}: {why}" for name, why in other.items() if why]
    notes += ["every picture is shown once an epoch of the data, not drawn with replacement; the seed, which is not set there, is 0",
              "the network is told each picture's own size and what was cut off, not the size after the cut"]
    problems = [f"--{name} {a[name]}: {why}" for name, why in wrong.items() if why]
    return kohya.Job(knobs, 0, steps, {"32": "float32", "bf16": "bfloat16"}.get(a["precision"], ""), notes, problems)


def _lightning(model: Model, patch: Patch, out: Path, every: int) -> list[Path]:
    """The files as Lightning lays them out: a flat checkpoint each epoch, and ours."""
    import torch

    from safelight.recipes.portable import export
    from safelight.runtime import lease

    logs = out / "lightning_logs"
    taken = [int(p.name[8:]) for p in logs.glob("version_*") if p.name[8:].isdecimal()]
    folder, written = logs / f"version_{max(taken, default=-1) + 1}" / "checkpoints", []
    folder.mkdir(parents=True)
    with lease(model, dtype=torch.float32, holder="compat") as family:
        for step, blob in kohya.kept(patch.files):
            written.append(folder / f"epoch={step // every - 1}-step={step}.ckpt")
            export(family, Path(blob.path), "diffsynth", written[-1])
    return [*written, *patch.save(out / "kolors-lora.safetensors")]


@compat_group.command("kohya", context_settings=AS_HERE, epilog=_listed(kohya.ARGUMENTS))
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def kohya_command(words: tuple[str, ...]) -> None:
    """sd-scripts' train_network.py, by its arguments or --config_file x.toml.

    Folders as `10_name` under --train_data_dir, or --dataset_config x.toml. Writes OUTPUT_NAME.safetensors, and with --save_every_n_epochs
    OUTPUT_NAME-000001.safetensors and so on.
    """
    typed = read("kohya", kohya.KNOWN, words)
    subsets, a = _subsets(kohya.DEFAULTS | (_flat(Path(typed["config_file"])) if "config_file" in typed else {}) | typed)
    if not a["pretrained_model_name_or_path"] or not subsets:
        raise ValueError("kohya: required: --pretrained_model_name_or_path, and --train_data_dir or --dataset_config")
    rows = [row for s in subsets for row in _rows(s)]
    counted = sum(int(r.info["repeats"]) for r in rows)
    job, model = kohya.job(a, counted, PLAIN), made("model", name=a["pretrained_model_name_or_path"], **kohya.parts(a))
    patch = train(job, model, Dataset(tuple(rows), {"source": ", ".join(str(s["image_dir"]) for s in subsets)}))
    out, name, epoch = Path(a["output_dir"] or "."), a["output_name"] or "last", math.ceil(counted / job.knobs["batch"])
    for step, blob in kohya.kept(patch.files):
        number = f"step{step:08d}" if a["save_every_n_steps"] else f"{step // epoch:06d}"
        if step < job.knobs["steps"]:
            click.echo(str(dataclasses.replace(patch, weights=blob).save(out / f"{name}-{number}.safetensors")[0]))
    click.echo(str(patch.save(out / f"{name}.safetensors")[0]))


def _flat(path: Path) -> dict[str, Any]:
    """A TOML file of arguments, whatever tables they are in. ValueError for one nobody knows."""
    told = tomllib.loads(path.read_text(encoding="utf-8"))
    flat = {k: v for name, value in told.items() for k, v in (value.items() if isinstance(value, dict) else [(name, value)])}
    for name in flat.keys() - kohya.KNOWN.keys():
        _unknown(f"kohya: {path}: setting {name!r}", name, kohya.KNOWN)
    return flat


def _subsets(a: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The folders with what holds for each alone, and the arguments with what --dataset_config says for all of them."""
    if not a["dataset_config"]:
        folders = sorted(p for p in Path(a["train_data_dir"]).iterdir() if p.is_dir()) if a["train_data_dir"] else []
        return [{"image_dir": str(p), "caption_extension": a["caption_extension"]} for p in folders], a
    path = Path(a["dataset_config"])
    told = tomllib.loads(path.read_text(encoding="utf-8"))
    if len(told.get("datasets", [])) != 1:
        raise ValueError(f"kohya: {path}: {len(told.get('datasets', []))} datasets; expected one, since a run has one resolution")
    whole = told.get("general", {}) | {k: v for k, v in told["datasets"][0].items() if k != "subsets"}
    whole |= {"train_batch_size": whole.pop("batch_size")} if "batch_size" in whole else {}
    subsets = [{"caption_extension": a["caption_extension"], **whole, **s} for s in told["datasets"][0].get("subsets", [])]
    for name in sorted({k for s in subsets for k in s} - set(kohya.ALONE)):
        if name not in kohya.KNOWN:
            _unknown(f"kohya: {path}: setting {name!r}", name, kohya.KNOWN | dict.fromkeys(kohya.ALONE))
        if any(s.get(name) != subsets[0].get(name) for s in subsets):
            raise ValueError(f"kohya: {path}: {name} is not the same for all subsets; expected one value for the run")
    regular = {"reg_data_dir": next((s["image_dir"] for s in subsets if s.get("is_reg")), a["reg_data_dir"])}
    return subsets, a | {k: v for s in subsets[:1] for k, v in s.items() if k in kohya.KNOWN} | regular


def _rows(subset: Mapping[str, Any]) -> list[Row]:
    """A folder's pictures with repeats and captions as that program has them: the first line of a file with the asked extension, else the
    folder's words."""
    named, rows = kohya.FOLDER.fullmatch(Path(subset["image_dir"]).name), []
    repeats = int(subset.get("num_repeats") or (named[1] if named else 1))
    words = subset.get("class_tokens") or (named[2] if named else "")
    for row in made("folder", path=subset["image_dir"]):
        beside = Path(row.picture.path).with_suffix(subset["caption_extension"])
        lines = beside.read_text(encoding="utf-8-sig").strip().splitlines() if beside.is_file() else [words]
        layers = (Caption("file" if beside.is_file() else "folder", lines[0].strip()),) if lines and lines[0].strip() else ()
        rows.append(dataclasses.replace(row, captions=layers, info={**row.info, "repeats": repeats}))
    return rows
