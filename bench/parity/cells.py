"""What `matrix.py` measures: a row's models, ours and diffusers', and a function a column."""
from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from safelight.families import Family, find
from safelight.families.sources import open_source
from safelight.patches import control as controls
from safelight.patches import lora
from safelight.patches.control import control
from safelight.sampling.driver import drive
from safelight.sampling.guidance import CFG
from safelight.sampling.request import Request
from safelight.values import Blob, Part, Patch
from tests import checkpoints, tiny
from tests import reference as ref
from tests.dialects import ALPHA, DENOISERS, RANK, adapter, dialects, injected, layers, sd3_original
from tests.gaussian import finish
from tests.patching import a_control, a_net, asked, by_hand, in_original_layout, told

PART = 0.6
"""The part of the way that is walked from a picture."""


class Absent(Exception):
    """There is no such thing in use; the text says why."""


@dataclass(frozen=True)
class Row:
    """A family: its tiny layout, diffusers' pipelines for it, the classes of its parts, and a layout of single files of its own."""

    title: str
    layout: str
    text: Callable[..., Any]
    image: Any
    paint: Any
    classes: Mapping[str, Any]
    spacing: str = "leading"
    single: str = ""


def _sd(**parts: Any) -> Any:
    return diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)


def _painting(**parts: Any) -> Any:
    return diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)


SD = (_sd, diffusers.StableDiffusionImg2ImgPipeline, diffusers.StableDiffusionInpaintPipeline)
XL = diffusers.StableDiffusionXLImg2ImgPipeline, diffusers.StableDiffusionXLInpaintPipeline
ROWS = [
    Row("SD 1.x", "sd1", *SD, ref.SD, single="sd1"),
    Row("SD 2.x, v", "sd2", *SD, ref.SD, spacing="trailing", single="sd2"),
    Row("SD inpainting, 9 channels", "inpaint", _painting, None, None, ref.SD, single="inpaint"),
    Row("Taiyi", "taiyi", *SD, ref.TAIYI),
    Row("SDXL base", "sdxl", diffusers.StableDiffusionXLPipeline, *XL, ref.XL, single="sdxl"),
    Row("SDXL refiner", "refiner", ref.refiner, *XL, ref.REFINER, single="refiner"),
    Row("Kolors", "kolors", KolorsPipeline, *XL, ref.KOLORS),
    Row("SD 3.5", "sd3", diffusers.StableDiffusion3Pipeline, diffusers.StableDiffusion3Img2ImgPipeline,
        diffusers.StableDiffusion3InpaintPipeline, ref.FLOW),
]


class Bench:
    """A family and diffusers' pipeline side by side, and room for files."""

    def __init__(self, row: Row, place: Path) -> None:
        self.row, self.place, self.size = row, place, 0.0
        self.folder = tiny.LAYOUTS[row.layout](place / "model")

    @cached_property
    def both(self) -> ref.Both:
        """Loaded from the same folder."""
        return ref.load(self.folder, self.row.text, spacing=self.row.spacing, **self.row.classes)

    @property
    def family(self) -> Family:
        """Ours."""
        found: Family = self.both.ours
        return found

    @property
    def denoiser(self) -> Any:
        """Our U-Net or transformer."""
        return next(net for part, net in self.family.trainable().items() if part in DENOISERS)

    def apart(self, found: Any, wanted: Any) -> float:
        """The largest difference; how large the numbers are is kept."""
        self.size = max(self.size, float(torch.as_tensor(wanted).abs().max()))
        return ref.gap(found, wanted)

    @cached_property
    def texts(self) -> list[tuple[Tensor, Tensor | None]]:
        """What diffusers makes of the prompt and of the negative one: tokens, and the pooled text where there is one."""
        pipe = self.both.theirs
        if self.row.layout == "kolors":
            return [ref.glm_says(self.both, ref.PROMPT), ref.glm_says(self.both, ref.NEGATIVE)]
        if self.row.layout == "sd3":
            said = pipe.encode_prompt(ref.PROMPT, None, None, ref.CPU, 1, True, ref.NEGATIVE, max_sequence_length=77)
        elif "text_encoder_2" in self.row.classes:
            said = pipe.encode_prompt(ref.PROMPT, None, ref.CPU, 1, True, ref.NEGATIVE)
        else:
            said = pipe.encode_prompt(ref.PROMPT, ref.CPU, 1, True, ref.NEGATIVE)
        return [(tokens, said[i + 2] if len(said) > 2 else None) for i, tokens in enumerate(said[:2])]

    @cached_property
    def asked(self) -> dict[str, Any]:
        """A pipeline's arguments: the texts, already encoded, and the rest."""
        (text, pooled), (other, other_pooled) = self.texts
        named = {"prompt_embeds": text, "negative_prompt_embeds": other}
        if pooled is not None:
            named |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": other_pooled}
        return named | {k: v for k, v in ref.ASKED.items() if k != "negative_prompt"}

    def pictured(self) -> tuple[Tensor, Tensor]:
        """A picture (1, H, W, 3) and its latent."""
        side = self.family.size
        pixels = torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(8))
        return pixels, self.family.encode_image(pixels)

    def ours(self, start: Tensor, noise: Tensor, mask: Tensor | None = None) -> np.ndarray:
        """Our picture from a latent, over the last part of the way."""
        steps = int(ref.STEPS * PART)
        cond, negative = self.both.conds()
        sigmas = self.both.sigmas[-steps - 1 :]
        request = Request(cond=cond, negative=negative, latent=start, sigmas=sigmas, noise=noise, guidance=CFG(ref.SCALE), mask=mask)
        return np.asarray(self.family.decode(finish(drive(self.family, [request]))[0][0]))


Cell = Callable[[Bench], float]
CELLS: dict[str, Cell] = {}


def cell(title: str) -> Callable[[Cell], Cell]:
    """A column of the table."""

    def register(measure: Cell) -> Cell:
        CELLS[title] = measure
        return measure

    return register


@cell("text to image")
def text_to_image(b: Bench) -> float:
    """Five Euler steps under guidance, decoded."""
    if b.row.layout == "refiner":
        raise Absent("the refiner goes on from a picture or a latent")
    b.both.seen.clear()
    more: dict[str, Any] = {"max_sequence_length": 77} if b.row.layout == "sd3" else {}
    side = b.family.size
    if b.row.layout == "inpaint":  # nothing of a picture: grey, covered by the mask
        pixels, mask = torch.zeros(1, 3, side, side), torch.ones(1, 1, side, side)
        with torch.no_grad():
            grey = b.both.theirs.vae.encode(pixels).latent_dist.mean * b.both.theirs.vae.config.scaling_factor
        more = {"image": pixels, "mask_image": mask, "masked_image_latents": grey, "strength": 1.0}
    drawn = b.both.theirs(latents=b.both.start(), height=side, width=side, **b.asked, **more)
    return b.apart(b.both.draw(), drawn.images)


def _noise(b: Bench) -> Tensor:
    """What the pipelines draw from the generator that they are given here."""
    _, start = b.pictured()
    return torch.randn(start.shape, generator=torch.Generator().manual_seed(3))


def _going_on(b: Bench, pipeline: Any, **more: Any) -> Any:
    """The pipeline's pictures, or latents, from the picture's latent."""
    _, start = b.pictured()
    parts = dict(b.both.theirs.components)
    if pipeline in XL and b.row.layout == "kolors":
        parts |= {"text_encoder": None, "text_encoder_2": None, "tokenizer": None, "tokenizer_2": None}
    kinds = {"requires_safety_checker": False} if "safety_checker" in parts else {}
    kinds |= {"requires_aesthetics_score": True} if b.row.layout == "refiner" else {}
    pipe = pipeline(**parts, **kinds)
    pipe.set_progress_bar_config(disable=True)
    side = b.family.size
    told_sizes = b.row.image is XL[0]
    sized = {"original_size": (side, side), "target_size": (side, side)} if told_sizes else {}
    asked = b.asked | sized | {"strength": PART, "generator": torch.Generator().manual_seed(3)} | more
    return pipe(image=start, **asked).images


@cell("image to image")
def image_to_image(b: Bench) -> float:
    """The last three of five steps, from a picture's latent."""
    if b.row.image is None:
        raise Absent("a network of nine channels goes on from a picture by inpainting, with a mask over all of it")
    _, start = b.pictured()
    return b.apart(b.ours(start, _noise(b)), _going_on(b, b.row.image))


@cell("inpaint")
def inpaint(b: Bench) -> float:
    """The same inside a mask; a network of nine channels draws the whole way and is shown what is around."""
    side = b.family.size
    mask = torch.zeros(1, 1, side, side)
    mask[..., side // 2 :] = 1
    pixels, start = b.pictured()
    if b.row.paint is None:
        seen = b.family.inpainting(pixels, mask)
        drawn = b.both.theirs(
            image=pixels.movedim(-1, 1), mask_image=mask, masked_image_latents=seen["inpaint"][:, 1:], height=side, width=side,
            strength=1.0, latents=b.both.start(), **b.asked,
        )
        return b.apart(b.both.draw(seen=dict(seen)), drawn.images)
    latents = {"output_type": "latent"} if b.row.layout == "sd3" else {}
    drawn = _going_on(b, b.row.paint, mask_image=mask, masked_image_latents=start, height=side, width=side, **latents)
    return b.apart(b.ours(start, _noise(b), mask), b.family.decode(drawn) if latents else drawn)


@cell("load folder")
def load_folder(b: Bench) -> float:
    """Texts, the autoencoder both ways, and the denoiser in its first step."""
    found = []
    for cond, (tokens, pooled) in zip(b.both.conds(), b.texts, strict=True):
        found += [b.apart(cond.tokens, tokens)] + ([] if pooled is None else [b.apart(cond.extras["pooled"], pooled)])
    vae, (pixels, latent) = b.both.theirs.vae, b.pictured()
    shift = vae.config.shift_factor or 0.0
    with torch.no_grad():
        theirs = (vae.encode((pixels * 2 - 1).movedim(-1, 1)).latent_dist.mean - shift) * vae.config.scaling_factor
        back = (vae.decode(latent / vae.config.scaling_factor + shift).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    found += [b.apart(latent, theirs), b.apart(b.family.decode(latent), back)]
    x, t, text, rest = told(b.family) if b.row.layout != "sd3" else _told(b)
    net = b.both.theirs.unet if b.row.layout != "sd3" else b.both.theirs.transformer
    with torch.no_grad():
        return max(*found, b.apart(_raw(b.denoiser, x, t, text, rest), _raw(net, x, t, text, rest)))


def _told(b: Bench) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """What a transformer is given for `asked`."""
    seen: list[Any] = []
    handle = b.denoiser.register_forward_pre_hook(lambda _, args, rest: seen.append((args, rest)), with_kwargs=True)
    b.family.predict(*asked(b.family))
    handle.remove()
    args, rest = seen[0]
    named = dict(zip(("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep"), args, strict=False)) | rest
    x, t, text = (named.pop(n) for n in ("hidden_states", "timestep", "encoder_hidden_states"))
    return x, t, text, {k: v for k, v in named.items() if k != "return_dict" and v is not None}


def _raw(net: Any, x: Tensor, t: Tensor, text: Tensor, rest: Mapping[str, Any]) -> Tensor:
    out: Tensor = net(x, timestep=t, encoder_hidden_states=text, **rest).sample
    return out


@cell("load single file")
def load_single(b: Bench) -> float:
    """Every network of a file in the original layout against the network that it was written from; where no such file holds the text
    encoders, the rest against the folder's."""
    if b.row.single:
        made = checkpoints.maker(b.place / "single")(b.row.single)
        said, wanted = (checkpoints.outputs(nets) for nets in (checkpoints.built(open_source(made.file), made), made.nets))
        return max(b.apart(said[name], wanted[name]) for name in wanted)
    family, folder = _as_real(b) if b.row.layout in AS_REAL else (b.family, b.folder)
    nets: dict[str, Any] = family.trainable()
    file = b.place / "single.safetensors"
    joint = "transformer" in nets
    names = checkpoints.joint_names(nets["transformer"].state_dict(), 2) if joint else checkpoints.unet_names(nets["unet"])
    checkpoints.save(file, {f"model.diffusion_model.{n}": t for n, t in names.items()})
    for words in sorted(folder.glob("tokenizer*")):
        shutil.copytree(words, folder / words.name.replace("tokenizer", "text_encoder"), dirs_exist_ok=True)
    parts = [Part(p, str(folder / p), "") for p in nets if p not in DENOISERS]
    loose = find(family.name)(open_source(file, parts), device=ref.CPU, dtype=torch.float32)
    x, sigma, cond = asked(family)
    return b.apart(loose.predict(x, sigma, cond), family.predict(x, sigma, cond))


KOLORS = {"encoder_hid_dim": 32, "encoder_hid_dim_type": "text_proj", "projection_class_embeddings_input_dim": 32 + 6 * 256}
AS_REAL = {"kolors": {**checkpoints.sdxl().unet, **KOLORS}, "taiyi": checkpoints.sd1().unet}
"""U-Nets with as many heads, and as wide a time embedding, as the real ones have: a single file does not say these."""


def _as_real(b: Bench) -> tuple[Family, Path]:
    folder = Path(shutil.copytree(b.folder, b.place / "as real"))
    torch.manual_seed(0)
    diffusers.UNet2DConditionModel(**AS_REAL[b.row.layout]).save_pretrained(folder / "unet")
    return tiny.load(folder, device=ref.CPU, dtype=torch.float32), folder


# LoRA


def _said(family: Family) -> Tensor:
    with torch.no_grad():
        return family.predict(*asked(family))


def _moved(family: Family, pairs: Mapping[tuple[str, str], tuple[Tensor, Tensor]]) -> Tensor:
    """What the model says with the pairs added to its weights."""
    held = {at: layers(family)[at].weight.data for at in pairs}
    for at, (down, up) in pairs.items():
        layers(family)[at].weight.data = held[at] + ALPHA / RANK * (up.flatten(1) @ down.flatten(1)).view_as(held[at])
    try:
        return _said(family)
    finally:
        for at, weight in held.items():
            layers(family)[at].weight.data = weight


@contextmanager
def _on(b: Bench, file: Mapping[str, Tensor], **options: Any) -> Iterator[None]:
    save_file({k: v.contiguous().clone() for k, v in file.items()}, b.place / "lora.safetensors")
    with lora.lora(b.family, Patch("lora", Blob.of(b.place / "lora.safetensors"), options=options)):
        yield


def _dialect(name: str) -> Cell:
    def measure(b: Bench) -> float:
        known = dialects(b.family)
        if name not in known:
            raise Absent(NOT_OF_TRANSFORMERS[name])
        only, file, options = known[name]
        wanted, found = _moved(b.family, adapter(b.family, only)), []
        for merged in (True, False):
            with _on(b, file, merged=merged, **options):
                found.append(b.apart(_said(b.family), wanted))
        if ref.gap(wanted, _said(b.family)) < 1e-3:
            raise AssertionError(f"{b.row.title}, {name}: the adapter changes nothing, so nothing was measured")
        return max(found)

    return measure


NOT_OF_TRANSFORMERS = {
    "attn_procs": "`load_attn_procs` of 2023 wrote U-Nets alone", "DiffSynth": "its numbered blocks are those of its U-Nets",
    "kohya, LDM": "see the column before",
}


@cell("kohya, diffusers' blocks")
def kohya(b: Bench) -> float:
    """`lora_unet_down_blocks_0_...`, and `lora_te_...`."""
    return _dialect("kohya")(b)


@cell("kohya, original blocks")
def kohya_original(b: Bench) -> float:
    """`lora_unet_input_blocks_1_...`; of SD 3 `lora_unet_joint_blocks_0_...`, where query, key and value are one."""
    if b.row.layout != "sd3":
        return _dialect("kohya, LDM")(b)
    net, file = b.denoiser, {}
    kept = {k: v for k, v in net.state_dict().items() if not any(p in k for p in (".attn2.", "norm_q", "norm_k", "norm_added"))}
    last = ("joint_blocks.1.context_block.adaLN", "final_layer.adaLN")
    torch.manual_seed(5)
    wanted = sd3_original(dict(kept))
    for key, weight in list(wanted.items()):
        if key.endswith(".weight") and not key.startswith(last) and weight.ndim in (2, 4):
            up, down = torch.randn(len(weight), 2) * 0.1, torch.randn(2, weight[0].numel()) * 0.1
            name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
            file |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
            wanted[key] = weight + (up @ down).view_as(weight)
    with _on(b, file):
        now = sd3_original({k: v for k, v in net.state_dict().items() if k in kept})
        return max(b.apart(now[key], wanted[key]) for key in wanted)


for _name in ("diffusers", "diffusers, peft", "peft", "ComfyUI", "OneTrainer", "LyCORIS", "DiffSynth", "attn_procs"):
    cell(_name)(_dialect(_name))


def _kind(*names: str) -> Cell:
    def measure(b: Bench) -> float:
        given, found = told(b.family) if b.row.layout != "sd3" else _told(b), []
        styles = ("peft", "kohya") if b.row.layout != "sd3" else ("peft",)
        for name, style, merged in product(names, styles, (True, False)):
            theirs, file = injected(copy.deepcopy(b.denoiser), name, style)
            with _on(b, file, merged=merged, **({"alpha": 3.0} if style == "peft" else {})):
                found.append(b.apart(_raw(b.denoiser, *given), _raw(theirs, *given)))
        return max(found)

    return measure


cell("LoCon")(_kind("locon"))
cell("LoHa")(_kind("loha", "loha, flat"))
cell("LoKr")(_kind("lokr", "lokr, flat"))
cell("DoRA")(_kind("dora"))


# ControlNet


def _control(b: Bench, turned: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> float:
    family, file = b.family, b.place / "control.safetensors"
    other = b.row.layout == "inpaint" or "unet" not in family.trainable()  # nets of SD 1.x are put on inpainting models too
    of = tiny.load(tiny.sd1(Path(mkdtemp(dir=b.place)) / "sd1"), device=ref.CPU, dtype=torch.float32) if other else family
    p = a_control(of, file)
    net: Any = a_net(of).eval()
    save_file({k: v.contiguous() for k, v in turned(load_file(file)).items()}, file)
    with control(family, replace(p, weights=Blob.of(file), strength=0.7)):
        said = _said(family)
    return b.apart(said, by_hand(family, [(net, controls.read_hint(p), 0.7)]))


@cell("ControlNet, diffusers")
def control_diffusers(b: Bench) -> float:
    """A ControlNet in diffusers' layout, beside diffusers' own classes."""
    return _control(b, dict)


@cell("ControlNet, original")
def control_original(b: Bench) -> float:
    """The same in the layout of the original repository."""
    return _control(b, lambda tensors: {f"control_model.{n}": t for n, t in _original(b, tensors).items()})


def _original(b: Bench, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return in_original_layout(b.family, tensors) if "unet" in b.family.trainable() else tensors
