"""Linear layers of inference on a CPU, through oneDNN where PyTorch would call MKL."""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AVAILABLE = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether this build of PyTorch has oneDNN's linear layer, which torch.compile uses as well."""

WORTH = 1 << 24
"""Multiplications from which it pays: a call costs 15 us more (fp32, 1 core: 10 us lost at 2^21, 5% gained at 2^24)."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """x @ weight.T + bias, where asked for through the exact (erf) GELU. x (..., in), weight (out, in) -> (..., out).

    `F.linear` within rounding; that is also what gradients, compiled and exported graphs and other devices get.
    In fp32 on AMD processors oneDNN is faster than MKL (Zen 4, 1 core: 2,048 rows from 512 to 128 columns at
    96 GFLOP/s against 80, 8,192 rows of 256 columns at 99 against 86); in bf16 both are oneDNN, but here bias and GELU
    need no pass of their own (2,048 rows from 256 to 1,024 columns: 167 against 127).
    """
    if not _through_onednn(x, weight):
        y = F.linear(x, weight, bias)
        return F.gelu(y) if gelu else y
    function, algorithm = ("gelu", "none") if gelu else ("none", "")  # "none": erf and not tanh
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, function, [], algorithm)


def _through_onednn(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not AVAILABLE or x.device.type != "cpu":
        return False
    if x.numel() * weight.shape[0] < WORTH or torch.is_autocast_enabled("cpu"):
        return False
    if x.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return x.dtype == torch.float32


class Linear(nn.Linear):
    """nn.Linear that takes the fastest way of inference, see `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
