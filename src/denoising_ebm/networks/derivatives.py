"""Layers with fast second derivatives, for losses of a gradient: their gradient in the weights differentiates twice.

PyTorch composes the second derivatives of SiLU and of group normalisation of many elementary operations, in float32 and in
another memory layout, and takes a detour for those of convolutions: a quarter of such a training step on a CPU. Here they
are written out in a few passes. Values and first derivatives are those of PyTorch; there are no third derivatives.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

aten = torch.ops.aten
_second_derivatives = False


@contextlib.contextmanager
def second_derivatives() -> Iterator[None]:
    """Give the layers that are called within this context fast second derivatives.

    With `create_graph` they then have gradients in their inputs alone, none in weights of normalisations and convolutions;
    without it, which is how the loss of such a gradient is differentiated, in everything.
    """
    global _second_derivatives
    before, _second_derivatives = _second_derivatives, True
    try:
        yield
    finally:
        _second_derivatives = before


def silu(x: Tensor) -> Tensor:
    """Return x sigmoid(x)."""
    output: Tensor = _SiLU.apply(x) if _second_derivatives else F.silu(x)
    return output


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return `F.group_norm` of `x`, shape (batch, channels, height, width)."""
    if not _second_derivatives:
        return F.group_norm(x, groups, weight, bias, eps)
    if x.device.type != "cpu":
        x = x.to(weight.dtype)  # as autocast does there
    output: Tensor = _GroupNorm.apply(x, weight, bias, groups, eps)
    return output


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """Return `F.conv2d` of `x`, shape (batch, channels, height, width), with stride 1."""
    if not _second_derivatives:
        return F.conv2d(x, weight, bias, padding=padding)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    output: Tensor = _Conv2d.apply(x, weight, bias, padding)
    return output


def concatenate(a: Tensor, b: Tensor) -> Tensor:
    """Return the channels of both, shapes (batch, channels, height, width)."""
    output: Tensor = _Concatenate.apply(a, b) if _second_derivatives else torch.cat([a, b], dim=1)
    return output


def downsample(x: Tensor) -> Tensor:
    """Halve height and width by averaging."""
    if torch.compiler.is_compiling():
        return F.avg_pool2d(x, 2)
    output: Tensor = _Downsample.apply(x)
    return output


def upsample(x: Tensor) -> Tensor:
    """Double height and width by repetition."""
    if torch.compiler.is_compiling():
        return F.interpolate(x, scale_factor=2, mode="nearest")
    output: Tensor = _Upsample.apply(x)
    return output


class _SiLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.silu(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _SiLUBackward.apply(grad, *ctx.saved_tensors)


class _SiLUBackward(Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(grad, x)
        output: Tensor = aten.silu_backward(grad, x)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor]:
        grad, x = ctx.saved_tensors
        # silu'' = s (1 - s) (2 + x - 2 x s) with s = sigmoid(x); s (1 - s) is what sigmoid_backward multiplies by.
        s = x.sigmoid()
        grad_x = aten.sigmoid_backward(v * grad, s).mul_(torch.addcmul(x, x, s, value=-2).add_(2))
        return aten.silu_backward(v, x), grad_x


class _GroupNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Any:
        ctx.sizes = *x.shape[:2], x.shape[2] * x.shape[3], groups
        output, mean, rstd = aten.native_group_norm(x, weight, bias, *ctx.sizes, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if torch.is_grad_enabled():
            return _GroupNormBackward.apply(grad, *ctx.saved_tensors, ctx.sizes), None, None, None, None
        x, weight, mean, rstd = ctx.saved_tensors
        grads = aten.native_group_norm_backward(grad, x, mean, rstd, weight, *ctx.sizes, [True, True, True])
        return *grads, None, None


class _GroupNormBackward(Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, sizes: Any) -> Tensor:
        output: Tensor = aten.native_group_norm_backward(grad, x, mean, rstd, weight, *sizes, [True, False, False])[0]
        ctx.save_for_backward(grad, x, weight, mean, rstd, output)
        ctx.sizes = sizes
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> Any:
        r"""Differentiate <v, p(w g)>, where p(w g) is the gradient of <g, w h + b> in x, with h = rstd (x - mean).

        p(u) = rstd (u - mean(u) - mean(u h) h), means over a group: a symmetric map, whose derivative in x is
        d<v, p(u)> = -rstd (mean(v p(u)) h + mean(v h) p(u) + mean(u h) p(v)) dx.
        """
        grad, x, weight, mean, rstd, p_u = ctx.saved_tensors
        batch, channels, _, groups = ctx.sizes
        p_v = aten.native_group_norm_backward(v, x, mean, rstd, None, *ctx.sizes, [True, False, False])[0]

        def total(values: Tensor) -> Tensor:
            # Sums of bf16 are added in float32 too, but asked for in float32 they would first copy all of it.
            return values.sum((2, 3)).to(rstd.dtype).reshape(batch, groups, -1)

        def spread(values: Tensor) -> Tensor:
            return values.expand(batch, groups, channels // groups).reshape(batch, channels, 1, 1).to(x.dtype)

        w, m, r = weight.reshape(1, groups, -1), mean[:, :, None], rstd[:, :, None]
        count = x[0].numel() // groups
        grad_weight = total(grad * p_v)
        v_h = r * (total(v * x) - m * total(v)).sum(2, keepdim=True) / count
        u_h = r * (w * (total(grad * x) - m * total(grad))).sum(2, keepdim=True) / count
        v_p_u = (w * grad_weight).sum(2, keepdim=True) / count
        grad_x = torch.addcmul(spread(r**2 * v_p_u * m), x, spread(-(r**2) * v_p_u))
        grad_x.addcmul_(p_u, spread(-r * v_h)).addcmul_(p_v, spread(-r * u_h))
        return p_v.mul_(spread(w)), grad_x, grad_weight.sum(0).flatten().to(weight.dtype), None, None, None


class _Conv2d(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _Conv2dBackward.apply(grad, x, weight, ctx.padding), None, None, None
        return *_convolution_backward(grad, x, weight, ctx.padding, ctx.needs_input_grad[:3]), None


class _Conv2dBackward(Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Any:
        ctx.save_for_backward(grad, weight)
        ctx.padding = padding
        return _convolution_backward(grad, x, weight, padding, (True, False, False))[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> Any:
        grad, weight = ctx.saved_tensors
        grad_weight = _convolution_backward(grad, v, weight, ctx.padding, (False, True, False))[1]
        return F.conv2d(v, weight, padding=ctx.padding), None, grad_weight, None


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int], mask: Any) -> Any:
    """Return the gradients in `x`, `weight` and bias that `mask` asks for, None for the others."""
    sizes = [len(weight)] if mask[2] else None
    return aten.convolution_backward(grad, x, weight, sizes, (1, 1), padding, (1, 1), False, (0, 0), 1, mask)


class _Concatenate(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.channels = a.shape[1]
        return torch.cat([a, b], dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Split.apply(grad, ctx.channels)


class _Split(Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, channels: int) -> Any:
        return grad[:, :channels].clone(), grad[:, channels:].clone()

    @staticmethod
    def backward(ctx: Any, v_a: Tensor, v_b: Tensor) -> Any:
        return torch.cat([v_a, v_b], dim=1), None


class _Linear(Function):
    """A linear map, for `torch.func` and forward mode too."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass


# Each of these two is the other's transpose, whose forward pass is faster than PyTorch's backward pass.
class _Downsample(_Linear):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return upsample(0.25 * grad)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return downsample(tangent)


class _Upsample(_Linear):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return 4 * downsample(grad)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return upsample(tangent)
