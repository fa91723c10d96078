"""Our values as other people's node classes take them, and back: tensors, ComfyUI's dictionary of a latent, plain numbers and texts."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safelight.comfy.data import Data
from safelight.values import Image, Latent, Mask, Value

VALUES: dict[str, type[Value]] = {"IMAGE": Image, "MASK": Mask, "LATENT": Latent}
LITERALS: dict[str, type] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


def given_as(kind: str, value: Any) -> Any:
    """A copy that the node may write into."""
    import torch

    match value:
        case Image():
            return torch.from_numpy(value.pixels.copy())
        case Mask():
            return torch.from_numpy(value.values.copy())
        case Latent():
            told: dict[str, Any] = {"samples": value.samples.clone()}
            if value.mask is not None:
                told["noise_mask"] = value.mask.clone()
            return told | ({"batch_index": list(value.rows)} if value.rows is not None else {})
        case _:
            return LITERALS[kind](value) if kind in LITERALS else value


def taken_as(kind: str, found: Any, name: str, *, many: bool = False) -> Value:
    """What the node returned at a slot, as a value. ValueError when it is not what the slot's type says."""
    items = list(found) if many else [found]
    if not items:
        raise ValueError(f"{name}: {kind}: got an empty list, expected at least one")
    if kind in LITERALS or kind == "COMBO":
        if len(items) > 1:
            raise ValueError(f"{name}: {kind}: got a list of {len(items)}; a list of numbers or texts cannot go on here")
        return Data([LITERALS[kind](items[0]) if kind in LITERALS else items[0]])
    try:
        return {"IMAGE": _image, "MASK": _mask, "LATENT": _latent}[kind](items)
    except (TypeError, KeyError, AttributeError, RuntimeError) as e:
        raise ValueError(f"{name}: {kind}: got {type(items[0]).__name__}, which is none: {e}") from e


def _image(items: list[Any]) -> Image:
    """(B, H, W, 3 or 4) tensors of one size; transparency is dropped."""
    import torch

    whole = torch.cat([x if x.ndim == 4 else x[None] for x in items])
    return Image(whole[..., :3].detach().cpu().float().clamp(0, 1).contiguous().numpy())


def _mask(items: list[Any]) -> Mask:
    import torch

    whole = torch.cat([x.reshape(-1, *x.shape[-2:]) for x in items])
    return Mask(whole.detach().cpu().float().contiguous().numpy())


def _latent(items: list[Mapping[str, Any]]) -> Latent:
    import torch

    samples = torch.cat([x["samples"] for x in items]).detach().cpu().float().contiguous()
    mask, rows = items[0].get("noise_mask"), items[0].get("batch_index")
    plane = None if mask is None else mask.reshape(-1, 1, *mask.shape[-2:]).float()
    return Latent(samples, mask=plane, rows=None if rows is None or len(items) > 1 else tuple(int(r) for r in rows))
