"""Attention for CPUs that multiply bfloat16 but have no AMX: two matrix products and a softmax over as many rows as the cache holds.

torch's fused kernel keeps its scores in float32 and reaches a third of such a CPU's speed; a third of a step of SD 1.5 at 512 pixels is
then attention. Here scores are bfloat16, which is exact enough where they are small; so each row's scores are counted from about its
largest, which changes no softmax, and those that count most are the smallest.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from safelight.computing import chosen

Attention = Callable[[Tensor, Tensor, Tensor, float], Tensor]

CACHED = 1 << 20
"""Scores a core computes at once: two megabytes of them, what it has of the cache."""

HEADS = 2
"""Heads a core computes at once: cores that work on a head each wait less for each other than those that share one."""

SAMPLED = 8
"""A row's largest score is estimated from every eighth key."""

WORTH = 512
"""Fewer keys than this, and the fused kernel is as fast."""


@cache
def wanted(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this is the faster way there."""
    able = torch.cpu.get_capabilities()
    return device.type == "cpu" and dtype == torch.bfloat16 and bool(able.get("avx512_bf16")) and not able.get("amx_bf16")


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(q k' * scale) v for q (B, H, L, D), k and v (B, H, S, D), in their dtype, a new tensor (B, H, L, D)."""
    out = q.new_empty(*q.shape[:3], v.shape[3])
    heads = [t.flatten(0, 1) for t in (q, k, v.contiguous(), out)]
    cores = torch.get_num_threads()
    many = min(HEADS * cores, len(heads[0]))
    rows = max(CACHED * cores // (many * v.shape[2]), 1)
    held = q.new_empty(many, rows, v.shape[2])
    for i in range(0, len(heads[0]), many):
        queries, keys, values, answer = (t[i : i + many] for t in heads)
        keys = torch.nn.functional.pad(keys * scale, (0, 1), value=-1).transpose(1, 2)  # (many, D + 1, S)
        some = keys[:, :-1, ::SAMPLED].contiguous()
        for part, to in zip(queries.split(rows, dim=1), answer.split(rows, dim=1), strict=True):
            most = (part @ some).amax(dim=2, keepdim=True)  # (many, rows, 1): scores come out less by it
            scores = held[: len(part), : part.shape[1]]
            torch.bmm(torch.cat([part, most], dim=2), keys, out=scores)
            torch.softmax(scores, dim=2, out=scores)
            to.copy_(scores @ values)
    return out


def whole(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The same for few keys, in three calls: with gradients, and all scores kept, in half of the fused kernel's time."""
    answer: Tensor = torch.softmax(q @ k.transpose(2, 3) * scale, dim=3) @ v
    return answer


class _Attend(TorchFunctionMode):
    """Answers those calls of torch's attention that are worth it: with many keys by `many`, with few by `few`."""

    def __init__(self, *, many: Attention | None = None, few: Attention | None = None) -> None:
        super().__init__()
        self.many, self.few = many, few

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention and _plain(args, kwargs):
            q, k, v = args
            do, scale = self.few if k.shape[2] < WORTH else self.many, kwargs.get("scale")
            if do is not None and (do is self.few or q.dtype == torch.bfloat16):
                return do(q, k, v, q.shape[3] ** -0.5 if scale is None else scale)
        return func(*args, **kwargs)


def _plain(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Without mask, dropout, causality or shared heads; four dimensions."""
    if len(args) != 3 or any(kwargs.get(name) for name in ("dropout_p", "is_causal", "enable_gqa")) or kwargs.get("attn_mask") is not None:
        return False
    q, k, v = args
    alike = q.shape[:2] == k.shape[:2] and k.shape[:3] == v.shape[:3]
    return bool(q.ndim == 4 and alike)


@contextmanager
def fast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Networks that are run inside attend in the faster way, where there is one and no gradient is wanted."""
    if not wanted(device, dtype) or torch.is_grad_enabled() or chosen().compile:  # a compiler has its own way
        yield
        return
    with _Attend(many=attend):
        yield


class Processor(AttnProcessor2_0):  # type: ignore[misc]
    """diffusers' attention, for training on a CPU. Each layer asks for itself, since checkpointing runs it again from the backward pass."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One layer."""
        with _Attend(few=whole) if torch.is_grad_enabled() else nullcontext():
            return super().__call__(*args, **kwargs)
