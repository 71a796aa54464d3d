"""The records of a GPU as tables and plots; report.py puts them on the performance page.

python benchmarks/_gpu_report.py RESULTS_FOLDER OUT.md     the tables alone
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

TARGETS = {  # what a kernel should reach on an H200-class GPU: fraction of copy bandwidth
    "noise_constraint": 0.85,
    "inversion_blend": 0.85,
    "window_merge": 0.85,
    "denoise_step": 0.85,
    "group_norm_silu": 0.8,
    "temporal_attention": 0.7,
}
RIVALS_TO_BEAT = {
    "group_norm_silu": "faster than torch.compile",
    "temporal_attention": "3 × as fast as eager",
    "sparse_causal_attention": "1.3 × as fast as SDPA flash at 4096 and 1024 pixels, no memory but the result's",
}
OPERATORS = (*TARGETS, "sparse_causal_attention")
NOT_YET = """## On GPUs

No GPU figure has been taken yet, so none stands here. They are to be taken on an H200-class machine, with
`bash benchmarks/run_gpu.sh`: it builds for the GPU it finds, runs the tests on it, and writes the records and tables.
Without a GPU the Triton kernels are tested in Triton's interpreter, the CUDA kernels by running their sources on a CPU.
"""


def read(folder: Path) -> dict[str, list[dict]]:
    """The newest GPU record of every case, by operator."""
    found = {}
    for name in OPERATORS:
        path = folder / f"{name}.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        last = {record["case"]: record for record in records if record.get("device", "cpu") != "cpu"}
        if last:
            found[name] = list(last.values())
    return found


END_TO_END_TARGETS = {
    "ours, exact": "0.45 of the bf16 rate of a product",
    "published on SDPA, torch.compile": "ours 1.3 × as fast",
    "ours, merged in attention": "1.8 × as fast as exact",
}


def end_to_end(folder: Path) -> list[str]:
    """Sampling at Stable Diffusion's size: the newest record of every row."""
    path = folder / "end_to_end_gpu.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    last = {r["row"]: r for r in records if r.get("device", "cpu") != "cpu"}
    if not last:
        return []
    steps = {row: r for row, r in last.items() if "seconds_per_step" in r}
    ours = [r for row, r in steps.items() if row.startswith("ours, exact")]
    best = min((r["seconds_per_step"] for r in ours), default=None)
    header = [
        "",
        "per step",
        "50 steps",
        "beside ours, exact, at its best",
        "of the product's rate",
        "to reach",
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header))]
    for row, r in steps.items():
        beside = f"{r['seconds_per_step'] / best:.2f}× the time" if best else ""
        fraction = f"{r['fraction_of_gemm']:.2f}" if "fraction_of_gemm" in r else ""
        seconds = r["seconds_per_step"]
        cells = [row, f"{seconds:.2f} s", f"{seconds * r['steps']:.0f} s", beside, fraction]
        lines.append(f"| {' | '.join([*cells, END_TO_END_TARGETS.get(row, '')])} |")
    r = next(iter(last.values()))
    text = [
        "### Sampling at Stable Diffusion 1.5's size",
        "",
        f"{r['frames']} frames of {8 * r['latents']}×{8 * r['latents']}, windows of 16, stride 8, guidance, DDIM, "
        f"{r['dtype']}, random weights; {r['device']}, bf16 matrix product {r['gemm_tflops']} TFLOP/s. Timed over at "
        "least three steady steps and multiplied out.",
        "",
        *lines,
        "",
    ]
    for row, r in last.items():
        if "iterations_per_second" in r:
            rates = r["iterations_per_second"]
            text += [
                f"{row}, guided: {rates['1']:.1f} iterations/s at batch 1; at batch {r['best_batch']}, the best, "
                f"{rates[str(r['best_batch'])]:.1f} ({rates[str(r['best_batch'])] * r['best_batch']:.1f} pictures' "
                f"iterations/s). stable-fast's table says {r['stable_fast_on_h100']} at batch 1 on an H100.",
                "",
            ]
        if "seconds_per_frame" in r:
            text += [f"{row}: {1e3 * r['seconds_per_frame']:.1f} ms a frame.", ""]
    return text


def _table(records: list[dict]) -> list[str]:
    contenders = list(dict.fromkeys(name for record in records for name in record["rows"]))
    rivals = [name for name in contenders if name not in ("ours", "triton", "cuda", "copy")]
    header = ["case", "ours", "median [p20, p80]", "of copy", "memory", "triton", "cuda", *rivals]
    lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header))]
    for record in records:
        rows = record["rows"]
        ours = rows["ours"]
        cells = [record["case"], record["backend"]]
        cells += [
            f"{ours['median_us']:.1f} us [{ours['p20_us']:.1f}, {ours['p80_us']:.1f}]",
            f"{ours['of_copy']:.2f}",
            f"{ours['memory_mib']:.1f} MiB" if "memory_mib" in ours else "",
        ]
        cells += [f"{rows[name]['median_us']:.1f} us" if name in rows else "" for name in ("triton", "cuda")]
        cells += [f"{rows[name]['ours_faster']:.2f}×" if name in rows else "" for name in rivals]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def section(folder: Path, plots: list[str] = ()) -> list[str]:
    """The page's section on GPUs: tables where there are records, and otherwise what is still to be taken."""
    found, whole = read(folder), end_to_end(folder)
    if not found:
        return ["## On GPUs", "", *whole] if whole else NOT_YET.splitlines()
    r = next(iter(found.values()))[-1]
    lines = [
        "## On GPUs",
        "",
        f"*{r['device']}, driver {r['driver']}, CUDA {r['cuda']}, torch {r['torch']}, Triton {r['triton']}; "
        f"bf16 matrix product {r['gemm_tflops']} TFLOP/s; commit {r['commit']}, {r['date'][:10]}.* Columns of rivals: "
        'how much faster ours is. "Of copy": against a device copy, by the bytes that must move. "Memory": allocated '
        "by a call of ours, its result included.",
        "",
        *whole,
        *plots,
    ]
    for name, records in found.items():
        targets = [f"{TARGETS[name]:.2f} of copy"] if name in TARGETS else []
        targets += [RIVALS_TO_BEAT[name]] if name in RIVALS_TO_BEAT else []
        lines += [f"### {name} (to reach: {'; '.join(targets)})", "", *_table(records), ""]
    return [*lines, "`bash benchmarks/run_gpu.sh`", ""]


def plot(folder: Path, images: Path) -> list[str]:
    """Bandwidth fraction by size and speedup by F as PNG files; returns the lines that show them."""
    found = read(folder)
    if not found:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = []
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name in ("noise_constraint", "inversion_blend", "window_merge", "denoise_step", "group_norm_silu"):
        records = sorted(
            (r for r in found.get(name, []) if r["dtype"] == "float32"), key=lambda r: r["bytes"]
        )
        points = [(r["bytes"] / 2**20, r["rows"]["ours"]["of_copy"]) for r in records]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.axhline(1.0, color="black", linewidth=0.8, label="device copy")
    axes.set(xscale="log", xlabel="MiB to move, fp32", ylabel="fraction of copy bandwidth", ylim=(0, None))
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(images / "gpu_bandwidth.png", dpi=120)
    lines += ["![Fraction of copy bandwidth by size](images/gpu_bandwidth.png)", ""]

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name in ("temporal_attention", "sparse_causal_attention"):
        for pixels in (4096, 1024, 256, 64):
            chosen = [r for r in found.get(name, []) if r["pixels"] == pixels and r["dtype"] == "bfloat16"]
            points = sorted(
                (r["frames"], r["rows"]["eager"]["ours_faster"]) for r in chosen if r["frames"] <= 64
            )
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=f"{name}, {pixels} pixels")
    axes.axhline(1.0, color="black", linewidth=0.8, label="permute or concatenate + SDPA")
    axes.set(xlabel="frames F", ylabel="times as fast, bf16", ylim=(0, None))
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(images / "gpu_speedup.png", dpi=120)
    return [*lines, "![Speedup by number of frames](images/gpu_speedup.png)", ""]


def main() -> None:
    folder, target = (Path(argument) for argument in sys.argv[1:3])
    if not read(folder):
        sys.exit(f"{folder}: no records of a GPU")
    target.write_text("\n".join(section(folder)) + "\n")


if __name__ == "__main__":
    main()
