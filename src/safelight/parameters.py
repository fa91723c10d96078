"""The `parameters` text of AUTOMATIC1111's pictures: prompt, negative prompt, one line of `Name: value` pairs."""
from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

SAMPLERS = {
    "euler": "Euler", "euler_ancestral": "Euler a", "heun": "Heun", "dpm_2": "DPM2", "dpm_2_ancestral": "DPM2 a", "lms": "LMS",
    "dpmpp_2s_ancestral": "DPM++ 2S a", "dpmpp_sde": "DPM++ SDE", "dpmpp_2m": "DPM++ 2M", "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE", "ddim": "DDIM", "lcm": "LCM", "uni_pc": "UniPC",
}
SCHEDULES = {
    "normal": "Normal", "karras": "Karras", "exponential": "Exponential", "sgm_uniform": "SGM Uniform", "simple": "Simple",
    "ddim_uniform": "DDIM", "beta": "Beta", "kl_optimal": "KL Optimal",
}
FIELDS = (  # label, the names under which a picture's info may have it
    ("Steps", ("steps",)), ("Sampler", ("sampler",)), ("Schedule type", ("schedule", "scheduler")), ("CFG scale", ("cfg", "guidance")),
    ("Seed", ("seed",)), ("Size", ("size",)), ("Model hash", ("model_hash",)), ("Model", ("model",)), ("Denoising strength", ("denoise",)),
)
PAIR = re.compile(r'\s*([\w][\w \-/]*):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')


def write(info: Mapping[str, Any], version: str = "") -> str:
    """The text for a picture's `info`; empty when nothing is known. Names of samplers and schedules are those other tools know."""
    if not info.get("prompt") and "seed" not in info:
        return ""
    lines = [str(info.get("prompt", ""))]
    if info.get("negative"):
        lines.append(f"Negative prompt: {info['negative']}")
    told = {label: next((info[n] for n in names if info.get(n) is not None), None) for label, names in FIELDS}
    told["Sampler"] = SAMPLERS.get(str(told["Sampler"]), told["Sampler"])
    told["Schedule type"] = SCHEDULES.get(str(told["Schedule type"]), told["Schedule type"])
    if isinstance(told["Size"], list | tuple):
        told["Size"] = "x".join(str(n) for n in told["Size"])
    if told["Denoising strength"] == 1:
        told["Denoising strength"] = None
    told["Version"] = version or None
    lines.append(", ".join(f"{k}: {_quoted(v)}" for k, v in told.items() if v is not None))
    return "\n".join(lines)


def _quoted(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",:\n") else text


def read(text: str) -> dict[str, str]:
    """Prompt, negative prompt and the pairs of a `parameters` text, whoever wrote it."""
    lines = text.strip().split("\n")
    labels = {name for name, _ in PAIR.findall(lines[-1])}
    last = lines[-1] if labels & {"Steps", "Seed", "Version"} else ""
    prompt, _, negative = "\n".join(lines[:-1] if last else lines).partition("\nNegative prompt:")
    out = {"prompt": prompt.strip(), "negative": negative.strip()}
    for name, value in PAIR.findall(last):
        out[name] = json.loads(value) if value.startswith('"') else value.strip()
    return out
