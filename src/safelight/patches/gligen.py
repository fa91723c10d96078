"""GLIGEN (arXiv:2301.07093): phrases in boxes, by gated attention of their own between a U-Net's attention to itself and to the text.

Read layouts: `position_net.*` and the blocks' `fuser.*` by the original names or diffusers', alone or in a file with the U-Net.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn

from safelight.families.clip_text import ClipText
from safelight.patches import kept, patch, tell
from safelight.patches.rows import unet_of, watched

if TYPE_CHECKING:
    from safelight.families import Family
    from safelight.values import Patch

MOST = 30
"""Boxes that it was trained with; what a condition has fewer is filled up with a learned nothing."""

STAGE = re.compile(r"(?:(in|down)|(mid)|(out|up))\w*block\w*\.(.*)")


@torch.no_grad()
def box(family: Family, text: str, edges: Sequence[int]) -> Tensor:
    """(1, 1, 4 + D) for BOXES, D being what the model's first CLIP says of the whole text. ValueError when it has none."""
    tower = next((t for t in vars(family).values() if isinstance(t, ClipText)), None)
    said = None if tower is None else tower.read([text], skip=1).pooled  # of all its layers, whatever is left out of the tokens
    if said is None:
        raise ValueError(f"add_box: this {family.name} model has no CLIP to read the text; GLIGEN was trained for SD 1.4")
    return torch.cat([torch.tensor([edges]).to(said), said], dim=1)[None].cpu()


def _order(name: str) -> tuple[int, ...]:
    stage = STAGE.search(name)
    return (next(i for i in (1, 2, 3) if stage[i]), *map(int, re.findall(r"\d+", stage[4]))) if stage else ()


def _gated(family: Family, unet: Any, path: str) -> Any:
    """A U-Net of the same shape that has nothing but the file's tensors."""
    with torch.device("meta"):
        net = UNet2DConditionModel(**{n: v for n, v in unet.config.items() if n[0] != "_"} | {"attention_type": "gated"})
    wanted, given = ({n: t for n, t in all_of.items() if ".fuser." in n or n.startswith("position_net.")}
                     for all_of in (net.state_dict(), load_file(path)))
    own, theirs = (sorted({n.split("fuser.")[0] for n in some if "fuser." in n}, key=_order) for some in (wanted, given))
    names = dict(zip(theirs, own, strict=False))
    named = {names.get((cut := n.partition("fuser."))[0], cut[0]) + cut[1] + cut[2]: t for n, t in given.items()}
    if {n: t.shape for n, t in named.items()} != {n: t.shape for n, t in wanted.items()}:
        raise ValueError(f"gligen {path}: {len(theirs)} gates for {len(own)} blocks; expected a GLIGEN for boxes of text and this model")
    net.load_state_dict({n: t.to(family.device, family.dtype) for n, t in named.items()}, strict=False, assign=True)
    return net.requires_grad_(False)


@patch
def gligen(family: Family, what: Patch) -> Iterator[None]:
    """Draw what the BOXES of a condition hold where they are; a condition without any is read as before. Of several GLIGENs, the last one
    reads them. Strength 0 changes nothing."""
    if not what.strength:
        yield
        return
    gated, plain = _gated(family, unet := unet_of(family, "gligen"), what.weights.path), unet.forward
    blocks, reader = {n: unet.get_submodule(n) for n, m in gated.named_modules() if "fuser" in m._modules}, gated.position_net.float()

    def forward(sample: Tensor, *given: Any, **rest: Any) -> Any:
        more = rest.pop("cross_attention_kwargs", None) or {}
        if rows.boxes is not None:
            more = {"gligen": {"objs": _objects(family, reader, rows.boxes, sample)}, **more}
        return plain(sample, *given, cross_attention_kwargs=more or None, **rest)

    with kept([unet, *blocks.values()]), watched(family) as rows:
        for name, block in blocks.items():
            block.fuser = gated.get_submodule(f"{name}.fuser")
        vars(unet).update(forward=forward, position_net=lambda objs: objs)  # which the network asks for what it has been told
        tell(family, what, f"{len(blocks)} of {len(blocks)} gates matched")
        yield


def _objects(family: Family, reader: nn.Module, boxes: Tensor, sample: Tensor) -> Tensor:
    """What to attend to, (B, MOST, D)."""
    given = boxes.to(sample.device, torch.float32)
    if given.shape[1] > MOST:
        raise ValueError(f"gligen: the condition has {given.shape[1]} boxes, expected {MOST} at most")
    size = given.new_tensor([*sample.shape[:1:-1]] * 2) * family.factor
    told = torch.cat([given[..., :4] / size, given[..., 4:], torch.ones_like(given[..., :1])], dim=-1)
    told = nn.functional.pad(told, (0, 0, 0, MOST - told.shape[1]))
    objects: Tensor = reader(told[..., :4], told[..., -1], told[..., 4:-1])
    return objects.expand(len(sample), -1, -1).to(sample.dtype)
