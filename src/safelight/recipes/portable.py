"""An adapter's file for other programs: written in their layouts, and read by them on the actual networks to compare what it does there.

Layouts: kohya's (read by ComfyUI, AUTOMATIC1111's web UI and diffusers), diffusers' with peft's settings in the header, ComfyUI's own
names, and DiffSynth's flat checkpoint of 2024, which holds no alpha.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors.torch import load_file
from torch import Tensor

from safelight.disk import place
from safelight.patches import lora as patch_lora
from safelight.patches import preserved
from safelight.patches.lora.file import ASIDE, CONFIG, opened, split
from safelight.patches.lora.kinds import Change, Dora, Kind, Lora
from safelight.patches.lora.names import CLIP, COMFY_TEXT, DENOISERS, LDM_INNER, LDM_TOP, Place, block_names, kohya_name
from safelight.runtime import lease
from safelight.sampling.draw import Shot, draw, starts
from safelight.sampling.settings import Guidance, Sampling, Size
from safelight.spec import Work
from safelight.train import lora_file
from safelight.values import Blob, Model, Patch

if TYPE_CHECKING:
    from safelight.families import Family

LAYOUTS = ("kohya", "diffusers", "comfyui", "diffsynth")
KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight", "magnitude": "dora_scale"}
"""Ends of keys where they are no roles of our reader."""

LARGEST = 32
"""Cells of a latent's side in the pictures that are compared."""

Seen: TypeAlias = tuple[Tensor, Tensor]
"""What a model says of fixed noise, and a picture that it draws; (N, ...) float32."""


@dataclass(frozen=True)
class Reading:
    """What a program makes of a file: keys it used and all there are, the largest difference from what was trained of the networks'
    outputs (of unit size) and of pictures in [0, 1]. `problem` says why it could not read it; the numbers are 0 then."""

    reader: str
    layout: str
    matched: int = 0
    total: int = 0
    max_difference: float = 0.0
    pictures: float = 0.0
    problem: str = ""

    def __str__(self) -> str:
        if self.problem:
            return f"{self.reader}: cannot read it ({self.problem})"
        how = f"{self.matched} of {self.total} keys, outputs differ by {self.max_difference:.1e}, pictures by {self.pictures:.1e}"
        return f"{self.reader}, {self.layout} layout: {how}"

    @property
    def sound(self) -> bool:
        """Whether it does there what was trained."""
        return not self.problem and self.matched == self.total and self.max_difference <= lora_file.TOLERANCE


def look(family: Family, prompts: Sequence[str]) -> Work[Seen]:
    """The outputs of `lora_file.probe`, and one small picture of the first prompt in three steps."""
    side = min(family.size, LARGEST * family.factor)
    (begun, _), = starts(family, Size(side, side), 1, None, None)
    drawn = yield from draw(family, [Shot(prompts[0], 0, Sampling(steps=3), Guidance(), begun)], previews=False)
    return lora_file.probe(family, prompts), torch.from_numpy(drawn.pixels)


def _read(reader: str, layout: str, keys: tuple[int, int], seen: Seen, trained: Seen) -> Reading:
    outputs, pictures = (float((a - b).abs().max()) for a, b in zip(seen, trained, strict=True))
    return Reading(reader, layout, *keys, outputs, pictures)


def readings(model: Model, file: Path, prompts: Sequence[str], trained: Seen) -> Work[tuple[list[Reading], int]]:
    """The kohya-layout file as our own reader of ComfyUI's and A1111's names reads it, and as diffusers does: as it is when diffusers knows
    the kind in that layout, else written in its own. Second: how many layers ours found."""
    own = Patch("lora", Blob.of(file), options={"merged": False})  # merging rounds the weights, which is no fault of the file's
    with lease(model.with_patch(own), dtype=torch.float32, holder="portable") as family:
        changes = patch_lora.read(str(file))
        fits = patch_lora.match(family, changes, str(file))
        seen = yield from look(family, prompts)
    keys = sum(len(changes[name].keys) for name in fits), sum(len(c.keys) for c in changes.values())
    found = [_read("safelight", "kohya", keys, seen, trained)]
    with lease(model, dtype=torch.float32, holder="portable") as family:
        plain = all(isinstance(c.weight, Lora) for c in changes.values()) and "transformer" not in family.trainable()
        layout, read = ("kohya", file) if plain else ("diffusers", file.with_name("diffusers.safetensors"))
        try:
            if not plain:
                export(family, file, layout, read)
            with by_diffusers(family, read) as keys:
                found.append(_read("diffusers", layout, keys, (yield from look(family, prompts)), trained))
        except (ValueError, LookupError, TypeError, RuntimeError, AttributeError) as e:  # what its loaders raise for a file not theirs
            found.append(Reading("diffusers", layout, problem=str(e).partition("\n")[0][:200]))
    return found, len(fits)


@contextmanager
def by_diffusers(family: Family, file: Path) -> Iterator[tuple[int, int]]:
    """The file on the family's networks through diffusers' own loaders, for as long as the block lasts; keys used, and all in the file.
    What diffusers or peft raise for a file they cannot read goes through."""
    from diffusers import loaders
    from peft.tuners.tuners_utils import BaseTunerLayer

    networks = {part: net for part, net in family.trainable().items() if part in patch_lora.PREFIXES}
    denoiser, keys = next(part for part in DENOISERS if part in networks), opened(str(file)).tensors
    kind = {"sdxl": "StableDiffusionXL", "sd3": "SD3"}.get(family.name, "StableDiffusion")
    mixin: Any = getattr(loaders, f"{kind}LoraLoaderMixin")
    told = {"unet_config": networks["unet"].config} if family.name == "sdxl" else {}
    with preserved(networks):
        state, *alphas, notes = mixin.lora_state_dict(str(file), return_lora_metadata=True, **told)
        given: dict[str, Any] = {"metadata": notes, "adapter_name": "read"} | ({"network_alphas": alphas[0]} if alphas else {})
        getattr(mixin, f"load_lora_into_{denoiser}")(state, **{denoiser: networks[denoiser]}, **given)
        for part, net in networks.items():
            if part != denoiser and any(k.startswith(f"{part}.") for k in state):
                mixin.load_lora_into_text_encoder(state, **{"network_alphas": None, **given}, text_encoder=net, prefix=part)
        layers = [m for net in networks.values() for m in net.modules() if isinstance(m, BaseTunerLayer)]
        used = sum("read" in getattr(m, name) for m in layers for name in set(m.adapter_layer_names))
        alone = sum(k.endswith(".alpha") for k in keys)
        yield used + (alone if used == len(keys) - alone else 0), len(keys)


def export(family: Family, file: Path, layout: str, to: Path) -> list[str]:
    """Write an adapter of any program's layout in another; the names of its keys. `diffsynth` is a torch file, the rest safetensors with
    the file's own notes. ValueError when it does not fit the model, or the layout cannot hold its kind."""
    if layout not in LAYOUTS:
        raise ValueError(f"export: layout: got {layout!r}, expected one of {', '.join(LAYOUTS)}")
    where = patch_lora.match(family, patch_lora.read(str(file)), str(file))
    fits = [fit for some in where.values() for fit in some]
    name, header = _namer(family, layout), opened(str(file))
    if layout in ("diffusers", "diffsynth"):
        tensors = {f"{name(at)}.{end}": t.contiguous() for at, change in fits for end, t in _peft(at, change, layout).items()}
    elif any(len(some) > 1 for some in where.values()):
        raise ValueError(f"export: {file} changes several layers as one; take the diffusers layout")
    else:
        held = load_file(file)
        named = {flat: name(some[0][0]) for flat, some in where.items()}
        told = {key: split(str(file), key) for key in header.tensors if not key.startswith(ASIDE)}
        tensors = {f"{named[layer.replace('.', '_')]}.{KOHYA.get(role, role)}": held[key] for key, (layer, role) in told.items()}
        scaled = {f"{name(at)}.alpha": torch.tensor(k.scale * (k.factor.rank or 1)) for at, c in fits if isinstance(k := _pair(c), Lora)}
        tensors = scaled | tensors
    if layout == "diffsynth":
        place(to.parent, to, lambda new: torch.save({k: t.float().clone() for k, t in tensors.items()}, new))
        return list(tensors)
    sha, notes = lora_file.tensor_hash(tensors), {k: v for k, v in header.metadata.items() if k != CONFIG}
    notes |= {k: v for k, v in {"sshs_model_hash": sha, "modelspec.hash_sha256": f"0x{sha}"}.items() if k in notes}
    lora_file.write(to, tensors, notes | ({CONFIG: json.dumps(_settings(fits), sort_keys=True)} if layout == "diffusers" else {}))
    return list(tensors)


def _pair(change: Change) -> Kind | None:
    return change.weight.moved if isinstance(change.weight, Dora) else change.weight


def _peft(at: Place, change: Change, layout: str) -> dict[str, Tensor]:
    kind, dora = _pair(change), change.weight if isinstance(change.weight, Dora) else None
    plain = isinstance(kind, Lora) and kind.factor.b is not None and kind.factor.core is None and change.bias is None
    if not plain or (dora is not None and layout == "diffsynth"):
        raise ValueError(f"export: the {layout} layout has no names for {change.weight and change.weight.name}; take kohya or comfyui")
    assert isinstance(kind, Lora) and kind.factor.b is not None
    middle = ".default" if layout == "diffsynth" else ""
    found = {f"lora_A{middle}.weight": kind.factor.b, f"lora_B{middle}.weight": kind.factor.a}
    if dora is not None:  # transformers, which loads text encoders, wants the parameter's own name
        end = "lora_magnitude_vector" + (".weight" if at.part not in DENOISERS else "")
        found[end] = dora.magnitude.flatten().view(*([-1] if kind.factor.b.ndim == 2 else [1, -1, 1, 1]))
    return found


def _namer(family: Family, layout: str) -> Callable[[Place], str]:
    networks = family.trainable()
    blocks = list(block_names(networks["unet"])) if "unet" in networks else []
    wide = family.name == "sd" and getattr(networks["text_encoder"].config, "hidden_size", 0) == 1024

    def comfyui(at: Place) -> str:
        if at.part in DENOISERS:
            return f"diffusion_model.{_ldm(at.path, blocks)}" if blocks else f"transformer.{at.path}"
        inner = at.path.removeprefix("text_model.")
        return f"text_encoders.{COMFY_TEXT[at.part][wide]}.transformer.{'text_model.' * bool(CLIP.match(inner))}{inner}"

    def diffsynth(at: Place) -> str:
        held = next((b for b in blocks if at.path.startswith(f"{b[0]}.") and ".attentions." in b[0]), None)
        if at.part != "unet" or held is None:
            raise ValueError(f"export: DiffSynth's loader knows the layers of the U-Net's attention blocks, not {at.part}.{at.path}; "
                             "train with targets=attention and text_encoder=false for it")
        return at.path.replace(held[0], held[2], 1).replace("to_out.0", "to_out")

    return {"kohya": lambda at: kohya_name(at.part, at.path, several="text_encoder_2" in networks), "comfyui": comfyui,
            "diffusers": lambda at: f"{at.part}.{at.path}", "diffsynth": diffsynth}[layout]


def _ldm(path: str, blocks: Sequence[tuple[str, str, str]]) -> str:
    for block, ldm, _ in blocks:
        if path.startswith(f"{block}."):
            inner = path.removeprefix(f"{block}.")
            return f"{ldm}.{LDM_INNER[block.split('.')[-2]].get(inner, inner)}"
    return LDM_TOP.get(path, path)


def _settings(fits: Sequence[tuple[Place, Change]]) -> Mapping[str, Any]:
    """peft's settings of every network: the layers by their paths, rank and alpha by pattern where they are not those of the first."""
    out: dict[str, Any] = {}
    for part in sorted({at.part for at, _ in fits}):
        ranks = {at.path: k.factor.rank or 1 for at, c in fits if at.part == part and isinstance(k := _pair(c), Lora)}
        alphas = {at.path: k.scale * ranks[at.path] for at, c in fits if at.part == part and isinstance(k := _pair(c), Lora)}
        dora, rank, alpha = isinstance(fits[0][1].weight, Dora), next(iter(ranks.values())), next(iter(alphas.values()))
        told = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": sorted(ranks), "use_dora": dora,
                "rank_pattern": {path: r for path, r in ranks.items() if r != rank},
                "alpha_pattern": {path: a for path, a in alphas.items() if a != alpha}}
        out |= {f"{part}.{name}": value for name, value in told.items()}
    return out
