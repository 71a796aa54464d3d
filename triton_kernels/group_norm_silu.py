"""Group normalisation and SiLU on GPUs: channels_last images, two reads and one write, or one of each.

Images in channels_last are rows of C channels, one row a pixel, and the images of a video follow each other: whether
statistics are taken over one image or over all frames, a group is a few columns of a run of rows. Groups have 10, 20,
30, 40, 60 or 80 columns in Stable Diffusion, so that a program per group would read fractions of sectors. The passes
therefore work on blocks of 64 columns whatever the groups are:
1. per column and range of rows: mean and sum of squared deviations (around the mean of the first rows: a mean far
   from zero costs no precision); a kernel of a few microseconds combines them by group;
2. normalise, scale, shift, SiLU.
Where all of a group fits into the registers of a program, one pass does everything: these are the small images, which
the second level cache holds and for which a launch counts more than a sector.

Rows come in tiles of 32, two of them on their way to shared memory while one is summed: a read-only pass needs more
bytes in flight than registers have room for.

The backward pass computes the statistics again, sums the gradients of weight and bias by column and range of rows,
and derives from these sums what the gradient of x needs of each group.
"""

import torch
import triton
import triton.language as tl

IN_REGISTERS = 16384  # values of a group that one program of 8 warps keeps
ENOUGH = 2048  # programs of 4 warps that keep a large GPU busy


@triton.jit
def _part(x, channels, rows, length, ranges, blocks, COLUMNS: tl.constexpr):
    """Program -> (pointer offsets to its first row, its rows, video, range, its columns, which of them there are)."""
    program = tl.program_id(0)
    column = program % blocks * COLUMNS + tl.arange(0, COLUMNS)
    part = program // blocks % ranges
    video = tl.cast(program // (blocks * ranges), tl.int64)
    offset = (video * rows + part * length) * channels + column
    return offset, tl.minimum(length, rows - part * length), video, part, column, column < channels


@triton.jit
def _statistics(
    x,  # (B·rows, C)
    partial,  # (B, ranges, 2, C), fp32: mean and sum of squared deviations
    channels,
    rows,  # of a video
    length,  # rows per program
    ranges,
    blocks,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    at, count, video, part, column, there = _part(x, channels, rows, length, ranges, blocks, COLUMNS)
    row = tl.arange(0, ROWS)
    mask = (row < count)[:, None] & there[None, :]
    begun = tl.load(x + at[None, :] + (row * channels)[:, None], mask=mask, other=0).to(tl.float32)
    shift = tl.sum(begun, 0) / tl.minimum(count, ROWS)  # near the mean: what is summed below stays small
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    squares = tl.zeros([ROWS, COLUMNS], tl.float32)
    for begin in tl.range(0, count, ROWS, num_stages=3):
        row = begin + tl.arange(0, ROWS)
        mask = (row < count)[:, None] & there[None, :]
        value = tl.load(x + at[None, :] + (row * channels)[:, None], mask=mask, other=0).to(tl.float32)
        value = tl.where(mask, value - shift[None, :], 0.0)
        sums += value
        squares += value * value
    total = tl.sum(sums, 0)
    target = partial + (video * ranges + part) * 2 * channels + column
    tl.store(target, shift + total / count, mask=there)
    tl.store(target + channels, tl.sum(squares, 0) - total * total / count, mask=there)


@triton.jit
def _combine(
    partial,  # (B, ranges, 2, C), fp32
    statistics,  # (B, groups, 2), fp32: mean and 1 / √(variance + eps)
    eps,
    channels,
    groups,
    rows,
    length,
    ranges,
    PER_GROUP: tl.constexpr,
    RANGES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    # In fp64, which for a few thousand values costs nothing: an error here is an error of every value.
    program = tl.program_id(0)
    video = tl.cast(program // groups, tl.int64)
    column = tl.arange(0, COLUMNS)
    partial += video * ranges * 2 * channels + program % groups * PER_GROUP
    sums = tl.zeros([RANGES, COLUMNS], tl.float64)
    for begin in range(0, ranges, RANGES):
        part = begin + tl.arange(0, RANGES)
        mask = (part < ranges)[:, None] & (column < PER_GROUP)[None, :]
        count = tl.minimum(length, rows - part * length).to(tl.float64)
        at = (part * 2 * channels)[:, None] + column[None, :]
        sums += count[:, None] * tl.load(partial + at, mask=mask, other=0)
    values = tl.cast(rows, tl.float64) * PER_GROUP
    mean = tl.sum(tl.sum(sums, 1), 0) / values
    squares = tl.zeros([RANGES, COLUMNS], tl.float64)
    for begin in range(0, ranges, RANGES):
        part = begin + tl.arange(0, RANGES)
        mask = (part < ranges)[:, None] & (column < PER_GROUP)[None, :]
        count = tl.minimum(length, rows - part * length).to(tl.float64)
        at = (part * 2 * channels)[:, None] + column[None, :]
        away = tl.where(mask, tl.load(partial + at, mask=mask, other=0) - mean, 0.0)
        squares += tl.load(partial + channels + at, mask=mask, other=0) + count[:, None] * away * away
    variance = tl.sum(tl.sum(squares, 1), 0) / values
    tl.store(statistics + program * 2, mean)
    tl.store(statistics + program * 2 + 1, 1 / tl.sqrt(variance + eps))


@triton.jit
def _times_sigmoid(a, y, dtype: tl.constexpr):
    """a σ(y), in fp32 divided to the nearest: Triton's own division may be 2 units in the last place away.

    Half precision has no use for it, and with it _normalise takes 86 registers instead of 56.
    """
    if dtype == tl.float32:
        return tl.div_rn(a, 1 + tl.exp(-y))
    else:
        return a / (1 + tl.exp(-y))


@triton.jit
def _normalise(
    x,  # (B·rows, C)
    weight,  # (C,), like bias
    bias,
    statistics,  # (B, groups, 2), fp32
    out,  # (B·rows, C)
    channels,
    groups,
    rows,
    length,
    ranges,
    blocks,
    PER_GROUP: tl.constexpr,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    at, count, video, part, column, there = _part(x, channels, rows, length, ranges, blocks, COLUMNS)
    statistics += (video * groups + column // PER_GROUP) * 2
    mean = tl.load(statistics, mask=there, other=0)
    factor = tl.load(statistics + 1, mask=there, other=0) * tl.load(weight + column, mask=there, other=0).to(
        tl.float32
    )
    shift = tl.load(bias + column, mask=there, other=0).to(tl.float32)
    for begin in tl.range(0, count, ROWS, num_stages=3):
        row = begin + tl.arange(0, ROWS)
        mask = (row < count)[:, None] & there[None, :]
        here = at[None, :] + (row * channels)[:, None]
        value = tl.load(x + here, mask=mask, other=0).to(tl.float32)
        y = (value - mean[None, :]) * factor[None, :] + shift[None, :]
        if SILU:
            y = _times_sigmoid(y, y, x.dtype.element_ty)
        tl.store(out + here, y, mask=mask)


@triton.jit
def _at_once(
    x,  # (B·rows, C)
    weight,  # (C,), like bias
    bias,
    out,  # (B·rows, C)
    eps,
    channels,
    groups,
    rows,
    PER_GROUP: tl.constexpr,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program = tl.program_id(0)
    column = program % groups * PER_GROUP + tl.arange(0, COLUMNS)
    there = tl.arange(0, COLUMNS) < PER_GROUP
    row = tl.arange(0, ROWS)
    mask = (row < rows)[:, None] & there[None, :]
    at = tl.cast(program // groups, tl.int64) * rows * channels + (row * channels)[:, None] + column[None, :]
    value = tl.load(x + at, mask=mask, other=0).to(tl.float32)
    values = tl.cast(rows, tl.float32) * PER_GROUP
    value -= tl.div_rn(tl.sum(tl.sum(value, 0), 0), values)
    variance = tl.div_rn(tl.sum(tl.sum(tl.where(mask, value * value, 0.0), 0), 0), values)
    factor = tl.div_rn(
        tl.load(weight + column, mask=there, other=0).to(tl.float32), tl.sqrt_rn(variance + eps)
    )
    y = value * factor[None, :] + tl.load(bias + column, mask=there, other=0).to(tl.float32)[None, :]
    if SILU:
        y = _times_sigmoid(y, y, x.dtype.element_ty)
    tl.store(out + at, y, mask=mask)


@triton.jit
def _before_silu(g, normal, weight, bias, dtype: tl.constexpr, SILU: tl.constexpr):
    """The gradient of weight · normal + bias, given that of its SiLU."""
    if SILU:
        y = normal * weight + bias
        s = _times_sigmoid(1.0, y, dtype)
        g = g * s * (1 + y * (1 - s))
    return g


@triton.jit
def _sums(
    grad,  # (B·rows, C), like x
    x,
    weight,
    bias,
    statistics,  # (B, groups, 2), fp32
    partial,  # (B, ranges, 2, C), fp32: sums of the gradient before SiLU, and of it times the normalised x
    channels,
    groups,
    rows,
    length,
    ranges,
    blocks,
    PER_GROUP: tl.constexpr,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    at, count, video, part, column, there = _part(x, channels, rows, length, ranges, blocks, COLUMNS)
    statistics += (video * groups + column // PER_GROUP) * 2
    mean = tl.load(statistics, mask=there, other=0)[None, :]
    rstd = tl.load(statistics + 1, mask=there, other=0)[None, :]
    w = tl.load(weight + column, mask=there, other=0).to(tl.float32)[None, :]
    b = tl.load(bias + column, mask=there, other=0).to(tl.float32)[None, :]
    to_bias = tl.zeros([ROWS, COLUMNS], tl.float32)
    to_weight = tl.zeros([ROWS, COLUMNS], tl.float32)
    for begin in tl.range(0, count, ROWS, num_stages=3):
        row = begin + tl.arange(0, ROWS)
        mask = (row < count)[:, None] & there[None, :]
        here = at[None, :] + (row * channels)[:, None]
        g = tl.load(grad + here, mask=mask, other=0).to(tl.float32)  # 0 outside: adds nothing
        normal = (tl.load(x + here, mask=mask, other=0).to(tl.float32) - mean) * rstd
        g = _before_silu(g, normal, w, b, x.dtype.element_ty, SILU)
        to_bias += g
        to_weight += g * normal
    target = partial + (video * ranges + part) * 2 * channels + column
    tl.store(target, tl.sum(to_bias, 0), mask=there)
    tl.store(target + channels, tl.sum(to_weight, 0), mask=there)


@triton.jit
def _to_x(
    grad,  # (B·rows, C), like x and out
    x,
    weight,
    bias,
    statistics,  # (B, groups, 2), fp32
    means,  # (B, 2, groups), fp32: of the gradient of the normalised x, and of it times the normalised x
    out,
    channels,
    groups,
    rows,
    length,
    ranges,
    blocks,
    PER_GROUP: tl.constexpr,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    at, count, video, part, column, there = _part(x, channels, rows, length, ranges, blocks, COLUMNS)
    group = column // PER_GROUP
    statistics += (video * groups + group) * 2
    mean = tl.load(statistics, mask=there, other=0)[None, :]
    rstd = tl.load(statistics + 1, mask=there, other=0)[None, :]
    means += video * 2 * groups + group
    plain = tl.load(means, mask=there, other=0)[None, :]
    along = tl.load(means + groups, mask=there, other=0)[None, :]
    w = tl.load(weight + column, mask=there, other=0).to(tl.float32)[None, :]
    b = tl.load(bias + column, mask=there, other=0).to(tl.float32)[None, :]
    for begin in tl.range(0, count, ROWS, num_stages=3):
        row = begin + tl.arange(0, ROWS)
        mask = (row < count)[:, None] & there[None, :]
        here = at[None, :] + (row * channels)[:, None]
        g = tl.load(grad + here, mask=mask, other=0).to(tl.float32)
        normal = (tl.load(x + here, mask=mask, other=0).to(tl.float32) - mean) * rstd
        g = _before_silu(g, normal, w, b, x.dtype.element_ty, SILU) * w
        tl.store(out + here, rstd * (g - plain - normal * along), mask=mask)


def group_norm_silu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
    *,
    grad: torch.Tensor | None = None,
    groups: int,
    frames: int,
    eps: float,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Launch on x (B·F, C, H, W), channels_last like `out`.

    With grad (like x) `out` becomes the gradient of x, and those of weight and bias are returned, fp32.
    """
    images, channels, height, width = x.shape
    rows, videos, per_group = frames * height * width, images // frames, channels // groups
    group = {"PER_GROUP": per_group, "SILU": silu}
    whole = {
        "ROWS": triton.next_power_of_2(rows),
        "COLUMNS": triton.next_power_of_2(per_group),
    }
    if grad is None and whole["ROWS"] * whole["COLUMNS"] <= IN_REGISTERS:
        warps = max(1, min(8, whole["ROWS"] * whole["COLUMNS"] // 512))
        _at_once[(videos * groups,)](
            x,
            weight,
            bias,
            out,
            eps,
            channels,
            groups,
            rows,
            **group,
            **whole,
            num_warps=warps,
            enable_fp_fusion=True,
        )
        return None

    columns = min(64, triton.next_power_of_2(channels))
    tile = {
        "ROWS": 32,
        "COLUMNS": columns,
        "num_warps": 4,
        "enable_fp_fusion": True,
    }
    blocks = triton.cdiv(channels, columns)
    length = triton.next_power_of_2(triton.cdiv(rows * videos * blocks, ENOUGH))
    length = max(tile["ROWS"], min(1024, length))
    ranges = triton.cdiv(rows, length)
    grid = (videos * ranges * blocks,)
    partial = x.new_empty((videos, ranges, 2, channels), dtype=torch.float32)
    statistics = x.new_empty((videos, groups, 2), dtype=torch.float32)
    _statistics[grid](x, partial, channels, rows, length, ranges, blocks, **tile)
    together = min(triton.next_power_of_2(ranges), max(1, 2048 // whole["COLUMNS"]))
    _combine[(videos * groups,)](
        partial,
        statistics,
        eps,
        channels,
        groups,
        rows,
        length,
        ranges,
        PER_GROUP=per_group,
        RANGES=together,
        COLUMNS=whole["COLUMNS"],
        enable_fp_fusion=True,
    )
    sizes = (channels, groups, rows, length, ranges, blocks)
    if grad is None:
        _normalise[grid](x, weight, bias, statistics, out, *sizes, **group, **tile)
        return None
    _sums[grid](grad, x, weight, bias, statistics, partial, *sizes, **group, **tile)
    sums = partial.sum(1)
    means = (sums * weight.float()).unflatten(-1, (groups, per_group)).sum(-1) / (rows * per_group)
    _to_x[grid](grad, x, weight, bias, statistics, means, out, *sizes, **group, **tile)
    to_bias, to_weight = sums.sum(0)
    return to_weight, to_bias
