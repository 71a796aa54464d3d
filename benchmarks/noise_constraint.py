"""Time noise_constraint: python benchmarks/noise_constraint.py [--device cuda]"""

from __future__ import annotations

import torch
from _timing import Case, on_gpu, options, randn, run

from vidsmooth_fast import ops
from vidsmooth_fast.ops.noise_constraint import reference as plain

SETTINGS = {"c_over_lambda": 1.2, "strength": 0.25}


def case(shape, dtype=torch.float32, with_reference=False, compile=False) -> Case:
    torch.manual_seed(0)
    eps, x, r = (randn(shape, dtype=dtype) for _ in range(3))
    ref = r if with_reference else None
    return Case(
        label=f"{shape} {str(dtype)[6:]}" + (" with reference" if with_reference else ""),
        moved=(4 if with_reference else 3) * eps.nbytes,
        ours=lambda: ops.noise_constraint(eps, x, reference=ref, **SETTINGS),
        eager=lambda: plain(eps, x, ref, **SETTINGS),
        exact=lambda: plain(eps.double(), x.double(), None if ref is None else ref.double(), **SETTINGS),
        compile=compile,
        first=eps,
    )


# Bytes from a short latent video to beyond every cache, for each dtype: where one backend overtakes the other.
SIZES = [
    (1, 4, 16, 64, 64),
    (1, 4, 64, 64, 64),
    (1, 4, 256, 64, 64),
    (1, 4, 256, 128, 128),
    (4, 4, 256, 128, 128),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cases():
    """One at a time, so that only one is in memory."""
    if options().tiny:
        yield case((1, 2, 5, 6, 8))
    elif on_gpu():
        for dtype in DTYPES:
            for shape in SIZES:
                yield case(shape, dtype, compile=dtype == torch.float32 and shape == SIZES[-1])
    else:
        yield case((1, 4, 256, 128, 128), compile=True)
        yield case((1, 4, 256, 128, 128), with_reference=True)
        yield case((1, 4, 512, 128, 128), torch.bfloat16)
        yield case((1, 4, 16, 64, 64))


if __name__ == "__main__":
    with torch.inference_mode():
        run("noise_constraint", cases())
