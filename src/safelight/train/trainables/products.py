"""A frozen layer with a change beside it, computed with few kernels: in the layer's own dtype, from float32 weights that are trained.

At one thread, batch 8, rank 16 and bfloat16, forward and backward of a linear layer of 192 take 2.6 ms, of the bare layer 2.6 ms, of peft's
5.3 ms: peft's casts the input to float32, keeps that, and adds in a pass of its own.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def run(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a linear layer or a convolution would say with this weight and bias."""
    out: Tensor = layer._conv_forward(x, weight, bias) if isinstance(layer, nn.Conv2d) else F.linear(x, weight, bias)
    return out


def beside(layer: Any, x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """layer(x) + scale * up(down(x)). `down` is (r, in) or (r, in, k, k), `up` (out, r) or (out, r, 1, 1), float32. The input is kept for
    the backward pass only where `down` is trained (arXiv:2308.03303)."""
    if not isinstance(layer, nn.Conv2d):
        out: Tensor = _Beside.apply(x, down, up, scale, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
        return out
    low, wide = down.to(x.dtype), (up * scale).to(x.dtype)
    if down.requires_grad or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return run(layer, x, layer.weight, layer.bias) + F.conv2d(run(layer, x, low, None), wide)
    how = (layer.stride, layer.padding, layer.dilation)
    plain: Tensor = _Frozen.apply(x, layer.weight, layer.bias, how)  # type: ignore[no-untyped-call]
    inner: Tensor = _Frozen.apply(x, low, None, how)  # type: ignore[no-untyped-call]
    return plain + F.conv2d(inner, wide)


class _Beside(Function):
    """x @ (W + scale * up @ down).T + b with one pass over the output, and the gradients of x, down and up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *given: Any) -> Tensor:
        down, up, scale, weight, bias = given
        flat, low, wide = x.reshape(-1, x.shape[-1]), down.to(x.dtype), (up * scale).to(x.dtype)
        inner = flat @ low.t()
        out = F.linear(flat, weight, bias).addmm_(inner, wide.t())
        ctx.save_for_backward(flat if ctx.needs_input_grad[1] else None, inner, low, wide, weight)
        ctx.shape, ctx.scale, ctx.dtype = x.shape, scale, down.dtype
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, inner, low, wide, weight = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        grad_inner = grad @ wide
        x = (grad @ weight).addmm_(grad_inner, low).view(ctx.shape) if ctx.needs_input_grad[0] else None
        down = (grad_inner.t() @ flat).to(ctx.dtype) if flat is not None else None
        up = (grad.t() @ inner).to(ctx.dtype) * ctx.scale if ctx.needs_input_grad[2] else None
        return x, down, up, None, None, None


class _Frozen(Function):
    """A convolution whose weight gets no gradient: unlike torch's own it does not keep its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *given: Any) -> Tensor:
        weight, bias, how = given
        ctx.save_for_backward(weight)
        ctx.size, ctx.how = (x.shape, x.stride()), how
        return F.conv2d(x, weight, bias, *how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), (stride, padding, dilation) = ctx.saved_tensors, ctx.how
        shaped = grads[0].new_empty_strided(*ctx.size)  # only that it is of this layout is read
        wanted = (True, False, False)
        x: Tensor = torch.ops.aten.convolution_backward(
            grads[0], shaped, weight, None, stride, padding, dilation, False, (0, 0), 1, wanted
        )[0]
        return x, None, None, None
