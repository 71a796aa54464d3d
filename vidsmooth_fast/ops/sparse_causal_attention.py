"""Attention in which the tokens of each frame read the tokens of a few chosen frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(
    q: Tensor, k: Tensor, v: Tensor, *, frames: int, heads: int, kv_frames: Tensor, scale: float | None = None
) -> Tensor:
    """Gather the key frames of every frame, then attend; arguments as in :func:`sparse_causal_attention`."""
    index = kv_frames.to(q.device)

    def split(t: Tensor) -> Tensor:  # (B·F, L, h·d) -> (B·F, h, L, d)
        return t.unflatten(-1, (heads, -1)).transpose(1, 2)

    def chosen(t: Tensor) -> Tensor:  # (B·F, P, h·d) -> (B·F, R·P, h·d)
        return t.unflatten(0, (-1, frames))[:, index].flatten(2, 3).flatten(0, 1)

    # Four axes: with five, SDPA leaves its fused kernel for the explicit one, 10 times slower on a CPU (6.4 s, 0.63 s).
    out = F.scaled_dot_product_attention(split(q), split(chosen(k)), split(chosen(v)), scale=scale)
    return out.transpose(1, 2).flatten(2)


def _validate(q: Tensor, k: Tensor, v: Tensor, frames: int, heads: int, kv_frames: Tensor) -> None:
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
    if kv_frames.dtype != torch.int64 or kv_frames.dim() != 2 or kv_frames.shape[0] != frames or not kv_frames.numel():
        raise ValueError(
            f"kv_frames: expected int64 of shape ({frames}, R), got {kv_frames.dtype} of {tuple(kv_frames.shape)}"
        )


def sparse_causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    frames: int,
    heads: int,
    kv_frames: Tensor | Sequence[Sequence[int]],
    scale: float | None = None,
) -> Tensor:
    """Let the tokens of frame f attend to the tokens of the frames kv_frames[f].

    out[b, f, :, h] = softmax(q[b, f, :, h] k[b, kv_frames[f], :, h]ᵀ · scale) v[b, kv_frames[f], :, h]

    q, k, v: (B·F, P, h·d), one dtype and device; the last axis contiguous, other strides free.
    frames: F. heads: h. scale: factor on the scores, 1/√d when None.
    kv_frames: (F, R) int64 frame indices in [0, F), a tensor or nested lists. (first, previous) is
        Tune-A-Video, (first) is Text2Video-Zero, all frames is full spatio-temporal attention. A frame
        listed twice weighs what it weighs once.
    Returns (B·F, P, h·d) in the dtype of q.
    Raises ValueError for empty, mixed or wrongly shaped input.
    Source: Tune-A-Video's `SparseCausalAttention`; design §3.
    """
    kv_frames = torch.as_tensor(kv_frames)
    _validate(q, k, v, frames, heads, kv_frames)
    return reference(q, k, v, frames=frames, heads=heads, kv_frames=kv_frames, scale=scale)
