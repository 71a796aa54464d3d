"""Attention over the frames of every pixel and head on GPUs: q, k and v are read once, in place, and never permuted.

With 8 to 64 frames the problem of one pixel and head is far too small for a program, and there are hundreds of
thousands of them. (General attention libraries make them a batch: after copies that permute all three inputs, and
with a grid that some cannot launch from 65,536 on.) Here a (pixel, head) pair is a row of `width` columns that repeats
every frame, pairs of one frame lie next to each other, and a program takes as many as make a tile of 32 or 64 rows:
row = frame · pairs + pair, so that what it reads of a frame is one run of memory, at least two pairs where one is not
a whole number of 32-byte sectors. One matrix product gives the scores of all pairs in the tile; those between
different pairs are masked. That wastes arithmetic, of which there is plenty, and no memory traffic. (It also means
that a value in v that is not finite reaches the pairs packed with it.)

Windows are resolved inside the tile: the scores are computed once, each window's softmax is added with its weights,
and the sum is multiplied with v once. There is nothing to accumulate in memory. More than 64 frames are taken in
chunks of queries: without windows the keys stream past, with windows all frames that share one with the chunk make
the tile of keys. The backward pass computes the probabilities again from q and k, up to 64 frames.
"""

import torch
import triton
import triton.language as tl
from vidsmooth_fast.triton_kernels._heads import load, products, split, store

FRAMES_IN_TILE = 64
KEYS_IN_TILE = 128  # with windows over more frames than that
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rows(pair, frame, strides, heads, WIDTH: tl.constexpr):
    """Offsets of the first column of (pixel, head) pairs in frames; strides: (frames, pixels)."""
    return (
        tl.cast(frame, tl.int64) * strides[0]
        + tl.cast(pair // heads, tl.int64) * strides[1]
        + pair % heads * WIDTH
    )


@triton.jit
def _softmax_parts(s):
    """exp(s − max) and its sum, 0 in rows that are masked entirely. (Folding log2 e into s would round large s.)"""
    top = tl.max(s, 1)
    top = tl.where(top == float("-inf"), 0.0, top)
    p = tl.exp2((s - top[:, None]) * LOG2E)
    return p, tl.sum(p, 1)


@triton.jit
def _in_window(frame, start, frames, length):
    """Position of frames in a window, and whether they are in it."""
    position = frame - start
    position = tl.where(position < 0, position + frames, position)
    return position, position < length


@triton.jit
def _forward(
    q,  # (B·F, P, h·d), like k and v
    k,
    v,
    out,  # contiguous
    strides,  # (frames, pixels) of q, k, v and out
    weights,  # (K,), fp32
    first,  # (chunks + 1): where the windows that touch a chunk of queries begin in `starts`
    starts,
    scale,
    heads,
    pairs,  # P · h
    length,  # K
    blocks,
    chunks,
    FRAMES: tl.constexpr,
    WINDOWED: tl.constexpr,
    WIDTH: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PACK: tl.constexpr,  # pairs in a program
):
    program = tl.program_id(0)
    chunk = program % chunks
    block = program // chunks % blocks
    batch = tl.cast(program // (chunks * blocks), tl.int64) * FRAMES

    row = tl.arange(0, ROWS)
    pair = block * PACK + row % PACK
    frame = chunk * (ROWS // PACK) + row // PACK
    inside = (frame < FRAMES) & (pair < pairs)
    q_rows = q + batch * strides[0][0] + _rows(pair, frame, strides[0], heads, WIDTH)
    q_part = load(q_rows, inside, WIDTH, D1, D2)

    column = tl.arange(0, KEYS)
    key_pair = block * PACK + column % PACK
    usable = key_pair < pairs
    same = (row % PACK)[:, None] == (column % PACK)[None, :]
    k += batch * strides[1][0]
    v += batch * strides[2][0]
    if WINDOWED:
        # All frames, or those from the first that shares a window with the first query.
        offset = column // PACK
        reach = tl.minimum(ROWS // PACK + 2 * length - 2, FRAMES)
        key_frame = offset
        if FRAMES > KEYS // PACK:
            key_frame = (chunk * (ROWS // PACK) + FRAMES - (length - 1) + offset) % FRAMES
            usable = usable & (offset < reach)
        usable = usable & (offset < FRAMES)
        k_part = load(k + _rows(key_pair, key_frame, strides[1], heads, WIDTH), usable, WIDTH, D1, D2)
        v_part = load(v + _rows(key_pair, key_frame, strides[2], heads, WIDTH), usable, WIDTH, D1, D2)
        scores = products(q_part, k_part, D2) * scale
        shares = tl.zeros([ROWS, KEYS], tl.float32)
        mass = tl.zeros([ROWS], tl.float32)
        for i in range(tl.load(first + chunk), tl.load(first + chunk + 1)):
            start = tl.load(starts + i)
            position, member = _in_window(frame, start, FRAMES, length)
            weight = tl.load(weights + position, mask=member & inside, other=0)
            _, key_member = _in_window(key_frame, start, FRAMES, length)
            there = same & (usable & key_member)[None, :]
            p, total = _softmax_parts(tl.where(there, scores, float("-inf")))
            shares += p * (weight / tl.where(total == 0, 1.0, total))[:, None]
            mass += weight
        shares = (shares / mass[:, None]).to(q.dtype.element_ty)
        out1 = tl.dot(shares, v_part[0], input_precision="ieee")
        out2 = out1
        if D2 > 0:
            out2 = tl.dot(shares, v_part[1], input_precision="ieee")
    else:
        top = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        out1 = tl.zeros([ROWS, D1], tl.float32)
        out2 = out1
        if D2 > 0:
            out2 = tl.zeros([ROWS, D2], tl.float32)
        for begin in range(0, FRAMES, KEYS // PACK):
            key_frame = begin + column // PACK
            there = usable & (key_frame < FRAMES)
            k_part = load(k + _rows(key_pair, key_frame, strides[1], heads, WIDTH), there, WIDTH, D1, D2)
            v_part = load(v + _rows(key_pair, key_frame, strides[2], heads, WIDTH), there, WIDTH, D1, D2)
            scores = products(q_part, k_part, D2) * scale
            scores = tl.where(same & there[None, :], scores, float("-inf"))
            new_top = tl.maximum(top, tl.max(scores, 1))
            p = tl.exp2((scores - new_top[:, None]) * LOG2E)
            shrink = tl.exp2((top - new_top) * LOG2E)
            total = total * shrink + tl.sum(p, 1)
            p = p.to(q.dtype.element_ty)
            out1 = tl.dot(p, v_part[0], out1 * shrink[:, None], input_precision="ieee")
            if D2 > 0:
                out2 = tl.dot(p, v_part[1], out2 * shrink[:, None], input_precision="ieee")
            top = new_top
        out1 /= total[:, None]
        out2 /= total[:, None]
    out_rows = out + batch * strides[3][0] + _rows(pair, frame, strides[3], heads, WIDTH)
    store(out_rows, inside, out1, out2, WIDTH, D1, D2)


@triton.jit
def _backward(
    grad,  # (B·F, P, h·d), like q, k and v
    q,
    k,
    v,
    to_q,  # contiguous, like to_k and to_v
    to_k,
    to_v,
    strides,  # (frames, pixels) of grad, q, k, v and the results
    weights,  # (K,), fp32
    starts,
    scale,
    heads,
    pairs,
    length,
    windows,
    blocks,
    FRAMES: tl.constexpr,
    WINDOWED: tl.constexpr,
    WIDTH: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    ROWS: tl.constexpr,
    PACK: tl.constexpr,
):
    program = tl.program_id(0)
    block = program % blocks
    batch = tl.cast(program // blocks, tl.int64) * FRAMES
    row = tl.arange(0, ROWS)
    pair = block * PACK + row % PACK
    frame = row // PACK
    inside = (frame < FRAMES) & (pair < pairs)
    same = ((row % PACK)[:, None] == (row % PACK)[None, :]) & inside[None, :]
    at = _rows(pair, frame, strides[4], heads, WIDTH) + batch * strides[4][0]

    q_rows = q + batch * strides[1][0] + _rows(pair, frame, strides[1], heads, WIDTH)
    q_part = load(q_rows, inside, WIDTH, D1, D2)
    k_rows = k + batch * strides[2][0] + _rows(pair, frame, strides[2], heads, WIDTH)
    k_part = load(k_rows, inside, WIDTH, D1, D2)
    scores = products(q_part, k_part, D2) * scale
    grad_rows = grad + batch * strides[0][0] + _rows(pair, frame, strides[0], heads, WIDTH)
    grad_part = load(grad_rows, inside, WIDTH, D1, D2)
    v_rows = v + batch * strides[3][0] + _rows(pair, frame, strides[3], heads, WIDTH)
    v_part = load(v_rows, inside, WIDTH, D1, D2)
    to_p = products(grad_part, v_part, D2)

    if WINDOWED:
        shares = tl.zeros([ROWS, ROWS], tl.float32)
        to_s = tl.zeros([ROWS, ROWS], tl.float32)
        mass = tl.zeros([ROWS], tl.float32)
        for i in range(0, windows):
            position, member = _in_window(frame, tl.load(starts + i), FRAMES, length)
            weight = tl.load(weights + position, mask=member & inside, other=0)
            p, total = _softmax_parts(tl.where(same & member[None, :], scores, float("-inf")))
            p *= (1 / tl.where(total == 0, 1.0, total))[:, None]
            to_s += p * (to_p - tl.sum(to_p * p, 1)[:, None]) * weight[:, None]
            shares += p * weight[:, None]
            mass += weight
        norm = 1 / tl.where(mass == 0, 1.0, mass)
        shares *= norm[:, None]
        to_s *= norm[:, None]
    else:
        p, total = _softmax_parts(tl.where(same, scores, float("-inf")))
        shares = p * (1 / tl.where(total == 0, 1.0, total))[:, None]
        to_s = shares * (to_p - tl.sum(to_p * shares, 1)[:, None])

    dtype = q.dtype.element_ty
    to_s = (to_s * scale).to(dtype)
    shares = shares.to(dtype)
    part1 = tl.dot(to_s, k_part[0], input_precision="ieee")
    part2 = part1
    if D2 > 0:
        part2 = tl.dot(to_s, k_part[1], input_precision="ieee")
    store(to_q + at, inside, part1, part2, WIDTH, D1, D2)
    part1 = tl.dot(tl.trans(to_s), q_part[0], input_precision="ieee")
    part2 = part1
    if D2 > 0:
        part2 = tl.dot(tl.trans(to_s), q_part[1], input_precision="ieee")
    store(to_k + at, inside, part1, part2, WIDTH, D1, D2)
    part1 = tl.dot(tl.trans(shares), grad_part[0], input_precision="ieee")
    part2 = part1
    if D2 > 0:
        part2 = tl.dot(tl.trans(shares), grad_part[1], input_precision="ieee")
    store(to_v + at, inside, part1, part2, WIDTH, D1, D2)


def _tile(frames: int, width: int, itemsize: int) -> int:
    """Rows of a tile: at least two pairs where one is no whole number of sectors; small in fp32, see below."""
    if itemsize == 4:  # no matrix unit multiplies fp32 exactly: the masked products cost time
        return max(16, triton.next_power_of_2(min(frames, FRAMES_IN_TILE)))
    pairs = 1 if width * itemsize % 32 == 0 else 2
    return min(FRAMES_IN_TILE, max(32, triton.next_power_of_2(pairs * frames)))


def temporal_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    results: tuple[torch.Tensor, ...],
    *,
    grad: torch.Tensor | None = None,
    frames: int,
    heads: int,
    scale: float | None,
    windows: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
) -> None:
    """Launch on q, k, v (B·F, P, h·d), stride 1 on the last axis, into contiguous results like them.

    results: (out,), or with grad (the gradient of out) the gradients of q, k and v.
    windows: the weights (K,), fp32, and per chunk of queries (64 frames) where its windows begin in a list of starts:
        int32 (chunks + 1,) and (entries,). None without windows.
    """
    rows, pixels, columns = q.shape
    width = columns // heads
    d1, d2 = split(width)
    tile = _tile(frames, width, q.element_size())
    pack = max(1, tile // frames)
    pairs = pixels * heads
    blocks = triton.cdiv(pairs, pack)
    scale = width**-0.5 if scale is None else float(scale)
    weights, first, starts = windows or (q, q, q)
    length = len(weights) if windows else 0
    inputs = (q, k, v) if grad is None else (grad, q, k, v)
    settings = {
        "FRAMES": frames,
        "WINDOWED": windows is not None,
        "WIDTH": width,
        "D1": d1,
        "D2": d2,
        "ROWS": tile,
        "PACK": pack,
        "num_warps": tile // (16 if q.element_size() == 2 else 8),
        "enable_fp_fusion": True,
    }
    strides = tuple(t.stride()[:2] for t in (*inputs, results[0]))
    if grad is not None:
        # Products of registers: with half as many warps, each thread would spill 0.5 to 1 kB.
        if q.element_size() == 4 and (tile == 64 or width > 64 or (windows and tile == 32)):
            settings["num_warps"] *= 2
        _backward[(rows // frames * blocks,)](
            *inputs,
            *results,
            strides,
            weights,
            starts,
            scale,
            heads,
            pairs,
            length,
            len(starts),
            blocks,
            **settings,
        )
        return
    chunks = triton.cdiv(frames, FRAMES_IN_TILE)
    keys = tile
    if windows and chunks > 1:
        keys = KEYS_IN_TILE
        settings["num_warps"] = 8  # of 4 warps, each thread would need all 255 registers
    _forward[(rows // frames * blocks * chunks,)](
        *inputs,
        *results,
        strides,
        weights,
        first,
        starts,
        scale,
        heads,
        pairs,
        length,
        blocks,
        chunks,
        KEYS=keys,
        **settings,
    )
