"""Timing shared by the operator benchmarks: check first, then time everything in the same rounds.

Machines drift and are shared, so one round runs each contender once, with the caches flushed in between, and
ratios compare medians over rounds. The bandwidth to reach is that of a memory copy timed in the same rounds.

Every operator's benchmark takes `[seconds] [--device cuda] [--results FOLDER] [--tiny]`: seconds for each case; on a
GPU the Triton and the CUDA kernels are contenders beside each other and "ours" is the faster; tiny problems try the
program.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vidsmooth_fast import ops
from vidsmooth_fast.ops import _dispatch

RESULTS = Path(__file__).parent / "results"


@functools.cache
def options() -> argparse.Namespace:
    """What the command line says: seconds (None: the benchmark's own), device, results, tiny."""
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", type=float, nargs="?")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--tiny", action="store_true")
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device that torch can use: nothing to measure")
    return chosen


def on_gpu() -> bool:
    return options().device == "cuda"


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Made on the device that is measured."""
    return torch.randn(*shape, device=options().device).to(dtype)


class Case(NamedTuple):
    """One problem. ours, eager: run the operator and return its result (a tensor or tuple of tensors)."""

    label: str  # shape and dtype in words
    moved: int  # bytes that any implementation must read and write once
    ours: Callable[[], Tensor | tuple[Tensor, ...]]
    eager: Callable[[], Tensor | tuple[Tensor, ...]]
    exact: Callable[[], Tensor | tuple[Tensor, ...]]  # in float64
    compile: bool = False  # time torch.compile of eager too
    others: dict[str, Callable[[], object]] | None = None
    first: Tensor | None = None  # the operator's first tensor, by whose size and dtype the dispatch chooses
    facts: dict[str, object] | None = None  # kept in the record, to plot by
    allowed: float = 0.0  # error, where an algorithm's own is larger than what `check` allows every operator

    @property
    def first_bytes(self) -> int | None:
        return None if self.first is None else self.first.nbytes

    @property
    def dtype(self) -> str | None:
        return None if self.first is None else str(self.first.dtype).removeprefix("torch.")


def keep_freed_memory() -> bool:
    """Ask glibc to reuse freed memory instead of returning it to the system; for all contenders alike.

    Otherwise every result over 32 MB comes as untouched pages, and clearing them costs more than the operator.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    m_trim_threshold, m_mmap_max = -1, -4
    return bool(mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, -1))


def _tensors(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(t for t in result if t is not None)


def check(case: Case) -> float:
    """Largest error of ours; raises if it is over max(twice that of eager PyTorch, 2 ulp of the largest value)."""
    worst = 0.0
    for ours, eager, exact in zip(*map(_tensors, (case.ours(), case.eager(), case.exact())), strict=True):
        largest = exact.abs().max()
        ulp = torch.finfo(ours.dtype).eps * 2.0 ** torch.floor(torch.log2(largest)).item()
        limit = max(2 * (eager - exact).abs().max().item(), 2 * ulp, case.allowed)
        error = (ours - exact).abs().max().item()
        if not error <= limit:
            raise AssertionError(f"{case.label}: error {error:.3g}, allowed {limit:.3g}")
        worst = max(worst, error)
    return worst


def measure(contenders: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds per call of each contender, in rounds that run each once after flushing the caches."""
    return (_measure_gpu if on_gpu() else _measure_cpu)(contenders, seconds)


def _measure_cpu(contenders: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    flush = torch.empty(16 << 20)  # 64 MB
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(times))]) < 5:
        for name, run in contenders.items():
            flush.zero_()
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    return times


def _measure_gpu(contenders: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Between events on the stream; a flush and a sleep keep the GPU busy while the call is prepared.

    The flush alone takes about as long as the preparation of a call, so that small ones would be timed on the host.
    """
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")  # five times the L2 cache of an H200
    events: dict[str, list] = {name: [] for name in contenders}
    for run in contenders.values():
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(events[next(iter(events))]) < 10:
        for name, run in contenders.items():
            pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            flush.zero_()
            torch.cuda._sleep(500_000)  # cycles: about 0.3 ms
            pair[0].record()
            run()
            pair[1].record()
            events[name].append(pair)
        torch.cuda.synchronize()
    return {name: [a.elapsed_time(b) / 1e3 for a, b in pairs] for name, pairs in events.items()}


def _quantile(values: list[float], q: float) -> float:
    return torch.tensor(values, dtype=torch.float64).quantile(q).item()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str:
    """What a program prints, or nothing where there is no such program."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:
        return ""
    return done.stdout.strip()


@functools.cache
def _gpu() -> dict[str, object]:
    """The GPU, its software, and its rate on a large bf16 matrix product."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = _quantile(_measure_gpu({"product": lambda: a @ b}, 0.3)["product"], 0.5)
    return {
        "device": torch.cuda.get_device_name(),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0],
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "gemm_tflops": round(2 * 8192**3 / seconds / 1e12, 1),
    }


def environment(*, gpu: bool = False) -> dict[str, object]:
    """What a number means nothing without. gpu: whether it was taken on the GPU."""
    module = _dispatch.extension()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": os.environ.get("VIDSMOOTH_COMMIT") or _output("git", "rev-parse", "--short", "HEAD"),
        **(_gpu() if gpu else {"device": "cpu"}),
        "machine": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "isa": module.isa() if module else None,
        "compiler": module.compiler if module else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _check_backend(name: str, case: Case) -> tuple[str, float, bool]:
    """Why this backend does not take part (empty: it does), its largest error, and whether that is a failure.

    A failure is a result too large an error away, a kernel that does not compile, or one that cannot be launched.
    Raises where no later call in this process could succeed: after an illegal memory access, say.
    """
    try:
        with ops.backend(name):
            return "", check(case), False
    except Exception as error:
        why = (str(error).splitlines() or [""])[0]
        if "no requested backend can run" in why:
            return why, 0.0, False
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # raises again what has broken the GPU's context
        return f"{type(error).__name__}: {why}", 0.0, True


def _with_backend(name: str, run: Callable[[], object]) -> Callable[[], object]:
    def call() -> object:
        with ops.backend(name):
            return run()

    return call


def _contenders(case: Case) -> tuple[dict[str, Callable[[], object]], float, list[str]]:
    """Everybody who can run this case, ours first (nobody without ours), the largest error of ours, and failures."""
    failures = []
    if not on_gpu():
        error, ours = check(case), {"ours": case.ours}
    else:
        ours, error = {}, 0.0
        for name in ("triton", "cuda"):
            why, its_error, failed = _check_backend(name, case)
            if why:
                print(f"  {name} {'FAILED' if failed else 'takes no part'}: {why}")
                failures += [f"{case.label}, {name}: {why}"] * failed
                continue
            ours[name], error = _with_backend(name, case.ours), max(error, its_error)
        if not ours:
            return {}, 0.0, failures or [f"{case.label}: neither Triton nor CUDA can run it"]
    others = {"eager": case.eager, **(case.others or {})}
    if case.compile:
        others["torch.compile"] = torch.compile(case.eager, dynamic=False)
    able = {}
    for name, run in others.items():
        try:
            run()
            able[name] = run
        except (
            Exception
        ) as reason:  # a rival that refuses this shape or device is a result, not a failure of ours
            print(
                f"  {name} cannot run this: {(str(reason).splitlines() or [type(reason).__name__])[0][:150]}"
            )
    return {**ours, **able}, error, failures


def _memory(call: Callable[[], object]) -> float:
    """MiB of GPU memory that a call takes beyond what was there before it, its result included."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def run(name: str, cases: Iterable[Case], *, seconds: float = 5.0) -> None:
    """Check, time, print and append to <results>/<name>.jsonl; about `seconds` for each case.

    On a GPU a kernel that fails is left out of its case, and the program exits with 1 after the last.
    """
    seconds = options().seconds or seconds
    kept = keep_freed_memory()
    setting = environment(gpu=on_gpu())
    where = setting["device"] if on_gpu() else f"{setting['machine']}, {setting['isa']}"
    print(f"{name}: {where}, {setting['threads']} threads, load {setting['load']}")
    options().results.mkdir(parents=True, exist_ok=True)
    failures: list[str] = []
    for case in cases:
        print(f"\n{case.label}: {case.moved / 2**20:.1f} MiB to move")
        contenders, error, failed = _contenders(case)
        failures += failed
        if not contenders:
            continue
        # Of the same size as the case, on a CPU up to 64 MB: a short case is compared with a short copy.
        largest = (1 << 28) if on_gpu() else (16 << 20)
        source = randn(max(1, min(case.moved // 8, largest)))
        target = torch.empty_like(source)
        contenders["copy"] = lambda target=target, source=source: target.copy_(source)
        extra = {contender: _memory(call) for contender, call in contenders.items()} if on_gpu() else {}
        times = measure(contenders, seconds)
        medians = {contender: _quantile(taken, 0.5) for contender, taken in times.items()}
        best = min((n for n in ("ours", "triton", "cuda") if n in medians), key=medians.__getitem__)
        copy_rate = 2 * source.nbytes / medians["copy"]
        rows = {}
        for contender, taken in times.items():
            median, p20, p80 = (_quantile(taken, q) for q in (0.5, 0.2, 0.8))
            moved = 2 * source.nbytes if contender == "copy" else case.moved
            rows[contender] = {
                "median_us": round(median * 1e6, 1),
                "p20_us": round(p20 * 1e6, 1),
                "p80_us": round(p80 * 1e6, 1),
                "gb_per_s": round(moved / median / 1e9, 2),
                "of_copy": round(moved / median / copy_rate, 3),
                "ours_faster": round(median / medians[best], 2),
            }
            if extra:
                rows[contender]["memory_mib"] = extra[contender]
            r = rows[contender]
            print(
                f"  {contender:14} {r['median_us']:11.1f} us  [{r['p20_us']:.1f}, {r['p80_us']:.1f}]  "
                f"{r['gb_per_s']:7.2f} GB/s  {r['of_copy']:5.2f} of copy  {r['ours_faster']:6.2f} x ours"
            )
        rows["ours"] = rows[best]
        record = {
            "operator": name,
            "case": case.label,
            "bytes": case.moved,
            "first_bytes": case.first_bytes,
            "dtype": case.dtype,
            "backend": best,
            "error": error,
            "rounds": len(times[best]),
            "memory_kept": kept,
            "rows": rows,
            **(case.facts or {}),
            **setting,
        }
        with open(options().results / f"{name}.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        sys.stdout.flush()
    if failures:
        sys.exit("\n".join([f"\n{name}, FAILED:", *failures]))
