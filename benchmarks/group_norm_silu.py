"""Time group_norm_silu on the CPU: python benchmarks/group_norm_silu.py"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from _timing import Case, run
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
    x = torch.randn(images, channels, pixels, pixels).to(dtype, memory_format=torch.channels_last)
    weight, bias = torch.randn(channels).to(dtype), torch.randn(channels).to(dtype)
    settings = {"groups": groups, "frames": frames}
    return Case(
        label=f"{images} images of {channels} x {pixels} x {pixels}, statistics over {frames}, {str(dtype)[6:]}",
        moved=3 * x.nbytes,  # read for the statistics, read again, written
        ours=lambda: ops.group_norm_silu(x, weight, bias, **settings),
        eager=lambda: eager(x, weight, bias, **settings),
        exact=lambda: eager(x.double(), weight.double(), bias.double(), **settings),
        compile=compile,
    )


if __name__ == "__main__":
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            run(
                "group_norm_silu",
                [
                    case(16, 16, 320, 64, dtype=dtype, compile=True),
                    case(16, 1, 320, 32, dtype=dtype),
                    case(16, 16, 1280, 16, dtype=dtype),
                    case(32, 1, 48, 32, groups=16, dtype=dtype),
                    case(32, 1, 128, 8, groups=16, dtype=dtype),
                ],
            )
