"""What the end-to-end benchmarks share: networks with random weights, their arithmetic, rates to compare with."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from vidsmooth_fast.models import VideoUNet

# 37 million parameters with Stable Diffusion's layout: attention at the first two levels, two layers each.
MEDIUM = {
    "sample_size": 32,
    "block_out_channels": [128, 256, 256],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"],
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"],
    "attention_head_dim": 8,
    "cross_attention_dim": 256,
}
STABLE_DIFFUSION = {  # 1.5
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": [*["CrossAttnDownBlock3D"] * 3, "DownBlock3D"],
    "up_block_types": ["UpBlock3D", *["CrossAttnUpBlock3D"] * 3],
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
TINY = {
    **MEDIUM,
    "sample_size": 8,
    "block_out_channels": [32, 64, 64],
    "cross_attention_dim": 32,
}  # to try a program
SIZES = {"sd15": STABLE_DIFFUSION, "37m": MEDIUM, "tiny": TINY}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
TOKENS = 77


def random_unet(
    config: dict, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> VideoUNet:
    """A network with random weights, its temporal layers awake."""
    torch.manual_seed(0)
    with torch.device(device):
        unet = VideoUNet.from_config(config)
    for name, parameter in unet.named_parameters():
        if "attn_temp.to_out.0.weight" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return unet.to(device, dtype, memory_format=torch.channels_last).eval().requires_grad_(False)


def timed(call: Callable[[], object], repeats: int = 3) -> float:
    """Median seconds of a call, after one to warm up."""
    call()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def matrix_rates(dtype: torch.dtype) -> dict[str, float]:
    """GFLOP/s of a 2048 x 2048 x 2048 product and of a 3x3 convolution of 256 channels on 16 images of 32 x 32."""
    a, b = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)
    x = torch.randn(16, 256, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
    w = torch.randn(256, 256, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    product = 2 * 2048**3 / timed(lambda: a @ b)
    convolution = 2 * 9 * 256 * x.numel() / timed(lambda: torch.nn.functional.conv2d(x, w, padding=1))
    return {"product": product / 1e9, "convolution": convolution / 1e9}


def copy_rate(device: torch.device) -> float:
    """GB/s read and written by a copy of 256 MiB."""
    source = torch.empty(1 << 26, device=device).fill_(1.0)
    target = torch.empty_like(source)

    def call() -> None:
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return 2 * source.nbytes / timed(call, 5) / 1e9


def _attention_flop(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    """(B, heads, tokens, width) each: q k^T, then the product with v."""
    batch, heads, tokens, width = query
    return 2 * batch * heads * tokens * key[-2] * (width + value[-1])


def _temporal_flop(
    query: torch.Size, _key, _value, weights=None, *_: object, frames: int, starts=None, **__: object
) -> int:
    if starts is None:
        return 4 * math.prod(query) * frames
    return 4 * math.prod(query) // frames * len(starts) * weights[0] ** 2


def _sparse_causal_flop(
    query: torch.Size, key: torch.Size, _value, kv_frames: torch.Size, **__: object
) -> int:
    return 4 * math.prod(query) * kv_frames[-1] * key[1]


def _linear_flop(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
    return 2 * math.prod(x) * weight[0]


def _convolution_flop(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
    """36 products for every 4 x 4 pixels, which is what `ops.convolution` does on a CPU."""
    images, channels, height, width = x
    return 2 * 36 * images * -(-height // 4) * -(-width // 4) * channels * weight[0]


def _feed_forward_flop(
    x: torch.Size, weight_in: torch.Size, _bias, weight_out: torch.Size, *_: object, **__: object
) -> int:
    return 2 * math.prod(x[:-1]) * (math.prod(weight_in) + math.prod(weight_out))


def flop_counter() -> FlopCounterMode:
    """A counter of the matrix products that are made, with the attentions and layers that PyTorch's does not know."""
    known = {
        torch.ops.vidsmooth.convolution: _convolution_flop,
        torch.ops.vidsmooth.feed_forward: _feed_forward_flop,
    }
    known[torch.ops.aten._scaled_dot_product_flash_attention_for_cpu] = _attention_flop
    if torch.backends.mkldnn.is_available():
        known[torch.ops.mkldnn._linear_pointwise] = _linear_flop
    for name, formula in (("temporal", _temporal_flop), ("sparse_causal", _sparse_causal_flop)):
        known[getattr(torch.ops.vidsmooth, f"{name}_attention")] = formula
    return FlopCounterMode(display=False, custom_mapping=known)
