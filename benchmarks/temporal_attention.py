"""Time temporal_attention: python benchmarks/temporal_attention.py [--device cuda]; under 2 minutes on a quiet CPU"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from _timing import Case, on_gpu, options, randn, run
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vidsmooth_fast import ops

SECONDS = 1.5  # for each case


def eager(
    q: Tensor, k: Tensor, v: Tensor, frames: int, heads: int, attention=F.scaled_dot_product_attention
) -> Tensor:
    """Permute, scaled_dot_product_attention, permute: what the published programs do."""

    def split(t: Tensor) -> Tensor:  # (B·F, P, h·d) -> (B·P, h, F, d)
        t = t.unflatten(0, (-1, frames)).unflatten(-1, (heads, -1))
        return t.permute(0, 2, 3, 1, 4).flatten(0, 1).contiguous()

    out = attention(split(q), split(k), split(v))
    return out.unflatten(0, (-1, q.shape[1])).permute(0, 3, 1, 2, 4).flatten(3).flatten(0, 1)


def _sdpa(kernel: SDPBackend, *arguments) -> Tensor:
    with sdpa_kernel(kernel):
        return eager(*arguments)


def flex(*, compiled: bool = True):
    """FlexAttention between the permutes; its tiles of 128 rows hold one pixel's frames."""
    from torch.nn.attention.flex_attention import flex_attention

    attention = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention

    def attend(q: Tensor, k: Tensor, v: Tensor, frames: int, heads: int) -> Tensor:
        return eager(q, k, v, frames, heads, attention)

    return attend


def case(
    frames: int,
    pixels: int,
    heads: int,
    width: int,
    dtype=torch.float32,
    compile=False,
    batch: int = 1,
    window: int | None = None,
    rivals: bool = False,
) -> Case:
    """One problem.

    window: attend in windows of this length that overlap by half. rivals: time each SDPA kernel by itself too,
    and with compile FlexAttention.
    """
    torch.manual_seed(0)
    q, k, v = (randn(batch * frames, pixels, heads * width, dtype=dtype) for _ in range(3))
    settings = {"frames": frames, "heads": heads}
    windows = {}
    if window:
        weights = torch.arange(1.0, window + 1, device=q.device)
        windows = {"starts": list(range(0, frames - window + 1, window // 2)), "weights": weights}

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not window:
            return eager(q, k, v, frames, heads)
        total = torch.zeros_like(q).unflatten(0, (-1, frames))
        mass = total.new_zeros(frames)
        for start in windows["starts"]:
            part = (t.unflatten(0, (-1, frames))[:, start : start + window].flatten(0, 1) for t in (q, k, v))
            out = eager(*part, window, heads).unflatten(0, (-1, window))
            w = windows["weights"].to(q.dtype)
            total[:, start : start + window] += w[:, None, None] * out
            mass[start : start + window] += w
        return (total / mass[:, None, None]).flatten(0, 1)

    def exact() -> Tensor:
        return torch.cat(  # in slices of pixels: float64 of everything would be gigabytes
            [
                plain(*(t.double() for t in part))
                for part in zip(q.split(256, 1), k.split(256, 1), v.split(256, 1), strict=True)
            ],
            1,
        )

    others = {}
    if rivals:
        for kernel in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
            name = f"SDPA {kernel.split('_')[0].lower()}"
            chosen = getattr(SDPBackend, kernel)
            others[name] = lambda chosen=chosen: _sdpa(chosen, q, k, v, frames, heads)
    if compile and rivals:
        attend = flex()
        others["FlexAttention"] = lambda: attend(q, k, v, frames, heads)
    return Case(
        label=f"F {frames}, P {pixels}, {heads} heads of {width}, {str(dtype)[6:]}"
        + (f", batch {batch}" if batch > 1 else "")
        + (f", windows of {window}" if window else ""),
        moved=4 * q.nbytes,
        ours=lambda: ops.temporal_attention(q, k, v, **settings, **windows),
        eager=lambda: plain(q, k, v),
        exact=exact,
        compile=compile,
        others=others,
        first=q,
        facts={"frames": frames, "pixels": pixels, "width": width, **({"window": window} if window else {})},
    )


# Stable Diffusion 1.5 at 512 x 512: pixels and head width of its levels, 8 heads
LEVELS = [(4096, 40), (1024, 80), (256, 160), (64, 160)]


def cases():
    """One at a time, so that only one is in memory."""
    if options().tiny:
        yield case(5, 3, 2, 8)
        yield case(8, 3, 2, 8, window=4)
    elif on_gpu():
        yield case(256, 1024, 8, 80, torch.bfloat16, window=16)
        for pixels, width in LEVELS:
            for frames in (8, 16, 24, 32):
                yield case(frames, pixels, 8, width, torch.bfloat16, batch=2, rivals=frames == 16)
            yield case(16, pixels, 8, width, torch.float16, batch=2)
            yield case(16, pixels, 8, width, torch.float32, batch=2)
        # Again, beside rivals that are compiled first: reports take the newer record, if there is time for it.
        yield case(16, 4096, 8, 40, torch.bfloat16, compile=True, batch=2, rivals=True)
    else:
        yield case(16, 4096, 8, 40, compile=True)
        yield case(16, 4096, 8, 64)
        yield case(16, 2048, 8, 80)
        yield case(16, 1024, 8, 80)
        yield case(16, 1024, 8, 160)
        yield case(16, 256, 8, 160)
        yield case(16, 256, 8, 40)
        yield case(16, 256, 8, 64)
        for frames in (8, 24, 32):
            yield case(frames, 1024, 8, 64)
        yield case(16, 4096, 8, 40, torch.bfloat16)
        yield case(16, 1024, 8, 80, torch.bfloat16)


if __name__ == "__main__":
    with torch.inference_mode():
        run("temporal_attention", cases(), seconds=SECONDS)
