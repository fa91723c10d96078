"""Models merged from others, and saved whole."""
from __future__ import annotations

from typing import Any

import safelight.comfy.blocks  # noqa: F401  its op
from safelight.comfy.building import Building, Clip, Difference, Link
from safelight.comfy.node import Given, node, real, socket, text

AT = "advanced/model_merging"
MODELS, CLIPS = socket("MODEL", "model1", "model2"), socket("CLIP", "clip1", "clip2")
RATIO, MULTIPLIER = real("ratio", 1.0, 0, 1), real("multiplier", 1.0, -10, 10)
BLOCKS = ("input", "middle", "out")


def laid(b: Building, model: Link, other: Link, strength: float, what: str = "network", *, blocks: str = "all", part: str = "") -> Link:
    """A model with another's weights laid in."""
    if not strength:
        return model
    taken = b.add("merge_weights", part=f"{part or blocks}.weights", model=other, more={"part": what, "blocks": blocks})
    return b.add("with_full", part=part or ("" if blocks == "all" else blocks), model=model, weights=taken, strength=strength)


def _added(b: Building, one: Any, other: Any, what: str) -> Link:
    """A model and a difference, in either order."""
    base, moved = (other, one) if isinstance(one, Difference) else (one, other)
    if not isinstance(moved, Difference) or isinstance(base, Difference):
        raise ValueError("expected a model and a difference (of the Subtract node): the sum of two whole models is no model")
    taken = b.add("merge_weights", part="weights", model=moved.more, base=base, less=moved.less, more={"part": what})
    return b.add("with_full", model=base, weights=taken, strength=moved.times)


def _inner(found: Any) -> Any:
    return found.model if isinstance(found, Clip) else found


@node("ModelMergeSimple", AT, [*MODELS, RATIO], "MODEL")
def simple(b: Building, n: Given) -> Any:
    """So much of the first model, the rest of the second."""
    return laid(b, n["model1"], n["model2"], 1 - n["ratio"])


@node("ModelMergeBlocks", AT, [*MODELS, *[real(block, 1.0, 0, 1) for block in BLOCKS]], "MODEL")
def by_blocks(b: Building, n: Given) -> Any:
    """The same, apart for the way down, the middle and the way up."""
    model = n["model1"]
    for block in BLOCKS:
        model = laid(b, model, n["model2"], 1 - n[block], blocks=block)
    return model


def _specific(name: str, *blocks: str) -> None:
    """A node with a share for each block of a family; what belongs to none goes with the first."""

    def make(b: Building, n: Given) -> Any:
        """So much of each block of the first model, the rest of the second."""
        model, shares = n["model1"], {share: [k.rstrip(".") for k in blocks if n[k] == share] for share in {n[k] for k in blocks} - {1.0}}
        whole = b.add("merge_weights", part="weights", model=n["model2"], more={"part": "network"}) if shares else model
        for i, (share, names) in enumerate(sorted(shares.items()), 1):
            taken = b.add("take_blocks", part=f"{share}.blocks", weights=whole, names=names, other=n[blocks[0]] == share)
            model = b.add("with_full", part="" if i == len(shares) else str(share), model=model, weights=taken, strength=1 - share)
        return model

    node(name, f"{AT}/model_specific", [*MODELS, *[real(k, 1.0, 0, 1) for k in blocks]], "MODEL")(make)


for _name, _count, _dot in (("ModelMergeSD1", 12, "."), ("ModelMergeSD2", 12, "."), ("ModelMergeSDXL", 9, "")):
    _numbered = [f"{k}.{i}{_dot}" for k in ("input_blocks", "middle_block", "output_blocks") for i in range(3 if k[0] == "m" else _count)]
    _specific(_name, "time_embed.", "label_emb.", *_numbered, "out.")
for _name, _count in (("ModelMergeSD3_2B", 24), ("ModelMergeSD35_Large", 38)):
    _specific(_name, *[f"{k}." for k in ("pos_embed", "x_embedder", "context_embedder", "y_embedder", "t_embedder",
                                         *[f"joint_blocks.{i}" for i in range(_count)], "final_layer")])


@node("ModelMergeSubtract", AT, [*MODELS, MULTIPLIER], "MODEL")
def subtract(b: Building, n: Given) -> Any:
    """What the first has more than the second; ModelMergeAdd adds it to a third."""
    return Difference(n["model1"], n["model2"], n["multiplier"])


@node("ModelMergeAdd", AT, MODELS, "MODEL")
def add(b: Building, n: Given) -> Any:
    """A model and a difference."""
    return _added(b, n["model1"], n["model2"], "network")


@node("CLIPMergeSimple", AT, [*CLIPS, RATIO], "CLIP")
def simple_clip(b: Building, n: Given) -> Any:
    """So much of the first text encoder, the rest of the second."""
    return Clip(laid(b, n["clip1"].model, n["clip2"].model, 1 - n["ratio"], "text"), n["clip1"].last)


@node("CLIPMergeSubtract", AT, [*CLIPS, MULTIPLIER], "CLIP")
def subtract_clip(b: Building, n: Given) -> Any:
    """What the first text encoder has more than the second."""
    return Difference(n["clip1"].model, n["clip2"].model, n["multiplier"])


@node("CLIPMergeAdd", AT, CLIPS, "CLIP")
def add_clip(b: Building, n: Given) -> Any:
    """A text encoder and a difference."""
    last = next((c.last for c in (n["clip1"], n["clip2"]) if isinstance(c, Clip)), None)
    return Clip(_added(b, _inner(n["clip1"]), _inner(n["clip2"]), "text"), last)


@node("CheckpointSave", AT,
      [*socket("MODEL"), *socket("CLIP"), *socket("VAE"), text("filename_prefix", "checkpoints/ComfyUI")], title="Save Checkpoint",
      ends=True)
def save(b: Building, n: Given) -> Any:
    """A model with its LoRAs and merged weights in it, in the layout of its base; the VAE is the base's own."""
    if b.base(n["model"]) != b.base(n["vae"]) or b.base(n["model"]) != b.base(n["clip"].model):
        raise ValueError("model, clip, vae: got parts of several models, expected those of one, with what was laid on them")
    b.save(b.stacked(n["model"], n["clip"].model), n["filename_prefix"])
