"""What changes the guidance: third conditions, and settings that ComfyUI has on a model and we have on the sampler."""
from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from safelight.comfy.building import Building, Guider, Link, Words
from safelight.comfy.data import SAYS
from safelight.comfy.node import Given, Input, choice, integer, node, real, socket, text
from safelight.op import Knob, op
from safelight.values import Cond

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


def _told(model: Link, *changes: str) -> Link:
    """The model with changes for the sampler, after those it has."""
    before = dict(model.sampled)
    had = {c.partition("=")[0] for c in before.get("changes", ())}
    if twice := had & {c.partition("=")[0] for c in changes}:
        raise ValueError(f"this model has the change {min(twice)!r} already; a second node of this kind would replace the first")
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


def _weak(name: str, category: str, change: str, *inputs: Input, title: str = "", flags: Sequence[str] = (), **how: Any) -> None:
    """A weaker network and how far away from it; what is written {so} is the value of that input."""

    def make(b: Building, n: Given) -> Link:
        layers = [int(i) for i in re.findall(r"\d+", n.get("layers", n.get("double_layers", "")))]
        if how["how"] == "skipped" and not layers:
            return n["model"]  # type: ignore[no-any-return]
        told = {k: n.get(v, v) for k, v in how.items()} | ({"layers": layers} if layers else {})
        made = dataclasses.replace(b.add("with_weak", model=n["model"], **told), sampled=n["model"].sampled)
        return _told(made, *change.format(**n).split())

    node(name, category, [*MODEL, *inputs], "MODEL", title=title, flags=flags)(make)


SLG, LAYERS = "advanced/guidance", [text("double_layers", "7, 8, 9"), text("single_layers", "7, 8, 9")]
SPAN = [real("start_percent", 0.01, 0, 1, 0.001), real("end_percent", 0.15, 0, 1, 0.001)]
SKIP = "skip={scale} skip_from={start_percent} skip_to={end_percent}"
_weak("PerturbedAttentionGuidance", "model_patches/unet", "weak={scale}", real("scale", 3.0, 0, 100, digits=0.01), how="alone")
_weak("SelfAttentionGuidance", "_for_testing", "blur={scale}", real("scale", 0.5, -2, 5), real("blur_sigma", 2.0, 0, 10, 0.1),
      title="Self-Attention Guidance", flags=ODD, how="blurred", sigma="blur_sigma")
_weak("SkipLayerGuidanceSD3", SLG, SKIP, text("layers", "7, 8, 9"), real("scale", 3.0, 0, 10, 0.1), *SPAN, flags=ODD, how="skipped")
_weak("SkipLayerGuidanceDiT", SLG, SKIP + " skip_rescale={rescaling_scale}", *LAYERS, real("scale", 3.0, 0, 10, 0.1), *SPAN,
      real("rescaling_scale", 0.0, 0, 10), flags=ODD, how="skipped")
_weak("SkipLayerGuidanceDiTSimple", SLG, "", *LAYERS, real("start_percent", 0.0, 0, 1, 0.001), real("end_percent", 1.0, 0, 1, 0.001),
      flags=ODD, how="skipped", side="negative", start="start_percent", end="end_percent")


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
_change("CFGZeroStar", "advanced/guidance", "zero=1", "patched_model:MODEL")
_change("CFGNorm", "advanced/guidance", "norm={strength}", "patched_model:MODEL", real("strength", 1.0, 0, 100), flags=ODD)
_change("APG", "sampling/custom_sampling", "apg={eta} apg_norm={norm_threshold} apg_momentum={momentum}", "MODEL",
        real("eta", 1.0, -10, 10), real("norm_threshold", 5.0, 0, 50, 0.1), real("momentum", 0.0, -5, 1),
        title="Adaptive Projected Guidance")
_change("FreSca", "_for_testing", "high={scale_high} low={scale_low} cutoff={freq_cutoff}", "MODEL", real("scale_low", 1.0, 0, 10),
        real("scale_high", 1.25, 0, 10), integer("freq_cutoff", 20, 1, 10000), flags=ODD)


@node("LatentApplyOperationCFG", "latent/advanced/operations", [*MODEL, *socket("LATENT_OPERATION", "operation")], "MODEL", flags=ODD)
def operate(b: Building, n: Given) -> Any:
    """An operation done to the guidance at every step."""
    done, inputs = n["operation"].op, n["operation"].inputs
    told = ["tonemap={multiplier}"] if done == "tonemap_latent" else ["sharpen={amount}", "radius={radius}", "bell={sigma}"]
    return _told(n["model"], *[t.format(**inputs) for t in told])
