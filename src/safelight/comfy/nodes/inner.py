"""What ComfyUI changes inside a network without weights."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safelight.comfy.building import Building, Clip
from safelight.comfy.node import Given, Input, choice, integer, node, real, socket, switch

UNET, TEST = "model_patches/unet", "_for_testing/attention_experiments"
SCALINGS = ("bicubic", "nearest-exact", "bilinear", "area", "bislerp")
FOUR = [real(part, 1.0, 0, 10) for part in ("q", "k", "v", "out")]


def _tweak(
    name: str, category: str, inputs: list[Input], names: Mapping[str, str], how: str = "scaled", *, where: str = "", title: str = "",
) -> None:
    """A node that is our `with_tweak`; `names` are those of our settings by its own."""
    text = where == "text"

    def make(b: Building, n: Given) -> Any:
        told = [f"{ours}={int(n[i]) if isinstance(n[i], bool) else n[i]}" for i, ours in names.items()] + [f"where={where}"] * bool(where)
        made = b.add("with_tweak", model=n["clip"].model if text else n["model"], how=how, options=told)
        return Clip(made, n["clip"].last) if text else made

    kind = "CLIP" if text else "MODEL"
    node(name, category, [*socket(kind), *inputs], kind, title=title, flags=["experimental"] * bool(where))(make)


for _name, _where in (("UNetSelfAttentionMultiply", "self"), ("UNetCrossAttentionMultiply", "cross"), ("CLIPAttentionMultiply", "text")):
    _tweak(_name, TEST, FOUR, {i.name: i.name for i in FOUR}, where=_where)
_tweak("HyperTile", UNET, [integer("tile_size", 256, 1, 2048), integer("swap_size", 2, 1, 128), integer("max_depth", 0, 0, 10),
                           switch("scale_depth", False)],
       {"tile_size": "tile", "swap_size": "swap", "max_depth": "depth", "scale_depth": "grow"}, "tiled")
_tweak("TomePatchModel", UNET, [real("ratio", 0.3, 0, 1)], {"ratio": "ratio"}, "merged")
_tweak("PatchModelAddDownscale", UNET,
       [integer("block_number", 3, 1, 32), real("downscale_factor", 2.0, 0.1, 9, 0.001), real("start_percent", 0.0, 0, 1, 0.001),
        real("end_percent", 0.35, 0, 1, 0.001), switch("downscale_after_skip", True), choice("downscale_method", SCALINGS),
        choice("upscale_method", SCALINGS)],
       {"block_number": "block", "downscale_factor": "factor", "start_percent": "start", "end_percent": "end",
        "downscale_after_skip": "after", "downscale_method": "down", "upscale_method": "up"}, "shrunk",
       title="PatchModelAddDownscale (Kohya Deep Shrink)")


@node("UNetTemporalAttentionMultiply", TEST,
      [*socket("MODEL"), *[real(f"{kind}_{way}", 1.0, 0, 10) for kind in ("self", "cross") for way in ("structural", "temporal")]], "MODEL",
      flags=["experimental"])
def structural(b: Building, n: Given) -> Any:
    """What a picture's places say to each other; along time there is nothing in a network of pictures."""
    model = n["model"]
    for kind in ("self", "cross"):
        told = [f"where={kind}", f"out={n[f'{kind}_structural']}"]
        model = b.add("with_tweak", part="" if kind == "cross" else kind, model=model, how="scaled", options=told)
    return model
