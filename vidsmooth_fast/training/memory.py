"""How much memory the gradients of one step need, measured on two frames before the run."""

from __future__ import annotations

import torch
from torch import Tensor

from vidsmooth_fast.models.unet import VideoUNet
from vidsmooth_fast.training.data import Batch

PROBE = 2
"""Frames of the measured pass."""


def training_bytes(unet: VideoUNet, batch: Batch, trained: int, *, skip_temporal: bool) -> tuple[int, int]:
    """Bytes of one training step beside the model: (keeping every activation, computing them again).

    batch: of any step. trained: parameters with a gradient and AdamW's two moments, fp32.
    Computing again keeps each layer's input, and the activations of one layer at a time, taken for a quarter of all.
    """
    b, _, frames, height, width = batch.noisy.shape
    states = 3 * 4 * trained
    saved = _saved_bytes(unet, batch, skip_temporal)
    inputs = _inputs_bytes(unet.config, b * frames, height, width)
    return states + saved + inputs // 2, states + saved // 4 + inputs


def _inputs_bytes(config: dict, images: int, height: int, width: int) -> int:
    """Float32 bytes of the skip connections, and of the ten maps of one layer's size that its block works on."""
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    skips, peak = channels[0] * height * width, 0
    for level, width_channels in enumerate(channels):
        pixels = -(-height // 2**level) * -(-width // 2**level)
        skips += width_channels * pixels * (layers + 1)
        peak = max(peak, 10 * width_channels * pixels)
    return 4 * images * (skips + peak)


def _saved_bytes(unet: VideoUNet, batch: Batch, skip_temporal: bool) -> int:
    """Bytes that one forward pass keeps for its gradients, beside the weights.

    Two frames are measured and scaled up; what grows with F², the scores of temporal attention, is computed again by
    its operator and not kept.
    """
    weights = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    unet.gradient_checkpointing = False
    few = batch.noisy[:1, :, :PROBE]
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = unet(few, batch.t[:1], batch.text[:1], skip_temporal=skip_temporal)
    del out  # until here every storage was alive, so that no address was counted for two
    return sum(kept.values()) * (batch.noisy.shape[0] * batch.noisy.shape[2]) // few.shape[2]
