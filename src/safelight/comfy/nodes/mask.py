"""Masks."""
from __future__ import annotations

from typing import Any

from safelight.comfy.building import Building
from safelight.comfy.node import Given, choice, integer, node, pixels, real, socket, switch
from safelight.comfy.nodes.image import COLOUR

MASK = socket("MASK")
AT = [pixels("x", 0, 0, 1), pixels("y", 0, 0, 1)]
SIZE = [pixels("width", 512, 1, 1), pixels("height", 512, 1, 1)]
SIDES = ("left", "top", "right", "bottom")


@node("SolidMask", "mask", [real("value", 1.0, 0, 1), *SIZE], "MASK")
def solid(b: Building, n: Given) -> Any:
    """One value everywhere."""
    return b.add("solid_mask", value=n["value"], width=n["width"], height=n["height"])


@node("MaskToImage", "mask", MASK, "IMAGE", title="Convert Mask to Image")
def to_image(b: Building, n: Given) -> Any:
    """A grey picture."""
    return b.add("image_of", mask=n["mask"])


@node("ImageToMask", "mask", [*socket("IMAGE"), choice("channel", ("red", "green", "blue", "alpha"))], "MASK",
      title="Convert Image to Mask")
def of_image(b: Building, n: Given) -> Any:
    """One colour of a picture."""
    if n["channel"] == "alpha":
        raise ValueError("channel: pictures have no alpha once they are loaded; take LoadImage's MASK, or LoadImageMask")
    return b.add("mask_of", image=n["image"], channel=n["channel"])


@node("ImageColorToMask", "mask", [*socket("IMAGE"), COLOUR], "MASK")
def of_colour(b: Building, n: Given) -> Any:
    """Where a picture has a colour."""
    return b.add("mask_of", image=n["image"], channel="colour", colour=n["color"])


@node("InvertMask", "mask", MASK, "MASK")
def invert(b: Building, n: Given) -> Any:
    """1 for 0."""
    return b.add("invert_mask", mask=n["mask"])


@node("CropMask", "mask", [*MASK, *AT, *SIZE], "MASK")
def crop(b: Building, n: Given) -> Any:
    """A part of a mask."""
    return b.add("crop_mask", mask=n["mask"], **{name: n[name] for name in ("x", "y", "width", "height")})


@node("MaskComposite", "mask",
      [*socket("MASK", "destination", "source"), *AT, choice("operation", ("multiply", "add", "subtract", "and", "or", "xor"))], "MASK")
def composite(b: Building, n: Given) -> Any:
    """Two masks put together."""
    return b.add("combine_masks", mask=n["destination"], other=n["source"], how=n["operation"], x=n["x"], y=n["y"])


@node("FeatherMask", "mask", [*MASK, *[pixels(side, 0, 0, 1) for side in SIDES]], "MASK")
def feather(b: Building, n: Given) -> Any:
    """A mask that fades out."""
    return b.add("feather_mask", mask=n["mask"], wrapped=True, **{side: n[side] for side in SIDES})


@node("GrowMask", "mask", [*MASK, integer("expand", 0, -16384, 16384), switch("tapered_corners", True)], "MASK")
def grow(b: Building, n: Given) -> Any:
    """A larger mask, or a smaller one."""
    return b.add("grow_mask", mask=n["mask"], by=n["expand"], tapered=n["tapered_corners"])


@node("ThresholdMask", "mask", [*MASK, real("value", 0.5, 0, 1)], "MASK")
def threshold(b: Building, n: Given) -> Any:
    """1 above a value."""
    return b.add("threshold_mask", mask=n["mask"], value=n["value"])


@node("MaskPreview", "mask", MASK, ends=True)
def preview(b: Building, n: Given) -> Any:
    """Look at a mask."""
    b.save(b.add("image_of", mask=n["mask"]), "ComfyUI_temp", kept=False)
