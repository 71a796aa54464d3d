"""Compiles the Triton kernels for sm_90 as their launchers launch them, without a GPU.

A stand-in for Triton's driver names the target; the launchers are called with CPU tensors that are never touched, and
each kernel stops after compilation. Prints a line of JSON per kernel: what is asked for, the vector widths of its
global loads and stores, and what ptxas says about registers and spills.

    python compile_triton.py CASE...
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from vidsmooth_fast.ops import _windows
from vidsmooth_fast.ops._dispatch import triton_kernel
from vidsmooth_fast.ops.sparse_causal_attention import _sources_on
from vidsmooth_fast.ops.temporal_attention import _windows_for_triton

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Stand:
    """What a launch asks of a driver before it compiles."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def video(dtype, frames, batch=2, channels=4, pixels=64):
    return torch.empty(batch, channels, frames, pixels, pixels, dtype=dtype)


def noise_constraint(dtype, frames):
    x = video(dtype, frames)
    for reference, loop in ((None, False), (x, True)):
        triton_kernel("noise_constraint")(x, x, reference, x, c_over_lambda=1.0, strength=0.2, loop=loop)


def inversion_blend(dtype, frames):
    x = video(dtype, frames)
    triton_kernel("inversion_blend")(x, x, x, weight=0.3, forward=0.5, backward=0.5, loop=False)


def _windowed(frames):
    starts = tuple(range(0, frames - 15, 8))
    return starts, torch.empty(16), *_windows.coverage_on(torch.device("cpu"), starts, 16, frames)


def window_merge(dtype, frames):
    starts, weights, table, most = _windowed(frames)
    windows = torch.empty(2, len(starts), 4, 16, 64, 64, dtype=dtype)
    out = video(dtype, frames)
    for w in (weights[:, None, None], torch.empty(4, 16, 64, 64)):
        triton_kernel("window_merge")(windows, w.expand(4, 16, 64, 64), table, most, out)


def denoise_step(dtype, frames):
    starts, weights, table, most = _windowed(frames)
    pred = torch.empty(2, 1, len(starts), 4, 16, 64, 64, dtype=dtype)
    x = video(torch.float32, frames, batch=1)
    settings = {"branch_weights": (-6.5, 7.5), "a": 0.9, "b": 0.1, "to_eps": (0.0, 1.0), "loop": False}
    weights = weights[:, None, None].expand(4, 16, 64, 64)
    for strength, extra in ((0.0, None), (0.25, None), (0.25, x)):
        triton_kernel("denoise_step")(
            pred,
            x,
            weights,
            extra,
            extra,
            extra,
            table,
            most,
            x,
            extra,
            **settings,
            c=0.0 if extra is None else 0.1,
            to_clean=None if extra is None else (1.0, 0.5),
            c_over_lambda=1.2,
            strength=strength,
            noise_scale=0.0 if extra is None else 0.1,
        )


def _qkv(dtype, frames, width, pixels=256, batch=1):
    return [torch.empty(batch * frames, pixels, 8 * width, dtype=dtype) for _ in range(3)]


def attention(dtype, frames, width):
    qkv = _qkv(dtype, frames, width)
    triton_kernel("temporal_attention")(*qkv, qkv[:1], frames=frames, heads=8, scale=None, windows=None)


def _attention_windows(dtype, frames, width, grad):
    qkv = _qkv(dtype, frames, width)
    starts = tuple(range(0, max(1, frames - 15), 8))
    windows = _windows_for_triton(qkv[0], torch.ones(min(16, frames)), frames, starts)
    results, grad = (qkv, qkv[0]) if grad else (qkv[:1], None)
    launch = triton_kernel("temporal_attention")
    launch(*qkv, results, grad=grad, frames=frames, heads=8, scale=None, windows=windows)


def attention_windows(dtype, frames, width):
    _attention_windows(dtype, frames, width, False)


def attention_windows_backward(dtype, frames, width):
    _attention_windows(dtype, frames, width, True)


def attention_backward(dtype, frames, width):
    qkv = _qkv(dtype, frames, width)
    launch = triton_kernel("temporal_attention")
    launch(*qkv, qkv, grad=qkv[0], frames=frames, heads=8, scale=None, windows=None)


def sparse_causal(dtype, pixels, width):
    qkv = _qkv(dtype, 8, width, pixels)
    rows = tuple((0, max(0, f - 1)) for f in range(8))
    first, key, bias = _sources_on(torch.device("cpu"), rows)
    triton_kernel("sparse_causal_attention")(*qkv, qkv[0], first, key, bias, frames=8, heads=8, scale=None)


def _group_norm(dtype, channels, side, frames, grad):
    x = torch.empty(2 * frames, channels, side, side, dtype=dtype, memory_format=torch.channels_last)
    w = torch.ones(channels, dtype=dtype)
    launch = triton_kernel("group_norm_silu")
    launch(x, w, w, x, grad=x if grad else None, groups=32, frames=frames, eps=1e-5, silu=True)


def group_norm(dtype, channels, side):
    _group_norm(dtype, channels, side, 1 if side == 8 else 16, False)


def group_norm_backward(dtype, channels, side):
    _group_norm(dtype, channels, side, 1, True)


def compile_case(case: str) -> None:
    """CASE: a function above, a dtype and its sizes, e.g. attention-bf16-16-40."""
    name, dtype, *sizes = case.split("-")
    compiled = []
    launch = JITFunction.run

    def run(self, *args, grid, warmup, **keywords):
        compiled.append((self, launch(self, *args, grid=grid, warmup=True, **keywords)))

    JITFunction.run = run
    try:
        globals()[name](DTYPES[dtype], *map(int, sizes))
    finally:
        JITFunction.run = launch
    seen = set()
    for kernel, result in compiled:
        if result.hash in seen:
            continue
        seen.add(result.hash)
        print(json.dumps({"case": case, "kernel": kernel.__name__, **_described(result)}), flush=True)


def _described(result) -> dict:
    ptx = result.asm["ptx"]
    report = {"shared": result.metadata.shared, "target": re.search(r"\.target (\w+)", ptx)[1]}
    for key, verb in (("loads", r"ld\.global"), ("stores", r"st\.global")):
        widths = {}
        for vector, bits in re.findall(verb + r"\S*?(?:\.v(\d))?\.b(\d+)", ptx):
            size = int(vector or 1) * int(bits) // 8
            widths[size] = widths.get(size, 0) + 1
        report[key] = widths
    report["async"] = sorted(
        {int(n, 0) for n in re.findall(r"cp\.async\S* \[[^\]]*\], *\[[^\]]*\], *(0x[0-9a-f]+|\d+)", ptx)}
    )
    report["wgmma"] = "wgmma.mma_async" in ptx
    report["mma"] = "mma.sync" in ptx
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        done = subprocess.run(
            [get_ptxas(90).path, "-v", "--gpu-name", "sm_90a", source, "-o", f"{folder}/cubin"],
            capture_output=True,
            text=True,
        )
    said = done.stdout + done.stderr
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    registers = re.search(r"Used (\d+) registers", said)
    report["spill bytes"] = sum(map(int, spills.groups())) if spills else said
    report["registers"] = int(registers[1]) if registers else None
    return report


if __name__ == "__main__":
    driver.set_active(Stand())
    for case in sys.argv[1:]:
        compile_case(case)
