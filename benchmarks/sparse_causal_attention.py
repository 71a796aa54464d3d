"""Time sparse_causal_attention on the CPU: python benchmarks/sparse_causal_attention.py

Beside gathering and one fused call (eager), explicit matrix products ("matmul"), and torch.compile. What must move is
small beside the arithmetic here, so the fraction of copy bandwidth says little; the ratios matter.
"""

from __future__ import annotations

import sys

import torch
from _timing import Case, run
from torch import Tensor

from vidsmooth_fast import ops
from vidsmooth_fast.ops.sparse_causal_attention import reference

SECONDS = 4.0  # for each case


def matmul(q: Tensor, k: Tensor, v: Tensor, kv_frames: Tensor, heads: int) -> Tensor:
    def split(t: Tensor) -> Tensor:
        return t.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, v = split(q), split(k[kv_frames].flatten(1, 2)), split(v[kv_frames].flatten(1, 2))
    return ((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


def case(frames: int, pixels: int, heads: int, width: int, dtype=torch.float32, compile=False) -> Case:
    """(first, previous), as in Tune-A-Video."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(frames, pixels, heads * width).to(dtype) for _ in range(3))
    kv_frames = torch.tensor([[0, max(frame - 1, 0)] for frame in range(frames)])
    settings = {"frames": frames, "heads": heads}
    return Case(
        label=f"F {frames}, P {pixels}, {heads} heads of {width}, {str(dtype)[6:]}",
        moved=4 * q.nbytes,
        ours=lambda: ops.sparse_causal_attention(q, k, v, kv_frames=kv_frames, **settings),
        eager=lambda: reference(q, k, v, kv_frames, **settings),
        exact=lambda: reference(q.double(), k.double(), v.double(), kv_frames, **settings),
        compile=compile,
        others={"matmul": lambda: matmul(q, k, v, kv_frames, heads)},
    )


def cases():
    """One at a time, so that only one is in memory."""
    for dtype in (torch.float32, torch.bfloat16):
        yield case(16, 64, 8, 160, dtype)
        yield case(16, 256, 8, 160, dtype)
        yield case(16, 256, 4, 48, dtype, compile=dtype == torch.float32)
        yield case(8, 1024, 4, 32, dtype)
        yield case(4, 1024, 8, 80, dtype)
    yield case(3, 4096, 8, 40)


if __name__ == "__main__":
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    with torch.inference_mode():
        for one in cases():
            run("sparse_causal_attention", [one], seconds=seconds)
