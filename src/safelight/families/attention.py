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
from torch.autograd.function import once_differentiable
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

NARROW = 32
"""Heads narrower than this, and the fused kernel's backward pass is the faster one."""

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
        turned, some = _keys(keys, scale)
        for part, to in zip(queries.split(rows, dim=1), answer.split(rows, dim=1), strict=True):
            to.copy_(_scores(part, turned, some, out=held[: len(part), : part.shape[1]]) @ values)
    return out


class Taught(torch.autograd.Function):
    """`attend` with gradients: the backward pass computes each block's scores anew, so that nothing of their size is kept."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """The same."""
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        return attend(q, k, v, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Of q, k and v, in their dtype."""
        (grad,), (q, k, v) = given, ctx.saved_tensors
        grads = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
        heads = [t.flatten(0, 1) for t in (q, k.contiguous(), v.contiguous(), grad, *grads)]
        cores = torch.get_num_threads()
        many = min(HEADS * cores, len(heads[0]))
        for i in range(0, len(heads[0]), many):
            _backward(*(t[i : i + many] for t in heads), scale=ctx.scale, rows=max(2 * CACHED * cores // (many * v.shape[2]), 1))
        return *grads, None


def _backward(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, *grads: Tensor, scale: float, rows: int) -> None:
    """Of some heads, (heads, L or S, D) each, into `grads`. What each block of `rows` adds to k's and v's is summed in float32."""
    keys, some = _keys(k, scale)
    values = v.transpose(1, 2).contiguous()
    for_k, for_v = (torch.zeros(len(t), t.shape[2], t.shape[1], device=t.device) for t in (k, v))
    held = q.new_empty(2, len(q) * min(rows, q.shape[1]) * k.shape[1])
    for part, given, to in zip(q.split(rows, dim=1), grad.split(rows, dim=1), grads[0].split(rows, dim=1), strict=True):
        scores, changes = held[:, : part.shape[:2].numel() * k.shape[1]].view(2, *part.shape[:2], -1)  # contiguous: softmax asks for it
        _scores(part, keys, some, out=scores)
        for_v += given.transpose(1, 2) @ scores
        torch.bmm(given, values, out=changes)
        torch._softmax_backward_data(changes, scores, 2, scores.dtype, grad_input=changes)
        to.copy_(changes @ k)
        for_k += part.transpose(1, 2) @ changes
    grads[0].mul_(scale)
    grads[1].copy_(for_k.mul_(scale).transpose(1, 2))
    grads[2].copy_(for_v.transpose(1, 2))


def _keys(k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """What queries are multiplied with, (heads, D + 1, S), and the part of it that a row's largest score is estimated from."""
    keys = torch.nn.functional.pad(k * scale, (0, 1), value=-1).transpose(1, 2)
    return keys, keys[:, :-1, ::SAMPLED].contiguous()


def _scores(part: Tensor, keys: Tensor, some: Tensor, out: Tensor | None = None) -> Tensor:
    """The softmax of some rows, (heads, rows, S)."""
    most = (part @ some).amax(dim=2, keepdim=True)  # (heads, rows, 1): scores come out less by it
    scores = torch.bmm(torch.cat([part, most], dim=2), keys, out=out)
    return torch.softmax(scores, dim=2, out=scores)


def _taught(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """With gradients, the faster way of both."""
    if q.shape[3] < NARROW or not wanted(q.device, q.dtype):
        return scaled_dot_product_attention(q, k, v, scale=scale)
    answer: Tensor = Taught.apply(q, k, v, scale)  # type: ignore[no-untyped-call]
    return answer


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
        with _Attend(few=whole, many=_taught) if torch.is_grad_enabled() else nullcontext():
            return super().__call__(*args, **kwargs)
