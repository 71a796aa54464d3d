from __future__ import annotations

import os
import subprocess
import sys

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


def test_an_explicit_request_that_cannot_run_raises():
    with (
        ops.backend("cuda"),
        pytest.raises(RuntimeError, match=r"^noise_constraint: no requested backend .*cuda: "),
    ):
        constrain()
    with ops.backend("cpu"), pytest.raises(RuntimeError, match=r"float64|_C"):
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
    done = run("import sys, vidsmooth_fast.ops\nassert 'vidsmooth_fast._C' not in sys.modules")
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
