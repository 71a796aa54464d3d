"""Merging of windows on GPUs: every value of every window is read once, every frame is written once.

A program takes one block of pixels of one frame and sums over the windows that contain it, which a table lists. The
loads of up to four windows are issued together: with the usual overlap, all that a program reads is on its way at
once. Weights that do not depend on the pixel are read as single numbers.
"""

import torch
import triton
import triton.language as tl
from vidsmooth_fast.triton_kernels._video import dense, pixels_from, place, tile


@triton.jit
def covering(table, i, end):
    """Entry i of the (windows, positions) that cover a frame; past the end, entry 0 and False."""
    there = i < end
    window = tl.load(table[1] + i, mask=there, other=0).to(tl.int64)
    position = tl.load(table[2] + i, mask=there, other=0).to(tl.int64)
    return window, position, there


@triton.jit
def weight_of(weights, strides, position, at, inside, there, PIXEL_WEIGHTS: tl.constexpr):
    """ω at a position in the window, 0 where there is no window; strides: (C, K, H, W)."""
    if PIXEL_WEIGHTS:
        return tl.load(weights + position * strides[1] + at, mask=inside, other=0)
    else:
        return tl.load(weights + position * strides[1], mask=there, other=0)


@triton.jit
def _kernel(
    windows,  # (B, N, C, K, H, W)
    weights,  # (C, K, H, W), fp32
    out,  # (B, C, F, H, W), contiguous
    table,  # coverage: (F + 1), (N·K), (N·K), int32
    strides,  # of windows
    weight_strides,
    channels,
    frames,
    pixels,
    width,
    blocks,
    PIXEL_WEIGHTS: tl.constexpr,
    DENSE: tl.constexpr,
    TOGETHER: tl.constexpr,  # windows whose loads are issued together
    BLOCK: tl.constexpr,
):
    block, frame, plane = place(blocks, frames)
    start = block.to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = lane < pixels - start
    b, channel = plane // channels, plane % channels
    windows += b * strides[0] + channel * strides[2]
    weights += channel * weight_strides[0]
    at = pixels_from(start, width, strides, DENSE, BLOCK)
    weight_at = pixels_from(start, width, weight_strides, False, BLOCK)

    begin, end = tl.load(table[0] + frame), tl.load(table[0] + frame + 1)
    total = tl.zeros([BLOCK], tl.float32)
    mass = tl.zeros([BLOCK] if PIXEL_WEIGHTS else [1], tl.float32)
    for base in range(begin, end, TOGETHER):
        for j in tl.static_range(TOGETHER):
            window, position, there = covering(table, base + j, end)
            limit = tl.where(there, pixels - start, 0)
            value = tl.load(
                windows + window * strides[1] + position * strides[3] + at, mask=lane < limit, other=0
            )
            weight = weight_of(
                weights, weight_strides, position, weight_at, lane < limit, there, PIXEL_WEIGHTS
            )
            total += weight * value.to(tl.float32)
            mass += weight
    out += (plane * frames + frame) * pixels + start + lane
    tl.store(out, tl.div_rn(total, mass), mask=inside)


def window_merge(
    windows: torch.Tensor,
    weights: torch.Tensor,
    table: tuple[torch.Tensor, ...],
    most: int,
    out: torch.Tensor,
) -> None:
    """Launch on windows (B, N, C, K, H, W) and weights (C, K, H, W), any strides, into a contiguous `out`.

    table: for every frame the windows that contain it, int32 (F + 1,), (N·K,), (N·K,). most: the most of a frame.
    """
    batch, channels, frames, height, width = out.shape
    block, warps = tile(height * width, windows.element_size(), 2)
    blocks = triton.cdiv(height * width, block)
    _kernel[(batch * channels * blocks * frames,)](
        windows,
        weights,
        out,
        tuple(table),
        windows.stride(),
        weights.stride(),
        channels,
        frames,
        height * width,
        width,
        blocks,
        PIXEL_WEIGHTS=weights.stride(2) != 0 or weights.stride(3) != 0,
        DENSE=dense(windows),
        TOGETHER=min(4, triton.next_power_of_2(most)),
        BLOCK=block,
        num_warps=warps,
        enable_fp_fusion=True,
    )
