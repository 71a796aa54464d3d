"""The 3x3 convolutions of the network: by minimal filtering where that is faster."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsmooth_fast import ops

from .kernels import kernel_runs

TILE = 4
"""Pixels a side that are filtered at once; a map that is no multiple is filled up with zeros."""


def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=1)`, x (N, C, H, W), weight (O, C, 3, 3), bias (O,) -> (N, O, H, W).

    On a CPU by `ops.convolution` where it pays. Compiled and exported graphs, autocast, GPUs and requests for another
    backend get `F.conv2d`.
    """
    inputs, outputs = weight.shape[1], weight.shape[0]
    if kernel_runs(x, weight, bias) and _pays(x, inputs):
        if not (torch.is_grad_enabled() and x.requires_grad) or _pays(
            x, outputs
        ):  # the gradient goes back from those
            return ops.convolution(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=1)


def _pays(x: Tensor, channels: int) -> bool:
    """Whether `ops.convolution` is faster on maps like x of so many channels. Never a question of N: results must not
    depend on how windows are batched.

    Zen 4 against oneDNN, one core and two: fp32 2.3 to 3.3 and 1.8 to 3.1 times as fast from 48 to 1,280 channels, 16
    maps of 4x4 and more, and 1.7 times at 1,280 channels of 2x2; bf16 1.2 to 1.7 and 0.8 to 1.6 times, but 0.6 at 1,280
    channels of 4x4, where the weights take most of the time.
    """
    height, width = x.shape[2:]
    tiles = -(-height // TILE) * -(-width // TILE)
    filled = height * width / (tiles * TILE**2)
    if x.dtype == torch.float32:
        return filled > 0.5 or channels >= 1024
    matrix_units = torch.cpu._is_amx_tile_supported()
    return x.dtype == torch.bfloat16 and not matrix_units and filled > 0.8 and tiles >= channels / 160
