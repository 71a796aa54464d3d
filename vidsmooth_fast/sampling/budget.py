"""What a run needs of memory, before it starts."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import torch

SHARE = 0.5
"""Of the free memory that "auto" batching plans with; the allocator and other programs have the rest."""

LIVE = 10
"""Activations of a level's size that are alive at once inside one of its blocks, beside the skip connections.

A ResNet block after concatenation holds its input (2), the normalised input (2), the convolution's result, its
normalised copy and the convolution library's workspace; a transformer's feed-forward takes its place at 8 widths.
"""

_CGROUP = Path("/sys/fs/cgroup")


def network_bytes(config: dict, dtype: torch.dtype, pairs: int, frames: int, height: int, width: int) -> int:
    """Estimated peak bytes of activations in one network call.

    config: VideoUNet's. pairs: windows x branches in the call, each of `frames` frames of height x width latents.
    """
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    skips, peak = channels[0] * height * width, 0
    for level, width_channels in enumerate(channels):
        pixels = -(-height // 2**level) * -(-width // 2**level)
        skips += width_channels * pixels * (layers + 1)
        peak = max(peak, LIVE * width_channels * pixels)
    return pairs * frames * (skips + peak) * dtype.itemsize


def deep_bytes(config: dict, dtype: torch.dtype, images: int, height: int, width: int, layers: int) -> int:
    """Bytes of the deep features of `images` frames: what the last `layers` layers of the up path are given first."""
    channels, per_level = config["block_out_channels"], config["layers_per_block"] + 1
    level, deeper = (
        (layers - 1) // per_level,
        layers // per_level,
    )  # of the layer that reads, and of the one before it
    pixels = -(-height // 2**level) * -(-width // 2**level)
    return images * channels[deeper] * pixels * dtype.itemsize


def autoencoder_bytes(config: dict, dtype: torch.dtype, frames: int, height: int, width: int) -> int:
    """Estimated peak bytes of decoding or encoding `frames` frames of height x width pixels.

    config: AutoencoderKL's; the widest feature map at full size comes from the second level, enlarged.
    """
    return LIVE // 2 * frames * height * width * max(config["block_out_channels"][:2]) * dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`, by this process and inside its container."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    free = psutil.virtual_memory().available
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, or one that does not tell
        pass
    return free


def used_bytes(device: torch.device) -> int:
    """Bytes that this process holds on `device` now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process(os.getpid()).memory_info().rss


def in_words(count: float) -> str:
    """Bytes as a person reads them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
