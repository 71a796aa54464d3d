"""What a run needs of memory, before it starts."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import torch

SHARE = 0.5
"""Of the free memory that "auto" batching plans with; the allocator and other programs have the rest."""

CHUNK_TOKENS = 2048
"""Tokens that the feed-forward takes at a time on a CPU (`blocks.FeedForward.CHUNK`)."""

_CGROUP = Path("/sys/fs/cgroup")


def network_bytes(
    config: dict, dtype: torch.dtype, pairs: int, frames: int, height: int, width: int, *, on_cpu: bool = True
) -> int:
    """Peak bytes of activations in one network call, found by walking through the network as a call does.

    config: VideoUNet's. pairs: windows x branches in the call, each of `frames` frames of height x width latents.
    on_cpu: there the feed-forward goes through the tokens in pieces.
    """
    channels, layers, images = config["block_out_channels"], config["layers_per_block"], pairs * frames
    temporal, levels = bool(config.get("temporal_conv")), len(channels)
    attends = ["CrossAttn" in kind for kind in config["down_block_types"]]
    attends_up = ["CrossAttn" in kind for kind in reversed(config["up_block_types"])]
    pixels = [images * -(-height // 2**level) * -(-width // 2**level) for level in range(levels)]
    maps = [width * size for width, size in zip(channels, pixels, strict=True)]
    held, peak = (
        [channels[0] * pixels[0]],
        0,
    )  # skip connections, of which the last is the input of the next layer

    def layer(level: int, beside: int, read: int, attention: bool) -> int:
        """A ResNet and its transformer, with what is held `beside` their input of `read` values."""
        out = maps[level]
        # normalised input and result; then normalised result, the convolution of it, the shortcut or the time's
        live = max(read + out, (4 if temporal else 3) * out)
        if attention:
            # result of the ResNet, projected, inside the block, and normalised; projections, attention and its result
            inside = 5 * out
            if on_cpu:
                inside = max(inside, out + 12 * channels[level] * min(CHUNK_TOKENS, pixels[level]))
            else:  # feed-forward: both halves of 4 widths, one through GELU, their product
                inside = 16 * out
            live = max(live, 5 * out + inside)
        return beside + read + live

    for level in range(levels):
        for _ in range(layers):
            peak = max(peak, layer(level, sum(held[:-1]), held[-1], attends[level]))
            held.append(maps[level])
        if level < levels - 1:
            held.append(channels[level] * pixels[level + 1])
    x = held[-1]
    peak = max(peak, layer(levels - 1, sum(held[:-1]), x, True))
    for level in reversed(range(levels)):
        for _ in range(layers + 1):
            joined = x + held.pop()
            peak = max(peak, layer(level, sum(held) + x, joined, attends_up[level]))
            x = maps[level]
        if level > 0:
            large = channels[level] * pixels[level - 1]
            peak = max(peak, sum(held) + x + 2 * large)
            x = large
    return peak * dtype.itemsize


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
    """Peak bytes of decoding or encoding `frames` frames of height x width pixels.

    config: AutoencoderKL's. The decoder's widest map at full size, from the second level, is held as it came,
    normalised and through SiLU; the encoder's first block holds five of its width; pictures are bytes and floats.
    """
    channels = config["block_out_channels"]
    widest = max(3 * max(channels[:2]), 5 * channels[0])
    return frames * height * width * (widest * dtype.itemsize + 3 * (dtype.itemsize + 8))


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
