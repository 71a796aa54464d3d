"""Time the feed-forward: python benchmarks/feed_forward.py"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from _timing import Case, options, randn, run

from vidsmooth_fast import ops


def case(images, tokens, width, dtype=torch.float32) -> Case:
    torch.manual_seed(0)
    x = randn(images, tokens, width, dtype=dtype)
    weight_in, bias_in = randn(8 * width, width, dtype=dtype) / width**0.5, randn(8 * width, dtype=dtype)
    weight_out, bias_out = (
        randn(width, 4 * width, dtype=dtype) / (4 * width) ** 0.5,
        randn(width, dtype=dtype),
    )
    weights = weight_in, bias_in, weight_out, bias_out

    def eager(*given):
        x, weight_in, bias_in, weight_out, bias_out = given
        hidden, gate = F.linear(x, weight_in, bias_in).chunk(2, dim=-1)
        return F.linear(hidden * F.gelu(gate), weight_out, bias_out)

    return Case(
        label=f"{images} images of {tokens} tokens, width {width}, {str(dtype)[6:]}",
        moved=2 * x.nbytes + weight_in.nbytes + weight_out.nbytes,
        ours=lambda: ops.feed_forward(x, *weights),
        eager=lambda: eager(x, *weights),
        exact=lambda: eager(*(t.double() for t in (x, *weights))),
        first=x,
    )


def cases():
    """Of sprite-world, of the 37M network, and of Stable Diffusion 1.5 at 128 x 128: 16 frames, two branches."""
    if options().tiny:
        yield case(2, 9, 16)
        return
    for dtype in (torch.float32, torch.bfloat16):
        yield case(32, 1024, 48, dtype)
        yield case(32, 1024, 128, dtype)
        yield case(32, 256, 256, dtype)
        yield case(32, 256, 320, dtype)
        yield case(32, 64, 640, dtype)
        yield case(32, 16, 1280, dtype)


if __name__ == "__main__":
    with torch.inference_mode():
        run("feed_forward", cases())
