"""What every operator test shares: the tolerance rule, poisoned memory, and every backend in turn."""

from __future__ import annotations

import importlib
import importlib.util
import os

import pytest
import torch

from vidsmooth_fast import ops
from vidsmooth_fast.ops import _dispatch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # set by the suite's own conftest


def _let_the_interpreter_multiply_bfloat16() -> None:
    """Triton 3.9's interpreter keeps bfloat16 as uint16 and multiplies those: widen the operands of a dot first."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    plain = InterpreterBuilder.create_dot

    def create_dot(self, a, b, *rest):
        a, b = (self.cast_impl(t, tl.float32) if t.dtype.scalar == tl.bfloat16 else t for t in (a, b))
        return plain(self, a, b, *rest)

    InterpreterBuilder.create_dot = create_dot


if INTERPRETED:
    _let_the_interpreter_multiply_bfloat16()


def check_error(actual: torch.Tensor, torch_result: torch.Tensor, exact: torch.Tensor) -> None:
    """Error at most max(twice what PyTorch itself makes in that dtype, 2 ulp of the largest reference value)."""
    assert actual.shape == exact.shape
    assert exact.dtype == torch.float64
    largest = exact.abs().max()
    ulp = torch.finfo(actual.dtype).eps * 2.0 ** torch.floor(torch.log2(largest)).item()
    limit = max(2 * (torch_result.double() - exact).abs().max().item(), 2 * ulp)
    error = (actual.double() - exact).abs().max().item()  # NaN fails the comparison
    assert error <= limit, f"error {error:.3g}, allowed {limit:.3g}"


@pytest.fixture(scope="session")
def within_rule():
    return check_error


def _variants() -> list[str]:
    module = _dispatch.extension()
    kernels = [f"cpu-{isa}" for isa in module.isas()] if module else []
    return ["torch", *kernels, *(["triton"] if INTERPRETED else [])]


# The interpreter takes seconds for what a GPU does in microseconds: on Triton, all but these tests are slow.
_FAST_WHEN_INTERPRETED = {
    "test_denoise_step.py::test_against_the_equations[triton-everything-torch.bfloat16]",
    "test_denoise_step.py::test_few_frames[triton-2-constrained loop]",
    "test_group_norm_silu.py::test_against_the_equation[triton-ten channels a group-torch.float32]",
    "test_group_norm_silu.py::test_against_the_equation[triton-many rows-torch.bfloat16]",
    "test_group_norm_silu.py::test_gradients_in_every_dtype[triton-uneven-torch.float16]",
    "test_group_norm_silu.py::test_weights_that_lie_apart[triton]",
    "test_inversion_blend.py::test_against_the_equation[triton-True-(2, 3, 5, 3, 7)-torch.float16]",
    "test_noise_constraint.py::test_against_the_equation[triton-False-(2, 3, 5, 3, 7)-torch.bfloat16]",
    "test_noise_constraint.py::test_layouts[triton-channels last]",
    "test_sparse_causal_attention.py::test_patterns[triton-neighbours-2-torch.float32]",
    "test_sparse_causal_attention.py::test_patterns[triton-first, previous-5-torch.bfloat16]",
    "test_sparse_causal_attention.py::test_sizes[triton-100-1-160]",
    "test_temporal_attention.py::test_every_number_of_frames[triton-1-torch.bfloat16]",
    "test_temporal_attention.py::test_every_number_of_frames[triton-5-torch.float32]",
    "test_temporal_attention.py::test_every_number_of_frames[triton-64-torch.float16]",
    "test_temporal_attention.py::test_long_videos[triton-100-torch.bfloat16]",
    "test_temporal_attention.py::test_windows[triton-7-starts3-weights3-torch.float16]",
    "test_temporal_attention.py::test_windows[triton-150-starts8-weights8-torch.bfloat16]",
    "test_temporal_attention.py::test_gradients_in_every_dtype[triton-windows-torch.bfloat16]",
    "test_temporal_attention.py::test_weights_that_lie_apart[triton]",
    "test_window_merge.py::test_against_the_equation[triton-(K,)-around the end-torch.float16]",
    "test_window_merge.py::test_every_shape_of_weights[triton-(5, 7)-strided]",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items) -> None:
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec and callspec.params.get("each_backend") == "triton":
            if item.nodeid.rpartition("/")[2] not in _FAST_WHEN_INTERPRETED:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(params=_variants())
def each_backend(request, monkeypatch):
    """Runs the test on plain PyTorch, on the C++ kernels of every instruction set there is, and on Triton's."""
    name, _, isa = request.param.partition("-")
    if name == "triton":  # few programs, so that each walks along several frames or tiles
        for kernels, enough in (("_video", 16), ("group_norm_silu", 4)):
            module = importlib.import_module(f"vidsmooth_fast.triton_kernels.{kernels}")
            monkeypatch.setattr(module, "ENOUGH", enough)
    module = _dispatch.extension()
    with ops.backend(name):
        if isa:
            before = module.isa()
            module.set_isa(isa)
            yield request.param
            module.set_isa(before)
        else:
            yield request.param


@pytest.fixture
def poisoned():
    """torch.empty returns NaN, so that an element nobody wrote is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


_LAYOUTS = {
    "contiguous": lambda t: t,
    # (B·F, C, H, W) seen as (B, C, F, H, W), as the network returns it
    "frames first": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "channels last": lambda t: t.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3),
    "a crop": lambda t: torch.nn.functional.pad(t, (1, 2, 3, 1))[..., 3:-1, 1:-2],
}


@pytest.fixture(params=_LAYOUTS)
def layout(request):
    """A function that moves a video's elements in memory without changing its values."""
    return _LAYOUTS[request.param]
