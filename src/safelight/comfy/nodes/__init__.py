"""ComfyUI's core nodes by theme. Importing this fills `safelight.comfy.node.NODES`."""
from __future__ import annotations

from safelight.comfy.nodes import conditioning, custom, image, kolors, latent, loaders, mask, merging, sampling, values

__all__ = ["conditioning", "custom", "image", "kolors", "latent", "loaders", "mask", "merging", "sampling", "values"]
