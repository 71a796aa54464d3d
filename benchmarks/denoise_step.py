"""Time denoise_step: python benchmarks/denoise_step.py [--device cuda]"""

from __future__ import annotations

import torch
from _timing import Case, on_gpu, options, randn, run

from vidsmooth_fast import ops
from vidsmooth_fast.ops._windows import check_weights
from vidsmooth_fast.ops.denoise_step import reference as plain


def case(frames, pixels, dtype=torch.float32, smooth=True, compile=False, window=16, stride=8) -> Case:
    """One guided step with a second result, as DPM-Solver++(2M) takes it; with `smooth` also the noise constraint."""
    torch.manual_seed(0)
    starts = list(range(0, frames - window + 1, stride))
    pred = randn(2, 1, len(starts), 4, window, *pixels, dtype=dtype)
    x, history = (randn(1, 4, frames, *pixels) for _ in range(2))
    weights = torch.arange(1.0, window + 1, device=pred.device)
    full = check_weights(weights, pred)
    settings = {
        "branch_weights": [-6.5, 7.5],
        "a": 0.98,
        "b": -0.12,
        "c": 0.05,
        "to_eps": (0.0, 1.0),
        "to_clean": (1.1, -0.4),
        "c_over_lambda": 1.2 if smooth else 0.0,
        "strength": 0.25 if smooth else 0.0,
        "noise_scale": 0.0,
        "loop": False,
    }

    def exact():
        wide = (t.double() for t in (pred, x, full, history))
        return plain(*wide, None, None, starts, **settings)

    return Case(
        label=f"{frames} frames of 4 x {pixels[0]} x {pixels[1]}, predictions {str(dtype)[6:]}"
        + (", smoothed" if smooth else ""),
        moved=pred.nbytes + 4 * x.nbytes,
        ours=lambda: ops.denoise_step(pred, x, starts, weights, history=history, **settings),
        eager=lambda: plain(pred, x, full, history, None, None, starts, **settings),
        exact=exact,
        compile=compile,
        first=pred,
    )


# Frames and pixels, from a short latent video to beyond every cache: where one backend overtakes the other.
SIZES = [(16, (64, 64)), (64, (64, 64)), (256, (64, 64)), (256, (128, 128)), (1024, (128, 128))]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cases():
    """One at a time, so that only one is in memory."""
    if options().tiny:
        yield case(24, (4, 8))
    elif on_gpu():
        for dtype in DTYPES:
            for frames, pixels in SIZES:
                yield case(frames, pixels, dtype, compile=dtype == torch.float32 and frames == 256)
    else:
        yield case(256, (64, 64), compile=True)
        yield case(256, (128, 128))
        yield case(256, (128, 128), torch.bfloat16)
        yield case(256, (64, 64), smooth=False)
        yield case(24, (32, 32))


if __name__ == "__main__":
    with torch.inference_mode():
        run("denoise_step", cases())
