"""Time noise_constraint on the CPU: python benchmarks/noise_constraint.py"""

from __future__ import annotations

import torch
from _timing import Case, run

from vidsmooth_fast import ops
from vidsmooth_fast.ops.noise_constraint import reference as plain

SETTINGS = {"c_over_lambda": 1.2, "strength": 0.25}


def case(shape, dtype=torch.float32, with_reference=False, compile=False) -> Case:
    torch.manual_seed(0)
    eps, x, r = (torch.randn(shape).to(dtype) for _ in range(3))
    ref = r if with_reference else None
    return Case(
        label=f"{shape} {str(dtype)[6:]}" + (" with reference" if with_reference else ""),
        moved=(4 if with_reference else 3) * eps.nbytes,
        ours=lambda: ops.noise_constraint(eps, x, reference=ref, **SETTINGS),
        eager=lambda: plain(eps, x, ref, **SETTINGS),
        exact=lambda: plain(eps.double(), x.double(), None if ref is None else ref.double(), **SETTINGS),
        compile=compile,
    )


if __name__ == "__main__":
    large = (1, 4, 256, 128, 128)
    with torch.inference_mode():
        run(
            "noise_constraint",
            [
                case(large, compile=True),
                case(large, with_reference=True),
                case((1, 4, 512, 128, 128), torch.bfloat16),
                case((1, 4, 16, 64, 64)),
            ],
        )
