"""Time inversion_blend: python benchmarks/inversion_blend.py [--device cuda]"""

from __future__ import annotations

import torch
from _timing import Case, on_gpu, options, randn, run

from vidsmooth_fast import ops
from vidsmooth_fast.ops.inversion_blend import reference as plain


def case(shape, dtype=torch.float32, compile=False) -> Case:
    torch.manual_seed(0)
    inverted, noise = (randn(shape, dtype=dtype) for _ in range(2))
    return Case(
        label=f"{shape} {str(dtype)[6:]}",
        moved=3 * inverted.nbytes,
        ours=lambda: ops.inversion_blend(inverted, noise, weight=0.4),
        eager=lambda: plain(inverted, noise, weight=0.4),
        exact=lambda: plain(inverted.double(), noise.double(), weight=0.4),
        compile=compile,
        first=inverted,
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
        yield case((1, 4, 512, 128, 128), torch.bfloat16)
        yield case((1, 4, 16, 64, 64))


if __name__ == "__main__":
    with torch.inference_mode():
        run("inversion_blend", cases())
