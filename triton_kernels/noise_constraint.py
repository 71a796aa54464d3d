"""The noise constraint on GPUs: every value is read once and written once.

A program walks along the frames of one block of pixels and keeps three of them in registers, so that a frame is not
read again as its neighbours' neighbour. What the next step needs is fetched one step ahead. A short video in few
pixels has too few blocks to fill a GPU: then a program takes a range of frames, and the frame on each side of the
range is read twice, which the second level cache serves.
"""

import torch
import triton
import triton.language as tl
from vidsmooth_fast.triton_kernels._video import (
    dense,
    frames_per_program,
    neighbour,
    pixels_from,
    place,
    tile,
)


@triton.jit
def _values(eps, x, ref, frame, strides, at, inside, HAS_REFERENCE: tl.constexpr):
    """ε, x and r of a frame as they lie in memory."""
    frame = tl.cast(frame, tl.int64)
    e = tl.load(eps + frame * strides[0][2] + at[0], mask=inside, other=0)
    v = tl.load(x + frame * strides[1][2] + at[1], mask=inside, other=0)
    r = e
    if HAS_REFERENCE:
        r = tl.load(ref + frame * strides[2][2] + at[2], mask=inside, other=0)
    return e, v, r


@triton.jit
def _pulled(e, v, r, c, HAS_REFERENCE: tl.constexpr):
    """ε − c·x + r, what is differenced over the frames."""
    y = e.to(tl.float32) - c * v.to(tl.float32)
    if HAS_REFERENCE:
        y += r.to(tl.float32)
    return y


@triton.jit
def _kernel(
    eps,  # (B, C, F, H, W), like x and ref
    x,
    ref,
    out,  # contiguous
    strides,  # of eps, x and ref
    c,
    strength,
    channels,
    frames,
    pixels,
    width,
    blocks,
    length,  # frames per program
    HAS_REFERENCE: tl.constexpr,
    LOOP: tl.constexpr,
    DENSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block, part, plane = place(blocks, tl.cdiv(frames, length))
    start = block.to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = lane < pixels - start
    b, channel = plane // channels, plane % channels
    eps += b * strides[0][0] + channel * strides[0][1]
    x += b * strides[1][0] + channel * strides[1][1]
    ref += b * strides[2][0] + channel * strides[2][1]
    at = (
        pixels_from(start, width, strides[0], DENSE, BLOCK),
        pixels_from(start, width, strides[1], DENSE, BLOCK),
        pixels_from(start, width, strides[2], DENSE, BLOCK),
    )
    out += plane * frames * pixels + start + lane

    first = part * length
    last = tl.minimum(first + length, frames)
    e, v, r = _values(eps, x, ref, neighbour(first - 1, frames, LOOP), strides, at, inside, HAS_REFERENCE)
    y_before = _pulled(e, v, r, c, HAS_REFERENCE)
    e_now, v, r = _values(eps, x, ref, first, strides, at, inside, HAS_REFERENCE)
    y_now = _pulled(e_now, v, r, c, HAS_REFERENCE)
    e, v, r = _values(eps, x, ref, neighbour(first + 1, frames, LOOP), strides, at, inside, HAS_REFERENCE)
    for n in range(first, last):
        ahead = neighbour(tl.minimum(n + 2, frames), frames, LOOP)
        wanted = lane < tl.where(n + 1 < last, pixels - start, 0)
        e_ahead, v_ahead, r_ahead = _values(eps, x, ref, ahead, strides, at, wanted, HAS_REFERENCE)
        y_after = _pulled(e, v, r, c, HAS_REFERENCE)
        result = e_now.to(tl.float32) - strength * (2 * y_now - y_before - y_after)
        if not LOOP:
            result = tl.where((n > 0) & (n + 1 < frames), result, e_now.to(tl.float32))
        tl.store(out + tl.cast(n, tl.int64) * pixels, result, mask=inside)
        y_before, y_now, e_now = y_now, y_after, e
        e, v, r = e_ahead, v_ahead, r_ahead


def noise_constraint(
    eps: torch.Tensor,
    x: torch.Tensor,
    reference: torch.Tensor | None,
    out: torch.Tensor,
    *,
    c_over_lambda: float,
    strength: float,
    loop: bool,
) -> None:
    """Launch on eps, x and reference (B, C, F, H, W), any strides, into a contiguous `out`."""
    batch, channels, frames, height, width = eps.shape
    block, warps = tile(height * width, eps.element_size(), 1)
    blocks = triton.cdiv(height * width, block)
    length = frames_per_program(batch * channels * blocks, frames)
    ref = eps if reference is None else reference
    _kernel[(batch * channels * blocks * triton.cdiv(frames, length),)](
        eps,
        x,
        ref,
        out,
        (eps.stride(), x.stride(), ref.stride()),
        c_over_lambda,
        strength,
        channels,
        frames,
        height * width,
        width,
        blocks,
        length,
        HAS_REFERENCE=reference is not None,
        LOOP=loop,
        DENSE=dense(eps, x, ref),
        BLOCK=block,
        num_warps=warps,
        enable_fp_fusion=True,
    )
