"""Time group_norm_silu: python benchmarks/group_norm_silu.py [--device cuda]"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from _timing import Case, on_gpu, options, randn, run
from torch import Tensor

from vidsmooth_fast import ops


def eager(x: Tensor, weight: Tensor, bias: Tensor, groups: int, frames: int) -> Tensor:
    """F.group_norm and F.silu on the frames of a video seen as one tall image, a view of channels_last x."""
    images, channels, height, width = x.shape
    tall = x.permute(0, 2, 3, 1).reshape(images // frames, frames * height, width, channels)
    y = F.silu(F.group_norm(tall.permute(0, 3, 1, 2), groups, weight, bias, 1e-5))
    return y.permute(0, 2, 3, 1).reshape(images, height, width, channels).permute(0, 3, 1, 2)


def case(images, frames, channels, pixels, groups=32, dtype=torch.float32, compile=False) -> Case:
    torch.manual_seed(0)
    x = randn(images, channels, pixels, pixels, dtype=dtype).to(memory_format=torch.channels_last)
    weight, bias = randn(channels, dtype=dtype), randn(channels, dtype=dtype)
    settings = {"groups": groups, "frames": frames}
    return Case(
        label=f"{images} images of {channels} x {pixels} x {pixels}, statistics over {frames}, {str(dtype)[6:]}",
        moved=3 * x.nbytes,  # read for the statistics, read again, written
        ours=lambda: ops.group_norm_silu(x, weight, bias, **settings),
        eager=lambda: eager(x, weight, bias, **settings),
        exact=lambda: eager(x.double(), weight.double(), bias.double(), **settings),
        compile=compile,
        first=x,
    )


# Stable Diffusion 1.5 at 512 x 512: channels and pixels of its levels
LEVELS = [(320, 64), (640, 32), (1280, 16), (1280, 8)]


def cases():
    """One at a time, so that only one is in memory."""
    if options().tiny:
        yield case(4, 2, 40, 4, groups=4)
    elif on_gpu():
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for channels, pixels in reversed(LEVELS):
                yield case(
                    32, 16, channels, pixels, dtype=dtype, compile=dtype == torch.bfloat16 and pixels == 64
                )
            yield case(32, 1, 320, 64, dtype=dtype)
        for frames in (8, 24, 32):
            yield case(2 * frames, frames, 320, 64, dtype=torch.bfloat16)
        for channels, pixels in ((320, 64), (640, 32)):  # a long video, merged in attention
            yield case(256, 256, channels, pixels, dtype=torch.bfloat16)
    else:
        for dtype in (torch.float32, torch.bfloat16):
            yield case(16, 16, 320, 64, dtype=dtype, compile=True)
            yield case(16, 1, 320, 32, dtype=dtype)
            yield case(16, 16, 1280, 16, dtype=dtype)
            yield case(32, 1, 48, 32, groups=16, dtype=dtype)
            yield case(32, 1, 128, 8, groups=16, dtype=dtype)


if __name__ == "__main__":
    with torch.inference_mode():
        run("group_norm_silu", cases())
