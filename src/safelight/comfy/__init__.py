"""ComfyUI's side of things: its prompts, its node classes, its file names. No torch at import.

A prompt is translated into a graph of our ops and run by our engine; `translate` shows that graph.
"""
from __future__ import annotations

from safelight.comfy.check import Fault, PromptError
from safelight.comfy.convert import convert, is_workflow
from safelight.comfy.info import class_info, object_info
from safelight.comfy.node import NODES, NodeClass, Places
from safelight.comfy.run import problems, run
from safelight.comfy.translate import Translation, is_prompt, translate, unwrapped

__all__ = [
    "NODES", "Fault", "NodeClass", "Places", "PromptError", "Translation", "class_info", "convert", "is_prompt",
    "is_workflow", "object_info", "problems", "run", "translate", "unwrapped",
]
