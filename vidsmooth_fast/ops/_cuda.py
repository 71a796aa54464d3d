"""What the operators need to call their CUDA kernels in the compiled extension."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ._dispatch import DTYPE_CODES, extension


def where(tensor: Tensor) -> int | tuple[int, int]:
    """Where the extension computes on this tensor: the CPU's threads, or its (CUDA device, current stream)."""
    if tensor.device.type == "cpu":
        return torch.get_num_threads()
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream


@functools.cache
def _built() -> str:
    """Why this installation has no CUDA kernels; empty when it has."""
    module = extension()
    if module is None:
        return "the compiled extension vidsmooth_fast._C cannot be imported"
    return f"built without CUDA: {module.no_cuda}" if module.no_cuda else ""


@functools.cache
def _device(index: int) -> str:
    """Why the CUDA kernels do not run on this device; empty when they do."""
    major, minor = torch.cuda.get_device_capability(index)
    return (
        ""
        if major >= 8
        else f"the CUDA kernels need compute capability 8.0, cuda:{index} has {major}.{minor}"
    )


def cuda_supports(*args: Any, **keywords: Any) -> tuple[bool, str]:
    """Whether the CUDA kernels take all tensors among these arguments: on a GPU, in fp32, bf16 or fp16."""
    if why := _built():
        return False, why
    for t in (*args, *keywords.values()):
        if not isinstance(t, Tensor):
            continue
        if t.device.type != "cuda" or torch.version.hip is not None:
            return False, f"the CUDA kernels need tensors on an NVIDIA GPU, got {t.device}"
        if t.dtype not in DTYPE_CODES:
            return False, f"the CUDA kernels take float32, bfloat16 and float16, got {t.dtype}"
        if why := _device(t.device.index):
            return False, why
    return True, ""
