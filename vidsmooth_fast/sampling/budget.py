"""What a run needs of memory, before it starts."""

from __future__ import annotations

import os

import psutil
import torch
from torch import nn

SHARE = 0.5
"""Of the free memory that "auto" batching plans with; the allocator and other programs have the rest."""

LIVE = 10
"""Activations of a level's size that are alive at once inside one of its blocks, beside the skip connections.

A ResNet block after concatenation holds its input (2), the normalised input (2), the convolution's result, its
normalised copy and the convolution library's workspace; a transformer's feed-forward holds 8 channel widths instead.
"""


def network_bytes(config: dict, dtype: torch.dtype, pairs: int, frames: int, height: int, width: int) -> int:
    """Estimated peak bytes of activations in one network call.

    config: VideoUNet's. pairs: windows x branches in the call, each of `frames` frames of height x width latents.
    """
    element = torch.empty((), dtype=dtype).element_size()
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    skips, peak = channels[0] * height * width, 0
    for level, width_channels in enumerate(channels):
        pixels = -(-height // 2**level) * -(-width // 2**level)
        skips += width_channels * pixels * (layers + 1)
        peak = max(peak, LIVE * width_channels * pixels)
    return pairs * frames * (skips + peak) * element


def weights_bytes(*modules: nn.Module) -> int:
    """Bytes of the parameters of `modules`."""
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def used_bytes() -> int:
    """Resident bytes of this process."""
    return psutil.Process(os.getpid()).memory_info().rss
