"""Pictures: from files, to files, and what is done with them on the way."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from safelight.comfy.building import Building
from safelight.comfy.data import SAYS, Clear, Later
from safelight.comfy.node import Given, Input, Places, choice, files, integer, node, pixels, real, seed, socket, switch, text
from safelight.folders import inside
from safelight.op import op
from safelight.values import Image, Mask

SCALINGS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
TURNS = ("none", "90 degrees", "180 degrees", "270 degrees")
MIRRORS = {"x-axis: vertically": "upside-down", "y-axis: horizontally": "left-right"}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MORPHS = ("erode", "dilate", "open", "close", "gradient", "bottom_hat", "top_hat")
MODES = ("ADD", "CLEAR", "DARKEN", "DST", "DST_ATOP", "DST_IN", "DST_OUT", "DST_OVER", "LIGHTEN", "MULTIPLY", "OVERLAY", "SCREEN", "SRC",
         "SRC_ATOP", "SRC_IN", "SRC_OUT", "SRC_OVER", "XOR")
SIDES = ("left", "top", "right", "bottom")
AT = [pixels("x", 0, 0, 1), pixels("y", 0, 0, 1)]
SIZE = [pixels("width", 512, 1, 1), pixels("height", 512, 1, 1)]
IMAGE = socket("IMAGE")
COLOUR = Input("color", "INT", 0, 0, 0xFFFFFF, 1, told={"display": "color"})


def _pictures(places: Places) -> list[str]:
    return sorted(p.name for p in places.input.glob("*") if p.suffix.lower() in SUFFIXES)


PICTURE = Input("image", "COMBO", options=_pictures, loose=True, told={"image_upload": True})
"""A file by name; names with sub-folders and ` [output]` behind them, which no list has, are taken too."""

WHERE = re.compile(r"^(.*?)\s*\[(input|output|temp)\]$")
CHANNELS = {"alpha": "transparency", "red": "red", "green": "green", "blue": "blue"}


def chosen(places: Places, name: str, what: str = "image") -> Path:
    """The path of an input or a result. ValueError when there is no such file, or its name leads out of the folder."""
    marked = WHERE.match(name)
    bare, folder = (marked[1], marked[2]) if marked else (name, "input")
    root = {"input": places.input, "output": places.output, "temp": places.output / "temp"}[folder]
    path = root / inside(bare, what)
    if not path.is_file():
        raise ValueError(f"{what}: Invalid {what} file: {name} is not in {root}")
    return path.absolute()


@node("LoadImage", "image", [PICTURE], "IMAGE", "MASK", title="Load Image")
def load(b: Building, n: Given) -> Any:
    """A picture without its transparency, and the transparency as a mask."""
    path = str(chosen(b.places, n["image"]))
    return b.add("load_image", path=path, raw=True), b.add("load_mask", part="mask", path=path, channel="transparency")


@node("LoadImageOutput", "image", [PICTURE], "IMAGE", "MASK", title="Load Image (from Outputs)")
def load_output(b: Building, n: Given) -> Any:
    """The same from the folder of results."""
    name = n["image"] if WHERE.match(n["image"]) else f"{n['image']} [output]"
    return load(b, {"image": name})


@node("LoadImageMask", "mask", [PICTURE, choice("channel", tuple(CHANNELS))], "MASK", title="Load Image (as Mask)")
def load_mask(b: Building, n: Given) -> Any:
    """One channel of a picture as a mask."""
    return b.add("load_mask", path=str(chosen(b.places, n["image"])), channel=CHANNELS[n["channel"]])


@node("SaveImage", "image", [*socket("IMAGE", "images"), text("filename_prefix", "ComfyUI")], title="Save Image", ends=True)
def save(b: Building, n: Given) -> Any:
    """Keep pictures."""
    b.save(n["images"], n["filename_prefix"])


@node("PreviewImage", "image", socket("IMAGE", "images"), title="Preview Image", ends=True)
def preview(b: Building, n: Given) -> Any:
    """Look at pictures."""
    b.save(n["images"], "ComfyUI_temp", kept=False)


@node("ImageScale", "image/upscaling",
      [*IMAGE, choice("upscale_method", SCALINGS), pixels("width", 512, 0, 1), pixels("height", 512, 0, 1),
       choice("crop", ("disabled", "center"))], "IMAGE", title="Upscale Image")
def scale(b: Building, n: Given) -> Any:
    """Pictures of another size."""
    size = {"width": n["width"], "height": n["height"]}
    return b.add("scale_image", image=n["image"], method=n["upscale_method"], crop=n["crop"] == "center", **size)


@node("ImageScaleBy", "image/upscaling", [*IMAGE, choice("upscale_method", SCALINGS), real("scale_by", 1.0, 0.01, 8)], "IMAGE",
      title="Upscale Image By")
def scale_by(b: Building, n: Given) -> Any:
    """Pictures so many times larger."""
    return b.add("scale_image", image=n["image"], method=n["upscale_method"], by=n["scale_by"])


@node("ImageScaleToTotalPixels", "image/upscaling", [*IMAGE, choice("upscale_method", SCALINGS), real("megapixels", 1.0, 0.01, 16)],
      "IMAGE")
def scale_to_total(b: Building, n: Given) -> Any:
    """Pictures of so many pixels."""
    return b.add("scale_image", image=n["image"], method=n["upscale_method"], megapixels=n["megapixels"])


@node("ImageScaleToMaxDimension", "image/upscaling",
      [*IMAGE, choice("upscale_method", ("area", "lanczos", "bilinear", "nearest-exact", "bicubic")), pixels("largest_size", 512, 0, 1)],
      "IMAGE")
def scale_longest(b: Building, n: Given) -> Any:
    """Pictures whose longer side has so many pixels."""
    return b.add("scale_image", image=n["image"], method=n["upscale_method"], longest=n["largest_size"])


@node("UpscaleModelLoader", "loaders", [choice("model_name", files("upscale_models"))], "UPSCALE_MODEL", title="Load Upscale Model")
def upscaler(b: Building, n: Given) -> Any:
    """A network that makes pictures larger."""
    return b.places.find("upscale_models", n["model_name"])


@node("ImageUpscaleWithModel", "image/upscaling", [*socket("UPSCALE_MODEL", "upscale_model"), *IMAGE], "IMAGE",
      title="Upscale Image (using Model)")
def upscale(b: Building, n: Given) -> Any:
    """Pictures made larger by a network."""
    return b.add("upscale_image", image=n["image"], network=n["upscale_model"])


@node("ImageCrop", "image/transform", [*IMAGE, *SIZE, *AT], "IMAGE", title="Image Crop")
def crop(b: Building, n: Given) -> Any:
    """A part of pictures."""
    return b.add("crop_image", image=n["image"], **{name: n[name] for name in ("width", "height", "x", "y")})


@node("ImageRotate", "image/transform", [*IMAGE, choice("rotation", TURNS)], "IMAGE")
def rotate(b: Building, n: Given) -> Any:
    """Pictures turned."""
    return b.add("turn_image", image=n["image"], degrees=90 * TURNS.index(n["rotation"]))


@node("ImageFlip", "image/transform", [*IMAGE, choice("flip_method", tuple(MIRRORS))], "IMAGE")
def flip(b: Building, n: Given) -> Any:
    """Pictures mirrored."""
    return b.add("turn_image", image=n["image"], mirror=MIRRORS[n["flip_method"]])


@node("ImageInvert", "image", IMAGE, "IMAGE", title="Invert Image")
def invert(b: Building, n: Given) -> Any:
    """Black for white."""
    return b.add("invert_image", image=n["image"])


@node("ImageBatch", "image", socket("IMAGE", "image1", "image2"), "IMAGE", title="Batch Images")
def batch(b: Building, n: Given) -> Any:
    """Two batches as one."""
    return b.add("join_images", images=[n["image1"], n["image2"]])


@node("ImageFromBatch", "image/batch", [*IMAGE, integer("batch_index", 0, 0, 4095), integer("length", 1, 1, 4096)], "IMAGE")
def from_batch(b: Building, n: Given) -> Any:
    """Some pictures of a batch."""
    return b.add("pick", image=n["image"], indices=list(range(n["batch_index"], n["batch_index"] + n["length"])))


@node("ImagePadForOutpaint", "image", [*IMAGE, *[pixels(side, 0, 0) for side in SIDES], pixels("feathering", 40, 0, 1)], "IMAGE", "MASK",
      title="Pad Image for Outpainting")
def pad(b: Building, n: Given) -> Any:
    """Room around pictures, and the mask for it."""
    sides = {side: n[side] for side in SIDES}
    picture = b.add("pad_image", image=n["image"], **sides)
    return picture, b.add("pad_mask", part="mask", image=n["image"], feather=n["feathering"], **sides)


@node("EmptyImage", "image", [*SIZE, integer("batch_size", 1, 1, 4096), COLOUR], "IMAGE")
def empty(b: Building, n: Given) -> Any:
    """Pictures of one colour."""
    return b.add("empty_image", width=n["width"], height=n["height"], count=n["batch_size"], colour=n["color"])


@node("ImageCompositeMasked", "image",
      [*socket("IMAGE", "destination", "source"), *AT, switch("resize_source", False), *socket("MASK", optional=True)], "IMAGE")
def composite(b: Building, n: Given) -> Any:
    """A picture laid on another."""
    return b.add("paste_image", image=n["destination"], over=n["source"], x=n["x"], y=n["y"], mask=n.get("mask"), fit=n["resize_source"])


@node("ImageBlur", "image/postprocessing", [*IMAGE, integer("blur_radius", 1, 1, 31), real("sigma", 1.0, 0.1, 10, 0.1)], "IMAGE")
def blur(b: Building, n: Given) -> Any:
    """Pictures blurred."""
    return b.add("blur_image", image=n["image"], radius=n["blur_radius"], sigma=n["sigma"])


@node("ImageSharpen", "image/postprocessing",
      [*IMAGE, integer("sharpen_radius", 1, 1, 31), real("sigma", 1.0, 0.1, 10), real("alpha", 1.0, 0, 5)], "IMAGE")
def sharpen(b: Building, n: Given) -> Any:
    """Pictures sharpened."""
    return b.add("sharpen_image", image=n["image"], radius=n["sharpen_radius"], sigma=n["sigma"], amount=n["alpha"])


@node("ImageBlend", "image/postprocessing",
      [*socket("IMAGE", "image1", "image2"), real("blend_factor", 0.5, 0, 1),
       choice("blend_mode", ("normal", "multiply", "screen", "overlay", "soft_light", "difference"))], "IMAGE")
def blend(b: Building, n: Given) -> Any:
    """Two pictures blended."""
    return b.add("blend_images", image=n["image1"], other=n["image2"], amount=n["blend_factor"], how=n["blend_mode"])


@node("ImageQuantize", "image/postprocessing",
      [*IMAGE, integer("colors", 256, 1, 256), choice("dither", ("none", "floyd-steinberg", "bayer-2", "bayer-4", "bayer-8", "bayer-16"))],
      "IMAGE")
def quantize(b: Building, n: Given) -> Any:
    """Pictures in few colours."""
    return b.add("quantize_image", image=n["image"], colours=n["colors"], dither=n["dither"])


@node("RepeatImageBatch", "image/batch", [*IMAGE, integer("amount", 1, 1, 4096)], "IMAGE")
def repeat(b: Building, n: Given) -> Any:
    """A batch several times."""
    return b.add("join_images", images=[n["image"]] * n["amount"])


@node("ImageAddNoise", "image", [*IMAGE, seed(), real("strength", 0.5, 0, 1)], "IMAGE")
def grain(b: Building, n: Given) -> Any:
    """Noise on pictures."""
    return b.add("add_grain", image=n["image"], seed=n["seed"], strength=n["strength"])


@node("ImageStitch", "image/transform",
      [*socket("IMAGE", "image1"), choice("direction", ("right", "down", "left", "up"), "right"), switch("match_image_size", True),
       integer("spacing_width", 0, 0, 1024, 2), choice("spacing_color", ("white", "black", "red", "green", "blue"), "white"),
       *socket("IMAGE", "image2", optional=True)], "IMAGE", title="Image Stitch")
def stitch(b: Building, n: Given) -> Any:
    """Two pictures side by side."""
    if n.get("image2") is None:
        return n["image1"]
    return b.add("stitch_images", image=n["image1"], other=n["image2"], side=n["direction"], fit=n["match_image_size"],
                 gap=n["spacing_width"], colour=n["spacing_color"])


@node("ResizeAndPadImage", "image/transform",
      [*IMAGE, pixels("target_width", 512, 1, 1), pixels("target_height", 512, 1, 1), choice("padding_color", ("white", "black")),
       choice("interpolation", ("area", "bicubic", "nearest-exact", "bilinear", "lanczos"))], "IMAGE")
def frame(b: Building, n: Given) -> Any:
    """Pictures scaled into a frame."""
    return b.add("frame_image", image=n["image"], width=n["target_width"], height=n["target_height"], colour=n["padding_color"],
                 method=n["interpolation"])


@node("GetImageSize", "image", IMAGE, "width:INT", "height:INT", "batch_size:INT", title="Get Image Size")
def size(b: Building, n: Given) -> Any:
    """A batch's width, height and length."""
    told = b.add("image_size", image=n["image"])
    return Later(told.id, 0), Later(told.id, 1), Later(told.id, 2)


@node("RebatchImages", "image/batch", [*socket("IMAGE", "images"), integer("batch_size", 1, 1, 4096)], "IMAGE", title="Rebatch Images",
      flags=["lists"])
def rebatch(b: Building, n: Given) -> Any:
    """The same pictures: every node here cuts its batches to what fits by itself."""
    return n["images"]


@node("Canny", "image/preprocessors", [*IMAGE, real("low_threshold", 0.4, 0.01, 0.99), real("high_threshold", 0.8, 0.01, 0.99)], "IMAGE")
def canny(b: Building, n: Given) -> Any:
    """Edges, white on black."""
    return b.add("hint", image=n["image"], by="canny", low=n["low_threshold"], high=n["high_threshold"])


@node("Morphology", "image/postprocessing", [*IMAGE, choice("operation", MORPHS), integer("kernel_size", 3, 3, 999)], "IMAGE",
      title="ImageMorphology")
def morph(b: Building, n: Given) -> Any:
    """Dark or bright places grown."""
    return b.add("morph_image", image=n["image"], how=n["operation"], size=n["kernel_size"])


@node("PorterDuffImageComposite", "mask/compositing",
      [*socket("IMAGE", "source"), *socket("MASK", "source_alpha"), *socket("IMAGE", "destination"), *socket("MASK", "destination_alpha"),
       choice("mode", MODES, "DST")], "IMAGE", "MASK", title="Porter-Duff Image Composite")
def compose(b: Building, n: Given) -> Any:
    """Two pictures with transparency put together."""
    layers = {"image": n["destination"], "mask": n["destination_alpha"], "over": n["source"], "over_mask": n["source_alpha"]}
    return b.add("compose_images", how=n["mode"], **layers), b.add("compose_masks", part="mask", how=n["mode"], **layers)


@op(group="image", registry=SAYS, version=1, exact=True)
def join_clear(image: Image, mask: Mask) -> Image:
    """Give as many pictures as there are of both a transparency: 1 where they are clear, scaled to them."""
    from safelight.sampling.resize import plane, scaled

    n, (high, wide) = min(len(image), len(mask.values)), image.pixels.shape[1:3]
    return Clear(image.pixels[:n], image.info[:n], scaled(plane(mask)[:n], wide, high)[:, 0].numpy())


@op(group="mask", registry=SAYS, version=1, exact=True)
def clear_of(image: Image) -> Mask:
    """Where pictures are clear: nowhere, if no transparency was joined to them."""
    return Mask(image.clear if isinstance(image, Clear) else image.pixels[..., 0] * 0)


@op(group="image", registry=SAYS, version=1)
def yuv_of(image: Image, *, part: Literal["Y", "U", "V"] = "Y") -> Image:
    """Brightness (Y), or how blue (U) or red (V) pictures are, 0.5 being neither, as grey: BT.601 over the full range."""
    red, green, blue = (image.pixels[..., i, None] for i in range(3))
    bright = 0.299 * red + 0.587 * green + 0.114 * blue
    return Image({"Y": bright, "U": (blue - bright) * 0.564 + 0.5, "V": (red - bright) * 0.713 + 0.5}[part].repeat(3, axis=-1))


@op(group="image", registry=SAYS, version=1)
def of_yuv(image: Image, blueness: Image, *, redness: Image) -> Image:
    """The way back, of the means of three pictures' colours; what leaves 0 to 1 is cut. ValueError for sizes that differ."""
    import numpy as np

    y, u, v = (p.pixels.mean(axis=-1) - middle for p, middle in ((image, 0), (blueness, 0.5), (redness, 0.5)))
    if not y.shape == u.shape == v.shape:
        raise ValueError(f"Y, U, V: got {y.shape}, {u.shape} and {v.shape}; expected as many pictures of one size")
    return Image(np.stack([y + 1.403 * v, y - 0.714 * v - 0.344 * u, y + 1.773 * u], axis=-1).clip(0, 1))


@node("JoinImageWithAlpha", "mask/compositing", [*IMAGE, *socket("MASK", "alpha")], "IMAGE", title="Join Image with Alpha")
def join(b: Building, n: Given) -> Any:
    """Pictures with a transparency, for SaveImage and SplitImageWithAlpha; other nodes see the colours alone."""
    return b.add("join_clear", image=n["image"], mask=n["alpha"])


@node("SplitImageWithAlpha", "mask/compositing", IMAGE, "IMAGE", "MASK", title="Split Image with Alpha")
def split(b: Building, n: Given) -> Any:
    """The colours, and where the pictures are clear: LoadImage gives none, its MASK is that."""
    return b.add("join_images", images=[n["image"]]), b.add("clear_of", part="mask", image=n["image"])


@node("ImageRGBToYUV", "image/batch", IMAGE, *(f"{part}:IMAGE" for part in "YUV"))
def to_yuv(b: Building, n: Given) -> Any:
    """Brightness and colour apart."""
    return tuple(b.add("yuv_of", part=part, more={"part": part}, image=n["image"]) for part in "YUV")


@node("ImageYUVToRGB", "image/batch", socket("IMAGE", *"YUV"), "IMAGE")
def from_yuv(b: Building, n: Given) -> Any:
    """Brightness and colour together."""
    return b.add("of_yuv", image=n["Y"], blueness=n["U"], redness=n["V"])
