"""Time window_merge on the CPU: python benchmarks/window_merge.py"""

from __future__ import annotations

import torch
from _timing import Case, run

from vidsmooth_fast import ops
from vidsmooth_fast.ops._windows import check_weights
from vidsmooth_fast.ops.window_merge import reference as plain


def case(frames, pixels, dtype=torch.float32, compile=False, window=16, stride=8) -> Case:
    torch.manual_seed(0)
    starts = list(range(0, frames - window + 1, stride))
    windows = torch.randn(1, len(starts), 4, window, *pixels).to(dtype)
    weights = torch.arange(1.0, window + 1)
    full = check_weights(weights, windows)
    return Case(
        label=f"{frames} frames of 4 x {pixels[0]} x {pixels[1]}, window {window}, stride {stride}, {str(dtype)[6:]}",
        moved=windows.nbytes + windows[0, 0, :, 0].nbytes * frames,
        ours=lambda: ops.window_merge(windows, starts, weights, frames=frames),
        eager=lambda: plain(windows, full, starts, frames=frames),
        exact=lambda: plain(windows.double(), full.double(), starts, frames=frames),
        compile=compile,
    )


if __name__ == "__main__":
    with torch.inference_mode():
        run(
            "window_merge",
            [
                case(256, (128, 128), compile=True),
                case(256, (128, 128), torch.bfloat16),
                case(256, (64, 64)),
                case(24, (32, 32)),
            ],
        )
