"""The measurement of profile.py."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from _networks import SCHEDULER, SIZES, TOKENS, copy_rate, flop_counter, matrix_rates, random_unet
from _timing import RESULTS, environment
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from vidsmooth_fast.conditioning.prompts import PromptTrack
from vidsmooth_fast.sampling.denoiser import UNetDenoiser
from vidsmooth_fast.sampling.engine import Guidance, State, denoise
from vidsmooth_fast.sampling.schedule import make_schedule
from vidsmooth_fast.sampling.windowed import WindowedPredictor, Windows

FRAMES, GUIDANCE = 16, 7.5
TRACES = Path("out/profile")

OPERATORS = ("aten::", "mkldnn::", "vidsmooth::")

# The first pattern that an operator's name contains decides.
KINDS = {
    "convolution": r"conv|fprop",
    "attention": r"scaled_dot_product|flash_att|efficient_att|sparse_causal|temporal_attention|softmax",
    "normalisation": r"norm",
    "matrix product": r"addmm|\bmm|bmm|linear|feed_forward|matmul|baddbmm|gemm|nvjet|cutlass",
    "merge and step": r"denoise_step|window_merge",
    "copy and layout": r"copy|clone|contiguous|\bcat|_to_copy|\bto\b|index|gather|upsample|select_scatter|pad",
    "memory": r"empty|zero|fill|resize|alloc|Memset|arange|full|scalar_tensor|lift_fresh|random",
    "elementwise": r"gelu|silu|\b(mul|add|sub|div|exp|cos|sin|rsub|all)|remainder|pow|sqrt|clamp|neg|isfinite",
    "views and bookkeeping": r"",
}


def kind_of(operator: str) -> str:
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, operator))


class Bytes(TorchDispatchMode):
    """Bytes that the operators read and write, by kind: the tensors given to each and made by it."""

    def __init__(self):
        super().__init__()
        self.by_kind: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not function.is_view:
            tensors = {t.data_ptr(): t for t in _tensors((args, kwargs, out)) if t.numel()}
            self.by_kind[kind_of(function.name())] += sum(t.nbytes for t in tensors.values())
        return out


def _tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Step:
    """One guided step of the engine on one window."""

    def __init__(self, size: str, device: str, dtype: torch.dtype, pixels: int):
        config, edge = SIZES[size], pixels // 8
        self.device = torch.device(device)
        self.unet = random_unet(config, device, dtype)
        generator = torch.Generator().manual_seed(0)
        texts = torch.randn(2, 1, TOKENS, config["cross_attention_dim"], generator=generator)
        tracks = [PromptTrack((0,), text) for text in texts]
        windows = Windows((0,), torch.ones(FRAMES), FRAMES)
        self.predict = WindowedPredictor(UNetDenoiser(self.unet), windows, tracks, max_batch=2)
        self.latents = torch.randn(1, 4, FRAMES, edge, edge, generator=generator)
        schedule = make_schedule(SCHEDULER, steps=50)
        self.schedule = replace(schedule, steps=schedule.steps[:1])

    def __call__(self) -> None:
        denoise(self.predict, State(self.latents), self.schedule, guidance=Guidance.of_scale(GUIDANCE))
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def by_kind(events: list, on_gpu: bool) -> tuple[dict[str, dict[str, float]], float, int]:
    """({kind: {seconds, calls}}, seconds in which something ran, operators or kernels) of a profiled step."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"seconds": 0.0, "calls": 0})
    spans, count = [], 0
    for event in events:
        if on_gpu:
            for kernel in event.kernels:  # by its operator, or by its own name where none launched it
                kind = kind_of(event.name if "::" in event.name else kernel.name)
                found[kind]["seconds"] += kernel.duration / 1e6
                found[kind]["calls"] += 1
                count += 1
        elif event.name.startswith(OPERATORS):
            found[kind_of(event.name)]["seconds"] += event.self_cpu_time_total / 1e6
            parent = event.cpu_parent
            if parent is None or not parent.name.startswith(OPERATORS):
                found[kind_of(event.name)]["calls"] += 1
                count += 1
        if not on_gpu and event.cpu_parent is None:
            spans.append((event.time_range.start, event.time_range.end))
        elif on_gpu and event.device_type == torch.autograd.DeviceType.CUDA:
            spans.append((event.time_range.start, event.time_range.end))
    busy, end = 0.0, float("-inf")
    for begin, stop in sorted(spans):
        busy += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return dict(found), busy / 1e6, count


def measure(size: str, device: str, dtype: torch.dtype, pixels: int, repeats: int) -> dict:
    step, on_gpu = Step(size, device, dtype, pixels), device == "cuda"
    with torch.inference_mode():
        with flop_counter() as flops, Bytes() as moved:
            step()
        gflop: dict[str, float] = defaultdict(float)
        for operator, count in flops.get_flop_counts()["Global"].items():
            gflop[kind_of(str(operator))] += count / 1e9
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
        seconds = sorted(seconds)[len(seconds) // 2]
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
        if on_gpu:  # CUPTI starts within the first step that is profiled
            with profile(activities=activities):
                step()
        with profile(activities=activities) as profiled:
            began = time.perf_counter()
            step()
            profiled_seconds = time.perf_counter() - began
    TRACES.mkdir(parents=True, exist_ok=True)
    trace = TRACES / f"{size}-{device}-{pixels}-{str(dtype).removeprefix('torch.')}.json.gz"
    profiled.export_chrome_trace(str(trace))
    kinds, busy, count = by_kind(list(profiled.events()), on_gpu)
    facts = environment(gpu=on_gpu)
    matrix = facts["gemm_tflops"] * 1e3 if on_gpu else max(matrix_rates(dtype).values())
    copy = copy_rate(step.device)
    total = sum(part["seconds"] for part in kinds.values())
    rows = {}
    for kind, part in sorted(kinds.items(), key=lambda item: -item[1]["seconds"]):
        row = {**part, "share": part["seconds"] / total}
        if gflop.get(kind):
            row["gflop"] = gflop[kind]
            row["of_matrix_rate"] = gflop[kind] / part["seconds"] / matrix
        if moved.by_kind.get(kind):
            row["gigabytes"] = moved.by_kind[kind] / 1e9
            row["of_copy_rate"] = moved.by_kind[kind] / 1e9 / part["seconds"] / copy
        rows[kind] = row
    arithmetic = sum(gflop.values())
    return {
        "benchmark": "profile",
        "size": size,
        "parameters": sum(p.numel() for p in step.unet.parameters()),
        "pixels": pixels,
        "frames": FRAMES,
        "branches": 2,
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": seconds,
        "profiled_seconds": profiled_seconds,
        "gap_seconds": max(0.0, profiled_seconds - busy),
        "calls": count,
        "gflop": arithmetic,
        "matrix_gflop_per_s": matrix,
        "copy_gb_per_s": copy,
        "floor_seconds": arithmetic / matrix,
        "of_floor": arithmetic / matrix / seconds,
        "kinds": rows,
        "trace": str(trace),
        **facts,
    }


def show(record: dict) -> None:
    what = "kernels" if record["device"] != "cpu" else "operators"
    print(
        f"{record['size']} ({record['parameters'] / 1e6:.0f}M), {record['dtype']}, {record['frames']} frames of "
        f"{record['pixels']}x{record['pixels']}, guided: {record['seconds']:.3f} s a step; "
        f"{record['gflop']:.0f} GFLOP at {record['matrix_gflop_per_s']:.0f} GFLOP/s take "
        f"{record['floor_seconds']:.3f} s, {record['of_floor']:.2f} of it"
    )
    print(
        f"{record['calls']} {what}; none runs for {record['gap_seconds']:.3f} s of {record['profiled_seconds']:.3f} s "
        f"while it is profiled"
    )
    print(
        f"{'':22} {'time':>9} {'share':>6} {'calls':>6} {'GFLOP':>9} {'of rate':>8} {'GB':>7} {'of copy':>8}"
    )
    for kind, row in record["kinds"].items():
        work = f"{row['gflop']:9.1f} {row['of_matrix_rate']:8.2f}" if "gflop" in row else " " * 18
        data = f"{row['gigabytes']:7.2f} {row['of_copy_rate']:8.2f}" if "gigabytes" in row else ""
        print(f"{kind:22} {row['seconds']:8.3f}s {row['share']:6.1%} {row['calls']:6d} {work} {data}")
    print(record["trace"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Where one step of sampling goes.")
    parser.add_argument("--size", choices=SIZES, default="sd15")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--pixels", type=int, help="edge of a frame; 128, on a GPU 512")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="float32, on a GPU bfloat16"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    on_gpu = chosen.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit("no CUDA device that torch can use: nothing to measure")
    dtype = getattr(torch, chosen.dtype or ("bfloat16" if on_gpu else "float32"))
    pixels = chosen.pixels or (512 if on_gpu else 128)
    record = measure(chosen.size, chosen.device, dtype, pixels, chosen.repeats)
    show(record)
    chosen.results.mkdir(parents=True, exist_ok=True)
    with (chosen.results / "profile.jsonl").open("a") as lines:
        lines.write(json.dumps(record) + "\n")
