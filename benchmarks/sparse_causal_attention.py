"""Time sparse_causal_attention: python benchmarks/sparse_causal_attention.py [--device cuda]

Beside gathering and one fused call (eager), explicit matrix products ("matmul"), and torch.compile. What must move is
small beside the arithmetic here, so the fraction of copy bandwidth says little; the ratios matter.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from _timing import Case, on_gpu, options, randn, run
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vidsmooth_fast import ops
from vidsmooth_fast.ops.sparse_causal_attention import reference

SECONDS = 4.0  # for each case
MOST_MASKED = 1 << 16  # tokens: FlexAttention's mask is made of a byte for every pair, here 4 GB


def matmul(q: Tensor, k: Tensor, v: Tensor, kv_frames: Tensor, heads: int) -> Tensor:
    def split(t: Tensor) -> Tensor:
        return t.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, v = split(q), split(k[kv_frames].flatten(1, 2)), split(v[kv_frames].flatten(1, 2))
    return ((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


def _sdpa(kernel: SDPBackend, *arguments, **settings) -> Tensor:
    with sdpa_kernel(kernel):
        return reference(*arguments, **settings)


def flex(frames: int, pixels: int, heads: int):
    """FlexAttention over all tokens of a video with a mask of (first, previous); nothing is concatenated."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(_batch, _head, query, key):
        own, other = query // pixels, key // pixels
        return (other == 0) | (other == torch.where(own > 0, own - 1, 0))

    @functools.cache
    def prepared():
        tokens = frames * pixels
        return create_block_mask(seen, None, None, tokens, tokens, device="cuda"), torch.compile(
            flex_attention
        )

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask, attention = prepared()
        video = (
            t.unflatten(0, (-1, frames)).flatten(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2)
            for t in (q, k, v)
        )
        return attention(*video, block_mask=mask).transpose(1, 2).flatten(2).view(q.shape)

    return attend


def case(
    frames: int,
    pixels: int,
    heads: int,
    width: int,
    dtype=torch.float32,
    compile=False,
    batch: int = 1,
    rivals: bool = False,
) -> Case:
    """(first, previous), as in Tune-A-Video.

    rivals: time each SDPA kernel and FlexAttention too, on a GPU.
    """
    torch.manual_seed(0)
    q, k, v = (randn(batch * frames, pixels, heads * width, dtype=dtype) for _ in range(3))
    kv_frames = torch.tensor([[0, max(frame - 1, 0)] for frame in range(frames)])
    theirs = kv_frames.to(q.device)  # a copy at every call would make the rivals wait for the GPU
    settings = {"frames": frames, "heads": heads}

    def exact() -> Tensor:  # frame by frame: all scores in float64 would be tens of gigabytes
        def split(t: Tensor) -> Tensor:
            return t.double().unflatten(-1, (heads, -1)).transpose(-3, -2)

        rows = []
        for i in range(batch * frames):
            video = i // frames * frames
            index = (kv_frames[i % frames] + video).tolist()
            keys, values = (torch.cat([t[j] for j in index]) for t in (k, v))
            rows.append(F.scaled_dot_product_attention(split(q[i]), split(keys), split(values)))
        return torch.stack(rows).transpose(1, 2).flatten(2)

    others = {} if on_gpu() else {"matmul": lambda: matmul(q, k, v, kv_frames, heads)}
    if rivals:
        for kernel in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
            name = f"SDPA {kernel.split('_')[0].lower()}"
            chosen = getattr(SDPBackend, kernel)
            others[name] = lambda chosen=chosen: _sdpa(chosen, q, k, v, theirs, **settings)
        if frames * pixels <= MOST_MASKED:
            attend = flex(frames, pixels, heads)
            others["FlexAttention"] = lambda: attend(q, k, v)
    return Case(
        label=f"F {frames}, P {pixels}, {heads} heads of {width}, {str(dtype)[6:]}"
        + (f", batch {batch}" if batch > 1 else ""),
        moved=4 * q.nbytes,
        ours=lambda: ops.sparse_causal_attention(q, k, v, kv_frames=kv_frames, **settings),
        eager=lambda: reference(q, k, v, theirs, **settings),
        exact=exact,
        compile=compile,
        others=others,
        first=q,
        facts={"frames": frames, "pixels": pixels, "width": width},
    )


# Stable Diffusion 1.5 at 512 x 512: pixels and head width of its levels, 8 heads
LEVELS = [(4096, 40), (1024, 80), (256, 160), (64, 160)]


def cases():
    """One at a time, so that only one is in memory."""
    if options().tiny:
        yield case(4, 8, 2, 8)
    elif on_gpu():
        for pixels, width in LEVELS:
            for frames in (8, 16, 24, 32):
                first = frames == 16 and pixels == 1024
                yield case(frames, pixels, 8, width, torch.bfloat16, first, batch=2, rivals=frames == 16)
            yield case(16, pixels, 8, width, torch.float16, batch=2)
        for pixels, width in LEVELS[:2]:
            yield case(16, pixels, 8, width, torch.float32, batch=2)
            # a long video, merged in attention
            yield case(256, pixels, 8, width, torch.bfloat16, rivals=True)
    else:
        for dtype in (torch.float32, torch.bfloat16):
            yield case(16, 64, 8, 160, dtype)
            yield case(16, 256, 8, 160, dtype)
            yield case(16, 256, 4, 48, dtype, compile=dtype == torch.float32)
            yield case(8, 1024, 4, 32, dtype)
            yield case(4, 1024, 8, 80, dtype)
        yield case(3, 4096, 8, 40)


if __name__ == "__main__":
    with torch.inference_mode():
        run("sparse_causal_attention", cases(), seconds=SECONDS)
