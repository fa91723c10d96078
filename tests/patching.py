"""Random LoRAs for the tiny models, and a look at everything a patch could leave behind."""
import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from safelight.families import Family
from safelight.patches import lora
from safelight.values import Blob, Patch


def tensors(family: Family, *, rank: int = 2, alpha: float = 1.0) -> dict[str, torch.Tensor]:
    """A kohya-layout LoRA on every layer it may change."""
    torch.manual_seed(5)
    out = {}
    for name, place in lora.places(family).items():
        shape = place.layer.weight.shape
        out[f"{name}.lora_down.weight"] = torch.randn(rank, *shape[1:]) * 0.1
        out[f"{name}.lora_up.weight"] = torch.randn(shape[0], rank, *[1] * (len(shape) - 2)) * 0.1
        out[f"{name}.alpha"] = torch.tensor(alpha)
    return out


def write(family: Family, path: Path, **shape: Any) -> Patch:
    save_file(tensors(family, **shape), path)
    return Patch("lora", Blob.of(path))


def look(family: Family) -> dict[str, Any]:
    """Everything a patch could leave behind, deep enough to compare."""
    seen: dict[str, Any] = {}
    for part, network in family.trainable().items():
        seen[part] = [(name, type(m)) for name, m in network.named_modules()]
        for name, m in network.named_modules():
            own = {k: v for k, v in vars(m).items() if not k.startswith("_")}
            seen[f"{part}.{name}"] = (sorted(vars(m)), copy.copy(own), len(m._forward_hooks), len(m._forward_pre_hooks))
            seen[f"{part}.{name}.config"] = dict(vars(own["config"])) if "config" in own else None
        seen[f"{part}.flags"] = [(n, p.requires_grad, p.grad is None, id(p)) for n, p in network.named_parameters()]
        seen[f"{part}.state"] = {k: v.clone() for k, v in network.state_dict().items()}
    return seen


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    states = [k for k in a if k.endswith(".state")]
    equal = all(a[k].keys() == b[k].keys() and all(torch.equal(a[k][n], b[k][n]) for n in a[k]) for k in states)
    return equal and {k: v for k, v in a.items() if k not in states} == {k: v for k, v in b.items() if k not in states}
