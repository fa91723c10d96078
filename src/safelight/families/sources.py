"""Where a model comes from, behind one waist: its parts by name, whatever the layout. No torch before a part is built."""
from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safelight import index
from safelight.families import edition, of_pipeline
from safelight.families.checkpoint import Checkpoint, Loose, beyond_shapes, empty, filled, pickled
from safelight.families.layouts import Cut
from safelight.families.weight_file import WeightFile
from safelight.folders import inside
from safelight.values import Model, Part, canonical, digest
from safelight.weights import header

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

NETWORKS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
PARTS = (*NETWORKS, "tokenizer", "tokenizer_2", "tokenizer_3", "scheduler")
TEXT = tuple(part for part in PARTS if part.startswith(("text_encoder", "tokenizer")))
READ = (".safetensors", ".json", ".txt", ".model")
WORDS = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")

REFUSED = ("custom_pipeline", "custom_pipelines", "trust_remote_code", "_attn_implementation_internal")
"""Entries of configurations that make libraries run code from the model's own files."""

UNREAD = "auto_map"
"""An entry that names classes in the model's own files, beside everything that is needed without it. Families build classes of their own
choice, whatever a file asks for, so it is left out: Kolors' text encoder and many others are published with one."""

SHARD = re.compile(r".+-(\d{5})-of-(\d{5})\.bin")

EDM = {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002}
TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
PREDICTIONS: dict[str, dict[str, Any]] = {
    "eps": {"prediction_type": "epsilon", "rescale_betas_zero_snr": False},
    "v": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": False},
    "v-zsnr": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "edm": {**EDM, "prediction_type": "epsilon", "sigma_data": 0.5, "sigma_max": 80.0},
    "edm-v": {**EDM, "prediction_type": "v_prediction", "sigma_data": 1.0, "sigma_max": 120.0},
    "edm-eps": {**EDM, "prediction_type": "eps", "sigma_max": 120.0},
    "angle-v": {"_class_name": "CosineDPMSolverMultistepScheduler", "prediction_type": "v_prediction", "sigma_min": 0.03, "sigma_max": 500},
}
"""What a user may say that a network predicts, where its files do not or are wrong (v-zsnr: arXiv:2305.08891; edm: arXiv:2206.00364)."""


class Parts(Protocol):
    """A model's parts by diffusers' names (`unet`, `vae`, `text_encoder`, `tokenizer`, `scheduler`, ...): what families read models by."""

    source: str  # the path, for messages
    family: str

    def fingerprint(self, *parts: str) -> str:
        """32 hex digits of what these parts hold, of all of them when none is named."""
        ...

    def config(self, part: str) -> dict[str, Any]:
        """The part's configuration in diffusers' or transformers' terms. ValueError when the model has no such part."""
        ...

    def folder(self, part: str) -> Path:
        """A folder with the files of a part that is no network (a tokenizer). ValueError when there is none."""
        ...

    def build(self, part: str, cls: Any, *, device: torch.device, dtype: torch.dtype) -> Any:
        """The part as a network of the class `cls`, frozen and in eval mode. ValueError when it is missing or another class's."""
        ...


def open_source(source: str | Path, parts: Iterable[Part] = ()) -> Parts:
    """The parts of a model on disk: a folder in diffusers layout or a single file, with `parts` taken from elsewhere.

    ValueError when it is no model we know.
    """
    path = Path(source)
    if not path.exists():
        raise ValueError(f"model: there is no file or folder {path}")
    whole: Parts = Folder(path) if path.is_dir() else Checkpoint(path)
    given = tuple(parts)
    return Assembled(whole, given) if given else whole


def open_model(model: Model) -> Parts:
    """The parts that a model value names."""
    return open_source(model.source, model.parts)


def open_part(part: Part) -> Parts:
    """What a part is taken from: a file, a folder of this part alone, or a whole model."""
    path = Path(part.source)
    if path.is_file():
        return Loose(path, part.name)
    if (path / "model_index.json").is_file():
        return Folder(path)
    if not (path / "config.json").is_file():
        raise ValueError(f"model: {part.name}={path}: expected a file, a folder with config.json, or a whole model's folder")
    return Component(path)


class Folder:
    """A folder in diffusers layout. Only the classes a family names are made, whatever its files ask for; weights come from safetensors."""

    def __init__(self, folder: Path) -> None:
        """ValueError when the folder is no model we know."""
        self.path, self.source, self.family = folder, str(folder), self._family(folder)

    def _family(self, folder: Path) -> str:
        place = folder / "model_index.json"
        if not place.is_file():
            raise ValueError(f"model: {folder} has no model_index.json; expected a folder in diffusers layout")
        try:
            told = read_config(place)
            classes = [v[-1] for v in told.values() if isinstance(v, list) and v] + [told.get("_class_name", "")]
            return index.remember(place, "family", lambda _: of_pipeline(classes), version=edition())
        except ValueError as e:
            raise ValueError(f"model: {place}: {e}") from e

    def at(self, part: str) -> Path:
        """Where a part's files lie."""
        return self.path / part

    def fingerprint(self, *parts: str) -> str:
        """Every weight, configuration and vocabulary file of the parts, by name and content."""
        named = parts or PARTS
        files = sorted(f for part in named for f in self._read(self.at(part)))
        if not files:
            raise ValueError(f"model: {self.path} has nothing under {', '.join(named)}")
        return digest(*[p for f in files for p in (f.relative_to(self.path).as_posix(), index.sha256(f))])

    def _read(self, at: Path) -> list[Path]:
        there = (os.path.join(top, name) for top, _, names in os.walk(at) for name in names if os.path.splitext(name)[1] in READ)
        found = [Path(f) for f in there if os.path.isfile(f)]
        return found if any(f.suffix == ".safetensors" for f in found) else [*found, *at.glob("*.bin")]

    def config(self, part: str) -> dict[str, Any]:
        """config.json of the part; scheduler_config.json of the scheduler."""
        path = self.at(part) / ("scheduler_config.json" if part == "scheduler" else "config.json")
        if not path.is_file():
            raise ValueError(f"model folder {self.path}: no {path.name} under {part}/; expected a folder in diffusers layout")
        return read_config(path)

    def folder(self, part: str) -> Path:
        """The part's own folder."""
        if not self.at(part).is_dir():
            raise ValueError(f"model folder {self.path}: no {part}/; expected a folder in diffusers layout")
        for path in self.at(part).glob("*config.json"):
            read_config(path)
        return self.at(part)

    def build(
        self, part: str, cls: Any, *, device: torch.device, dtype: torch.dtype, settings: Mapping[str, Any] | None = None
    ) -> Any:
        """Tensor by tensor where the files name them as the network does, else by the library's own loader, which knows old names."""
        config, at = self.config(part), self.at(part)
        named = config.get("_class_name") or (config.get("architectures") or [cls.__name__])[0]
        if named not in (cls.__name__, "CLIPModel"):
            raise ValueError(f"model folder {self.path}: {part} is a {named}; this family expects {cls.__name__}")
        settled = settings or {}
        if old := _pickles(at):
            return pickled(old, part, cls, {**config, **settled}, device=device, dtype=dtype)
        _check_weights(at)
        if "_class_name" in config and (made := _same_names(at, part, cls, {**config, **settled}, device=device, dtype=dtype)):
            return made
        options: dict[str, Any] = {"torch_dtype": dtype, **settled}
        if "_class_name" not in config:  # transformers': it is given the configuration that was looked through
            options = {"dtype": dtype, "config": cls.config_class.from_dict({**config, **settled})}
        try:
            options |= {"use_safetensors": True, "local_files_only": True, "output_loading_info": True, **_variant(at)}
            net, told = cls.from_pretrained(at, **options)
        except OSError as e:
            raise ValueError(f"model folder {self.path}: {part} cannot be read: {e}") from e
        missing = sorted(told["missing_keys"])
        if missing:
            raise ValueError(f"model folder {self.path}: {part} lacks {len(missing)} tensors, such as {', '.join(missing[:3])}")
        return net.to(device).eval().requires_grad_(False)


class Component(Folder):
    """A folder that holds one part alone: config.json and weights, and perhaps a text encoder's words."""

    def _family(self, folder: Path) -> str:
        return ""

    def at(self, part: str) -> Path:
        """The folder itself, whatever the part."""
        return self.path

    def fingerprint(self, *parts: str) -> str:
        """Of all files in it."""
        return super().fingerprint("unet")


def _said(told: str) -> dict[str, Any]:
    """What `v`, `edm sigma_max=100` or `shift=3` says of a scheduler."""
    said = (word.partition("=") for word in told.split(" "))
    return PREDICTIONS.get(told.split(" ")[0], FLOW) | {name: float(end) for name, equals, end in said if equals}


class Assembled:
    """A model with some parts from elsewhere."""

    def __init__(self, whole: Parts, parts: tuple[Part, ...]) -> None:
        self.whole, self.source, self.family = whole, whole.source, whole.family
        self.settings = {p.name: _said(p.source) for p in parts if p.name == "scheduler"}
        self.others = {p.name: open_part(p) for p in parts if p.name != "scheduler"}

    def _from(self, part: str) -> Parts:
        """Who has the part; words come with the text encoder that reads them where its folder has them."""
        reader = self.others.get(part.replace("tokenizer", "text_encoder"))
        if part.startswith("tokenizer") and isinstance(reader, Component) and any((reader.path / name).is_file() for name in WORDS):
            return reader
        return self.others.get(part, self.whole)

    def fingerprint(self, *parts: str) -> str:
        """Of the parts where they come from."""
        told = {p: self._from(p).fingerprint(p) for p in parts or self.others if self._from(p) is not self.whole}
        told |= {f"{p} settings": canonical(s) for p, s in self.settings.items() if not parts or p in parts}
        rest = [p for p in parts if self._from(p) is self.whole]
        base = self.whole.fingerprint(*rest) if rest or not parts else ""
        return digest(base, *[x for pair in sorted(told.items()) for x in pair]) if told else base

    def config(self, part: str) -> dict[str, Any]:
        """The part's configuration with what the model says of it."""
        base, told = self._from(part).config(part), self._told(part)
        other = part in self.settings and "_class_name" not in told and str(base.get("_class_name"))[:3] in ("EDM", "Cos", "Flo")
        return (TABLE if other else base) | told

    def _told(self, part: str) -> dict[str, Any]:
        """What the model, not the part's file, knows: units of latents, what is predicted."""
        if part in self.settings:
            return self.settings[part]
        return beyond_shapes(self.whole.config(part)) if isinstance(self.others.get(part), Loose) else {}

    def folder(self, part: str) -> Path:
        """The part's folder."""
        return self._from(part).folder(part)

    def build(self, part: str, cls: Any, *, device: torch.device, dtype: torch.dtype) -> Any:
        """The part, from where it comes."""
        found = self._from(part)
        if isinstance(found, Loose):
            return found.build(part, cls, device=device, dtype=dtype, settings=self._told(part))
        return found.build(part, cls, device=device, dtype=dtype)


def read_config(path: Path) -> dict[str, Any]:
    """A JSON table from a model's folder. ValueError when it is none, or asks for code to be run."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        raise ValueError(f"{path} is no JSON: {e}") from e
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a table of settings, got a {type(data).__name__}")
    kept: dict[str, Any] = _without(data, path)
    asked = next((name for name in REFUSED if _asks(kept, name)), None)
    if asked:
        raise ValueError(f"{path} has {asked}, which runs code that comes with the model; it is refused")
    return kept


def _without(data: Any, path: Path) -> Any:
    """The same without any `auto_map`."""
    if isinstance(data, list):
        return [_without(v, path) for v in data]
    if not isinstance(data, dict):
        return data
    if UNREAD in data:
        _say(path, ascii(data[UNREAD])[:200])
    return {k: _without(v, path) for k, v in data.items() if k != UNREAD}


@cache
def _say(path: Path, named: str) -> None:
    log.warning("%s: its auto_map names code of its own, %s; it is ignored, and never run", path, named)


def _asks(data: Any, name: str) -> bool:
    """Whether the entry is anywhere in it."""
    if isinstance(data, dict):
        return name in data or any(_asks(v, name) for v in data.values())
    return isinstance(data, list) and any(_asks(v, name) for v in data)


def _check_weights(folder: Path) -> None:
    """ValueError when a file of weights is cut off or lies, or a list of shards names files elsewhere."""
    for path in folder.glob("*.safetensors"):
        header.read(path)
    for path in folder.glob("*.index.json"):
        _listed(path)


def _listed(table: Path) -> list[Path]:
    """The files that a list of shards names, each once. ValueError when one does not lie beside it."""
    names = sorted({str(n) for n in dict(read_config(table).get("weight_map", {})).values()})
    for name in names:
        if "/" in inside(name, str(table)) or not (table.parent / name).is_file():
            raise ValueError(f"{table}: it names {name!r}, which does not lie beside it; the folder is not whole, or not to be trusted")
    return [table.parent / name for name in names]


def _pickles(folder: Path) -> list[Path]:
    """The pickle with a folder's weights, or its shards; nothing when there are safetensors. ValueError when there is neither, when shards
    are missing, or there are several files and nothing says which to take."""
    if any(folder.glob("*.safetensors")):
        return []
    found = [f for f in sorted(folder.glob("*.bin")) if ".fp16." not in f.name and f.name != "training_args.bin"]
    whole = [f for f in found if not SHARD.fullmatch(f.name)]
    tables = [t for t in sorted(folder.glob("*.bin.index.json")) if ".fp16." not in t.name]
    if len(whole) == 1:
        return whole
    if tables and not whole:
        return _listed(tables[0])
    counts = {m[2]: int(m[2]) for f in found if (m := SHARD.fullmatch(f.name))}
    if whole or list(counts.values()) != [len(found)]:
        raise ValueError(f"model folder {folder}: no .safetensors, and {len(found)} .bin files that are neither one nor all shards of one")
    return found


def _same_names(at: Path, part: str, cls: Any, config: Mapping[str, Any], *, device: torch.device, dtype: torch.dtype) -> Any:
    """The network of a diffusers folder's part; None when its tensors have other names or shapes than the network's."""
    half = bool(_variant(at))
    tables = [t for t in at.glob("*.safetensors.index*.json") if (".fp16." in t.name) == half]
    files = _listed(tables[0]) if tables else [f for f in at.glob("*.safetensors") if (".fp16." in f.name) == half]
    if len(files) != 1 and not tables:
        return None
    file, net = WeightFile(*files), empty(cls, config)
    if {name: tuple(t.shape) for name, t in net.state_dict().items()} != file.shapes:
        return None
    return filled(net, file, {name: Cut(name) for name in file.shapes}, what=part, device=device, dtype=dtype)


def _variant(folder: Path) -> dict[str, str]:
    """Nothing where a folder has plain weights, else the half-precision ones it has."""
    return {} if any(".fp16." not in f.name for f in folder.glob("*.safetensors")) else {"variant": "fp16"}
