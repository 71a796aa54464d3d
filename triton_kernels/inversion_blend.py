"""The inversion blend on GPUs: every value is read once and written once.

With d = ε̃ − ε the equation is out_n = (1−w)·ε̃_n + w·((f+b)·ε_n + f·d_{n−1} + b·d_{n+1}). A program walks along the
frames of one block of pixels as in `noise_constraint.py`, with d of the frame before and the frame at hand in
registers and the frame after next on its way.
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
def _values(inverted, noise, frame, strides, at, inside):
    """ε̃ and ε of a frame as they lie in memory."""
    frame = tl.cast(frame, tl.int64)
    v = tl.load(inverted + frame * strides[0][2] + at[0], mask=inside, other=0)
    e = tl.load(noise + frame * strides[1][2] + at[1], mask=inside, other=0)
    return v, e


@triton.jit
def _kernel(
    inverted,  # (B, C, F, H, W), like noise
    noise,
    out,  # contiguous
    strides,  # of inverted and noise
    weight,
    forward,
    backward,
    channels,
    frames,
    pixels,
    width,
    blocks,
    length,  # frames per program
    LOOP: tl.constexpr,
    DENSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block, part, plane = place(blocks, tl.cdiv(frames, length))
    start = block.to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = lane < pixels - start
    b, channel = plane // channels, plane % channels
    inverted += b * strides[0][0] + channel * strides[0][1]
    noise += b * strides[1][0] + channel * strides[1][1]
    at = (
        pixels_from(start, width, strides[0], DENSE, BLOCK),
        pixels_from(start, width, strides[1], DENSE, BLOCK),
    )
    out += plane * frames * pixels + start + lane

    first = part * length
    last = tl.minimum(first + length, frames)
    v, e = _values(inverted, noise, neighbour(first - 1, frames, LOOP), strides, at, inside)
    d_before = v.to(tl.float32) - e.to(tl.float32)
    v_now, e_now = _values(inverted, noise, first, strides, at, inside)
    v, e = _values(inverted, noise, neighbour(first + 1, frames, LOOP), strides, at, inside)
    for n in range(first, last):
        ahead = neighbour(tl.minimum(n + 2, frames), frames, LOOP)
        wanted = lane < tl.where(n + 1 < last, pixels - start, 0)
        v_ahead, e_ahead = _values(inverted, noise, ahead, strides, at, wanted)
        v32, e32 = v_now.to(tl.float32), e_now.to(tl.float32)
        d_after = v.to(tl.float32) - e.to(tl.float32)
        implied = (forward + backward) * e32 + forward * d_before + backward * d_after
        tl.store(out + tl.cast(n, tl.int64) * pixels, (1 - weight) * v32 + weight * implied, mask=inside)
        d_before = v32 - e32
        v_now, e_now = v, e
        v, e = v_ahead, e_ahead


def inversion_blend(
    inverted: torch.Tensor,
    noise: torch.Tensor,
    out: torch.Tensor,
    *,
    weight: float,
    forward: float,
    backward: float,
    loop: bool,
) -> None:
    """Launch on inverted and noise (B, C, F, H, W) of at least two frames, into a contiguous `out`."""
    batch, channels, frames, height, width = inverted.shape
    block, warps = tile(height * width, inverted.element_size(), 1)
    blocks = triton.cdiv(height * width, block)
    length = frames_per_program(batch * channels * blocks, frames)
    _kernel[(batch * channels * blocks * triton.cdiv(frames, length),)](
        inverted,
        noise,
        out,
        (inverted.stride(), noise.stride()),
        weight,
        forward,
        backward,
        channels,
        frames,
        height * width,
        width,
        blocks,
        length,
        LOOP=loop,
        DENSE=dense(inverted, noise),
        BLOCK=block,
        num_warps=warps,
        enable_fp_fusion=True,
    )
