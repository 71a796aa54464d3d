"""Every Triton kernel compiles for an H100 or H200 on a machine without a GPU, as its launcher launches it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (Linux only)"
)

VIDEOS = ["noise_constraint", "inversion_blend", "window_merge", "denoise_step"]
FAST = [
    *(f"{name}-bf16-24" for name in VIDEOS),
    "attention-bf16-16-40",
    "attention_windows-bf16-256-40",
    "attention_backward-fp16-24-80",
    "sparse_causal-bf16-1024-40",
    "group_norm-bf16-320-32",
    "group_norm-bf16-1280-8",
    "group_norm_backward-bf16-320-16",
]
SLOW = [
    *(f"{name}-{dtype}-{frames}" for name in VIDEOS for dtype in ("fp32", "fp16") for frames in (16, 256)),
    *(f"attention-bf16-{frames}-{width}" for frames in (8, 24, 32, 64) for width in (40, 80, 160)),
    *(f"attention-{dtype}-{frames}-40" for dtype in ("fp32", "fp16") for frames in (1, 16, 64, 256)),
    *("attention-fp32-16-160", "attention-fp32-64-80", "attention_windows-fp32-16-160"),
    *(f"attention_windows-{dtype}-{frames}-80" for dtype in ("fp32", "bf16") for frames in (16, 64, 256)),
    *(f"attention_backward-{dtype}-{frames}-40" for dtype in ("fp32", "bf16") for frames in (8, 16, 32, 64)),
    *(
        f"attention_windows_backward-{size}"
        for size in ("fp32-16-160", "fp32-32-40", "bf16-40-40", "bf16-64-40")
    ),
    *("attention_backward-fp32-8-160", "attention_backward-fp32-16-160", "attention_backward-fp32-32-80"),
    *(
        f"sparse_causal-bf16-{pixels}-{width}"
        for pixels in (64, 4096)
        for width in (40, 64, 80, 96, 128, 160)
    ),
    *(f"sparse_causal-{dtype}-1024-{width}" for dtype in ("fp32", "fp16") for width in (80, 96, 160)),
    "sparse_causal-fp32-64-128",
    *(f"group_norm-{dtype}-{channels}-32" for dtype in ("fp32", "fp16") for channels in (640, 1920, 2560)),
    *(f"group_norm_backward-{dtype}-960-32" for dtype in ("fp32", "bf16")),
]


def compiled(cases: list[str]) -> list[dict]:
    # In a process of its own: whether kernels are interpreted is decided when they are imported.
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_triton.py"), *cases],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(kernels: list[dict], cases: list[str]) -> None:
    assert {kernel["case"] for kernel in kernels} == set(cases)
    for kernel in kernels:
        assert kernel["target"].startswith("sm_90"), kernel
        assert kernel["spill bytes"] == 0, kernel
        assert kernel["shared"] <= 227 * 1024, kernel
        if kernel["kernel"] in ("_combine", "_at_once"):  # small groups: columns of a few
            continue
        widest = max(int(size) for size in kernel["loads"])
        assert widest == 16 or 16 in kernel["async"], kernel
        if kernel["case"].split("-")[0] in ("attention", "sparse_causal") and "fp32" not in kernel["case"]:
            assert kernel["mma"] or kernel["wgmma"], kernel


def test_kernels_compile_without_spills_and_load_vectors():
    check(compiled(FAST), FAST)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({case.split("-")[0] for case in SLOW}))
def test_every_configuration(family):
    cases = [case for case in SLOW if case.startswith(f"{family}-")]
    check(compiled(cases), cases)
