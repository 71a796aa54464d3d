"""What the kernels over videos (B, C, F, H, W) share: which part a program takes, and where its pixels are."""

import torch
import triton
import triton.language as tl

# Programs that keep a large GPU busy: 16 of 4 warps on each of about 130 multiprocessors, four times over.
ENOUGH = 8192


@triton.jit
def place(blocks, ranges):
    """Program -> (pixel block, range of frames, plane b·C + c): neighbours in memory run at the same time."""
    program = tl.program_id(0)
    return program % blocks, (program // blocks) % ranges, (program // (blocks * ranges)).to(tl.int64)


@triton.jit
def pixels_from(start, width, strides, DENSE: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets within a plane of BLOCK pixels from `start` on; strides: (..., rows, columns)."""
    if DENSE:
        return start + tl.arange(0, BLOCK)
    else:
        pixel = start + tl.arange(0, BLOCK)
        return pixel // width * strides[-2] + pixel % width * strides[-1]


@triton.jit
def neighbour(frame, frames, LOOP: tl.constexpr):
    """The frame at -1 <= frame <= frames: around the circle, or where there is none the one on the other side."""
    if LOOP:
        frame = tl.where(frame < 0, frames - 1, frame)
        return tl.where(frame >= frames, 0, frame)
    else:
        frame = tl.where(frame < 0, 1, frame)
        frame = tl.where(frame >= frames, frames - 2, frame)
        return tl.minimum(tl.maximum(frame, 0), frames - 1)


def dense(*videos: torch.Tensor | None) -> bool:
    """Whether the pixels of a plane follow each other in all of these."""
    for t in videos:
        if t is None:
            continue
        height, width = t.shape[-2:]
        if (width > 1 and t.stride(-1) != 1) or (height > 1 and t.stride(-2) != width):
            return False
    return True


def tile(pixels: int, itemsize: int, vectors: int) -> tuple[int, int]:
    """(pixels per program, warps): `vectors` times 16 bytes a thread, in at most 4 warps."""
    each = 16 // itemsize * vectors
    block = min(triton.next_power_of_2(pixels), 128 * each)
    return block, max(1, min(4, block // (32 * each)))


def frames_per_program(blocks: int, frames: int) -> int:
    """As many as leave ENOUGH programs, in ranges of even length."""
    longest = max(1, min(frames, blocks * frames // ENOUGH))
    return triton.cdiv(frames, triton.cdiv(frames, longest))
