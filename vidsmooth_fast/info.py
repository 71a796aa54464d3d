"""What is installed and what will be used, as a table for people."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import vidsmooth_fast
from vidsmooth_fast import ops
from vidsmooth_fast.models.runtimes import FORMATS, runtime

_PACKAGES = ("torch", "diffusers", "transformers", "av", "numpy", "triton", "onnx", "tensorrt")


def report() -> str:
    """Versions, devices; the backends of every operator, which is used and why others are not; what runs bundles."""
    lines = [
        f"vidsmooth-fast {vidsmooth_fast.__version__}, Python {platform.python_version()}, {platform.machine()}"
    ]
    lines.append("  ".join(f"{name} {_version(name)}" for name in _PACKAGES))
    lines.append(f"CPU: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    for index in range(torch.cuda.device_count()):
        lines.append(f"GPU {index}: {torch.cuda.get_device_name(index)}")
    if not torch.cuda.is_available():
        lines.append("GPU: none that torch can use")
    lines.append("")
    lines.append(f"{'operator':<26}{'used':<8}others")
    for row in ops.report():
        others = [f"{name} (slower)" for name in row.available if name != row.used]
        others += [f"{name}: {reason}" for name, reason in row.unavailable.items()]
        lines.append(f"{row.operator:<26}{row.used:<8}{'; '.join(others)}")
    lines += ["", f"{'bundle':<26}runs here"]
    lines += [f"{format:<26}{runtime(format).available()}" for format in FORMATS]
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
