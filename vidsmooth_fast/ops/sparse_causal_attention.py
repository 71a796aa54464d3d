"""Attention in which the tokens of each frame read the tokens of a few chosen frames.

On the CPU, PyTorch's own fused attention is the best implementation there is: there is no C++ kernel here. What is
saved is around it. Keys and values are never gathered: queries that read the same run of frames share one call on
views, and the calls of a frame are merged by their log-sum-exp; frames that are listed twice are read once.
Measured on one Zen 4 core, milliseconds in fp32 for (first, previous), against gathering and one fused call:
5.6 and 6.9 (8 frames of 64 tokens, 8 heads of 160); 10.9 and 12.8 (8 of 256, 4 of 48); 136 and 207 (3 of 1024,
8 of 80; here most of the gain is frame 1, which sees frame 0 twice). Explicit matrix products take 10, 29 and 560.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks
from ._dispatch import Backend, register


def reference(
    q: Tensor, k: Tensor, v: Tensor, kv_frames: Tensor, *, frames: int, heads: int, scale: float | None = None
) -> Tensor:
    """Gather the key frames of every frame, then attend; arguments as in :func:`sparse_causal_attention`."""
    index = kv_frames.to(q.device)

    def chosen(t: Tensor) -> Tensor:  # (B·F, P, h·d) -> (B·F, R·P, h·d)
        return t.unflatten(0, (-1, frames))[:, index].flatten(2, 3).flatten(0, 1)

    # Four axes: with five, SDPA leaves its fused kernel for the explicit one, 10 times slower on a CPU.
    q, k, v = _split(q, heads), _split(chosen(k), heads), _split(chosen(v), heads)
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


def _split(t: Tensor, heads: int) -> Tensor:  # (N, L, h·d) -> (N, h, L, d)
    return t.unflatten(-1, (heads, -1)).transpose(1, 2)


Run = tuple[
    tuple[int, ...], int, int, int
]  # query frames, first key frame, end of the key frames, multiplicity


def _runs(rows: Sequence[Sequence[int]]) -> list[Run]:
    """Which frames read which neighbouring frames, how often: each group is one attention without gathering."""
    readers: dict[int, dict[int, list[int]]] = {}  # key frame -> multiplicity -> the frames that read it
    for frame, row in enumerate(rows):
        counts = Counter(row)
        shared = math.gcd(
            *counts.values()
        )  # softmax over keys that are all repeated alike is softmax over them
        for key, count in counts.items():
            readers.setdefault(key, {}).setdefault(count // shared, []).append(frame)
    runs: list[Run] = []
    for key in sorted(readers):
        for count, queries in readers[key].items():
            before = next((run for run in runs if run[0] == tuple(queries) and run[2:] == (key, count)), None)
            if before:
                runs[runs.index(before)] = (before[0], before[1], key + 1, count)
            else:
                runs.append((tuple(queries), key, key + 1, count))
    return runs


def _cpu_supports(q, k=None, v=None, kv_frames=None, **_settings):
    for t in (q, k, v):
        if t is not None and t.device.type != "cpu":
            return False, f"PyTorch's fused CPU attention needs CPU tensors, got {t.device}"
        if t is not None and t.stride(-1) != 1:
            return False, "PyTorch's fused CPU attention needs stride 1 on the last axis"
    return True, ""


def _cpu(q, k, v, kv_frames, *, frames, heads, scale=None):
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    q, k, v = (t.unflatten(0, (-1, frames)) for t in (q, k, v))  # (B, F, P, h·d)
    batch, _, pixels, columns = q.shape
    total = torch.empty(batch, frames, pixels, heads, columns // heads, dtype=_checks.wide(q[:0]).dtype)
    mass: list[Tensor | None] = [None] * frames  # log-sum-exp of the scores so far, (B, P, h, 1) per frame
    for queries, begin, end, count in _runs(kv_frames.tolist()):
        first, last = queries[0], queries[-1] + 1
        chosen = slice(first, last) if last - first == len(queries) else list(queries)
        out, lse = fused(
            _split(q[:, chosen].flatten(1, 2), heads),
            _split(k[:, begin:end].flatten(1, 2), heads),
            _split(v[:, begin:end].flatten(1, 2), heads),
            scale=scale,
        )
        out = out.transpose(1, 2).unflatten(1, (-1, pixels))
        lse = lse.transpose(1, 2).unflatten(1, (-1, pixels))[..., None] + math.log(count)
        for i, frame in enumerate(queries):
            if mass[frame] is None:
                total[:, frame], mass[frame] = out[:, i], lse[:, i]
            else:
                share = torch.sigmoid(lse[:, i] - mass[frame])
                total[:, frame].lerp_(out[:, i].to(total.dtype), share.to(total.dtype))
                mass[frame] = torch.logaddexp(mass[frame], lse[:, i])
    return total.flatten(3).flatten(0, 1).to(q.dtype)


def _fake(q, k, v, kv_frames, *, frames, heads, scale=None):
    return q.new_empty(q.shape)


_op = register(
    "sparse_causal_attention(Tensor q, Tensor k, Tensor v, Tensor kv_frames, *, int frames, int heads, "
    "float? scale=None) -> Tensor",
    torch_backend=lambda *args, **keywords: reference(*args, **keywords).contiguous(),
    fake=_fake,
    cpu=Backend(_cpu_supports, _cpu),
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

    q, k, v: (B·F, P, h·d), one dtype and device, any strides.
    frames: F. heads: h. scale: factor on the scores, 1/√d when None.
    kv_frames: (F, R) frame indices in [0, F), nested lists or an int64 tensor (on the CPU: its values are read).
        (first, previous) is Tune-A-Video, (first) is Text2Video-Zero, all frames is full spatio-temporal attention.
        A frame listed twice beside others that are not weighs twice, as if its keys were concatenated twice.
    Returns a contiguous (B·F, P, h·d) in the dtype of q. Where gradients are wanted, PyTorch differentiates the
    gathered form itself: its fused backward needs no second forward.
    Raises ValueError for empty, mixed or wrongly shaped input, or a frame index out of range.
    Source: Tune-A-Video's `SparseCausalAttention`; design §3.
    """
    _checks.attention(q, k, v, frames, heads)
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
        if low < 0 or high >= frames:
            got = low if low < 0 else high
            raise ValueError(f"kv_frames: expected indices in [0, {frames}), got {got}")
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
        return reference(q, k, v, kv_frames, frames=frames, heads=heads, scale=scale)
    return _op(q, k, v, kv_frames, frames=frames, heads=heads, scale=scale)
