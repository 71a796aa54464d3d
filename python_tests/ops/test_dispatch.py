from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from vidsmooth_fast import ops
from vidsmooth_fast.ops import _dispatch

VIDEO = torch.randn(1, 2, 4, 3, 5)


def constrain(video=VIDEO):
    return ops.noise_constraint(video, video, c_over_lambda=1.0, strength=0.25)


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
    )


needs_kernels = pytest.mark.skipif(_dispatch.extension() is None, reason="installed without compiled kernels")


@needs_kernels
def test_the_best_backend_that_fits_runs():
    assert _dispatch.select("noise_constraint", VIDEO, VIDEO) == "cpu"
    assert _dispatch.select("noise_constraint", VIDEO.double(), VIDEO.double()) == "torch"
    assert constrain(VIDEO.double()).dtype == torch.float64


def test_a_block_can_ask_for_a_backend():
    with ops.backend("torch"):
        assert _dispatch.select("noise_constraint", VIDEO) == "torch"
        with ops.backend("auto"):
            assert _dispatch.select("noise_constraint", VIDEO) == _dispatch.select("window_merge", VIDEO)
        assert _dispatch.select("noise_constraint", VIDEO) == "torch"


def test_the_environment_can_ask_for_a_backend(monkeypatch):
    monkeypatch.setenv("VIDSMOOTH_BACKEND", "torch")
    assert _dispatch.select("noise_constraint", VIDEO) == "torch"
    monkeypatch.setenv("VIDSMOOTH_BACKEND", "cuda, torch")
    assert _dispatch.select("noise_constraint", VIDEO) == "torch"


def test_an_argument_can_ask_for_a_backend(monkeypatch):
    monkeypatch.setenv("VIDSMOOTH_BACKEND", "cuda")
    with ops.backend("triton"):
        got = ops.noise_constraint(VIDEO, VIDEO, c_over_lambda=1.0, strength=0.25, backend="torch")
    torch.testing.assert_close(
        got, ops.noise_constraint(VIDEO, VIDEO, c_over_lambda=1.0, strength=0.25, backend="auto")
    )
    with pytest.raises(ValueError, match=r"^backend: expected some of .* got 'gpu'$"):
        ops.inversion_blend(VIDEO, VIDEO, weight=0.5, backend="gpu")
    with pytest.raises(ValueError, match=r"^inversion_blend: no requested backend can run \(c"):
        ops.inversion_blend(VIDEO.double(), VIDEO.double(), weight=0.5, backend="cpu")


def test_an_argument_is_kept_by_compiled_graphs():
    def run(video):
        return ops.noise_constraint(video, video, c_over_lambda=1.0, strength=0.25, backend="cuda")

    compiled = torch.compile(run, fullgraph=True, backend="eager")
    with pytest.raises(ValueError, match=r"^noise_constraint: no requested backend can run \(cuda: "):
        compiled(VIDEO)


def test_triton_is_never_chosen_on_the_cpu(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert _dispatch.select("noise_constraint", VIDEO, VIDEO) != "triton"
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match=r"\(triton: the Triton kernels need CUDA tensors, got cpu\)$"):
        ops.noise_constraint(VIDEO, VIDEO, c_over_lambda=1.0, strength=0.25, backend="triton")


def test_gradients_need_not_have_the_kernels_asked_for():
    q = torch.randn(4, 3, 8, requires_grad=True)
    with ops.backend("cpu,torch"):
        ops.temporal_attention(q, q, q, frames=4, heads=2).sum().backward()
    assert q.grad.isfinite().all()
    if _dispatch.extension() is not None:
        assert _dispatch.select("temporal_attention_backward", q, backend="cpu") == "torch"


@pytest.mark.parametrize("operator", ["temporal_attention", "group_norm_silu"])
def test_gradients_follow_a_request_into_another_thread(monkeypatch, operator):
    """Where PyTorch computes those of a GPU: what a block asks for is known in its own thread only."""
    asked = {}

    def select(name, *args, backend=None, **keywords):
        asked[name] = _dispatch.wanted(backend)
        return "torch"

    monkeypatch.setattr(_dispatch, "select", select)
    if operator == "temporal_attention":
        x = torch.randn(4, 3, 8, requires_grad=True)
        call, settings = ops.temporal_attention, {"frames": 4, "heads": 2}
    else:
        x = torch.randn(4, 8, 3, 3, requires_grad=True)
        call, settings = ops.group_norm_silu, {"groups": 2}
    others = (torch.randn(8), torch.randn(8)) if operator == "group_norm_silu" else (x, x)
    for block, argument, wanted in (("torch", None, "torch"), ("torch", "cpu", "cpu"), ("auto", None, None)):
        with ops.backend(block):
            out = call(x, *others, **settings, backend=argument)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(out.sum().backward).result()
        assert asked[f"{operator}_backward"] == ((wanted,) if wanted else ())


@pytest.mark.parametrize(
    ("nbytes", "dtype", "first"),
    [
        (100, torch.float16, "cuda"),
        (1000, torch.float16, "cuda"),
        (1001, torch.float16, "triton"),
        (10**12, torch.float16, "triton"),
        (100, torch.float32, "triton"),  # nothing measured
    ],
)
def test_what_was_measured_on_a_gpu_goes_first(monkeypatch, tmp_path, nbytes, dtype, first):
    rows = [
        {"operator": "window_merge", "dtype": "float16", "bytes_up_to": None, "backend": "triton"},
        {"operator": "window_merge", "dtype": "float16", "bytes_up_to": 1000, "backend": "cuda"},
    ]
    (tmp_path / "gpu_choice.json").write_text(json.dumps({"device": "NVIDIA H200", "rows": rows}))
    monkeypatch.setattr(_dispatch, "__file__", str(tmp_path / "_dispatch.py"))
    _dispatch._measured.cache_clear()
    try:
        tensor = SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype, nbytes=nbytes)
        order = _dispatch._automatic("window_merge", tensor)
        assert order[0] == first and sorted(order) == sorted(_dispatch.ORDER)
    finally:
        _dispatch._measured.cache_clear()


def test_the_measured_choices_can_be_read():
    for (operator, dtype), rows in _dispatch._measured().items():
        assert operator in _dispatch._operators and hasattr(torch, dtype)
        assert {name for _, name in rows} <= {"cuda", "triton"}


def test_an_explicit_request_that_cannot_run_raises():
    with (
        ops.backend("cuda"),
        pytest.raises(ValueError, match=r"^noise_constraint: no requested backend .*cuda: "),
    ):
        constrain()
    with ops.backend("cpu"), pytest.raises(ValueError, match=r"float64|_C"):
        constrain(VIDEO.double())


def test_an_unknown_backend_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"^backend: expected some of .* got 'gpu'$"), ops.backend("gpu"):
        pass
    monkeypatch.setenv("VIDSMOOTH_BACKEND", "cpu,gpu")
    with pytest.raises(ValueError, match=r"got 'gpu'$"):
        constrain()


def test_the_report_has_a_line_per_operator():
    rows = {row.operator: row for row in ops.report()}
    assert {"noise_constraint", "inversion_blend", "window_merge", "denoise_step"} <= set(rows)
    for row in rows.values():
        assert row.used in row.available
        assert "torch" in row.available
        assert set(row.available) | set(row.unavailable) == set(_dispatch.ORDER)
        assert all(row.unavailable.values())


def test_importing_says_nothing_and_loads_no_extension():
    done = run(
        "import sys, vidsmooth_fast.ops\nassert not {'vidsmooth_fast._C', 'triton'} & set(sys.modules)"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_the_extension_the_first_use_says_once_what_to_do():
    code = (
        "import sys; sys.modules['vidsmooth_fast._C'] = None\n"
        "import torch\n"
        "from vidsmooth_fast import ops\n"
        "x = torch.randn(1, 2, 4, 3, 5)\n"
        "print('ready', flush=True)\n"
        "for _ in range(3):\n"
        "    ops.noise_constraint(x, x, c_over_lambda=1.0, strength=0.25)\n"
        "    ops.inversion_blend(x, x, weight=0.5)\n"
        "row = next(row for row in ops.report() if row.operator == 'noise_constraint')\n"
        "assert row.used == 'torch' and '_C' in row.unavailable['cpu'], row\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ready\n"
    assert len(done.stderr.splitlines()) == 1
    assert "install a C++17 compiler" in done.stderr


@needs_kernels
def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="isa: expected one that this processor runs, got sse9"):
        _dispatch.extension().set_isa("sse9")


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_thread_count_changes_nothing(threads):
    video = torch.randn(1, 4, 40, 48, 48)
    before = torch.get_num_threads()
    expected = constrain(video)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(constrain(video), expected)
    finally:
        torch.set_num_threads(before)
