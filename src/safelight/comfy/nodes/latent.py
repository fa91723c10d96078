"""Latents: empty, from and to pictures, scaled, cut, put together."""
from __future__ import annotations

from typing import Any

from safelight.comfy.building import Building, Change
from safelight.comfy.node import Given, choice, integer, node, pixels, real, socket, switch

SCALINGS = ("nearest-exact", "bilinear", "area", "bicubic", "bislerp")
SAMPLES = socket("LATENT", "samples")
TWO = socket("LATENT", "samples1", "samples2")
TURNS = ("none", "90 degrees", "180 degrees", "270 degrees")
MIRRORS = {"x-axis: vertically": "upside-down", "y-axis: horizontally": "left-right"}
AT = [pixels("x", 0, 0), pixels("y", 0, 0)]
SIZE = [pixels("width"), pixels("height")]
TILES = [integer("temporal_size", 64, 8, 4096, 4), integer("temporal_overlap", 8, 4, 4096, 4)]


@node("EmptyLatentImage", "latent", [*SIZE, integer("batch_size", 1, 1, 4096)], "LATENT", title="Empty Latent Image")
def empty(b: Building, n: Given) -> Any:
    """Latents to draw in."""
    return b.add("empty_latent", width=n["width"], height=n["height"], count=n["batch_size"])


@node("EmptySD3LatentImage", "latent/sd3",
      [pixels("width", 1024, 16, 16), pixels("height", 1024, 16, 16), integer("batch_size", 1, 1, 4096)], "LATENT")
def empty_sd3(b: Building, n: Given) -> Any:
    """The same; the sampler gives it its channels."""
    return empty(b, n)


@node("VAEDecode", "latent", [*SAMPLES, *socket("VAE")], "IMAGE", title="VAE Decode")
def decode(b: Building, n: Given) -> Any:
    """Pictures of latents."""
    return b.add("decode", model=n["vae"], latent=n["samples"])


@node("VAEEncode", "latent", [*socket("IMAGE", "pixels"), *socket("VAE")], "LATENT", title="VAE Encode")
def encode(b: Building, n: Given) -> Any:
    """Latents of pictures."""
    return b.add("encode", model=n["vae"], image=n["pixels"])


def _tile(n: Given) -> dict[str, Any]:
    """A tile's overlap is at most a quarter of it."""
    size = n["tile_size"]
    return {"tile": size, "overlap": size // 4 if size < n["overlap"] * 4 else n["overlap"]}


@node("VAEDecodeTiled", "_for_testing",
      [*SAMPLES, *socket("VAE"), integer("tile_size", 512, 64, 4096, 32), integer("overlap", 64, 0, 4096, 32), *TILES], "IMAGE",
      title="VAE Decode (Tiled)")
def decode_tiled(b: Building, n: Given) -> Any:
    """Pictures of latents, tile by tile."""
    return b.add("decode", model=n["vae"], latent=n["samples"], **_tile(n))


@node("VAEEncodeTiled", "_for_testing",
      [*socket("IMAGE", "pixels"), *socket("VAE"), integer("tile_size", 512, 64, 4096, 64), integer("overlap", 64, 0, 4096, 32), *TILES],
      "LATENT", title="VAE Encode (Tiled)")
def encode_tiled(b: Building, n: Given) -> Any:
    """Latents of pictures, tile by tile."""
    return b.add("encode", model=n["vae"], image=n["pixels"], tile=n["tile_size"], overlap=n["overlap"])


@node("VAEEncodeForInpaint", "latent/inpaint",
      [*socket("IMAGE", "pixels"), *socket("VAE"), *socket("MASK"), integer("grow_mask_by", 6, 0, 64)], "LATENT",
      title="VAE Encode (for Inpainting)")
def encode_inpaint(b: Building, n: Given) -> Any:
    """Latents of pictures with a hole."""
    return b.add("encode_inpaint", model=n["vae"], image=n["pixels"], mask=n["mask"], grow=n["grow_mask_by"])


@node("SetLatentNoiseMask", "latent/inpaint", [*SAMPLES, *socket("MASK")], "LATENT", title="Set Latent Noise Mask")
def noise_mask(b: Building, n: Given) -> Any:
    """Where a latent may change."""
    return b.add("set_noise_mask", latent=n["samples"], mask=n["mask"])


@node("LatentUpscale", "latent",
      [*SAMPLES, choice("upscale_method", SCALINGS), pixels("width", 512, 0), pixels("height", 512, 0),
       choice("crop", ("disabled", "center"))], "LATENT", title="Upscale Latent")
def upscale(b: Building, n: Given) -> Any:
    """A latent of another size."""
    if n["width"] == n["height"] == 0:
        return n["samples"]
    size = {"width": n["width"], "height": n["height"]}
    return b.add("scale_latent", latent=n["samples"], method=n["upscale_method"], crop=n["crop"] == "center", **size)


@node("LatentUpscaleBy", "latent", [*SAMPLES, choice("upscale_method", SCALINGS), real("scale_by", 1.5, 0.01, 8)], "LATENT",
      title="Upscale Latent By")
def upscale_by(b: Building, n: Given) -> Any:
    """A latent so many times larger."""
    return b.add("scale_latent", latent=n["samples"], method=n["upscale_method"], by=n["scale_by"])


@node("LatentFromBatch", "latent/batch", [*SAMPLES, integer("batch_index", 0, 0, 63), integer("length", 1, 1, 64)], "LATENT",
      title="Latent From Batch")
def from_batch(b: Building, n: Given) -> Any:
    """Some latents of a batch, with their noise."""
    return b.add("pick_latents", latent=n["samples"], start=n["batch_index"], count=n["length"])


@node("RepeatLatentBatch", "latent/batch", [*SAMPLES, integer("amount", 1, 1, 64)], "LATENT", title="Repeat Latent Batch")
def repeat(b: Building, n: Given) -> Any:
    """A batch several times."""
    return b.add("repeat_latents", latent=n["samples"], count=n["amount"])


@node("LatentBatch", "latent/batch", TWO, "LATENT")
def batch(b: Building, n: Given) -> Any:
    """Two batches as one."""
    return b.add("join_latents", latents=[n["samples1"], n["samples2"]])


@node("LatentBatchSeedBehavior", "latent/advanced", [*SAMPLES, choice("seed_behavior", ("random", "fixed"), "fixed")], "LATENT")
def seed_behaviour(b: Building, n: Given) -> Any:
    """The same noise for all of a batch, or each its own."""
    return b.add("repeat_latents", latent=n["samples"], noise="same" if n["seed_behavior"] == "fixed" else "new")


@node("LatentRotate", "latent/transform", [*SAMPLES, choice("rotation", TURNS)], "LATENT", title="Rotate Latent")
def rotate(b: Building, n: Given) -> Any:
    """A latent turned."""
    return b.add("turn_latent", latent=n["samples"], degrees=90 * TURNS.index(n["rotation"]))


@node("LatentFlip", "latent/transform", [*SAMPLES, choice("flip_method", tuple(MIRRORS))], "LATENT", title="Flip Latent")
def flip(b: Building, n: Given) -> Any:
    """A latent mirrored."""
    return b.add("turn_latent", latent=n["samples"], mirror=MIRRORS[n["flip_method"]])


@node("LatentCrop", "latent/transform", [*SAMPLES, pixels("width", 512, 64), pixels("height", 512, 64), *AT], "LATENT", title="Crop Latent")
def crop(b: Building, n: Given) -> Any:
    """A part of a latent."""
    return b.add("crop_latent", latent=n["samples"], **{name: n[name] for name in ("width", "height", "x", "y")})


@node("LatentComposite", "latent", [*socket("LATENT", "samples_to", "samples_from"), *AT, pixels("feather", 0, 0)], "LATENT",
      title="Latent Composite")
def composite(b: Building, n: Given) -> Any:
    """A latent laid on another."""
    return b.add("paste_latent", latent=n["samples_to"], over=n["samples_from"], x=n["x"], y=n["y"], feather=n["feather"])


@node("LatentCompositeMasked", "latent",
      [*socket("LATENT", "destination", "source"), *AT, switch("resize_source", False), *socket("MASK", optional=True)], "LATENT")
def composite_masked(b: Building, n: Given) -> Any:
    """A latent laid on another through a mask."""
    return b.add("paste_latent", latent=n["destination"], over=n["source"], x=n["x"], y=n["y"], mask=n.get("mask"), fit=n["resize_source"])


@node("LatentBlend", "_for_testing", [*TWO, real("blend_factor", 0.5, 0, 1)], "LATENT", title="Latent Blend")
def blend(b: Building, n: Given) -> Any:
    """A weighted mean."""
    return b.add("mix_latents", latent=n["samples1"], other=n["samples2"], ratio=n["blend_factor"])


@node("LatentInterpolate", "latent/advanced", [*TWO, real("ratio", 1.0, 0, 1)], "LATENT")
def interpolate(b: Building, n: Given) -> Any:
    """Between two latents, directions and lengths apart."""
    return b.add("mix_latents", latent=n["samples1"], other=n["samples2"], how="turn", ratio=n["ratio"])


@node("LatentAdd", "latent/advanced", TWO, "LATENT")
def add(b: Building, n: Given) -> Any:
    """The sum."""
    return b.add("mix_latents", latent=n["samples1"], other=n["samples2"], how="add")


@node("LatentSubtract", "latent/advanced", TWO, "LATENT")
def subtract(b: Building, n: Given) -> Any:
    """The difference."""
    return b.add("mix_latents", latent=n["samples1"], other=n["samples2"], how="subtract")


@node("LatentMultiply", "latent/advanced", [*SAMPLES, real("multiplier", 1.0, -10, 10)], "LATENT")
def multiply(b: Building, n: Given) -> Any:
    """So many times the latent."""
    return b.add("mix_latents", latent=n["samples"], other=n["samples"], ratio=1.0, scale=n["multiplier"])


@node("LatentConcat", "latent/advanced", [*TWO, choice("dim", ("x", "-x", "y", "-y", "t", "-t"))], "LATENT")
def concat(b: Building, n: Given) -> Any:
    """Two latents side by side, or one below the other."""
    _flat(n["dim"])
    two = [n["samples1"], n["samples2"]]
    return b.add("join_latents", latents=two[::-1] if n["dim"].startswith("-") else two, along=n["dim"][-1])


def _flat(dim: str) -> None:
    if dim.endswith("t"):
        raise ValueError(f"dim: got {dim!r}, which is time, and latents are of pictures; expected x or y")


@node("LatentCut", "latent/advanced",
      [*SAMPLES, choice("dim", ("x", "y", "t")), integer("index", 0, -16384, 16384), integer("amount", 1, 1, 16384)], "LATENT")
def cut(b: Building, n: Given) -> Any:
    """Some columns or rows of a latent's cells."""
    _flat(n["dim"])
    return b.add("cut_latent", latent=n["samples"], along=n["dim"], start=n["index"], count=n["amount"])


@node("RebatchLatents", "latent/batch", [*socket("LATENT", "latents"), integer("batch_size", 1, 1, 4096)], "LATENT",
      title="Rebatch Latents", flags=["lists"])
def rebatch(b: Building, n: Given) -> Any:
    """The same latents, with their noise: the sampler cuts a batch to what fits by itself."""
    return n["latents"]


OPERATION, LATER = socket("LATENT_OPERATION", "operation"), "latent/advanced/operations"


@node("LatentOperationTonemapReinhard", LATER, [real("multiplier", 1.0, 0, 100)], "LATENT_OPERATION", flags=["experimental"])
def tonemap(b: Building, n: Given) -> Any:
    """Hold down long cells."""
    return Change("tonemap_latent", {"multiplier": n["multiplier"]})


@node("LatentOperationSharpen", LATER,
      [integer("sharpen_radius", 9, 1, 31), real("sigma", 1.0, 0.1, 10, 0.1), real("alpha", 0.1, 0, 5)], "LATENT_OPERATION",
      flags=["experimental"])
def sharpen(b: Building, n: Given) -> Any:
    """Sharpen cells' directions."""
    return Change("sharpen_latent", {"radius": n["sharpen_radius"], "sigma": n["sigma"], "amount": n["alpha"]})


@node("LatentApplyOperation", LATER, [*SAMPLES, *OPERATION], "LATENT", flags=["experimental"])
def apply(b: Building, n: Given) -> Any:
    """An operation done to a latent."""
    return b.add(n["operation"].op, latent=n["samples"], **n["operation"].inputs)
