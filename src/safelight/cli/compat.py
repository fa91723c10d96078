"""`compat`: other trainers' commands as they are. Settings are read, translated and run by train_lora; what cannot be honoured is told."""
from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
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
    "pretrained_unet_path": None, "pretrained_text_encoder_path": None, "pretrained_fp16_vae_path": None, "lora_target_modules":
    "to_q,to_k,to_v,to_out", "dataset_path": None, "output_path": "./", "steps_per_epoch": 500, "height": 1024, "width": 1024,
    "center_crop": False, "random_flip": False, "batch_size": 1, "dataloader_num_workers": 0, "precision": "16-mixed",
    "learning_rate": 1e-4, "lora_rank": 4, "lora_alpha": 4.0, "init_lora_weights": "kaiming", "use_gradient_checkpointing": False,
    "accumulate_grad_batches": 1, "training_strategy": "auto", "max_epochs": 1, "modelscope_model_id": None,
    "modelscope_access_token": None, "pretrained_lora_path": None, "use_swanlab": False, "swanlab_mode": None,
}
"""train_kolors_lora.py's arguments of 2024 and their defaults; None: none, a path."""

NEEDED = ("pretrained_unet_path", "pretrained_text_encoder_path", "pretrained_fp16_vae_path", "dataset_path")
PLAIN = {"held_out": 0.0, "samples": 0, "prior": 0.0, "betas": [0.9, 0.999], "warmup": 0, "clip": 0.0, "decay": "constant", "drop": 0.0}
"""What these trainers do not do unless asked: judge, draw, hold the model to what it was, warm up, clip, drop captions."""
AS_HERE = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@dataclass
class Job:
    """A translated command: settings of train_lora by flat name, and what is to be told of what was asked."""

    knobs: dict[str, Any]
    seed: int = 0
    every: int = 0
    dtype: str = ""
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def run(self, model: Model, data: Dataset) -> Patch:
        """Train. ValueError with one list when something that changes the result cannot be honoured."""
        for line in self.notes:
            click.echo(f"note: {line}", err=True)
        if self.problems:
            raise ValueError("compat: this cannot be honoured, and would change the result:\n  " + "\n  ".join(self.problems))
        steps = self.knobs["steps"]
        every = {"every": min(self.every, steps), "files": True} if self.every else {"every": steps}
        with computing(dtype=self.dtype) if self.dtype else nullcontext():
            return made("train_lora", model=model, data=data, seed=self.seed, **self.knobs, **every)  # type: ignore[no-any-return]


def made(op: str, **given: Any) -> Any:
    """What an op gives."""
    from safelight import engine

    return follow(engine.call(load_ops()[op], given, current()), None)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}")


def read(prog: str, known: Mapping[str, Any], words: Sequence[str], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """What was given of `known` arguments, whose defaults' types they have, or those of `kinds`. ValueError for one nobody knows."""
    parser = _Parser(prog, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name, default in known.items():
        kind = kinds.get(name, str if default is None else type(default))
        how: dict[str, Any] = {bool: {"action": "store_true"}, list: {"nargs": "*"}, object: {"nargs": "?", "const": True}}.get(
            kind, {"type": kind})
        parser.add_argument(f"--{name}", **how)
    found, left = parser.parse_known_args(list(words))
    if left:
        guess = near(left[0].lstrip("-").partition("=")[0], known)
        raise ValueError(f"{prog}: unknown argument {left[0]}" + (f"; {guess}" if guess else ""))
    return vars(found)


@click.group("compat")
def compat_group() -> None:
    """Run other trainers' commands as they are: same arguments, defaults and dataset folders."""


@compat_group.command("diffsynth-kolors-lora", context_settings=AS_HERE)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def diffsynth_command(words: tuple[str, ...]) -> None:
    """DiffSynth-Studio's train_kolors_lora.py of 2024.

    Writes lightning_logs/version_N/checkpoints/epoch=E-step=S.ckpt under --output_path as that script does, and kolors-lora.safetensors.
    """
    given = read("diffsynth-kolors-lora", DIFFSYNTH, words, {})
    missing = [name for name in NEEDED if name not in given]
    if missing:
        raise ValueError("diffsynth-kolors-lora: required: " + ", ".join(f"--{name}" for name in missing))
    a = DIFFSYNTH | given
    whole = next((p for p in Path(a["pretrained_unet_path"]).absolute().parents if (p / "model_index.json").is_file()), None)
    unet, text, vae = (_settled(Path(a[name])) for name in NEEDED[:3])
    model = made("model", name=str(whole or unet), vae=vae, text_encoder=text, **({"unet": unet} if whole else {}))
    data = made("folder", path=str(Path(a["dataset_path"]) / "train" / "metadata.csv"))
    job = _diffsynth_job(a)
    if model.family != "kolors":
        job.problems.append(f"--pretrained_unet_path {a['pretrained_unet_path']} is a {model.family} model, not Kolors")
    click.echo("\n".join(str(path) for path in _lightning(model, job.run(model, data), Path(a["output_path"]), job)))


def _settled(path: Path) -> str:
    """The folder of a file that has its configuration beside it, else the file."""
    return str(path.parent if path.is_file() and (path.parent / "config.json").is_file() else path)


def _diffsynth_job(a: Mapping[str, Any]) -> Job:
    steps = math.ceil(a["steps_per_epoch"] / a["accumulate_grad_batches"])
    batch = a["batch_size"] * a["accumulate_grad_batches"]
    job = Job({
        **PLAIN, "rank": a["lora_rank"], "alpha": a["lora_alpha"], "targets": "attention", "text_encoder": False, "lr": a["learning_rate"],
        "init": a["init_lora_weights"], "steps": steps * a["max_epochs"], "batch": batch,
        "at_once": a["batch_size"] if a["accumulate_grad_batches"] > 1 else 0, "size": max(a["height"], a["width"]),
        "crops": 1 if a["center_crop"] else 16, "flip": a["random_flip"], "checkpointing": a["use_gradient_checkpointing"],
    }, every=steps, dtype={"32": "float32", "bf16": "bfloat16"}.get(a["precision"], ""))
    job.problems += [f"--{name} {a[name]}: {why}" for name, wrong, why in (
        ("height", a["height"] != a["width"], "other than --width: pictures are cut to squares"),
        ("lora_target_modules", set(a["lora_target_modules"].split(",")) != set(DIFFSYNTH["lora_target_modules"].split(",")), "all four"),
        ("precision", a["precision"] not in ("32", "16", "16-mixed", "bf16"), "expected 32, 16, 16-mixed or bf16"),
        ("pretrained_lora_path", a["pretrained_lora_path"], "a training begins anew; a stopped one goes on by itself"),
    ) if wrong]
    job.notes += [f"--{name}: {why}" for name, there, why in (
        ("precision", a["precision"].startswith("16"), "the LoRA is float32 over the model in the device's own type, without a loss scale"),
        ("center_crop", not a["center_crop"], "random crops are 16 windows a picture, drawn once, so that latents can be kept"),
        ("training_strategy", a["training_strategy"] != "auto", "one process; the result is the same"),
        ("dataloader_num_workers", a["dataloader_num_workers"], "latents are kept; nothing waits for pictures"),
        ("modelscope_model_id", a["modelscope_model_id"], "afterwards, `safelight push ms:OWNER/NAME FILE`"),
        ("use_swanlab", a["use_swanlab"], "curves are in the record"),
    ) if there]
    job.notes.append("order: every picture once an epoch of the data, instead of drawn with replacement; seed 0, which that script leaves open")
    return job


def _lightning(model: Model, patch: Patch, out: Path, job: Job) -> list[Path]:
    """The files as Lightning lays them out: a flat checkpoint each epoch, and ours."""
    import torch

    from safelight.recipes.portable import export
    from safelight.runtime import lease

    logs = out / "lightning_logs"
    taken = [int(p.name.removeprefix("version_")) for p in logs.glob("version_*") if p.name.removeprefix("version_").isdecimal()]
    folder = logs / f"version_{max(taken, default=-1) + 1}" / "checkpoints"
    folder.mkdir(parents=True)
    written = []
    with lease(model, dtype=torch.float32, holder="compat") as family:
        for name, kept in sorted(patch.files.items()):
            if name.startswith("steps/"):
                step = int(Path(name).stem.removeprefix("step-"))
                written.append(folder / f"epoch={step // job.every - 1}-step={step}.ckpt")
                export(family, Path(kept.path), "diffsynth", written[-1])
    return [*written, *patch.save(out / "kolors-lora.safetensors")]


@compat_group.command("kohya", context_settings=AS_HERE)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def kohya_command(words: tuple[str, ...]) -> None:
    """sd-scripts' train_network.py, by its arguments or --config_file x.toml.

    Folders as `10_name` under --train_data_dir, or --dataset_config x.toml. Writes OUTPUT_NAME.safetensors, and OUTPUT_NAME-000001.safetensors
    and so on where --save_every_n_epochs asks for it.
    """
    known = kohya.DEFAULTS | dict.fromkeys(kohya.HARMLESS) | dict.fromkeys(kohya.REFUSED)
    typed = read("kohya", known, words, kohya.KINDS | dict.fromkeys((*kohya.HARMLESS, *kohya.REFUSED), object))
    asked = _config(Path(typed["config_file"]), known) if "config_file" in typed else {}
    a = kohya.DEFAULTS | asked | typed
    subsets, a = _subsets(a)
    if not a["pretrained_model_name_or_path"] or not subsets:
        raise ValueError("kohya: required: --pretrained_model_name_or_path, and --train_data_dir or --dataset_config")
    data = _data(subsets)
    model = made("model", name=a["pretrained_model_name_or_path"], **kohya.parts(a))
    counted = sum(int(r.info.get("repeats", 1)) for r in data)
    job = Job(**kohya.job(a, counted, PLAIN))
    patch = job.run(model, data)
    out, name = Path(a["output_dir"] or "."), a["output_name"] or "last"
    epoch = math.ceil(counted / job.knobs["batch"])
    for kept, blob in sorted(patch.files.items()):
        step = int(Path(kept).stem.removeprefix("step-")) if kept.startswith("steps/") else 0
        if 0 < step < job.knobs["steps"]:
            number = f"step{step:08d}" if a["save_every_n_steps"] else f"{step // epoch:06d}"
            click.echo(str(dataclasses.replace(patch, weights=blob).save(out / f"{name}-{number}.safetensors")[0]))
    click.echo(str(patch.save(out / f"{name}.safetensors")[0]))


def _config(path: Path, known: Iterable[str]) -> dict[str, Any]:
    """A TOML file of arguments, whatever tables they are in. ValueError for one nobody knows."""
    with open(path, "rb") as f:
        told = tomllib.load(f)
    flat = {k: v for name, value in told.items() for k, v in (value.items() if isinstance(value, dict) else [(name, value)])}
    names = list(known)
    wrong = next((k for k in flat if k not in names), None)
    if wrong is not None:
        raise ValueError(f"kohya: {path}: unknown setting {wrong!r}; {near(wrong, names)}".rstrip("; "))
    return flat


def _subsets(a: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The folders with what holds for each, and the arguments with what --dataset_config says for all of them."""
    here = {k: a[k] for k in kohya.SUBSET if k in a}
    if not a["dataset_config"]:
        found = [(Path(a[k]), is_reg) for k, is_reg in (("train_data_dir", False), ("reg_data_dir", True)) if a[k]]
        return [here | {"image_dir": str(p), "is_reg": r} for folder, r in found for p in sorted(folder.iterdir()) if p.is_dir()], a
    path = Path(a["dataset_config"])
    told = tomllib.loads(path.read_text(encoding="utf-8")) if path.suffix == ".toml" else json.loads(path.read_text(encoding="utf-8"))
    datasets = told.get("datasets", [])
    if len(datasets) != 1:
        raise ValueError(f"kohya: {path}: {len(datasets)} datasets; expected one, as all pictures of a run are cut to one area")
    general, one = told.get("general", {}), dict(datasets[0])
    subsets = [here | general | one | s for s in one.pop("subsets", [])]
    common = {k: v for k, v in (general | one).items() if k in a or k == "batch_size"}
    for s in subsets:
        wrong = next((k for k in s if k not in {*a, *kohya.SUBSET, "batch_size", "subsets", "image_dir", "is_reg"}), None)
        if wrong is not None:
            raise ValueError(f"kohya: {path}: unknown setting {wrong!r}; {near(wrong, [*a, *kohya.SUBSET])}".rstrip("; "))
        varied = [k for k in kohya.SAME if k in s and any(s[k] != other.get(k) for other in subsets)]
        if varied:
            raise ValueError(f"kohya: {path}: {varied[0]} is not the same for all subsets; expected one value for the run")
    shared = {k: subsets[0][k] for k in kohya.SAME if subsets and k in subsets[0]}
    batch = {"train_batch_size": common["batch_size"]} if "batch_size" in common else {}
    return subsets, a | {k: v for k, v in (common | shared).items() if k in a} | batch


def _data(subsets: Sequence[Mapping[str, Any]]) -> Dataset:
    """The pictures of all folders with repeats and captions as that program has them: a file with the asked extension, else the folder's
    words. Regularization folders are left to the settings."""
    rows: list[Row] = []
    for s in (s for s in subsets if not s.get("is_reg")):
        found = made("folder", path=str(s["image_dir"]))
        named = kohya.FOLDER.fullmatch(Path(s["image_dir"]).name)
        repeats = int(s.get("num_repeats") or (named[1] if named else 1))
        words = s.get("class_tokens") or (named[2] if named else "")
        for row in found:
            beside = Path(row.picture.path).with_suffix(s.get("caption_extension") or ".caption")
            text = next(iter(beside.read_text(encoding="utf-8-sig").strip().splitlines()), "") if beside.is_file() else words
            layer = (Caption("file" if beside.is_file() else "folder", text.strip()),) if text.strip() else ()
            rows.append(dataclasses.replace(row, captions=layer, info={**row.info, "repeats": repeats}))
    return Dataset(tuple(rows), {"source": ", ".join(str(s["image_dir"]) for s in subsets)})
