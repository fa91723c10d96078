"""Models in one file: checkpoints as the original repositories write them, and single networks in a file of their own."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safelight import index
from safelight.families import edition, known
from safelight.families.clip_words import clip_folder, t5_folder
from safelight.families.glm_file import chatglm
from safelight.families.joint_layout import joint
from safelight.families.layouts import LATENT_UNITS, Cut, Layout, clip, open_clip, unet, vae
from safelight.families.t5_layout import t5
from safelight.families.weight_file import WeightFile
from safelight.values import digest
from safelight.weights import pickles

if TYPE_CHECKING:
    import torch

TEXT = ("", "text_encoder.", "cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
OPEN_TEXT = ("", "cond_stage_model.model.", "conditioner.embedders.1.model.", "conditioner.embedders.0.model.")

LORA = (".lora_down.", ".lora_A.", ".lora.down.", ".lokr_w1", ".hada_w1_a", "_lora.down.")
PROJECTION = "text_projection.weight"
PICTURES = ("unet", "vae")
"""Parts made of convolutions, which work in channels_last."""

READERS = 4
"""Threads that read a file: both its bytes and their new form take memory's time, not the processor's."""

ABOUT = "about"
"""The index's question that `about` answers."""


class About(NamedTuple):
    """What a weight file is: a model's family, or its kind (lora, vae, text_encoder, controlnet, embedding); both empty when unknown."""

    family: str
    kind: str


def about(path: Path) -> About:
    """By names and shapes alone; the answer is kept. ValueError when it is no sound safetensors file."""
    family, kind, problem = index.remember(path, ABOUT, asked, version=edition())
    if problem:
        raise ValueError(problem)
    return About(family, kind)


def asked(path: Path) -> tuple[str, str, str]:
    """Family, kind, and what is wrong with the file: the answer to the index's question ABOUT."""
    try:
        file = WeightFile(path)
        kind = _adapter(file)
        family = "" if kind else next((name for name, cls in known().items() if cls.recognise(file)), "")
        return family, kind or ("model" if family else kind_of(file)), ""
    except ValueError as e:
        return "", "", str(e)


def kind_of(file: WeightFile) -> str:
    """What a file that is no model holds, for messages and lists: lora, vae, text_encoder, controlnet, embedding, or empty."""
    return _adapter(file) or ("vae" if vae(file) else "text_encoder" if _text(file) else "")


def _adapter(file: WeightFile) -> str:
    """What goes onto a model is told by names alone, without asking the families."""
    names = list(file.shapes)
    if any(mark in n for n in names for mark in LORA):
        return "lora"
    if any(n.startswith(("control_model.", "input_hint_block.", "controlnet_cond_embedding.")) for n in names):
        return "controlnet"
    few = len(names) <= 4 and any(n in ("emb_params", "clip_l", "clip_g") or n.startswith("string_to_param") for n in names)
    return "embedding" if few else ""


class Checkpoint:
    """A file with a U-Net, and often the other parts. The family is found from its header; pickles are made safetensors first."""

    def __init__(self, path: Path) -> None:
        """ValueError saying what was found when no family knows it."""
        self.source, self.path = str(path), path
        self.file = WeightFile(pickles.to_safetensors(path))
        self.family, kind = about(Path(self.file.path))
        if not self.family:
            told = f"it is a {kind.replace('_', ' ')}, no whole model" if kind else f"no family knows it; it has {self.file.summary()}"
            raise ValueError(f"model {path}: {told}")

    @cached_property
    def layouts(self) -> Mapping[str, Layout]:
        """The parts in it."""
        return known()[self.family].recognise(self.file) or {}

    def fingerprint(self, *parts: str) -> str:
        """The first 32 digits of the file's sha256 (as others name checkpoints by its first ten); with parts named, a digest of both."""
        whole = index.sha256(self.path)
        return digest(whole, *sorted(parts)) if parts else whole[:32]

    def config(self, part: str) -> dict[str, Any]:
        """The part's configuration, found from the shapes of its tensors."""
        if part not in self.layouts:
            raise ValueError(f"model {self.source}: it holds no {part}; give one with {part}=...")
        return dict(self.layouts[part].config)

    def folder(self, part: str) -> Path:
        """The words of CLIP or T5: they are in no checkpoint, and are the same for all."""
        config = self.config(part)
        if config.get("vocabulary") == "t5":
            return t5_folder()
        if config.get("vocabulary") != "clip":
            raise ValueError(f"model {self.source}: a single file has no folder for {part}; give one with text_encoder=...")
        return clip_folder(config["pad_token"])

    def build(self, part: str, cls: Any, *, device: torch.device, dtype: torch.dtype) -> Any:
        """The part's network on tensors mapped from the file. ValueError when it is not there, or has other tensors than it should."""
        self.config(part)
        return assembled(self.file, self.layouts[part], cls, what=part, device=device, dtype=dtype)


class Loose:
    """One part in a file of its own, or the part of a whole checkpoint that is wanted."""

    def __init__(self, path: Path, part: str) -> None:
        """ValueError saying what was found when the part is not in it."""
        self.source, self.path, self.part, self.family = str(path), path, part, ""
        self.file = WeightFile(pickles.to_safetensors(path))
        found = found_in(self.file, part)
        if found is None:
            kind = kind_of(self.file)
            raise ValueError(f"model: {part}={path} " + (f"is a {kind}" if kind else f"has no {part}: it has {self.file.summary()}"))
        self.layout = found

    def fingerprint(self, *parts: str) -> str:
        """Of the whole file."""
        return index.sha256(self.path)[:32]

    def config(self, part: str) -> dict[str, Any]:
        """The part's configuration as far as shapes tell it."""
        return dict(self.layout.config)

    def folder(self, part: str) -> Path:
        """None: a file has no folder."""
        raise ValueError(f"model: {self.source} is a file; it has no {part}")

    def build(self, part: str, cls: Any, *, device: torch.device, dtype: torch.dtype, settings: Mapping[str, Any] | None = None) -> Any:
        """The network, with settings of the model it is put into."""
        return assembled(self.file, self.layout.told(**settings or {}), cls, what=part, device=device, dtype=dtype)


def found_in(file: WeightFile, part: str) -> Layout | None:
    """How a part lies in a file, whatever else is there; None when it is not."""
    known = {"unet": unet, "transformer": joint, "vae": vae}
    return known.get(part, _text)(file)


def _text(file: WeightFile) -> Layout | None:
    found = (clip(file, p) or open_clip(file, p) for p in dict.fromkeys((*TEXT, *OPEN_TEXT)))
    return next((layout for layout in found if layout), None) or chatglm(file) or t5(file)


def pickled(paths: Iterable[Path], part: str, cls: Any, config: Mapping[str, Any], *, device: torch.device, dtype: torch.dtype) -> Any:
    """A network whose weights are a pickle, or shards of it, made safetensors in Safelight's own folder, with the configuration given."""
    file = WeightFile(*map(pickles.to_safetensors, paths))
    found = found_in(file, part)
    layout = Layout(config, found.tensors if found else {name: Cut(name) for name in file.shapes})
    return assembled(file, layout, cls, what=part, device=device, dtype=dtype)


def assembled(file: WeightFile, layout: Layout, cls: Any, *, what: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A network of the class with the file's tensors as its weights: no random start, no second copy. Frozen and in eval mode."""

    if not layout.tensors:
        raise ValueError(f"model {file.path}: it holds no {what}; give one with {what}=...")
    net = empty(cls, {k: v for k, v in layout.config.items() if v is not None})
    wanted = {name: tuple(t.shape) for name, t in net.state_dict().items()}
    cuts = _named_as(wanted, layout.tensors)
    _refuse_others(f"model {file.path}: {what}", wanted, cuts, file)
    return filled(net, file, cuts, what=what, device=device, dtype=dtype)


def filled(net: Any, file: WeightFile, cuts: Mapping[str, Cut], *, what: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A network without weights, with the file's as its own, in the layout it works in. Frozen and in eval mode."""
    import torch

    exact = tuple(getattr(net, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else ()  # T5's last layers overflow there

    def placed(cut: Cut, shape: tuple[int, ...], kept: bool) -> torch.Tensor:
        number = torch.float32 if kept else dtype
        t = _taken(file, cut, number).reshape(shape)
        form = torch.channels_last if t.ndim == 4 and what in PICTURES else torch.preserve_format
        return t.to(device, number if t.is_floating_point() else t.dtype, memory_format=form)  # packed weights stay so

    asked = [(cuts[n], tuple(t.shape), any(w in n.split(".") for w in exact)) for n, t in net.state_dict().items()]
    with ThreadPoolExecutor(READERS) as pool:
        found = dict(zip(dict.fromkeys(asked), pool.map(lambda one: placed(*one), dict.fromkeys(asked)), strict=True))  # shared stays one
    net.load_state_dict({n: found[one] for n, one in zip(net.state_dict(), asked, strict=True)}, assign=True)
    return net.to(device).eval().requires_grad_(False)


def empty(cls: Any, config: Mapping[str, Any]) -> Any:
    """A network of the class without weights (diffusers' or transformers'), from its configuration."""
    from accelerate import init_empty_weights
    from diffusers.configuration_utils import ConfigMixin

    with init_empty_weights(include_buffers=False):
        return cls.from_config(config) if issubclass(cls, ConfigMixin) else cls(cls.config_class(**config))


def _named_as(wanted: Mapping[str, Any], cuts: Mapping[str, Cut]) -> dict[str, Cut]:
    """transformers' CLIPTextModel has its tower's names bare, CLIPTextModelWithProjection under `text_model.`, and a projection."""
    tower = {n: c for n, c in cuts.items() if n != PROJECTION}
    if any(n.startswith("text_model.") for n in wanted):
        tower = {f"text_model.{n}": c for n, c in tower.items()}
    return tower | {n: c for n, c in cuts.items() if n == PROJECTION and n in wanted}


def _taken(file: WeightFile, cut: Cut, number: torch.dtype) -> torch.Tensor:
    found = file.read_as(cut.name, number)
    if cut.of > 1:
        found = found.chunk(cut.of)[cut.piece]
    if cut.swapped:
        found = found.roll(len(found) // 2, 0)
    return found.T.contiguous() if cut.turned else found


def _shape(file: WeightFile, cut: Cut) -> tuple[int, ...]:
    shape = file.shapes[cut.name]
    if cut.of > 1:
        shape = (shape[0] // cut.of, *shape[1:])
    return shape[::-1] if cut.turned else shape


def _refuse_others(what: str, wanted: Mapping[str, tuple[int, ...]], cuts: Mapping[str, Cut], file: WeightFile) -> None:
    """ValueError when tensors are missing, are too many, or have other shapes; a 1x1 convolution is a linear layer."""
    missing, unknown = [n for n in wanted if n not in cuts], [c.name for n, c in cuts.items() if n not in wanted]
    other = [
        f"{cuts[n].name} {list(_shape(file, cuts[n]))} for {list(s)}"
        for n, s in wanted.items() if n in cuts and _bare(_shape(file, cuts[n])) != _bare(s)
    ]
    kinds = {"missing": missing, "unknown": unknown, "of another shape": other}
    told = [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names]
    if told:
        raise ValueError(f"{what}: of {len(wanted)} tensors {', '.join(told)}; the file is incomplete or of another kind of model")


def _bare(shape: Iterable[int]) -> tuple[int, ...]:
    sizes = list(shape)
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def beyond_shapes(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a part's configuration belongs to the whole model rather than to the part's weights."""
    return {k: config[k] for k in (*LATENT_UNITS, "sample_size") if k in config}
