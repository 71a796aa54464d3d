"""What is installed and what will be used, as a table for people."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import vidsmooth_fast
from vidsmooth_fast import ops
from vidsmooth_fast.models.bundle import read_bundle
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
    wide = max(len(row.operator) for row in ops.report()) + 2
    lines.append(f"{'operator':<{wide}}{'used':<8}others")
    for row in ops.report():
        others = [f"{name} (slower)" for name in row.available if name != row.used]
        others += [f"{name}: {reason}" for name, reason in row.unavailable.items()]
        lines.append(f"{row.operator:<{wide}}{row.used:<8}{'; '.join(others)}")
    lines += ["", f"{'bundle':<{wide}}runs here"]
    lines += [f"{format:<{wide}}{runtime(format).available()}" for format in FORMATS]
    return "\n".join(lines)


def describe(path: Path) -> str:
    """What a bundle says of itself, and whether it runs here. Raises: ValueError for one that is damaged."""
    bundle = read_bundle(path)
    per = 2 ** (len(bundle.autoencoder["block_out_channels"]) - 1)
    sizes = {
        "frames": ("frames", 1),
        "height": ("height", per),
        "width": ("width", per),
        "batch": ("videos", 1),
    }
    takes = (
        "{} {} to {}".format(word, *(size * unit for size in bundle.ranges[name]))
        for word, (name, unit) in sizes.items()
    )
    lines = [
        f"{path}: {bundle.name} as {bundle.format}, {bundle.dtype}, {sum(bundle.files.values()) / 2**20:.1f} MiB",
        f"takes      {', '.join(takes)} (pixels; windows x guidance branches)",
        f"settings   {_pairs(bundle.settings) or 'none'}",
        f"made with  {_pairs(bundle.versions)}",
        f"source     sha256 {bundle.source.get('sha256', 'unknown')}",
        f"predicts   {bundle.scheduler.get('prediction_type', 'epsilon')}",
    ]
    if bundle.tuning is not None:
        lines.append(f"tuned on   {bundle.tuning.get('prompt', '')!r}")
    try:
        device = runtime(bundle.format).choose_device(bundle, "auto")
        lines.append(f"runs here  on {device}; {runtime(bundle.format).available()}")
    except ValueError as error:
        lines.append(f"runs here  no: {error}")
    lines += [f"note       {note}" for note in bundle.notes]
    for name, graph in bundle.graphs.items():
        lines += ["", f"{name:<14}{graph.file}"]
        for side, ports in (("in", graph.inputs), ("out", graph.outputs)):
            lines += [
                f"  {side:<4}{port:<40}{kind.dtype} ({', '.join(map(str, kind.shape))})"
                for port, kind in ports.items()
            ]
    return "\n".join(lines)


def _pairs(record: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in record.items())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
