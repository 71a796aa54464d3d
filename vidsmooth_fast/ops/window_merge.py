"""The weighted mean of overlapping windows of a video."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks, _windows
from ._cuda import cuda_supports, where
from ._dispatch import (
    DTYPE_CODES,
    Backend,
    cpu_supports,
    extension,
    register,
    triton_kernel,
    triton_supports,
)


def reference(windows: Tensor, weights: Tensor, starts: Sequence[int], *, frames: int) -> Tensor:
    """The equation in plain PyTorch; arguments as in :func:`window_merge`, weights already (C, K, H, W)."""
    return _windows.merge(windows, starts, weights, frames).to(windows.dtype)


def _compiled(windows: Tensor, weights: Tensor, starts: Sequence[int], *, frames: int) -> Tensor:
    batch, _, channels, length, height, width = windows.shape
    out = torch.empty((batch, channels, frames, height, width), dtype=windows.dtype, device=windows.device)
    coverage = _windows.compiled_coverage(windows.device, tuple(starts), length, frames)
    extension().window_merge(
        DTYPE_CODES[windows.dtype],
        out.shape,
        windows.data_ptr(),
        windows.stride(),
        length,
        weights.data_ptr(),
        weights.stride(),
        [t.data_ptr() for t in coverage],
        out.data_ptr(),
        where(windows),
    )
    return out


def _triton_supports(windows, *_args, **_settings):
    return triton_supports(windows)


def _triton(windows: Tensor, weights: Tensor, starts: Sequence[int], *, frames: int) -> Tensor:
    batch, _, channels, length, height, width = windows.shape
    out = windows.new_empty(batch, channels, frames, height, width)
    table, most = _windows.coverage_on(windows.device, tuple(starts), length, frames)
    triton_kernel("window_merge")(windows, weights, table, most, out)
    return out


def _fake(windows, weights, starts, *, frames):
    return windows.new_empty(windows.shape[0], windows.shape[2], frames, *windows.shape[4:])


_op = register(
    "window_merge(Tensor windows, Tensor weights, int[] starts, *, SymInt frames) -> Tensor",
    torch_backend=reference,
    fake=_fake,
    triton=Backend(_triton_supports, _triton),
    cpu=Backend(cpu_supports, _compiled),
    cuda=Backend(cuda_supports, _compiled),
)


def _setup_context(ctx, inputs, keyword_only_inputs, output):
    windows, weights, ctx.starts = inputs
    ctx.length = windows.shape[3]
    ctx.save_for_backward(weights)


def _backward(ctx, grad):
    # Linear in the windows: ∂out_f / ∂v_i = ω_i / Σ ω at the frame's place in window i.
    (weights,) = ctx.saved_tensors
    frames = grad.shape[2]
    offsets = torch.arange(ctx.length, device=grad.device)
    indices = [(start + offsets) % frames for start in ctx.starts]
    mass = weights.new_zeros(weights.shape[0], frames, *weights.shape[2:])
    for index in indices:
        mass = mass.index_add(1, index, weights)
    shared = grad / mass
    windows = torch.stack([weights * shared[:, :, index] for index in indices], 1)
    return windows.to(grad.dtype), None, None


torch.library.register_autograd("vidsmooth::window_merge", _backward, setup_context=_setup_context)


def window_merge(
    windows: Tensor,
    starts: Sequence[int] | Tensor,
    weights: Tensor,
    *,
    frames: int,
    backend: str | None = None,
) -> Tensor:
    """Merge overlapping windows into one video by weighted averaging.

    out_f = Σ_i ω_i v_i / Σ_i ω_i over the windows i that contain frame f

    windows: v, N windows of K frames, (B, N, C, K, H, W), any strides.
    starts: first frame of each window, N ints or an int64 CPU tensor; frames are taken modulo `frames`. A GPU is sent
        what follows from them at the first call with these windows: make that call before a CUDA graph is captured.
    weights: ω = W², (K,) or a shape that broadcasts to (C, K, H, W), floating point; not all zero at any frame
        (that gives NaN, as 0/0 does).
    frames: F, the length of the video.
    backend: names of the backends that may be used, best first, e.g. "triton" or "cuda,torch"; None leaves the choice
        to the dispatch (`ops.backend`, `VIDSMOOTH_BACKEND`).
    Returns (B, C, F, H, W), contiguous, in the dtype of the windows; differentiable in the windows.
    Raises ValueError for empty or wrongly shaped input, or when a frame is in no window.
    Source: [000] equation 19, the closed solution of its least-squares problem.
    """
    _checks.floating("windows", windows, "B, N, C, K, H, W")
    starts = _windows.check(starts, windows.shape[1])
    weights = _windows.check_weights(weights, windows)
    if weights.requires_grad:
        raise ValueError(
            "weights: expected no requires_grad (there are no gradients to them), got a tensor with it"
        )
    if frames < 1:
        raise ValueError(f"frames: expected at least 1, got {frames}")
    return _op(windows, weights, starts, frames=frames, backend=backend)
