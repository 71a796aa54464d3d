"""Time window_merge: python benchmarks/window_merge.py [--device cuda]"""

from __future__ import annotations

import torch
from _timing import Case, on_gpu, options, randn, run

from vidsmooth_fast import ops
from vidsmooth_fast.ops._windows import check_weights
from vidsmooth_fast.ops.window_merge import reference as plain


def case(frames, pixels, dtype=torch.float32, compile=False, window=16, stride=8) -> Case:
    torch.manual_seed(0)
    starts = list(range(0, frames - window + 1, stride))
    windows = randn(1, len(starts), 4, window, *pixels, dtype=dtype)
    weights = torch.arange(1.0, window + 1, device=windows.device)
    full = check_weights(weights, windows)
    return Case(
        label=f"{frames} frames of 4 x {pixels[0]} x {pixels[1]}, window {window}, stride {stride}, {str(dtype)[6:]}",
        moved=windows.nbytes + windows[0, 0, :, 0].nbytes * frames,
        ours=lambda: ops.window_merge(windows, starts, weights, frames=frames),
        eager=lambda: plain(windows, full, starts, frames=frames),
        exact=lambda: plain(windows.double(), full.double(), starts, frames=frames),
        compile=compile,
        first=windows,
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
        yield case(256, (128, 128), compile=True)
        yield case(256, (128, 128), torch.bfloat16)
        yield case(256, (64, 64))
        yield case(24, (32, 32))


if __name__ == "__main__":
    with torch.inference_mode():
        run("window_merge", cases())
