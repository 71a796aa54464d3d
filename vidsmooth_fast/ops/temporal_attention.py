"""Attention over the frames of a video, separately for every pixel and head."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks
from ._attention import attention_gradients, probabilities
from ._cuda import cuda_supports, where
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
from ._windows import check as check_starts
from ._windows import coverage


def _shares(starts: Sequence[int], weights: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """The frames of each window, (N, K), and the share of each window's result in those frames, ω / Σ ω."""
    weights = weights.to(torch.promote_types(torch.float32, weights.dtype))
    starts = torch.tensor(starts, device=weights.device)
    index = (starts[:, None] + torch.arange(len(weights), device=weights.device)) % frames
    total = weights.new_zeros(frames).index_add_(0, index.flatten(), weights.repeat(len(starts)))
    return index, weights / total[index]


def _split(t: Tensor, frames: int, heads: int) -> Tensor:  # (B·F, P, h·d) -> (B, P, h, F, d)
    return _checks.wide(t).unflatten(0, (-1, frames)).unflatten(-1, (heads, -1)).permute(0, 2, 3, 1, 4)


def _join(t: Tensor, dtype: torch.dtype) -> Tensor:  # (B, P, h, F, d) -> (B·F, P, h·d)
    return t.permute(0, 3, 1, 2, 4).to(dtype).flatten(3).flatten(0, 1).contiguous()


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weights: Tensor | None = None,
    *,
    frames: int,
    heads: int,
    scale: float | None = None,
    starts: Sequence[int] | None = None,
) -> Tensor:
    """softmax(q kᵀ · scale) v over the frames, in plain PyTorch; arguments as in :func:`temporal_attention`."""
    wide = [_split(t, frames, heads) for t in (q, k, v)]
    if weights is None:
        return _join(probabilities(wide[0], wide[1], scale) @ wide[2], q.dtype)
    out = torch.zeros_like(wide[0])
    for index, share in zip(*_shares(starts, weights, frames), strict=True):
        qi, ki, vi = (t[..., index, :] for t in wide)
        out = out.index_add(-2, index, share[:, None].to(out.dtype) * (probabilities(qi, ki, scale) @ vi))
    return _join(out, q.dtype)


def _cpu_supports(q, k=None, v=None, weights=None, **_settings):
    tensors = [t for t in (q, k, v) if t is not None]
    if any(t.stride(-1) != 1 and t.shape[-1] != 1 for t in tensors):
        return (
            False,
            "the C++ kernel needs neighbouring columns next to each other (stride 1 on the last axis)",
        )
    return cpu_supports(*tensors)


def _cpu(q, k, v, weights=None, *, frames, heads, scale=None, starts=None):
    out = torch.empty(q.shape, dtype=q.dtype)
    width = q.shape[2] // heads
    length, shares = frames, []
    if weights is None:
        starts = [0]
    else:
        starts = [start % frames for start in starts]
        length, shares = len(weights), _shares(starts, weights, frames)[1].flatten().tolist()
    extension().temporal_attention(
        DTYPE_CODES[q.dtype],
        (q.shape[0] // frames, frames, q.shape[1], heads, width),
        (q.data_ptr(), k.data_ptr(), v.data_ptr()),
        [t.stride()[:2] for t in (q, k, v)],
        out.data_ptr(),
        width**-0.5 if scale is None else scale,
        starts,
        length,
        shares,
        torch.get_num_threads(),
    )
    return out


def _spills(q, frames, heads, most_frames, most_width) -> str:
    """Why not in fp32, whose tiles are multiplied in registers; the limits come from compiling for sm_90."""
    width = q.shape[-1] // heads
    if q.device.type == "cpu" or q.dtype != torch.float32 or frames <= most_frames or width <= most_width:
        return ""
    return f"the Triton kernel spills registers for more than {most_frames} frames of fp32 heads of {width} columns"


def _triton_supports(q, k=None, v=None, weights=None, *, frames=1, heads=1, starts=None, **_settings):
    for t in (q, k, v):
        if t is not None and t.stride(-1) != 1 and t.shape[-1] != 1:
            return False, "the Triton kernel needs stride 1 on the last axis"
    if q.shape[-1] // heads > 256:
        return False, f"the Triton kernel takes heads of up to 256 columns, got {q.shape[-1] // heads}"
    if q.dim() == 3 and q.shape[1] * heads >= 2**30:
        return False, f"the Triton kernel takes up to 2^30 pixels times heads, got {q.shape[1] * heads}"
    if why := _spills(q, frames, heads, most_frames=16, most_width=80):
        return False, why
    if weights is not None and frames > 128 and len(weights) > 33:
        return (
            False,
            f"the Triton kernel takes windows of up to 33 of more than 128 frames, got {len(weights)}",
        )
    return triton_supports(q)


def _triton_backward_supports(grad, q=None, k=None, v=None, weights=None, *, frames=1, heads=1, **settings):
    if frames > 64:
        return False, f"the Triton kernel for gradients takes up to 64 frames, got {frames}"
    if grad.dim() == 3 and grad.stride(-1) != 1 and grad.shape[-1] != 1:
        return False, "the Triton kernel needs stride 1 on the last axis of the gradient"
    if why := _spills(grad, frames, heads, most_frames=32 if weights is None else 16, most_width=40):
        return False, why
    if weights is not None and (why := _spills(grad, frames, heads, most_frames=32, most_width=0)):
        return False, why
    q = grad if q is None else q
    return _triton_supports(q, k, v, weights, frames=frames, heads=heads, **settings)


@functools.cache  # a few kB each, kept for good: captured graphs go on reading them
def _windows_by_chunk(
    device: torch.device, starts: tuple[int, ...], length: int, frames: int
) -> tuple[Tensor, Tensor]:
    """The windows that touch each 64 frames: where those of a chunk begin in a list, (chunks + 1,), and the list."""
    chunks = [
        [s for s in starts if any((s + i) % frames in range(begin, begin + 64) for i in range(length))]
        for begin in range(0, frames, 64)
    ]
    first = torch.tensor([0, *map(len, chunks)], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return first.to(device), torch.tensor(sum(chunks, []), dtype=torch.int32, device=device)


def _windows_for_triton(q, weights, frames, starts):
    if weights is None:
        return None
    starts = tuple(start % frames for start in starts)
    return weights.float().contiguous(), *_windows_by_chunk(q.device, starts, len(weights), frames)


def _triton(q, k, v, weights=None, *, frames, heads, scale=None, starts=None):
    out = q.new_empty(q.shape)
    windows = _windows_for_triton(q, weights, frames, starts)
    triton_kernel("temporal_attention")(
        q, k, v, (out,), frames=frames, heads=heads, scale=scale, windows=windows
    )
    return out


def _triton_backward(grad, q, k, v, weights=None, *, frames, heads, scale=None, starts=None):
    results = tuple(q.new_empty(q.shape) for _ in range(3))
    windows = _windows_for_triton(q, weights, frames, starts)
    triton_kernel("temporal_attention")(
        q, k, v, results, grad=grad, frames=frames, heads=heads, scale=scale, windows=windows
    )
    return results


def _cuda_supports(q, k=None, v=None, weights=None, *, frames=1, starts=None, **_settings):
    length = frames if weights is None else len(weights)
    if length > 64:
        return False, f"the CUDA kernel takes windows of up to 64 frames, got {length}"
    if starts is not None and len(starts) > 512:  # they travel with the launch
        return False, f"the CUDA kernel takes up to 512 windows, got {len(starts)}"
    tensors = [t for t in (q, k, v) if t is not None]
    if any(t.stride(-1) != 1 and t.shape[-1] != 1 for t in tensors):
        return (
            False,
            "the CUDA kernel needs neighbouring columns next to each other (stride 1 on the last axis)",
        )
    return cuda_supports(*tensors)


def _cuda(q, k, v, weights=None, *, frames, heads, scale=None, starts=None):
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    width = q.shape[2] // heads
    if weights is not None:
        weights = weights.float().contiguous()
    extension().temporal_attention(
        DTYPE_CODES[q.dtype],
        (q.shape[0] // frames, frames, q.shape[1], heads, width),
        (q.data_ptr(), k.data_ptr(), v.data_ptr()),
        [t.stride()[:2] for t in (q, k, v)],
        out.data_ptr(),
        width**-0.5 if scale is None else scale,
        [0] if weights is None else [start % frames for start in starts],
        frames if weights is None else len(weights),
        0 if weights is None else weights.data_ptr(),
        where(q),
    )
    return out


def _fake(q, k, v, weights=None, *, frames, heads, scale=None, starts=None):
    return q.new_empty(q.shape)


_op = register(
    "temporal_attention(Tensor q, Tensor k, Tensor v, Tensor? weights=None, *, SymInt frames, int heads, "
    "float? scale=None, int[]? starts=None) -> Tensor",
    torch_backend=reference,
    fake=_fake,
    triton=Backend(_triton_supports, _triton),
    cpu=Backend(_cpu_supports, _cpu),
    cuda=Backend(_cuda_supports, _cuda),
)


def _backward_reference(grad, q, k, v, weights=None, *, frames, heads, scale=None, starts=None):
    wide = [_split(t, frames, heads) for t in (q, k, v, grad)]
    if weights is None:
        gradients = attention_gradients(*wide, scale)
    else:
        gradients = [torch.zeros_like(t) for t in wide[:3]]
        for index, share in zip(*_shares(starts, weights, frames), strict=True):
            *qkv, g = (t[..., index, :] for t in wide)
            parts = attention_gradients(*qkv, share[:, None].to(g.dtype) * g, scale)
            gradients = [total.index_add(-2, index, t) for total, t in zip(gradients, parts, strict=True)]
    return tuple(_join(t, q.dtype) for t in gradients)


def _backward_fake(grad, q, k, v, weights=None, **_settings):
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


_backward_op = register(
    "temporal_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? weights=None, *, int frames, "
    "int heads, float? scale=None, int[]? starts=None) -> (Tensor, Tensor, Tensor)",
    torch_backend=_backward_reference,
    fake=_backward_fake,
    gradient=True,
    triton=Backend(_triton_backward_supports, _triton_backward),
)


def _setup_context(ctx, inputs, keyword_only_inputs, output):
    ctx.save_for_backward(*inputs[:3], inputs[3] if len(inputs) > 3 else None)
    ctx.settings = {**keyword_only_inputs, **kept_request(keyword_only_inputs)}


def _backward(ctx, grad):
    return *_backward_op(grad, *ctx.saved_tensors, **ctx.settings), None


torch.library.register_autograd("vidsmooth::temporal_attention", _backward, setup_context=_setup_context)


def temporal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    frames: int,
    heads: int,
    scale: float | None = None,
    starts: Sequence[int] | Tensor | None = None,
    weights: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Let every pixel attend, in each head, to itself in all frames of its video.

    out[b, :, p, h] = softmax(q[b, :, p, h] k[b, :, p, h]ᵀ · scale) v[b, :, p, h]

    With starts and weights, the attention is computed in windows of K frames that begin at starts, and each frame
    gets the average over the windows that contain it, weighted by ω: Σ_i ω_i out_i / Σ_i ω_i.

    q, k, v: (B·F, P, h·d), one dtype and device, any strides (fast where the columns of a row are neighbours, so
        slices of a fused projection are read in place).
    frames: F. heads: h. scale: factor on the scores, 1/√d when None.
    starts: first frame of each window, taken modulo F, so that windows may run over the end of a loop. A GPU is sent
        what follows from them at the first call with these windows: make that call before a CUDA graph is captured.
    weights: ω, (K,), K <= F, on the device of q. Constant: it gets no gradient.
    backend: names of the backends that may be used, best first, e.g. "triton" or "cuda,torch"; None leaves the choice
        to the dispatch (`ops.backend`, `VIDSMOOTH_BACKEND`).
    Returns a contiguous (B·F, P, h·d) in the dtype of q; sums are kept in fp32. Differentiable in q, k and v.
    Raises ValueError for empty, mixed or wrongly shaped input, or a frame that no window covers.
    Source: Tune-A-Video's `attn_temp`; the windows are FreeNoise's. Design §§3, 4.
    """
    _checks.attention(q, k, v, frames, heads)
    if (starts is None) != (weights is None):
        raise ValueError("weights: expected together with starts, or neither of them; got one")
    if weights is not None:
        starts = check_starts(starts, len(starts))
        if not isinstance(weights, Tensor) or weights.dim() != 1 or not weights.is_floating_point():
            got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise ValueError(f"weights: expected a floating-point tensor of shape (K,), got {got}")
        if not 1 <= len(weights) <= frames:
            raise ValueError(
                f"weights: expected at most {frames}, one per frame of a window, got {len(weights)}"
            )
        coverage(tuple(starts), len(weights), frames)
    return _op(q, k, v, weights, frames=frames, heads=heads, scale=scale, starts=starts, backend=backend)
