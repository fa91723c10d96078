"""What ComfyUI changes inside a network without weights."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from safelight.comfy.building import Building, Clip
from safelight.comfy.node import Given, Input, choice, integer, node, pixels, real, socket, switch

FOUR = ("q", "k", "v", "out")


def _tweak(name: str, inputs: list[Input], *steps: tuple[str, Mapping[str, str]], how: str = "scaled", title: str = "") -> None:
    """A node that is our `with_tweak`, once a step: a fixed setting, and by its own names the names of ours."""
    test, kind = how == "scaled", "CLIP" if name.startswith("CLIP") else "MODEL"

    def make(b: Building, n: Given) -> Any:
        made = n["clip"].model if kind == "CLIP" else n["model"]
        for i, (fixed, names) in enumerate(steps):
            told = [f"{ours}={int(n[i]) if isinstance(n[i], bool) else n[i]}" for i, ours in names.items()]
            made = b.add("with_tweak", part=str(i or ""), model=made, how=how, options=told + [fixed] * bool(fixed))
        return Clip(made, n["clip"].last) if kind == "CLIP" else made

    node(name, "_for_testing/attention_experiments" if test else "model_patches/unet", [*socket(kind), *inputs], kind,
         title=title, flags=["experimental"] * test)(make)


for _name, _where in (("UNetSelfAttentionMultiply", "self"), ("UNetCrossAttentionMultiply", "cross"), ("CLIPAttentionMultiply", "text")):
    _tweak(_name, [real(part, 1.0, 0, 10) for part in FOUR], (f"where={_where}", dict(zip(FOUR, FOUR, strict=True))))
_tweak("UNetTemporalAttentionMultiply", [real(f"{a}_{way}", 1.0, 0, 10) for a in ("self", "cross") for way in ("structural", "temporal")],
       *[(f"where={a}", {f"{a}_structural": "out"}) for a in ("self", "cross")])
_tweak("HyperTile",
       [integer("tile_size", 256, 1, 2048), integer("swap_size", 2, 1, 128), integer("max_depth", 0, 0, 10), switch("scale_depth", False)],
       ("", {"tile_size": "tile", "swap_size": "swap", "max_depth": "depth", "scale_depth": "grow"}), how="tiled")
_tweak("TomePatchModel", [real("ratio", 0.3, 0, 1)], ("", {"ratio": "ratio"}), how="merged")


def _taught(name: str, inputs: list[Input], told: Callable[[Given], Mapping[str, Any]]) -> None:
    """Noise levels; the network is told of a flow's as SD 3 was taught, whatever the node is called."""
    node(name, "advanced/model", [*socket("MODEL"), *inputs], "MODEL")(lambda b, n: b.taught(n["model"], **told(n)))


for _name, _usual in (("ModelSamplingSD3", 3.0), ("ModelSamplingAuraFlow", 1.73)):
    _taught(_name, [real("shift", _usual, 0, 100)], lambda n: {"shift": n["shift"]})
_taught("ModelSamplingFlux",
        [real("max_shift", 1.15, 0, 100), real("base_shift", 0.5, 0, 100), pixels("width", 1024), pixels("height", 1024)],
        lambda n: {"shift": math.exp(n["base_shift"] + (n["max_shift"] - n["base_shift"]) * (n["width"] * n["height"] / 256 - 256) / 3840)})


def _continuous(name: str, words: Mapping[str, str], high: float, low: float) -> None:
    """Levels without steps; `words`: ours for what the network predicts, "" where there is none."""

    def told(n: Given) -> Mapping[str, Any]:
        if not words[n["sampling"]]:
            raise ValueError(f"sampling: {n['sampling']} is not here: Playground's latents have units of their own, and Cosmos is not read")
        return {"prediction": words[n["sampling"]], "sigma_max": n["sigma_max"], "sigma_min": n["sigma_min"]}

    ends = [real(f"sigma_{end}", usual, 0, 1000, 0.001, digits=False) for end, usual in (("max", high), ("min", low))]
    _taught(name, [choice("sampling", tuple(words)), *ends], told)


_continuous("ModelSamplingContinuousEDM",
            {"v_prediction": "edm-v", "edm": "edm", "edm_playground_v2.5": "", "eps": "edm-eps", "cosmos_rflow": ""}, 120.0, 0.002)
_continuous("ModelSamplingContinuousV", {"v_prediction": "angle-v"}, 500.0, 0.03)
