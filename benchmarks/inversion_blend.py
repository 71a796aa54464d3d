"""Time inversion_blend on the CPU: python benchmarks/inversion_blend.py"""

from __future__ import annotations

import torch
from _timing import Case, run

from vidsmooth_fast import ops
from vidsmooth_fast.ops.inversion_blend import reference as plain


def case(shape, dtype=torch.float32, compile=False) -> Case:
    torch.manual_seed(0)
    inverted, noise = (torch.randn(shape).to(dtype) for _ in range(2))
    return Case(
        label=f"{shape} {str(dtype)[6:]}",
        moved=3 * inverted.nbytes,
        ours=lambda: ops.inversion_blend(inverted, noise, weight=0.4),
        eager=lambda: plain(inverted, noise, weight=0.4),
        exact=lambda: plain(inverted.double(), noise.double(), weight=0.4),
        compile=compile,
    )


if __name__ == "__main__":
    with torch.inference_mode():
        run(
            "inversion_blend",
            [
                case((1, 4, 256, 128, 128), compile=True),
                case((1, 4, 512, 128, 128), torch.bfloat16),
                case((1, 4, 16, 64, 64)),
            ],
        )
