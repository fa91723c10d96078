"""What changes the guidance: third conditions, and settings that ComfyUI has on a model and we have on the sampler."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from safelight.comfy.building import Building, Guider, Link, Words
from safelight.comfy.data import SAYS
from safelight.comfy.node import Given, Input, choice, node, real, socket
from safelight.op import Knob, op
from safelight.values import NO_FILE, Cond, Model, Patch

MODEL = socket("MODEL")
AT = "sampling/custom_sampling/guiders"
ODD = ["experimental"]


@op(group="text", registry=SAYS, version=1)
def guide_by(
    cond: Cond, other: Cond, *, how: Literal["dual", "nested", "perp"] = "dual", scale: Annotated[float, Knob(0, 100, step=0.1)] = 8.0,
) -> Cond:
    """Give a prompt a third condition for the guidance, beside the negative prompt."""
    third = dataclasses.replace(other.parts[0], region=dataclasses.replace(other.region, guide=f"{how}={scale}"))
    return dataclasses.replace(cond, others=(*cond.others, third))


@op(group="model", registry=SAYS, store=False)
def with_weak(model: Model) -> Model:
    """Let a U-Net be asked in a weaker form too, in which each place of its middle attends to itself alone (PAG, arXiv:2403.17377)."""
    return model.with_patch(Patch("weak", NO_FILE))


def _told(model: Link, *changes: str) -> Link:
    """The model with changes for the sampler, after those it has."""
    before = dict(model.sampled)
    return dataclasses.replace(model, sampled=tuple((before | {"changes": (*before.get("changes", ()), *changes)}).items()))


def _third(b: Building, positive: Words, other: Words, **how: Any) -> Words:
    if other.steers:
        raise ValueError("the condition between prompt and negative prompt carries a ControlNet; put it on the others")
    return dataclasses.replace(positive, cond=b.add("guide_by", cond=positive.cond, other=other.cond, **how))


@node("DualCFGGuider", AT,
      [*MODEL, *socket("CONDITIONING", "cond1", "cond2", "negative"), real("cfg_conds", 8.0, 0, 100, 0.1, digits=0.01),
       real("cfg_cond2_negative", 8.0, 0, 100, 0.1, digits=0.01), choice("style", ("regular", "nested"))], "GUIDER")
def dual(b: Building, n: Given) -> Any:
    """From the negative prompt to a second prompt, and from that to the first."""
    how = "nested" if n["style"] == "nested" else "dual"
    return Guider(n["model"], _third(b, n["cond1"], n["cond2"], how=how, scale=n["cfg_cond2_negative"]), n["negative"], n["cfg_conds"])


@node("PerpNegGuider", "_for_testing",
      [*MODEL, *socket("CONDITIONING", "positive", "negative", "empty_conditioning"), real("cfg", 8.0, 0, 100, 0.1, digits=0.01),
       real("neg_scale", 1.0, 0, 100)], "GUIDER", flags=ODD)
def perp(b: Building, n: Given) -> Any:
    """Of the negative prompt only what does not contradict the prompt."""
    wanted = _third(b, n["positive"], n["empty_conditioning"], how="perp", scale=n["neg_scale"])
    return Guider(n["model"], wanted, n["negative"], n["cfg"])


@node("PerturbedAttentionGuidance", "model_patches/unet", [*MODEL, real("scale", 3.0, 0, 100, digits=0.01)], "MODEL")
def pag(b: Building, n: Given) -> Any:
    """Away from what the network says when its middle does not look around."""
    return _told(dataclasses.replace(b.add("with_weak", model=n["model"]), sampled=n["model"].sampled), f"weak={n['scale']}")


@node("DifferentialDiffusion", "_for_testing", [*MODEL, real("strength", 1.0, 0, 1, optional=True)], "MODEL", flags=ODD,
      title="Differential Diffusion")
def differential(b: Building, n: Given) -> Any:
    """A soft mask says when a place is let go."""
    return _told(n["model"], f"differential={n.get('strength', 1.0) or 1.0}")


def _change(name: str, category: str, change: str, output: str, *inputs: Input, title: str = "", flags: Sequence[str] = ()) -> None:
    node(name, category, [*MODEL, *inputs], output, title=title, flags=flags)(lambda b, n: _told(n["model"], *change.format(**n).split()))


_change("RenormCFG", "advanced/model", "renorm={renorm_cfg} until={cfg_trunc}", "MODEL", real("cfg_trunc", 100, 0, 100),
        real("renorm_cfg", 1.0, 0, 100))
_change("TCFG", "advanced/guidance", "tangent=1", "patched_model:MODEL", title="Tangential Damping CFG")
_change("Mahiro", "_for_testing", "lean=1", "patched_model:MODEL", flags=ODD,
        title="Mahiro is so cute that she deserves a better guidance function!! (。・ω・。)")
_change("Epsilon Scaling", "model_patches/unet", "eps={scaling_factor}", "MODEL",
        dataclasses.replace(real("scaling_factor", 1.005, 0.5, 1.5, 0.001), told={"display": "number"}))
