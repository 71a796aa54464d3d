"""Time convolution: python benchmarks/convolution.py"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from _timing import Case, options, randn, run

from vidsmooth_fast import ops


def case(images, channels, out, pixels, dtype=torch.float32) -> Case:
    torch.manual_seed(0)
    x = randn(images, channels, pixels, pixels, dtype=dtype).to(memory_format=torch.channels_last)
    weight = randn(out, channels, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    weight, bias = weight / (9 * channels) ** 0.5, randn(out, dtype=dtype)
    return Case(
        label=f"{images} images of {channels} to {out} x {pixels} x {pixels}, {str(dtype)[6:]}",
        moved=x.nbytes * (channels + out) // channels + weight.nbytes,
        ours=lambda: ops.convolution(x, weight, bias),
        eager=lambda: F.conv2d(x, weight, bias, padding=1),
        exact=lambda: F.conv2d(x.double(), weight.double(), bias.double(), padding=1),
        first=x,
        allowed=5e-5 if dtype == torch.float32 else 0.0,  # of a deviation of 1: two to four times a plain sum
    )


def cases():
    """Of sprite-world, of the 37M network, and of Stable Diffusion 1.5 at 128 x 128: 16 frames, two branches."""
    if options().tiny:
        yield case(2, 16, 32, 8)
        return
    for dtype in (torch.float32, torch.bfloat16):
        yield case(32, 48, 48, 32, dtype)
        yield case(32, 96, 96, 16, dtype)
        yield case(32, 128, 128, 8, dtype)
        yield case(32, 128, 128, 32, dtype)
        yield case(32, 384, 128, 32, dtype)
        yield case(32, 256, 256, 16, dtype)
        yield case(32, 256, 256, 8, dtype)
        yield case(32, 320, 320, 16, dtype)
        yield case(32, 640, 640, 8, dtype)
        yield case(32, 1280, 1280, 4, dtype)


if __name__ == "__main__":
    with torch.inference_mode():
        run("convolution", cases())
