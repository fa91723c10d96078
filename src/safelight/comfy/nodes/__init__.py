"""ComfyUI's core nodes by theme. Importing this fills `safelight.comfy.node.NODES`."""
from __future__ import annotations

from importlib import import_module

for _theme in ("conditioning", "custom", "guidance", "image", "inner", "kolors", "latent", "loaders", "mask", "merging", "sampling",
               "saving", "training", "values", "vision"):
    import_module(f"{__name__}.{_theme}")
