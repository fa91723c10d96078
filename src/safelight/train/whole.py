"""A model with its patches in it, written whole in the layout it came in: for every program that reads such models."""
from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from safelight.disk import place
from safelight.families.checkpoint import Checkpoint
from safelight.families.layouts import Cut
from safelight.families.sources import NETWORKS, PARTS, Folder, open_model
from safelight.families.weight_file import WeightFile
from safelight.runtime import lease
from safelight.values import Model

MERGED = ("lora", "full")
"""The kinds of patches that are weights and nothing else."""

INDEX = "model_index.json"


def write(model: Model, path: Path) -> list[Path]:
    """A single file for a model that was one, a folder in diffusers layout for one that was a folder. Tensors have the names and the type
    of numbers they had.

    ValueError when a patch is not weights alone, or `path` names the other layout, or parts of the model come from elsewhere.
    """
    other = next((p.kind for p in model.patches if p.kind not in MERGED), "")
    if other:
        raise ValueError(f"save: a model with a patch of the kind {other!r}, which no file of weights can hold; save it without")
    parts, single = open_model(model), path.suffix == ".safetensors"
    if not isinstance(parts, Checkpoint if single else Folder):
        wanted = "a name that ends in .safetensors" if isinstance(parts, Checkpoint) else "a folder, and a model in one piece"
        raise ValueError(f"save: got {path} for {model.source}; expected {wanted}")
    patches = [dataclasses.replace(p, options={**p.options, "merged": True}) if p.kind == "lora" else p for p in model.patches]
    with lease(dataclasses.replace(model, patches=tuple(patches)), device="cpu", dtype=torch.float32, holder="save") as family:
        held = {part: net.state_dict() for part, net in family.trainable().items() if part != "vae"}
        return [_file(parts, held, path)] if isinstance(parts, Checkpoint) else _folder(Path(model.source), held, path)


def _file(checkpoint: Checkpoint, held: Mapping[str, Mapping[str, Tensor]], path: Path) -> Path:
    cuts = {part: _by_file(state, checkpoint.layouts[part].tensors, checkpoint.source) for part, state in held.items()}
    _write(checkpoint.file, [pair for pairs in cuts.values() for pair in pairs], path)
    return path


def _folder(base: Path, held: Mapping[str, Mapping[str, Tensor]], path: Path) -> list[Path]:
    """What makes it a model is written last."""
    (path / INDEX).unlink(missing_ok=True)
    for part in (p for p in PARTS if (base / p).is_dir()):
        weights = sorted((base / part).glob("*.safetensors")) if part in held else []
        if part in NETWORKS and part in held and not weights:
            raise ValueError(f"save: {base / part} has no .safetensors; convert the model first")
        shutil.copytree(base / part, path / part, dirs_exist_ok=True, ignore=lambda _, names, w=weights: {f.name for f in w} & set(names))
        for file in weights:
            found = WeightFile(file)
            alike = [other for other in weights if (".fp16." in other.name) == (".fp16." in file.name)]
            shards = {name: Cut(name) for name in WeightFile(*alike).shapes}
            pairs = [(cut, value) for cut, value in _by_file(held[part], shards, str(file)) if cut.name in found.shapes]
            _write(found, pairs, path / part / file.name)
    shutil.copyfile(base / INDEX, path / INDEX)
    return [path / INDEX]


def _by_file(state: Mapping[str, Tensor], cuts: Mapping[str, Cut], source: str) -> list[tuple[Cut, Tensor]]:
    """Where in the file each of a network's tensors goes; CLIP's names are with `text_model.` here and without there."""
    places = {name: cuts.get(name) or cuts.get(bare) or cuts.get(f"text_model.{bare}")
              for name, bare in ((name, name.removeprefix("text_model.")) for name in state)}
    out = [(cut, state[name]) for name, cut in places.items() if cut is not None]
    known = {value.data_ptr() for _, value in out}  # of several names for the same weights a file may have one
    lost = [name for name, cut in places.items() if cut is None and state[name].data_ptr() not in known and "position_ids" not in name]
    if lost:
        raise ValueError(f"save: {len(lost)} of {len(state)} tensors have no place in {source}, such as {lost[0]}")
    return out


def _write(file: WeightFile, pairs: list[tuple[Cut, Tensor]], path: Path) -> None:
    """The file's tensors by their own names, those of the pairs with other numbers."""
    tensors = {name: file.read(name).clone() for name in file.shapes}
    for cut, value in pairs:
        _fill(tensors[cut.name], cut, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    place(path.parent, path, lambda new: save_file(tensors, new, metadata=dict(file.metadata)))


def _fill(whole: Tensor, cut: Cut, value: Tensor) -> None:
    """What reading a cut does, the other way round. Packed weights are left as they are."""
    there = whole.chunk(cut.of)[cut.piece]
    value = value.T if cut.turned else value
    value = value.roll(len(value) // 2, 0) if cut.swapped else value  # two halves: exchanged twice is as before
    if whole.is_floating_point():
        there.copy_(value.reshape(there.shape))
