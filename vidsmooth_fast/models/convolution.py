"""The 3x3 convolutions of the network: by minimal filtering where that is faster."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vidsmooth_fast import ops
from vidsmooth_fast.ops._dispatch import extension
from vidsmooth_fast.ops.convolution import CHANNELS

TILE = 4
"""Pixels a side that are filtered at once; a map that is no multiple is filled up with zeros."""


def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=1)`, x (N, C, H, W), weight (O, C, 3, 3), bias (O,) -> (N, O, H, W).

    On a CPU by `ops.convolution` where it pays. Compiled and exported graphs, autocast and GPUs get `F.conv2d`.
    """
    if _pays(x, weight):
        return ops.convolution(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=1)


def _pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `ops.convolution` is faster. Never a question of N: results must not depend on how windows are batched.

    Zen 4, one core, against oneDNN: fp32 2.3 to 3.3 times as fast from 48 to 1,280 channels, 16 maps of 4x4 and more,
    and 1.7 times at 1,280 channels of 2x2; bf16 1.2 to 1.7 times, but 0.9 at 1,280 channels of 4x4, where the weights
    take most of the time.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    module = extension()
    if module is None or module.isa() == "base" or x.shape[1] % CHANNELS or weight.shape[0] % CHANNELS:
        return False
    channels, height, width = x.shape[1:]
    tiles = -(-height // TILE) * -(-width // TILE)
    filled = height * width / (tiles * TILE**2)
    if x.dtype == torch.float32:
        return filled > 0.5 or channels >= 1024
    matrix_units = torch.cpu._is_amx_tile_supported()
    return x.dtype == torch.bfloat16 and not matrix_units and filled > 0.8 and tiles >= channels / 160
