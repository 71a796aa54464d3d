"""Group normalisation over an image or over all frames of a window, and the SiLU that follows it, in one operator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks
from ._dispatch import (
    DTYPE_CODES,
    Backend,
    cpu_supports,
    extension,
    kept_request,
    register,
    triton_kernel,
    triton_supports,
)


def _tall(x: Tensor, frames: int) -> Tensor:
    """The images of each video as one tall image, (B·F, C, H, W) -> (B, C, F·H, W): a view of channels_last x."""
    images, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(images // frames, frames * height, width, channels)
    return rows.permute(0, 3, 1, 2)


def _images(tall: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`_tall`, in the shape and dtype of `like`, channels_last."""
    images, channels, height, width = like.shape
    rows = tall.permute(0, 2, 3, 1).reshape(images, height, width, channels)
    return rows.permute(0, 3, 1, 2).to(like.dtype, memory_format=torch.channels_last)


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    frames: int = 1,
    eps: float = 1e-5,
    silu: bool = True,
) -> Tensor:
    """The equation in plain PyTorch; arguments as in :func:`group_norm_silu`."""
    wide = _checks.wide(_tall(x, frames))
    y = torch.group_norm(wide, groups, weight.to(wide.dtype), bias.to(wide.dtype), eps)
    return _images(F.silu(y) if silu else y, x)


def _cpu_supports(x, *_args, **_settings):
    return cpu_supports(x)  # weight and bias are widened


def _cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    frames: int = 1,
    eps: float = 1e-5,
    silu: bool = True,
) -> Tensor:
    images, channels, height, width = x.shape
    if x.stride(1) != 1 or x.stride(2) != width * x.stride(3):
        x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty(x.shape, dtype=x.dtype, memory_format=torch.channels_last)
    weight, bias = weight.float().contiguous(), bias.float().contiguous()
    extension().group_norm_silu(
        DTYPE_CODES[x.dtype],
        (images, frames, height * width, channels, groups),
        x.data_ptr(),
        (x.stride(0), x.stride(3)),
        weight.data_ptr(),
        bias.data_ptr(),
        out.data_ptr(),
        eps,
        silu,
        torch.get_num_threads(),
    )
    return out


def _triton_supports(x, *_args, **_settings):
    if x.dim() == 4 and not x.is_contiguous(memory_format=torch.channels_last):
        return False, "the Triton kernel needs x in channels_last"
    return triton_supports(x)


def _triton(x, weight, bias, *, groups, frames=1, eps=1e-5, silu=True):
    out = torch.empty_like(x, memory_format=torch.channels_last)
    weight, bias = weight.contiguous(), bias.contiguous()
    triton_kernel("group_norm_silu")(x, weight, bias, out, groups=groups, frames=frames, eps=eps, silu=silu)
    return out


def _fake(x, weight, bias, **_settings):
    return torch.empty_like(x, memory_format=torch.channels_last)


_op = register(
    "group_norm_silu(Tensor x, Tensor weight, Tensor bias, *, int groups, SymInt frames=1, float eps=1e-05, "
    "bool silu=True) -> Tensor",
    torch_backend=reference,
    fake=_fake,
    triton=Backend(_triton_supports, _triton),
    cpu=Backend(_cpu_supports, _cpu),
)


def _backward_reference(grad, x, weight, bias, *, groups, frames, eps, silu):
    """Through PyTorch's own backward of both parts, with the normalised values computed again."""
    tall = _checks.wide(_tall(x, frames))
    # aten's kernels read all of these as they lie: weights dense, and both images alike
    w, b = weight.to(tall.dtype).contiguous(), bias.to(tall.dtype).contiguous()
    tall = tall.contiguous(memory_format=torch.channels_last)
    g = _tall(grad, frames).to(tall.dtype).contiguous(memory_format=torch.channels_last)
    sizes = (tall.shape[0], tall.shape[1], tall.shape[2] * tall.shape[3], groups)
    y, mean, rstd = torch.native_group_norm(tall, w, b, *sizes, eps)
    if silu:
        g = torch.ops.aten.silu_backward(g, y)
    to_x, to_weight, to_bias = torch.ops.aten.native_group_norm_backward(
        g, tall, mean, rstd, w, *sizes, [True, True, True]
    )
    return _images(to_x, x), to_weight.to(weight.dtype), to_bias.to(bias.dtype)


def _cpu_backward_supports(grad, x=None, *_args, **_settings):
    return cpu_supports(*(t for t in (grad, x) if t is not None))  # weight and bias are widened


def _cpu_backward(grad, x, weight, bias, *, groups, frames, eps, silu):
    x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    images, channels, height, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, memory_format=torch.channels_last)
    sums = torch.empty(images // frames, 2, channels, dtype=torch.float64)
    w, b = weight.float().contiguous(), bias.float().contiguous()
    steps = (height * width * channels, channels)
    extension().group_norm_silu_backward(
        DTYPE_CODES[x.dtype],
        (images, frames, height * width, channels, groups),
        x.data_ptr(),
        steps,
        w.data_ptr(),
        b.data_ptr(),
        out.data_ptr(),
        eps,
        silu,
        grad.data_ptr(),
        steps,
        sums.data_ptr(),
        torch.get_num_threads(),
    )
    to_bias, to_weight = sums.sum(0)
    return out, to_weight.to(weight.dtype), to_bias.to(bias.dtype)


def _triton_backward_supports(grad, x=None, *_args, **_settings):
    return _triton_supports(grad if x is None else x)


def _triton_backward(grad, x, weight, bias, **settings):
    out = torch.empty_like(x, memory_format=torch.channels_last)
    grad = grad.contiguous(memory_format=torch.channels_last)
    tensors = x, weight.contiguous(), bias.contiguous(), out
    to_weight, to_bias = triton_kernel("group_norm_silu")(*tensors, grad=grad, **settings)
    return out, to_weight.to(weight.dtype), to_bias.to(bias.dtype)


def _backward_fake(grad, x, weight, bias, **_settings):
    return (
        torch.empty_like(x, memory_format=torch.channels_last),
        weight.new_empty(weight.shape),
        bias.new_empty(bias.shape),
    )


_backward_op = register(
    "group_norm_silu_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, *, int groups, int frames, "
    "float eps, bool silu) -> (Tensor, Tensor, Tensor)",
    torch_backend=_backward_reference,
    fake=_backward_fake,
    gradient=True,
    triton=Backend(_triton_backward_supports, _triton_backward),
    cpu=Backend(_cpu_backward_supports, _cpu_backward),
)


def _setup_context(ctx, inputs, keyword_only_inputs, output):
    ctx.save_for_backward(*inputs)
    defaults = {"frames": 1, "eps": 1e-5, "silu": True}
    ctx.settings = {**defaults, **keyword_only_inputs, **kept_request(keyword_only_inputs)}


def _backward(ctx, grad):
    return _backward_op(grad, *ctx.saved_tensors, **ctx.settings)


torch.library.register_autograd("vidsmooth::group_norm_silu", _backward, setup_context=_setup_context)


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    groups: int,
    frames: int = 1,
    eps: float = 1e-5,
    silu: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Normalise each group of channels over `frames` consecutive images, scale, shift, and apply SiLU.

    y = (x − μ_g) / √(σ²_g + eps) · weight_c + bias_c,  out = y / (1 + exp(−y)), or y itself without silu,

    with μ_g and σ²_g the mean and (biased) variance over the group's channels, all pixels and `frames` images.

    x: (B·F, C, H, W), any strides (fast in channels_last).
    weight, bias: (C,), any floating dtype, on the device of x.
    groups: number of groups, a divisor of C. frames: images that share statistics, a divisor of B·F; 1 is the
        GroupNorm of images, F that of Tune-A-Video's ResNet blocks.
    eps: added to the variance. silu: whether SiLU follows.
    backend: names of the backends that may be used, best first, e.g. "triton" or "cuda,torch"; None leaves the choice
        to the dispatch (`ops.backend`, `VIDSMOOTH_BACKEND`).
    Returns a channels_last tensor like x; sums are kept in fp32. Differentiable in x, weight and bias.
    Raises ValueError for empty or wrongly shaped input.
    Source: Wu and He, "Group Normalization" (2018); over frames as in Tune-A-Video's `InflatedGroupNorm`. Design §5.
    """
    _checks.floating("x", x, "B*F, C, H, W")
    channels = x.shape[1]
    for name, tensor in (("weight", weight), ("bias", bias)):
        if not isinstance(tensor, Tensor) or tensor.shape != (channels,) or not tensor.is_floating_point():
            got = (
                f"{tensor.dtype} of {tuple(tensor.shape)}"
                if isinstance(tensor, Tensor)
                else type(tensor).__name__
            )
            raise ValueError(f"{name}: expected a floating-point tensor of shape ({channels},), got {got}")
        if tensor.device != x.device:
            raise ValueError(f"{name}: expected the device of x, {x.device}, got {tensor.device}")
    for name, value, whole, what in (
        ("groups", groups, channels, "channels"),
        ("frames", frames, x.shape[0], "images"),  # len(x) would be a number in an exported graph
    ):
        if not isinstance(value, int | torch.SymInt) or value < 1 or whole % value:
            raise ValueError(f"{name}: expected a positive divisor of the {whole} {what} of x, got {value}")
    return _op(x, weight, bias, groups=groups, frames=frames, eps=eps, silu=silu, backend=backend)
