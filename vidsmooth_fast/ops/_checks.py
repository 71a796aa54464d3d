"""Input checks shared by the operators; each raises ValueError in one line naming the argument."""

from __future__ import annotations

import torch
from torch import Tensor


def floating(name: str, tensor: Tensor, axes: str) -> None:
    """tensor: a non-empty floating-point tensor with the named axes, e.g. axes="B, C, F, H, W"."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name}: expected a tensor of shape ({axes}), got {type(tensor).__name__}")
    if tensor.dim() != axes.count(",") + 1 or tensor.numel() == 0:
        raise ValueError(f"{name}: expected a non-empty tensor of shape ({axes}), got {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point tensor, got {tensor.dtype}")


def like(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """tensor: the shape, dtype and device of other."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name}: expected a tensor like {other_name}, got {type(tensor).__name__}")
    if tensor.shape != other.shape:
        raise ValueError(
            f"{name}: expected the shape of {other_name}, {tuple(other.shape)}, got {tuple(tensor.shape)}"
        )
    if tensor.dtype != other.dtype:
        raise ValueError(f"{name}: expected the dtype of {other_name}, {other.dtype}, got {tensor.dtype}")
    if tensor.device != other.device:
        raise ValueError(f"{name}: expected the device of {other_name}, {other.device}, got {tensor.device}")


def rows(name: str, tensor: Tensor) -> None:
    """tensor: non-empty, floating-point, (..., C) with at least two axes."""
    axes = (
        ", ".join(["N"] * (tensor.dim() - 1) + ["C"])
        if isinstance(tensor, Tensor) and tensor.dim() > 1
        else "N, C"
    )
    floating(name, tensor, axes)


def layer(
    weight_name: str, weight: Tensor, bias_name: str, bias: Tensor | None, inputs: int, device: torch.device
) -> None:
    """weight: (O, inputs), bias: (O,) or None, floating-point, on the device of the layer's input."""
    floating(weight_name, weight, "O, C")
    if weight.shape[1] != inputs:
        raise ValueError(f"{weight_name}: expected shape (O, {inputs}), got {tuple(weight.shape)}")
    if bias is not None:
        floating(bias_name, bias, "O")
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"{bias_name}: expected shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    for name, tensor in ((weight_name, weight), (bias_name, bias)):
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name}: expected the device of x, {device}, got {tensor.device}")


def wide(tensor: Tensor) -> Tensor:
    """The tensor in the dtype that sums are kept in: fp32 for half precision, its own otherwise."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def attention(q: Tensor, k: Tensor, v: Tensor, frames: int, heads: int, *, other_keys: bool = False) -> None:
    """q, k, v: alike, (B·F, P, h·d), divisible by the frames and the heads.

    other_keys: k and v may also be (B·G, L, h·d), of another number of frames or pixels.
    """
    floating("q", q, "B*F, P, h*d")
    if not other_keys or not isinstance(k, Tensor) or k.dim() != 3:
        like("k", k, "q", q)
    like("v", v, "k" if other_keys else "q", k)
    for name, value, whole, what in (
        ("frames", frames, q.shape[0], "rows"),
        ("heads", heads, q.shape[2], "columns"),
    ):
        if not isinstance(value, int | torch.SymInt) or value < 1 or whole % value:
            raise ValueError(f"{name}: expected a positive divisor of the {whole} {what} of q, got {value}")
    if other_keys and k.shape != q.shape:
        batch, columns = q.shape[0] // frames, q.shape[2]
        if k.shape[0] % batch or k.shape[2] != columns or k.numel() == 0:
            raise ValueError(f"k: expected shape ({batch}*G, L, {columns}), got {tuple(k.shape)}")
        like("k", k[:1, :1], "q", q[:1, :1])
