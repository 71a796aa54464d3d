"""Attention in which the tokens of each frame read the tokens of a few chosen frames.

Keys and values are never gathered, and a frame that is listed twice is read once.

The C++ kernel computes in fp32 whatever the dtype, except that processors with AVX512_BF16 multiply bf16 in pairs and
sum in fp32 (a Zen 4 core: 1.5 to 1.8 times as fast as in fp32). In fp32 on such a core it takes 0.34 to 0.85 of the
time of PyTorch's fused attention arranged in the same way (calls on views, merged by their log-sum-exp), least for
narrow heads and small frames, and runs at 0.7 to 1.0 of the rate of a large fp32 matrix product. On a processor with
matrix units for bf16 (AMX) PyTorch's may be faster for wide heads; that is not measured.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks
from ._attention import attention_gradients
from ._dispatch import (
    DTYPE_CODES,
    Backend,
    cpu_supports,
    extension,
    kept_request,
    register,
    triton_kernel,
    triton_supports,
    wanted,
)


def reference(
    q: Tensor, k: Tensor, v: Tensor, kv_frames: Tensor, *, frames: int, heads: int, scale: float | None = None
) -> Tensor:
    """Gather the key frames of every frame, then attend; arguments as in :func:`sparse_causal_attention`."""
    index = kv_frames.to(q.device, non_blocking=q.is_cuda)  # the host need not wait for the GPU

    # An exporter cannot divide: where keys are like queries, the frames are given and the batch is found.
    batch = -1 if k.shape[0] == q.shape[0] else q.shape[0] // frames
    # Four axes: with five, SDPA leaves its fused kernel for the explicit one, 10 times slower on a CPU.
    q, k, v = _split(q, heads), *(_split(_chosen(t, index, frames, batch), heads) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


def _chosen(t: Tensor, index: Tensor, frames: int, batch: int = -1) -> Tensor:
    """(B·G, L, h·d), (F, R) -> (B·F, R·L, h·d); batch: B, or -1 where G = F."""
    gathered = t.unflatten(0, (batch, frames if batch == -1 else -1)).index_select(1, index.flatten())
    return gathered.unflatten(1, index.shape).flatten(2, 3).flatten(0, 1)


def _split(t: Tensor, heads: int) -> Tensor:  # (N, L, h·d) -> (N, h, L, d)
    return t.unflatten(-1, (heads, -1)).transpose(1, 2)


def _sources(rows: Sequence[Sequence[int]]) -> tuple[list[int], list[int], list[float]]:
    """Which frames each frame reads, each once: (first, key, bias).

    Frame f reads the frames key[first[f]:first[f + 1]]; bias is the logarithm of how often each counts. Keys that
    are all repeated alike count once: softmax over them is the same.
    """
    first, key, bias = [0], [], []
    for row in rows:
        counts = Counter(row)
        shared = math.gcd(*counts.values())
        key += counts
        bias += [math.log(count // shared) for count in counts.values()]
        first.append(len(key))
    return first, key, bias


def _cpu_supports(q, k=None, v=None, kv_frames=None, **_settings):
    tensors = [t for t in (q, k, v) if t is not None]
    if any(t.stride(-1) != 1 and t.shape[-1] != 1 for t in tensors):
        return (
            False,
            "the C++ kernel needs neighbouring columns next to each other (stride 1 on the last axis)",
        )
    return cpu_supports(*tensors)


def _sizes(q, k, frames, heads):
    """Batch, frames, pixels, heads and columns of one, key frames, key pixels."""
    batch = q.shape[0] // frames
    return batch, frames, q.shape[1], heads, q.shape[2] // heads, k.shape[0] // batch, k.shape[1]


def _cpu(q, k, v, kv_frames, *, frames, heads, scale=None):
    out = torch.empty(q.shape, dtype=q.dtype)
    width = q.shape[2] // heads
    extension().sparse_causal_attention(
        DTYPE_CODES[q.dtype],
        _sizes(q, k, frames, heads),
        (q.data_ptr(), k.data_ptr(), v.data_ptr()),
        [t.stride()[:2] for t in (q, k, v)],
        out.data_ptr(),
        width**-0.5 if scale is None else scale,
        *_sources(kv_frames.tolist()),
        torch.get_num_threads(),
    )
    return out


def _cpu_backward_supports(grad, q=None, k=None, v=None, kv_frames=None, **_settings):
    return _cpu_supports(grad if q is None else q, k, v)


def _cpu_backward(grad, q, k, v, kv_frames, *, frames, heads, scale=None, keys=True):
    if grad.stride(-1) != 1:
        grad = grad.contiguous()
    batch, width = q.shape[0] // frames, q.shape[2] // heads
    first, key, bias = _sources(kv_frames.tolist())
    to_q, to_k, to_v = _backward_fake(grad, q, k, v, kv_frames, keys=keys)
    parts = torch.empty(2, batch, len(key), *q.shape[1:], dtype=torch.float32) if keys else None
    extension().sparse_causal_attention_backward(
        DTYPE_CODES[q.dtype],
        _sizes(q, k, frames, heads),
        (q.data_ptr(), k.data_ptr(), v.data_ptr()),
        [t.stride()[:2] for t in (q, k, v)],
        to_q.data_ptr(),
        width**-0.5 if scale is None else scale,
        first,
        key,
        bias,
        grad.data_ptr(),
        grad.stride()[:2],
        to_k.data_ptr(),
        to_v.data_ptr(),
        0 if parts is None else parts.data_ptr(),
        torch.get_num_threads(),
    )
    return to_q, to_k, to_v


def _triton_supports(q, k=None, v=None, kv_frames=None, *, heads=1, scale=None, **_settings):
    if k is not None and k.shape != q.shape:
        return (
            False,
            f"the Triton kernel takes keys of the shape of q, {tuple(q.shape)}, got {tuple(k.shape)}",
        )
    for t in (q, k, v):
        if t is not None and t.stride(-1) != 1 and t.shape[-1] != 1:
            return False, "the Triton kernel needs stride 1 on the last axis"
    if q.shape[-1] // heads > 256:
        return False, f"the Triton kernel takes heads of up to 256 columns, got {q.shape[-1] // heads}"
    if scale is not None and scale <= 0:
        return False, f"the Triton kernel takes a positive scale, got {scale}"
    return triton_supports(q)


@functools.cache  # a few kB each, kept for good: captured graphs go on reading them
def _sources_on(
    device: torch.device, rows: tuple[tuple[int, ...], ...]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """:func:`_sources` as tensors on a device, copied there once; no bias where all are 0."""
    first, key, bias = _sources(rows)
    integers = (torch.tensor(numbers, dtype=torch.int32, device=device) for numbers in (first, key))
    return *integers, torch.tensor(bias, dtype=torch.float32, device=device) if any(bias) else None


@functools.cache  # kept like `_sources_on`; made on the CPU, because what a graph's own kernels write is the graph's
def _every(device: torch.device, frames: int, count: int) -> Tensor:
    return torch.arange(0, (frames + 1) * count, count, dtype=torch.int32).to(device)


def _triton(q, k, v, kv_frames, *, frames, heads, scale=None):
    out = q.new_empty(q.shape)
    if kv_frames.device.type == "cpu":
        first, key, bias = _sources_on(q.device, tuple(map(tuple, kv_frames.tolist())))
    else:  # read by the kernel alone: looking at the values here would wait for the GPU
        first, key, bias = _every(q.device, *kv_frames.shape), kv_frames.contiguous(), None
    triton_kernel("sparse_causal_attention")(
        q, k, v, out, first, key, bias, frames=frames, heads=heads, scale=scale
    )
    return out


def _fake(q, k, v, kv_frames, *, frames, heads, scale=None):
    return q.new_empty(q.shape)


_op = register(
    "sparse_causal_attention(Tensor q, Tensor k, Tensor v, Tensor kv_frames, *, SymInt frames, int heads, "
    "float? scale=None) -> Tensor",
    torch_backend=lambda *args, **keywords: reference(*args, **keywords).contiguous(),
    fake=_fake,
    triton=Backend(_triton_supports, _triton),
    cpu=Backend(_cpu_supports, _cpu),
)


def _backward_reference(grad, q, k, v, kv_frames, *, frames, heads, scale=None, keys=True):
    index = kv_frames.to(q.device)
    wide = [
        _split(_checks.wide(t), heads)
        for t in (q, _chosen(k, index, frames), _chosen(v, index, frames), grad)
    ]
    gradients = [t.transpose(1, 2).flatten(2).to(q.dtype) for t in attention_gradients(*wide, scale)]
    if not keys:
        return gradients[0].contiguous(), q.new_empty(0), q.new_empty(0)
    summed = []
    for t in gradients[1:]:  # (B·F, R·P, h·d) -> (B·F, P, h·d)
        parts = t.unflatten(0, (-1, frames)).unflatten(2, (index.shape[1], -1)).flatten(1, 2)
        zeros = parts.new_zeros(len(parts), frames, *parts.shape[2:])
        summed.append(zeros.index_add_(1, index.flatten(), parts).flatten(0, 1))
    return gradients[0].contiguous(), *summed


def _backward_fake(grad, q, k, v, kv_frames, *, keys=True, **_settings):
    shape = q.shape if keys else (0,)
    return q.new_empty(q.shape), q.new_empty(shape), q.new_empty(shape)


_backward_op = register(
    "sparse_causal_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor kv_frames, *, int frames, "
    "int heads, float? scale=None, bool keys=True) -> (Tensor, Tensor, Tensor)",
    torch_backend=_backward_reference,
    fake=_backward_fake,
    gradient=True,
    cpu=Backend(_cpu_backward_supports, _cpu_backward),
)


def _setup_context(ctx, inputs, keyword_only_inputs, output):
    ctx.save_for_backward(*inputs)
    ctx.settings = {**keyword_only_inputs, **kept_request(keyword_only_inputs)}


def _backward(ctx, grad):
    keys = any(ctx.needs_input_grad[1:3])  # not in front of the first trained layer
    to_q, to_k, to_v = _backward_op(grad, *ctx.saved_tensors, keys=keys, **ctx.settings)
    return (to_q, to_k, to_v, None) if keys else (to_q, None, None, None)


torch.library.register_autograd("vidsmooth::sparse_causal_attention", _backward, setup_context=_setup_context)


def _has_gradients(q: Tensor, k: Tensor, v: Tensor, backend: str | None) -> bool:
    """Whether the operator computes its own gradients: the C++ kernel's, outside of graphs."""
    if torch.compiler.is_compiling() or k.shape != q.shape or not _cpu_supports(q, k, v)[0]:
        return False
    return (wanted(backend) or ("cpu",))[0] == "cpu"


def sparse_causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    frames: int,
    heads: int,
    kv_frames: Tensor | Sequence[Sequence[int]],
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Let the tokens of frame f attend to the tokens of the frames kv_frames[f].

    out[b, f, :, h] = softmax(q[b, f, :, h] k[b, kv_frames[f], :, h]ᵀ · scale) v[b, kv_frames[f], :, h]

    q: (B·F, P, h·d). k, v: (B·G, L, h·d), one shape; most often G = F and L = P. One dtype and device, any strides.
    frames: F. heads: h. scale: factor on the scores, 1/√d when None.
    kv_frames: (F, R) frame indices in [0, G), nested lists or an int64 tensor (on the CPU: its values are read).
        (first, previous) is Tune-A-Video, (first) is Text2Video-Zero, all frames is full spatio-temporal attention.
        A frame listed twice beside others that are not weighs twice, as if its keys were concatenated twice.
        A GPU is sent a table on the CPU at the first call with it: make that call before a CUDA graph is captured.
    backend: names of the backends that may be used, best first, e.g. "triton" or "cuda,torch"; None leaves the choice
        to the dispatch (`ops.backend`, `VIDSMOOTH_BACKEND`).
    Returns a contiguous (B·F, P, h·d) in the dtype of q. Differentiable in q, k and v: by a C++ kernel where there is
    one for the call itself; elsewhere PyTorch differentiates the gathered form: its fused backward needs no second
    forward.
    Raises ValueError for empty, mixed or wrongly shaped input, or a frame index out of range.
    Source: Tune-A-Video's `SparseCausalAttention`; design §3.
    """
    _checks.attention(q, k, v, frames, heads, other_keys=True)
    if not isinstance(kv_frames, Tensor):
        try:
            kv_frames = torch.tensor(kv_frames)
        except (TypeError, ValueError):
            raise ValueError(f"kv_frames: expected {frames} rows of equal length, got {kv_frames}") from None
    if kv_frames.dtype != torch.int64 or kv_frames.dim() != 2 or kv_frames.shape[0] != frames:
        got = f"{kv_frames.dtype} of {tuple(kv_frames.shape)}"
        raise ValueError(f"kv_frames: expected int64 of shape ({frames}, R), got {got}")
    if kv_frames.shape[1] == 0:
        raise ValueError("kv_frames: expected at least one key frame per frame, got none")
    if not torch.compiler.is_compiling() and kv_frames.device.type == "cpu":  # elsewhere reading would wait
        low, high = kv_frames.min().item(), kv_frames.max().item()
        key_frames = k.shape[0] // (q.shape[0] // frames)
        if low < 0 or high >= key_frames:
            got = low if low < 0 else high
            raise ValueError(f"kv_frames: expected indices in [0, {key_frames}), got {got}")
    trained = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    if trained and not _has_gradients(q, k, v, backend):
        return reference(q, k, v, kv_frames, frames=frames, heads=heads, scale=scale)
    return _op(q, k, v, kv_frames, frames=frames, heads=heads, scale=scale, backend=backend)
