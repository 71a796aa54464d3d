"""Whether a layer of the network runs on a C++ kernel of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from vidsmooth_fast.ops._dispatch import CHANNELS, extension, wanted


def kernel_runs(x: Tensor, *parameters: Tensor) -> bool:
    """Whether a C++ kernel that takes multiples of CHANNELS channels takes these, and nobody ruled it out.

    parameters: of the layer, in the dtype of x. Compiled and exported graphs, autocast, GPUs, requests for another
    backend and processors without AVX2 get PyTorch's layers.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    asked, module = wanted(), extension()
    if module is None or module.isa() == "base" or (asked and asked[0] != "cpu"):
        return False
    sizes = (size for p in parameters for size in p.shape[:2])
    return all(p.dtype == x.dtype for p in parameters) and not any(size % CHANNELS for size in sizes)
