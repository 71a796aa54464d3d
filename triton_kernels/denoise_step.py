"""The sampling step on GPUs: predictions, latents and whatever else goes into a step are read once.

Merging, guidance, the noise constraint and the affine step are one kernel. Without the constraint a program takes one
block of pixels of one frame. With it, the program walks along the frames as in `noise_constraint.py` and keeps the
merged, guided prediction of three frames in registers; merging is not repeated but at the ends of its range.
Only fp32 is kept between the parts, and nothing but the results is written.
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
from vidsmooth_fast.triton_kernels.window_merge import covering, weight_of


@triton.jit
def _merged(
    pred,
    weights,
    table,
    frame,
    strides,
    weight_strides,
    branch_weights,
    at,
    weight_at,
    lane,
    limit,
    BRANCHES: tl.constexpr,
    PIXEL_WEIGHTS: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Σ_g branch_weights[g] Σ_i ω_i v_gi / Σ_i ω_i over the windows that contain a frame."""
    begin, end = tl.load(table[0] + frame), tl.load(table[0] + frame + 1)
    total = tl.zeros([BLOCK], tl.float32)
    mass = tl.zeros([BLOCK] if PIXEL_WEIGHTS else [1], tl.float32)
    for base in range(begin, end, TOGETHER):
        for j in tl.static_range(TOGETHER):
            window, position, there = covering(table, base + j, end)
            here = lane < tl.where(there, limit, 0)
            source = pred + window * strides[2] + position * strides[4] + at
            weight = weight_of(weights, weight_strides, position, weight_at, here, there, PIXEL_WEIGHTS)
            for g in tl.static_range(BRANCHES):
                value = tl.load(source + tl.cast(strides[0], tl.int64) * g, mask=here, other=0)
                total += (weight * branch_weights[g]) * value.to(tl.float32)
            mass += weight
    return tl.div_rn(total, mass)


@triton.jit
def _kernel(
    pred,  # (G, B, N, C, K, H, W)
    videos,  # x, history, reference, noise: (B, C, F, H, W), fp32
    weights,  # (C, K, H, W), fp32
    out,  # (B, C, F, H, W), contiguous, like clean
    clean,
    table,  # coverage: (F + 1), (N·K), (N·K), int32
    strides,  # of pred
    video_strides,
    weight_strides,
    branch_weights,
    factors,  # a, b, c, scale of the noise, to_eps of x and p, to_clean of x and ε
    c_over_lambda,
    strength,
    channels,
    frames,
    pixels,
    width,
    blocks,
    length,  # frames per program
    BRANCHES: tl.constexpr,
    HAS_HISTORY: tl.constexpr,
    HAS_REFERENCE: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    HAS_CLEAN: tl.constexpr,
    CONSTRAINED: tl.constexpr,
    LOOP: tl.constexpr,
    PIXEL_WEIGHTS: tl.constexpr,
    DENSE: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block, part, plane = place(blocks, tl.cdiv(frames, length))
    start = block.to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    limit = pixels - start
    inside = lane < limit
    b, channel = plane // channels, plane % channels
    pred += b * strides[1] + channel * strides[3]
    weights += channel * weight_strides[0]
    at = pixels_from(start, width, strides, DENSE, BLOCK)
    weight_at = pixels_from(start, width, weight_strides, False, BLOCK)
    x = videos[0] + b * video_strides[0][0] + channel * video_strides[0][1]
    x += pixels_from(start, width, video_strides[0], DENSE, BLOCK)
    history = videos[1] + b * video_strides[1][0] + channel * video_strides[1][1]
    history += pixels_from(start, width, video_strides[1], DENSE, BLOCK)
    reference = videos[2] + b * video_strides[2][0] + channel * video_strides[2][1]
    reference += pixels_from(start, width, video_strides[2], DENSE, BLOCK)
    noise = videos[3] + b * video_strides[3][0] + channel * video_strides[3][1]
    noise += pixels_from(start, width, video_strides[3], DENSE, BLOCK)
    target = plane * frames * pixels + start + lane

    first = part * length
    last = tl.minimum(first + length, frames)
    y_before = tl.zeros([BLOCK], tl.float32)
    y_now = tl.zeros([BLOCK], tl.float32)
    x_now = tl.zeros([BLOCK], tl.float32)
    eps_now = tl.zeros([BLOCK], tl.float32)
    # With the constraint, two steps ahead of the first frame fill y_before, y_now, x_now and eps_now.
    ahead: tl.constexpr = 1 if CONSTRAINED else 0
    for step in range(first - 2 * ahead, last):
        frame = step
        if CONSTRAINED:
            frame = neighbour(step + 1, frames, LOOP)
        frame = tl.cast(frame, tl.int64)
        x_next = tl.load(x + frame * video_strides[0][2], mask=inside, other=0)
        merged = _merged(
            pred,
            weights,
            table,
            frame,
            strides,
            weight_strides,
            branch_weights,
            at,
            weight_at,
            lane,
            limit,
            BRANCHES,
            PIXEL_WEIGHTS,
            TOGETHER,
            BLOCK,
        )
        eps_next = factors[4] * x_next + factors[5] * merged
        y_next = eps_next - c_over_lambda * x_next
        if CONSTRAINED and HAS_REFERENCE:
            y_next += tl.load(reference + frame * video_strides[2][2], mask=inside, other=0)
        if not CONSTRAINED:
            x_now, eps_now = x_next, eps_next
        if step >= first:
            eps = eps_now
            if CONSTRAINED:
                eps = eps_now - strength * (2 * y_now - y_before - y_next)
                if not LOOP:
                    eps = tl.where((step > 0) & (step + 1 < frames), eps, eps_now)
            n = tl.cast(step, tl.int64)
            result = factors[0] * x_now + factors[1] * eps
            if HAS_HISTORY:
                result += factors[2] * tl.load(history + n * video_strides[1][2], mask=inside, other=0)
            if HAS_NOISE:
                result += factors[3] * tl.load(noise + n * video_strides[3][2], mask=inside, other=0)
            tl.store(out + target + n * pixels, result, mask=inside)
            if HAS_CLEAN:
                tl.store(clean + target + n * pixels, factors[6] * x_now + factors[7] * eps, mask=inside)
        if CONSTRAINED:
            y_before, y_now, x_now, eps_now = y_now, y_next, x_next, eps_next


def denoise_step(
    pred: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
    history: torch.Tensor | None,
    reference: torch.Tensor | None,
    noise: torch.Tensor | None,
    table: tuple[torch.Tensor, ...],
    most: int,
    out: torch.Tensor,
    clean: torch.Tensor | None,
    *,
    branch_weights: tuple[float, ...],
    a: float,
    b: float,
    c: float,
    to_eps: tuple[float, float],
    to_clean: tuple[float, float] | None,
    c_over_lambda: float,
    strength: float,
    noise_scale: float,
    loop: bool,
) -> None:
    """Launch on pred (G, B, N, C, K, H, W), fp32 videos (B, C, F, H, W) and weights (C, K, H, W), any strides.

    table, most: as in `window_merge.py`. out, clean: contiguous fp32, (B, C, F, H, W).
    """
    batch, channels, frames, height, width = x.shape
    constrained = strength != 0
    block, warps = tile(height * width, x.element_size(), 1)
    blocks = triton.cdiv(height * width, block)
    length = frames_per_program(batch * channels * blocks, frames) if constrained else 1
    videos = [x if t is None else t for t in (x, history, reference, noise)]
    _kernel[(batch * channels * blocks * triton.cdiv(frames, length),)](
        pred,
        tuple(videos),
        weights,
        out,
        out if clean is None else clean,
        tuple(table),
        pred.stride(),
        tuple(t.stride() for t in videos),
        weights.stride(),
        tuple(branch_weights),
        (float(a), float(b), float(c), float(noise_scale), *to_eps, *(to_clean or (0.0, 0.0))),
        c_over_lambda,
        strength,
        channels,
        frames,
        height * width,
        width,
        blocks,
        length,
        BRANCHES=len(branch_weights),
        HAS_HISTORY=history is not None,
        HAS_REFERENCE=reference is not None,
        HAS_NOISE=noise is not None,
        HAS_CLEAN=clean is not None,
        CONSTRAINED=constrained,
        LOOP=loop,
        PIXEL_WEIGHTS=weights.stride(2) != 0 or weights.stride(3) != 0,
        DENSE=dense(pred, *videos),
        TOGETHER=min(4, triton.next_power_of_2(most)),
        BLOCK=block,
        num_warps=warps,
        enable_fp_fusion=True,
    )
