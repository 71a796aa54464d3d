"""What the attention kernels share: head widths that are no powers of two, as two parts that are."""

import triton
import triton.language as tl


def split(width: int) -> tuple[int, int]:
    """Powers of two that hold `width` columns, at least 16 (what a matrix unit multiplies), the second 0 if one does.

    40 = 32 + 16, 80 = 64 + 16, 96 = 64 + 32, 160 = 128 + 32: instead of 64, 128, 128 and 256 with what is unused.
    """
    whole = max(16, triton.next_power_of_2(width))
    half = whole // 2
    if half >= 16 and width > half and (rest := max(16, triton.next_power_of_2(width - half))) < half:
        return half, rest
    return whole, 0


@triton.jit
def load(rows, inside, WIDTH: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr):
    """The columns of a head in these rows, as (rows, D1) and (rows, D2), 0 beyond the width and where not inside.

    rows: pointers to the first column. Without a second part, the first is returned twice.
    """
    column = tl.arange(0, D1)
    mask = inside[:, None]
    if D1 > WIDTH:
        mask = mask & (column < WIDTH)[None, :]
    first = tl.load(rows[:, None] + column[None, :], mask=mask, other=0)
    second = first
    if D2 > 0:
        column = D1 + tl.arange(0, D2)
        mask = inside[:, None] & (column < WIDTH)[None, :]
        second = tl.load(rows[:, None] + column[None, :], mask=mask, other=0)
    return first, second


@triton.jit
def store(rows, inside, first, second, WIDTH: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr):
    """The inverse of :func:`load`."""
    column = tl.arange(0, D1)
    mask = inside[:, None]
    if D1 > WIDTH:
        mask = mask & (column < WIDTH)[None, :]
    tl.store(rows[:, None] + column[None, :], first, mask=mask)
    if D2 > 0:
        column = D1 + tl.arange(0, D2)
        mask = inside[:, None] & (column < WIDTH)[None, :]
        tl.store(rows[:, None] + column[None, :], second, mask=mask)


@triton.jit
def products(a, b, D2: tl.constexpr):
    """a bᵀ in fp32, each (rows, D1) and (rows, D2)."""
    s = tl.dot(a[0], tl.trans(b[0]), input_precision="ieee")
    if D2 > 0:
        s = tl.dot(a[1], tl.trans(b[1]), s, input_precision="ieee")
    return s
