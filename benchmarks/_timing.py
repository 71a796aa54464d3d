"""Timing shared by the operator benchmarks: check first, then time everything in the same rounds.

Machines drift and are shared, so one round runs each contender once, with the caches flushed in between, and
ratios compare medians over rounds. The bandwidth to reach is that of a memory copy timed in the same rounds.
"""

from __future__ import annotations

import ctypes
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vidsmooth_fast.ops import _dispatch

RESULTS = Path(__file__).parent / "results"


class Case(NamedTuple):
    """One problem. ours, eager: run the operator and return its result (a tensor or tuple of tensors)."""

    label: str  # shape and dtype in words
    moved: int  # bytes that any implementation must read and write once
    ours: Callable[[], Tensor | tuple[Tensor, ...]]
    eager: Callable[[], Tensor | tuple[Tensor, ...]]
    exact: Callable[[], Tensor | tuple[Tensor, ...]]  # in float64
    compile: bool = False  # time torch.compile of eager too
    others: dict[str, Callable[[], object]] | None = None


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
        limit = max(2 * (eager - exact).abs().max().item(), 2 * ulp)
        error = (ours - exact).abs().max().item()
        if not error <= limit:
            raise AssertionError(f"{case.label}: error {error:.3g}, allowed {limit:.3g}")
        worst = max(worst, error)
    return worst


def measure(contenders: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds per call of each contender, in rounds that run each once after flushing the caches."""
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


def _quantile(values: list[float], q: float) -> float:
    return torch.tensor(values, dtype=torch.float64).quantile(q).item()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def environment() -> dict[str, object]:
    """What a number means nothing without."""
    module = _dispatch.extension()
    root = Path(__file__).parents[1]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=root)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "machine": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "isa": module.isa() if module else None,
        "compiler": module.compiler if module else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def run(name: str, cases: list[Case], *, seconds: float = 5.0) -> None:
    """Check, time, print and append to results/<name>.jsonl; about `seconds` for each case."""
    kept = keep_freed_memory()
    setting = environment()
    print(
        f"{name}: {setting['machine']}, {setting['threads']} threads, load {setting['load']}, {setting['isa']}"
    )
    RESULTS.mkdir(exist_ok=True)
    for case in cases:
        error = check(case)
        # The copy is 64 MB or as large as the case, whichever is less: a short case is compared with a short copy.
        source = torch.randn(max(1, min(case.moved // 8, 16 << 20)))
        target = torch.empty_like(source)
        contenders: dict[str, Callable[[], object]] = {
            "ours": case.ours,
            "eager": case.eager,
            "copy": lambda target=target, source=source: target.copy_(source),
            **(case.others or {}),
        }
        if case.compile:
            contenders["torch.compile"] = torch.compile(case.eager, dynamic=False)
        times = measure(contenders, seconds)
        copy_rate = 2 * source.nbytes / _quantile(times["copy"], 0.5)
        print(f"\n{case.label}: {case.moved / 2**20:.1f} MiB to move, largest error {error:.2g}")
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
                "ours_faster": round(median / _quantile(times["ours"], 0.5), 2),
            }
            r = rows[contender]
            print(
                f"  {contender:14} {r['median_us']:11.1f} us  [{r['p20_us']:.1f}, {r['p80_us']:.1f}]  "
                f"{r['gb_per_s']:7.2f} GB/s  {r['of_copy']:5.2f} of copy  {r['ours_faster']:6.2f} x ours"
            )
        record = {
            "operator": name,
            "case": case.label,
            "bytes": case.moved,
            "error": error,
            "rounds": len(times["ours"]),
            "memory_kept": kept,
            "rows": rows,
            **setting,
        }
        with open(RESULTS / f"{name}.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        sys.stdout.flush()
