"""Attention to the tokens of a few frames on GPUs: keys and values are read where they lie, never concatenated.

A program takes a tile of queries of one frame and head and runs through the tiles of all frames that a table lists for
it, with the softmax kept as a running maximum and sum. All listed frames are one loop, so that the loads of a frame's
first tile are under way while the last of the frame before is computed. The table comes without repetitions: frame 0
of (first, previous) reads its one frame once, where concatenated keys are read and multiplied twice; where only some
are repeated, the logarithm of how often is added to the scores.

Heads of 40, 80, 96 and 160 columns are two powers of two (see `_heads.py`): the matrix products do 3/4 to 5/8 of the
work of the next power of two, and nothing unused is read. In half precision the scale goes into the same
multiply-add as the maximum, with exp2 in place of exp.
"""

import torch
import triton
import triton.language as tl
from vidsmooth_fast.triton_kernels._heads import load, products, split, store

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _kernel(
    q,  # (B·F, P, h·d), like k and v
    k,
    v,
    out,  # contiguous
    strides,  # (frames, pixels) of q, k, v and out
    first,  # (F + 1): where the key frames of a frame begin in `key`
    key,
    bias,  # added to the scores of an entry of `key`
    scale,  # positive
    frames,
    pixels,
    heads,
    HAS_BIAS: tl.constexpr,
    EXACT: tl.constexpr,  # fp32: scores are not rounded to units of log2 e
    EVEN: tl.constexpr,  # whether tiles of keys end where frames end
    WIDTH: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    program = tl.program_id(0)
    tiles = tl.cdiv(pixels, ROWS)
    token = program % tiles * ROWS + tl.arange(0, ROWS)
    head = program // tiles % heads
    image = program // (tiles * heads)
    frame = image % frames
    inside = token < pixels
    token = tl.cast(token, tl.int64)
    image = tl.cast(image, tl.int64)
    q_rows = q + image * strides[0][0] + token * strides[0][1] + head * WIDTH
    q_part = load(q_rows, inside, WIDTH, D1, D2)

    column = tl.arange(0, KEYS)
    k_rows = k + (image - frame) * strides[1][0] + column * strides[1][1] + head * WIDTH
    v_rows = v + (image - frame) * strides[2][0] + column * strides[2][1] + head * WIDTH
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out1 = tl.zeros([ROWS, D1], tl.float32)
    out2 = out1
    if D2 > 0:
        out2 = tl.zeros([ROWS, D2], tl.float32)
    key_tiles = tl.cdiv(pixels, KEYS)
    for i in range(tl.load(first + frame) * key_tiles, tl.load(first + frame + 1) * key_tiles):
        key_frame = tl.load(key + i // key_tiles).to(tl.int64)
        begin = tl.cast(i % key_tiles, tl.int64) * KEYS
        if EVEN:
            there = column >= 0
        else:
            there = column < pixels - begin
        k_part = load(k_rows + (key_frame * strides[1][0] + begin * strides[1][1]), there, WIDTH, D1, D2)
        v_part = load(v_rows + (key_frame * strides[2][0] + begin * strides[2][1]), there, WIDTH, D1, D2)
        scores = products(q_part, k_part, D2)
        if not EVEN:
            scores = tl.where(there[None, :], scores, float("-inf"))
        shift = 0.0
        if HAS_BIAS:
            shift = tl.load(bias + i // key_tiles)
        if EXACT:
            scores = scores * scale + shift
            new_top = tl.maximum(top, tl.max(scores, 1))
            p = tl.exp2((scores - new_top[:, None]) * LOG2E)
            shrink = tl.exp2((top - new_top) * LOG2E)
        else:
            new_top = tl.maximum(top, tl.max(scores, 1) * (scale * LOG2E) + shift * LOG2E)
            p = tl.exp2(scores * (scale * LOG2E) - (new_top - shift * LOG2E)[:, None])
            shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        p = p.to(q.dtype.element_ty)
        out1 = tl.dot(p, v_part[0], out1 * shrink[:, None], input_precision="ieee")
        if D2 > 0:
            out2 = tl.dot(p, v_part[1], out2 * shrink[:, None], input_precision="ieee")
        top = new_top
    share = (1 / total)[:, None]
    out_rows = out + image * strides[3][0] + token * strides[3][1] + head * WIDTH
    store(out_rows, inside, out1 * share, out2 * share, WIDTH, D1, D2)


def sparse_causal_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    first: torch.Tensor,
    key: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    frames: int,
    heads: int,
    scale: float | None,
) -> None:
    """Launch on q, k, v (B·F, P, h·d), stride 1 on the last axis, into a contiguous `out`.

    Frame f reads the frames key[first[f]:first[f + 1]], integers; bias (fp32) is added to the scores.
    """
    images, pixels, columns = q.shape
    width = columns // heads
    d1, d2 = split(width)
    if q.element_size() == 4:  # no matrix unit multiplies fp32 exactly: small tiles, everything in registers
        rows, stages = 32, 1
        keys, warps = (32, 4) if width <= 96 else (16, 8)  # else up to 2 kB a thread would be spilled
    else:
        rows, warps = (128, 8) if pixels > 64 else (64, 4)
        keys, stages = 64, 3  # with 128 keys and heads of 40, two programs would not fit on a multiprocessor
    _kernel[(images * heads * triton.cdiv(pixels, rows),)](
        q,
        k,
        v,
        out,
        tuple(t.stride()[:2] for t in (q, k, v, out)),
        first,
        key,
        first if bias is None else bias,
        width**-0.5 if scale is None else float(scale),
        frames,
        pixels,
        heads,
        HAS_BIAS=bias is not None,
        EXACT=q.element_size() == 4,
        EVEN=pixels % keys == 0,
        WIDTH=width,
        D1=d1,
        D2=d2,
        ROWS=rows,
        KEYS=keys,
        num_warps=warps,
        enable_fp_fusion=True,
        num_stages=stages,
    )
