"""3x3 convolution of stride 1 by minimal filtering: a quarter of the products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks
from ._dispatch import CHANNELS, DTYPE_CODES, Backend, cpu_supports, extension, kept_request, register


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The equation in plain PyTorch; arguments as in :func:`convolution`."""
    wide = _checks.wide(x)
    bias = None if bias is None else bias.to(wide.dtype)
    y = F.conv2d(wide, weight.to(wide.dtype), bias, padding=1)
    return y.to(x.dtype, memory_format=torch.channels_last)


def _cpu_supports(x, weight=None, _bias=None):
    channels = () if weight is None else weight.shape[:2]
    if any(c % CHANNELS for c in channels):
        return (
            False,
            f"the C++ kernel takes multiples of {CHANNELS} channels, got {channels[1]} to {channels[0]}",
        )
    return cpu_supports(x)  # weight and bias are converted


def _cpu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    images, channels, height, width = x.shape
    x = x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)
    weight = weight.to(x.dtype).contiguous(memory_format=torch.channels_last)
    bias = torch.zeros(len(weight), dtype=torch.float32) if bias is None else bias.float().contiguous()
    out = torch.empty(images, len(weight), height, width, dtype=x.dtype, memory_format=torch.channels_last)
    extension().convolution(
        DTYPE_CODES[x.dtype],
        (images, height, width, channels, len(weight)),
        x.data_ptr(),
        (x.stride(0), x.stride(2), x.stride(3)),
        weight.data_ptr(),
        bias.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def _fake(x, weight, _bias=None):
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


_op = register(
    "convolution(Tensor x, Tensor weight, Tensor? bias=None, *) -> Tensor",
    torch_backend=reference,
    fake=_fake,
    cpu=Backend(_cpu_supports, _cpu),
)


def _setup_context(ctx, inputs, keyword_only_inputs, output):
    x, weight, bias = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.request = kept_request(keyword_only_inputs)


def _backward(ctx, grad):
    x, weight = ctx.saved_tensors
    to_x = to_weight = to_bias = None
    if ctx.needs_input_grad[0]:
        to_x = _op(grad, weight.flip(2, 3).transpose(0, 1), **ctx.request)
    if ctx.needs_input_grad[1]:
        wide = torch.promote_types(x.dtype, weight.dtype)
        to_weight = torch.nn.grad.conv2d_weight(x.to(wide), weight.shape, grad.to(wide), padding=1).to(
            weight.dtype
        )
    if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
        to_bias = grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, ctx.bias_dtype)).to(
            ctx.bias_dtype
        )
    return (to_x, to_weight, to_bias)[: len(ctx.needs_input_grad)]


torch.library.register_autograd("vidsmooth::convolution", _backward, setup_context=_setup_context)


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Convolve images with 3x3 kernels, stride 1, zeros around: `F.conv2d(x, weight, bias, padding=1)`.

    out_o(i, j) = bias_o + Σ_{c, u, v} weight_oc(u, v) · x_c(i + u − 1, j + v − 1),   u, v = 0, 1, 2.

    The C++ kernel makes 36 products for 4x4 pixels instead of 144; in fp32 its rounding error is two to four times that
    of a plain sum.

    x: (N, C, H, W), any strides (fast in channels_last).
    weight: (O, C, 3, 3), any floating dtype. bias: (O,) or None.
    backend: names of the backends that may be used instead, best first; there are "cpu" and "torch".
    Returns (N, O, H, W) in the dtype of x, channels_last; sums are kept in fp32. Differentiable in x, weight and bias.
    A value that is not finite makes the whole 4x4 tiles that read it NaN.
    Raises ValueError for empty or wrongly shaped input.
    Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), F(4x4, 3x3).
    """
    _checks.floating("x", x, "N, C, H, W")
    _checks.floating("weight", weight, "O, C, 3, 3")
    if weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(f"weight: expected shape (O, {x.shape[1]}, 3, 3), got {tuple(weight.shape)}")
    if bias is not None:
        _checks.floating("bias", bias, "O")
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias: expected shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name}: expected the device of x, {x.device}, got {tensor.device}")
    return _op(x, weight, bias, backend=backend)
