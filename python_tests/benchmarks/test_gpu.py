"""The program that measures on a GPU, as far as it runs without one."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OPERATORS = (
    "denoise_step",
    "group_norm_silu",
    "inversion_blend",
    "noise_constraint",
    "sparse_causal_attention",
    "temporal_attention",
    "window_merge",
)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=240, env=environment
    )


@no_gpu
def test_without_a_gpu_the_script_says_so_in_one_line(tmp_path):
    done = run("bash", BENCHMARKS / "run_gpu.sh", tmp_path)
    assert done.returncode == 3
    assert (
        done.stdout
        == "run_gpu.sh: no CUDA device that torch can use; nothing was built, tested or measured\n"
    )
    assert done.stderr == ""


def test_a_build_that_fails_ends_nothing_and_all_logs_are_in_one_file(tmp_path, monkeypatch):
    """On a machine with stand-ins for a GPU, for CMake and for a compute-sanitizer that does not know the GPU."""
    tools = {
        "python": f'case "$2" in *get_device_capability*) echo 90 ;; *) exec "{sys.executable}" "$@" ;; esac',
        "cmake": "echo no compiler; exit 1",
        "compute-sanitizer": "echo '===== Error: Device not supported. See the list'; exit 1",
    }
    for name, line in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHON", "python")
    monkeypatch.setenv("ARCHIVE", str(tmp_path / "all.tgz"))
    command = ["bash", str(BENCHMARKS / "run_gpu.sh"), str(tmp_path / "work"), "build", "sanitize"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr == ""
    assert "configure: FAILED (1)" in done.stdout and "failed: configure\n" in done.stdout
    assert "sanitize: skipped, compute-sanitizer cannot look into this device: =" in done.stdout
    assert (tmp_path / "work/site/vidsmooth_fast/triton_kernels/window_merge.py").is_file()
    with tarfile.open(tmp_path / "all.tgz") as archive:
        names = archive.getnames()
        assert archive.extractfile("./log/configure.txt").read() == b"no compiler\n"
    assert not [name for name in names if name.startswith(("./site", "./build"))]


@no_gpu
def test_without_a_gpu_a_benchmark_says_so_in_one_line():
    done = run(sys.executable, BENCHMARKS / "window_merge.py", "--device", "cuda")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "no CUDA device that torch can use: nothing to measure\n"


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_benchmark_runs(operator, tmp_path):
    done = run(sys.executable, BENCHMARKS / f"{operator}.py", "0.01", "--tiny", "--results", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    records = [json.loads(line) for line in (tmp_path / f"{operator}.jsonl").read_text().splitlines()]
    assert records
    for record in records:
        assert record["device"] == "cpu" and record["backend"] == "ours"
        assert {"ours", "eager", "copy"} <= set(record["rows"])
        assert record["first_bytes"] > 0 and record["dtype"] == "float32"


def test_a_kernel_that_fails_is_not_taken_for_one_that_is_missing(monkeypatch):
    timing, x = load("_timing"), torch.randn(1, 2, 4, 3, 5)

    def case(ours):
        return timing.Case("a case", 1, ours, lambda: x, x.double)

    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    missing = case(lambda: timing.ops.inversion_blend(x, x, weight=0.5))
    why, _, failed = timing._check_backend("cuda", missing)
    assert "no requested backend can run (cuda: " in why and not failed
    why, _, failed = timing._check_backend("cuda", case(lambda: x + 1))
    assert why.startswith("AssertionError: a case: error 1, allowed ") and failed
    # An error that every later call would meet again ends the program.
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        timing._check_backend("cuda", case(broken))


def test_a_failure_is_said_and_the_other_kernels_and_cases_are_timed(monkeypatch, tmp_path, capsys):
    timing, x = load("_timing"), torch.randn(1, 2, 4, 3, 5)
    options = argparse.Namespace(device="cpu", results=tmp_path, seconds=0.001)
    monkeypatch.setattr(timing, "options", lambda: options)
    monkeypatch.setattr(timing, "on_gpu", lambda: True)
    monkeypatch.setattr(timing, "environment", lambda gpu: {"device": "invented", "threads": 1, "load": 0})
    monkeypatch.setattr(timing, "_measure_gpu", timing._measure_cpu)
    monkeypatch.setattr(timing, "_memory", lambda call: 1.0)
    wrong = {"triton": x + 1, "cuda": x}  # what each gives
    monkeypatch.setattr(timing, "_with_backend", lambda name, run: run)
    monkeypatch.setattr(timing.ops, "backend", lambda name: contextlib.nullcontext(asked.append(name)))
    asked = []
    cases = [
        timing.Case("half", 1, lambda: wrong[asked[-1]], lambda: x, x.double),
        timing.Case("neither", 1, lambda: x + 1, lambda: x, x.double),
        timing.Case("both", 1, lambda: x, lambda: x, x.double),
    ]
    with pytest.raises(SystemExit) as ended:
        timing.run("an_operator", cases)
    assert [line[:35] for line in str(ended.value).split("\n")[2:]] == [
        "half, triton: AssertionError: half:",
        "neither, triton: AssertionError: ne",
        "neither, cuda: AssertionError: neit",
    ]
    assert "  triton FAILED: AssertionError: half: error 1, " in capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "an_operator.jsonl").read_text().splitlines()]
    assert [set(record["rows"]) for record in records] == [
        {"ours", "cuda", "eager", "copy"},
        {"ours", "triton", "cuda", "eager", "copy"},
    ]


def record(operator="window_merge", size=100, triton=2.0, cuda=1.0, **more) -> dict:
    times = {"triton": triton, "cuda": cuda, "eager": 9.0, "copy": 0.5}
    best = min(("triton", "cuda"), key=times.__getitem__)
    rows = {
        name: {"median_us": t, "p20_us": t, "p80_us": t, "of_copy": 0.5 / t, "ours_faster": t / times[best]}
        for name, t in times.items()
    }
    rows[best]["memory_mib"] = 2.5
    return {
        **{
            "operator": operator,
            "case": f"{size} bytes",
            "bytes": 3 * size,
            "first_bytes": size,
            "dtype": "float32",
        },
        **{
            "backend": best,
            "rows": {**rows, "ours": rows[best]},
            "device": "invented",
            "driver": "1",
            "cuda": "2",
        },
        **{
            "torch": "3",
            "triton": "4",
            "gemm_tflops": 5,
            "commit": "abc",
            "date": "2000-01-01T00:00",
            **more,
        },
    }


def test_the_table_of_choices():
    choice = load("_gpu_choice")
    records = [record(size=100), record(size=200), record(size=400, triton=1.0, cuda=3.0), record(size=300)]
    wanted = {"operator": "window_merge", "dtype": "float32"}
    assert choice.rows(records) == [
        {**wanted, "bytes_up_to": 300, "backend": "cuda"},
        {**wanted, "bytes_up_to": None, "backend": "triton"},
    ]
    assert choice.rows([{**record(), "rows": {"ours": {}}}]) == []
    long = record(size=500, triton=3.0, cuda=1.0, window=16)  # windows: not of the plain calls' sizes
    assert choice.rows([*records, long]) == choice.rows(records)
    failed = record(size=400, triton=9.0)
    del failed["rows"]["cuda"]  # with the case above, cuda's sum is the smaller one
    assert choice.rows([record(size=400, triton=4.0), failed])[-1]["backend"] == "triton"


def test_the_choice_reads_the_records_of_operators_alone(monkeypatch, tmp_path):
    choice = load("_gpu_choice")
    whole = {"benchmark": "end_to_end_gpu", "row": "ours, exact", "device": "invented"}
    (tmp_path / "end_to_end_gpu.jsonl").write_text(json.dumps(whole) + "\n")
    (tmp_path / "window_merge.jsonl").write_text(json.dumps(record()) + "\n")
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path), str(tmp_path / "choice.json")])
    choice.main()
    table = json.loads((tmp_path / "choice.json").read_text())
    assert table["triton"] == "4" and [row["backend"] for row in table["rows"]] == ["cuda"]


def test_the_dispatch_reads_that_table(monkeypatch, tmp_path):
    from vidsmooth_fast.ops import _dispatch

    table = tmp_path / "gpu_choice.json"
    table.write_text(json.dumps({"device": "invented", "rows": load("_gpu_choice").rows([record()])}))
    monkeypatch.setattr(Path, "with_name", lambda self, name: tmp_path / name)
    assert _dispatch._measured.__wrapped__() == {("window_merge", "float32"): [(float("inf"), "cuda")]}


def test_the_page_has_no_gpu_figures_before_there_are_any(tmp_path):
    report = load("_gpu_report")
    text = "\n".join(report.section(tmp_path))
    assert "No GPU figure has been taken yet" in text and "run_gpu.sh" in text
    assert report.plot(tmp_path, tmp_path) == []
    (tmp_path / "window_merge.jsonl").write_text(json.dumps(record(device="cpu")) + "\n")
    assert "No GPU figure" in "\n".join(report.section(tmp_path))


def test_the_page_with_figures(tmp_path):
    pytest.importorskip("matplotlib", reason="the train extra draws the plots")
    report = load("_gpu_report")
    (tmp_path / "window_merge.jsonl").write_text(
        "".join(json.dumps(record(size=2**n)) + "\n" for n in (20, 24))
    )
    attention = [record("temporal_attention", 2**f, frames=f, pixels=64, dtype="bfloat16") for f in (8, 16)]
    (tmp_path / "temporal_attention.jsonl").write_text("".join(json.dumps(r) + "\n" for r in attention))
    text = "\n".join(report.section(tmp_path, report.plot(tmp_path, tmp_path)))
    assert "window_merge (to reach: 0.85 of copy)" in text and "9.00×" in text
    assert "temporal_attention (to reach: 0.70 of copy; 3 × as fast as eager)" in text
    assert text.count("| 2.5 MiB |") == 4
    assert (tmp_path / "gpu_bandwidth.png").stat().st_size and (tmp_path / "gpu_speedup.png").stat().st_size
