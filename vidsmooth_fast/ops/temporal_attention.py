"""Attention over the frames of a video, separately for every pixel and head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(q: Tensor, k: Tensor, v: Tensor, *, frames: int, heads: int, scale: float | None = None) -> Tensor:
    """softmax(q kᵀ · scale) v over the frames, in plain PyTorch; arguments as in :func:`temporal_attention`."""

    def split(t: Tensor) -> Tensor:  # (B·F, P, h·d) -> (B, P, h, F, d)
        return t.unflatten(0, (-1, frames)).unflatten(-1, (heads, -1)).permute(0, 2, 3, 1, 4)

    out = F.scaled_dot_product_attention(split(q), split(k), split(v), scale=scale)
    return out.permute(0, 3, 1, 2, 4).flatten(3).flatten(0, 1)


def _validate(q: Tensor, k: Tensor, v: Tensor, frames: int, heads: int) -> None:
    if q.dim() != 3 or q.numel() == 0:
        raise ValueError(f"q: expected a non-empty tensor (B*F, P, heads*d), got shape {tuple(q.shape)}")
    if not q.is_floating_point():
        raise ValueError(f"q: expected a floating point tensor, got {q.dtype}")
    for name, t in (("k", k), ("v", v)):
        if t.shape != q.shape:
            raise ValueError(f"{name}: expected the shape of q {tuple(q.shape)}, got {tuple(t.shape)}")
        if t.dtype != q.dtype or t.device != q.device:
            raise ValueError(f"{name}: expected {q.dtype} on {q.device} like q, got {t.dtype} on {t.device}")
    if frames < 1 or q.shape[0] % frames:
        raise ValueError(f"frames: expected a positive divisor of {q.shape[0]} (the rows of q), got {frames}")
    if heads < 1 or q.shape[2] % heads:
        raise ValueError(f"heads: expected a positive divisor of {q.shape[2]} (the width of q), got {heads}")


def temporal_attention(
    q: Tensor, k: Tensor, v: Tensor, *, frames: int, heads: int, scale: float | None = None
) -> Tensor:
    """Let every pixel attend, in each head, to itself in all frames of its video.

    out[b, :, p, h] = softmax(q[b, :, p, h] k[b, :, p, h]ᵀ · scale) v[b, :, p, h]

    q, k, v: (B·F, P, h·d), one dtype and device; the last axis contiguous, other strides free.
    frames: F. heads: h. scale: factor on the scores, 1/√d when None.
    Returns (B·F, P, h·d) in the dtype of q.
    Raises ValueError for empty, mixed or wrongly shaped input.
    Source: Tune-A-Video's `attn_temp`; design §3.
    """
    _validate(q, k, v, frames, heads)
    return reference(q, k, v, frames=frames, heads=heads, scale=scale)
