"""What a run needs of memory, before it starts."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import torch

SHARE = 0.5
"""Of the free memory that "auto" batching plans with; the allocator and other programs have the rest."""

CHUNK_TOKENS = 2048
"""Tokens that the feed-forward takes at a time on a CPU (`FeedForward.CHUNK`); `ops.feed_forward` takes less."""

HEAP_BLOCK = 32 * 2**20
"""Bytes from which blocks leave holes that the next of their kind fill; those of smaller ones count, see HEAP."""

HEAP = 2
"""What is resident of a heap at its peak, as a multiple of what is alive: freed blocks leave holes. Measured on network
calls in fp32 (351 MiB for 180 alive) and bf16 (191 for 90); with MALLOC_MMAP_THRESHOLD_=65536, no heap, 194 for 180."""

MOST_ELEMENTS = 2**31 - 1
"""Of a map that a convolution on a GPU is given: cuDNN's kernels count in 32 bits, and larger maps go other ways."""

_CGROUP = Path("/sys/fs/cgroup")


def most_pairs(config: dict, frames: int, height: int, width: int) -> int:
    """Windows x branches of `frames` frames whose largest map, a level's input joined to a skip connection, is of at
    most MOST_ELEMENTS; at least 1."""
    channels = config["block_out_channels"]
    joined = [a + b for a, b in zip(channels, [*channels[1:], channels[-1]], strict=True)]
    pixels = [-(-height // 2**level) * -(-width // 2**level) for level in range(len(channels))]
    largest = max(c * p for c, p in zip(joined, pixels, strict=True))
    return max(1, MOST_ELEMENTS // (frames * largest))


def network_bytes(
    config: dict, dtype: torch.dtype, pairs: int, frames: int, height: int, width: int, *, on_cpu: bool = True
) -> int:
    """Peak bytes of activations in one network call, found by walking through the network as a call does.

    config: VideoUNet's. pairs: windows x branches in the call, each of `frames` frames of height x width latents.
    on_cpu: there the feed-forward goes through the tokens in pieces, at most CHUNK_TOKENS.
    """
    channels, layers, images = config["block_out_channels"], config["layers_per_block"], pairs * frames
    temporal, levels = bool(config.get("temporal_conv")), len(channels)
    attends = ["CrossAttn" in kind for kind in config["down_block_types"]]
    attends_up = ["CrossAttn" in kind for kind in reversed(config["up_block_types"])]
    pixels = [images * -(-height // 2**level) * -(-width // 2**level) for level in range(levels)]

    def resident(channels: int, level: int) -> int:
        return block_bytes(channels * pixels[level] * dtype.itemsize, on_cpu=on_cpu)

    maps = [resident(width, level) for level, width in enumerate(channels)]

    def layer(level: int, beside: int, read: int, attention: bool) -> int:
        """A ResNet and its transformer, with what is held `beside` their input of `read` bytes."""
        out = maps[level]
        # normalised input and result; then normalised result, the convolution of it, the shortcut or the time's
        live = max(read + out, (4 if temporal else 3) * out)
        if attention:
            # result of the ResNet, projected, inside the block, and normalised; projections, attention and its result
            inside = 5 * out
            if on_cpu:
                tokens = min(CHUNK_TOKENS, pixels[level])
                inside = max(inside, out + HEAP * 8 * channels[level] * tokens * dtype.itemsize)
            else:  # feed-forward: both halves of 4 widths, one through GELU, their product
                inside = 16 * out
            live = max(live, 5 * out + inside)
        return beside + read + live

    held, peak = [maps[0]], 0  # skip connections, of which the last is the input of the next layer
    for level in range(levels):
        for _ in range(layers):
            peak = max(peak, layer(level, sum(held[:-1]), held[-1], attends[level]))
            held.append(maps[level])
        if level < levels - 1:
            held.append(resident(channels[level], level + 1))
    x = held[-1]
    peak = max(peak, layer(levels - 1, sum(held[:-1]), x, True))
    for level in reversed(range(levels)):
        for _ in range(layers + 1):
            joined = x + held.pop()
            peak = max(peak, layer(level, sum(held) + x, joined, attends_up[level]))
            x = maps[level]
        if level > 0:
            large = resident(channels[level], level - 1)
            peak = max(peak, sum(held) + x + 2 * large)
            x = large
    return peak


def residual_bytes(
    config: dict, dtype: torch.dtype, images: int, height: int, width: int, *, on_cpu: bool = True
) -> int:
    """Bytes of what ControlNets add to the network's skip connections and its middle, for so many images."""
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    pixels = [images * -(-height // 2**level) * -(-width // 2**level) for level in range(len(channels))]
    maps = [(channels[0], pixels[0]), (channels[-1], pixels[-1])]  # the first and the middle's
    for level, wide in enumerate(channels):
        maps += [(wide, pixels[level])] * layers
        if level < len(channels) - 1:
            maps.append((wide, pixels[level + 1]))
    return sum(block_bytes(wide * count * dtype.itemsize, on_cpu=on_cpu) for wide, count in maps)


def block_bytes(count: int, *, on_cpu: bool) -> int:
    """What a tensor of `count` bytes adds to what is resident: see HEAP_BLOCK."""
    return count * HEAP if on_cpu and count < HEAP_BLOCK else count


def deep_bytes(config: dict, dtype: torch.dtype, images: int, height: int, width: int, layers: int) -> int:
    """Bytes of the deep features of `images` frames: what the last `layers` layers of the up path are given first."""
    channels, per_level = config["block_out_channels"], config["layers_per_block"] + 1
    # Levels of the layer that reads, and of the one before it.
    level, deeper = (layers - 1) // per_level, layers // per_level
    pixels = -(-height // 2**level) * -(-width // 2**level)
    return images * channels[deeper] * pixels * dtype.itemsize


def autoencoder_bytes(
    config: dict, dtype: torch.dtype, frames: int, height: int, width: int, *, on_cpu: bool = True
) -> int:
    """Peak bytes of decoding or encoding `frames` frames of height x width pixels.

    config: AutoencoderKL's. The decoder's widest map at full size, from the second level, is held as it came,
    normalised and through SiLU; the encoder's first block holds five of its width; pictures are floats twice.
    """
    channels, pixels = config["block_out_channels"], frames * height * width
    decoding, encoding = (
        count * block_bytes(wide * pixels * dtype.itemsize, on_cpu=on_cpu)
        for count, wide in ((3, max(channels[:2])), (5, channels[0]))
    )
    return max(decoding, encoding) + 2 * block_bytes(12 * pixels, on_cpu=on_cpu)


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`, by this process and inside its container."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    free = psutil.virtual_memory().available
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            inside = int(limit) - int((_CGROUP / "memory.current").read_text())
            free = min(free, inside)
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
