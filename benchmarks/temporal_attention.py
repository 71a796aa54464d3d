"""Time temporal_attention on the CPU: python benchmarks/temporal_attention.py (under 2 minutes on a quiet machine)"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from _timing import Case, run
from torch import Tensor

from vidsmooth_fast import ops

SECONDS = 1.5  # for each case


def eager(q: Tensor, k: Tensor, v: Tensor, frames: int, heads: int) -> Tensor:
    """Permute, scaled_dot_product_attention, permute: what the published programs do."""

    def split(t: Tensor) -> Tensor:  # (B·F, P, h·d) -> (B·P, h, F, d)
        t = t.unflatten(0, (-1, frames)).unflatten(-1, (heads, -1))
        return t.permute(0, 2, 3, 1, 4).flatten(0, 1).contiguous()

    out = F.scaled_dot_product_attention(split(q), split(k), split(v))
    return out.unflatten(0, (-1, q.shape[1])).permute(0, 3, 1, 2, 4).flatten(3).flatten(0, 1)


def case(frames: int, pixels: int, heads: int, width: int, dtype=torch.float32, compile=False) -> Case:
    torch.manual_seed(0)
    q, k, v = (torch.randn(frames, pixels, heads * width).to(dtype) for _ in range(3))

    def exact() -> Tensor:
        return torch.cat(  # in slices of pixels: float64 of everything would be gigabytes
            [
                eager(*(t.double() for t in part), frames, heads)
                for part in zip(q.split(256, 1), k.split(256, 1), v.split(256, 1), strict=True)
            ],
            1,
        )

    return Case(
        label=f"F {frames}, P {pixels}, {heads} heads of {width}, {str(dtype)[6:]}",
        moved=4 * q.nbytes,
        ours=lambda: ops.temporal_attention(q, k, v, frames=frames, heads=heads),
        eager=lambda: eager(q, k, v, frames, heads),
        exact=exact,
        compile=compile,
    )


def cases():
    """One at a time, so that only one is in memory."""
    yield case(16, 4096, 8, 40, compile=True)
    yield case(16, 4096, 8, 64)
    yield case(16, 2048, 8, 80)
    yield case(16, 1024, 8, 80)
    yield case(16, 1024, 8, 160)
    yield case(16, 256, 8, 160)
    yield case(16, 256, 8, 40)
    yield case(16, 256, 8, 64)
    for frames in (8, 24, 32):
        yield case(frames, 1024, 8, 64)
    yield case(16, 4096, 8, 40, torch.bfloat16)
    yield case(16, 1024, 8, 80, torch.bfloat16)


if __name__ == "__main__":
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    with torch.inference_mode():
        for one in cases():
            run("temporal_attention", [one], seconds=seconds)
