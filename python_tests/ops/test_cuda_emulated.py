"""The CUDA kernels without a GPU: csrc/cuda/*.cu compiled by the host's compiler and run thread by thread.

What they compute is checked, with the tests of the other backends; what only a GPU can tell (races, speed, its own
exponential function) is not. `cuda_emulation.h` says how.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from python_tests.ops import test_denoise_step as denoise
from python_tests.ops import test_inversion_blend as blend
from python_tests.ops import test_noise_constraint as constrain
from python_tests.ops import test_temporal_attention as attention
from python_tests.ops import test_window_merge as merge
from vidsmooth_fast import ops
from vidsmooth_fast.ops import _dispatch

ROOT = Path(__file__).parents[2]
SOURCES = [
    *sorted((ROOT / "csrc" / "cuda").glob("*.cu")),
    ROOT / "csrc" / "bindings.cpp",
    ROOT / "csrc" / "cpu" / "isa.cpp",
    ROOT / "csrc" / "cpu" / "layout.cpp",
    Path(__file__).with_name("cuda_emulation.cpp"),
]
HALVES = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *HALVES]


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The extension's module, whose functions compute with the CUDA kernels on CPU tensors."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no g++ or clang++ to compile the CUDA sources with")
    pybind11 = pytest.importorskip("pybind11", reason="the dev extra holds the build tools")
    folder = tmp_path_factory.mktemp("emulated")
    includes = [ROOT / "csrc", Path(__file__).parent, sysconfig.get_path("include"), pybind11.get_include()]
    flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", *(f"-I{path}" for path in includes)]

    def compile(source: Path) -> Path:
        target = folder / f"{source.name}.o"
        command = [compiler, *flags, '-DVIDSMOOTH_CUDA_ARCHITECTURES="emulated"', "-x", "c++", "-c", source]
        done = subprocess.run([*command, "-o", target], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile, SOURCES))
    library = folder / "_C.so"
    subprocess.run([compiler, "-shared", "-o", library, *objects], check=True, timeout=300)
    spec = importlib.util.spec_from_file_location("emulated._C", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _OnStream:
    """Calls of the emulated module that name a CUDA stream where a CPU tensor's name a number of threads."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        return lambda *args: getattr(self.module, name)(*args[:-1], (0, 0))


@pytest.fixture
def each_backend(emulated, monkeypatch):
    monkeypatch.setattr(_dispatch, "_load_extension", lambda: (_OnStream(emulated), ""))
    for backends in _dispatch._operators.values():
        if "cuda" in backends:
            kernel = _dispatch.Backend(_dispatch.cpu_supports, backends["cuda"].run)
            monkeypatch.setitem(backends, "cpu", kernel)
    monkeypatch.setenv("VIDSMOOTH_BACKEND", "cpu")


def test_it_is_the_cuda_kernel_that_runs(each_backend, emulated):
    assert emulated.cuda == "emulated" and emulated.no_cuda == ""
    video = torch.randn(1, 1, 3, 4, 4)
    assert ops.noise_constraint(video, video, c_over_lambda=1.0, strength=0.25).isfinite().all()


test_constrain = constrain.test_against_the_equation
test_constrain_layouts = constrain.test_layouts
test_constrain_broadcast = constrain.test_a_tensor_broadcast_over_frames
test_constrain_ends = constrain.test_ends_ignore_what_is_not_finite_inside
test_blend = blend.test_against_the_equation
test_blend_layouts = blend.test_layouts
test_merge = merge.test_against_the_equation
test_merge_weights = merge.test_every_shape_of_weights
test_merge_layouts = merge.test_layouts
test_step = denoise.test_against_the_equations
test_step_frames = denoise.test_few_frames
test_step_loop = denoise.test_pixel_weights_around_a_loop
test_step_separately = denoise.test_the_result_is_that_of_the_separate_operators
test_step_layouts = denoise.test_layouts
test_step_unread = denoise.test_factors_of_zero_leave_a_tensor_unread


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pixels", [(2, 8), (4, 6), (1, 7)], ids=str)
def test_packs_and_single_elements_agree(each_backend, dtype, pixels):
    """The same values where 16 bytes can be read at once and where they cannot."""
    eps, x = (torch.randn(1, 2, 9, *pixels).to(dtype) for _ in range(2))
    settings = {"c_over_lambda": 0.7, "strength": 0.2}
    shifted = torch.empty(eps.numel() + 1, dtype=dtype)[1:].view(eps.shape).copy_(eps)  # not aligned
    expected = ops.noise_constraint(eps, x, **settings)
    torch.testing.assert_close(ops.noise_constraint(shifted, x, **settings), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("frames", [1, 2, 7, 8, 9, 16, 17, 24, 32, 33, 64])
def test_attention_frames(each_backend, poisoned, within_rule, frames, dtype):
    torch.manual_seed(0)
    attention.check(within_rule, attention.inputs(1, frames, 2, 2 * 40, dtype), frames, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [40, 64, 80, 96, 128, 160, 20, 3, 1])
def test_attention_widths(each_backend, poisoned, within_rule, width, dtype):
    torch.manual_seed(0)
    attention.check(within_rule, attention.inputs(1, 11, 2, 2 * width, dtype), 11, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("frames", "starts", "weights"), attention.WINDOWS)
def test_attention_windows(each_backend, poisoned, within_rule, frames, starts, weights, dtype):
    torch.manual_seed(0)
    weights = torch.tensor(weights)
    for width in (40, 72, 5):
        qkv = attention.inputs(1, frames, 1, 2 * width, dtype)
        got = ops.temporal_attention(*qkv, frames=frames, heads=2, starts=starts, weights=weights)
        exact = attention.windowed(*(t.double() for t in qkv), frames, 2, starts, weights)
        within_rule(got, attention.windowed(*qkv, frames, 2, starts, weights), exact)


def test_attention_of_slices(each_backend):
    fused = torch.randn(12, 3, 3 * 40)
    settings = {"frames": 6, "heads": 2}
    expected = ops.temporal_attention(*(t.contiguous() for t in fused.chunk(3, -1)), **settings)
    torch.testing.assert_close(ops.temporal_attention(*fused.chunk(3, -1), **settings), expected)


test_attention_overflow = attention.test_large_scores_do_not_overflow
