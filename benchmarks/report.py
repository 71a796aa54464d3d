"""docs/PERFORMANCE.md from benchmarks/results/*.jsonl: the newest record of every case, and where it was taken.

python benchmarks/report.py
"""

from __future__ import annotations

import json
from pathlib import Path

import _gpu_report

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "PERFORMANCE.md"

OPERATORS = {
    "noise_constraint": "noise constraint ([003] eq. 5)",
    "inversion_blend": "inversion blend ([004])",
    "window_merge": "window merge ([000] eq. 19)",
    "denoise_step": "denoising step: merge, guide, constrain and step in one pass",
    "temporal_attention": "temporal attention",
    "sparse_causal_attention": "sparse-causal attention",
    "group_norm_silu": "group norm and SiLU",
    "convolution": "3x3 convolution by minimal filtering",
    "feed_forward": "feed-forward",
}

INTRODUCTION = """# Performance

Written by `python benchmarks/report.py` from the records in `benchmarks/results/`. Every benchmark first checks its
results, then times all contenders in the same rounds, so compare the columns of one row; absolute times drift from
run to run. "Of copy" is the rate at which the bytes that must move did move, against a memory copy in the same rounds.
Everything here was taken on a CPU except the section on GPUs.
"""


def newest(name: str, keys: tuple[str, ...], folder: Path = RESULTS) -> list[dict]:
    """The last record of each combination of `keys`, in the order in which they first appear."""
    path = folder / f"{name}.jsonl"
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    last = {tuple(record[key] for key in keys): record for record in records}
    return list(last.values())


def where(record: dict) -> str:
    """Machine, versions and commit of a record, in a line."""
    return (
        f"*{record['machine']}, {record['threads']} threads, {record['isa']}; torch {record['torch']}; "
        f"commit {record['commit']}, {record['date'][:10]}.*"
    )


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def operator_section(name: str, title: str) -> list[str]:
    records = newest(name, ("case",))
    if not records:
        return []
    rivals = [rival for rival in records[0]["rows"] if rival not in ("ours", "copy")]
    rows = []
    for record in records:
        ours = record["rows"]["ours"]
        cells = [record["case"], f"{ours['median_us'] / 1e3:.2f} ms", f"{ours['of_copy']:.2f}"]
        for rival in rivals:
            row = record["rows"].get(rival)
            cells.append(f"{row['ours_faster']:.1f}×" if row else "")
        rows.append(cells)
    header = ["case", "median", "of copy", *(f"faster than {rival}" for rival in rivals)]
    command = f"`python benchmarks/{name}.py`; {where(records[-1])}"
    return [f"## {title[0].upper()}{title[1:]}", "", *table(header, rows), "", command, ""]


TO_REACH = {  # of the published program in fp32
    ("37m", "fp32"): "6×",
    ("37m", "bf16"): "15×, merged in attention 25×, 0.40 of the matrix rate, with bf16 matrix units",
}


def end_to_end_section() -> list[str]:
    records = newest("end_to_end", ("size", "dtype"))
    if not records:
        return []
    in_fp32 = {  # of the same commit: the published program's time drifts from run to run
        (r["size"], r["commit"]): r["published_seconds_per_step"] for r in records if r["dtype"] == "fp32"
    }
    rows = []
    for r in records:
        published = in_fp32.get((r["size"], r["commit"]))
        sdpa, merged = r.get("ratio_to_published_with_sdpa"), r.get("ratio_merged_in_attention")
        rows.append(
            [
                f"{r['size']}, {r['parameters'] / 1e6:.1f}M parameters, {r['weights']} weights",
                r["dtype"],
                f"{r['seconds_per_step']:.2f} s",
                f"{r['ratio']:.2f}×",
                f"{published / r['seconds_per_step']:.2f}×" if published else "",
                TO_REACH.get((r["size"], r["dtype"]), ""),
                f"{sdpa:.2f}×" if sdpa else "",
                f"{merged:.2f}×" if merged else "",
                f"{r['fraction_of_matrix_rate']:.2f}",
                f"{r['max_abs_difference']:.0e}",
            ]
        )
    r = records[-1]
    header = [
        "network",
        "dtype",
        "per step",
        "faster than published, same dtype",
        "than published in fp32",
        "to reach",
    ]
    header += [
        "than published on SDPA",
        "merged in attention, than published",
        "of matrix rate",
        "largest difference",
    ]
    return [
        "## End to end",
        "",
        f"One denoising step of `fast_sample`: {r['frames']} frames, windows of {r['window']}, stride {r['stride']}, "
        f"guidance {r['guidance']}, DDIM, latents of {r['latents']}×{r['latents']}. The published program is "
        "Tune-A-Video's network and Gen-L-Video's loop as their authors wrote them (`benchmarks/baselines.py`), on the "
        "same weights. The matrix rate is the faster of a large product and a large convolution in the same run"
        + ("." if r["matrix_units"] else "; this processor has no bf16 matrix units (AMX)."),
        "",
        *table(header, rows),
        "",
        f"`python benchmarks/end_to_end.py`; {where(r)}",
        "",
    ]


def switches_section() -> list[str]:
    records = newest("switches", ("size", "dtype"))
    if not records:
        return []
    names = list(dict.fromkeys(name for r in records for name in r["seconds"]))
    rows = [
        [name] + [f"{r['seconds'][name]:.2f} s" if name in r["seconds"] else "" for r in records]
        for name in names
    ]
    r = records[-1]
    return [
        "## The share of every exact saving",
        "",
        f"One guided step of one window of {r['frames']} frames, with each saving left out in turn; the result stays "
        "the same within the dtype's tolerance. Taken in one round: up to 15%, in either direction, is noise.",
        "",
        *table(["", *(f"{r['size']}, {r['dtype']}" for r in records)], rows),
        "",
        f"`python benchmarks/end_to_end.py --switches`; {where(r)}",
        "",
    ]


def profile_section(r: dict) -> list[str]:
    """Where one step went: a record of profile.py."""
    rows = []
    for kind, part in r["kinds"].items():
        cells = [kind, f"{part['seconds']:.3f} s", f"{part['share']:.1%}", str(part["calls"])]
        for amount, fraction in (("gflop", "of_matrix_rate"), ("gigabytes", "of_copy_rate")):
            cells += [f"{part[amount]:.1f}", f"{part[fraction]:.2f}"] if amount in part else ["", ""]
        rows.append(cells)
    header = ["", "time", "share", "calls", "GFLOP", "of matrix rate", "GB touched", "of copy rate"]
    on_gpu = r["device"] != "cpu"
    what, command = ("kernels", "--device cuda") if on_gpu else ("operators", f"--size {r['size']}")
    return [
        f"### Where a step goes: {r['size']}, {r['frames']} frames of {r['pixels']}×{r['pixels']}, {r['dtype']}"
        + (f", {r['device']}" if on_gpu else ""),
        "",
        f"A guided step takes {r['seconds']:.3f} s. Its matrix products, {r['gflop']:.0f} GFLOP, would take "
        f"{r['floor_seconds']:.3f} s at the machine's rate of {r['matrix_gflop_per_s']:.0f} GFLOP/s: the step runs at "
        f"{r['of_floor']:.2f} of that. {r['calls']} {what}; while it is profiled ({r['profiled_seconds']:.3f} s), none "
        f"of them runs for {r['gap_seconds']:.3f} s. A copy moves {r['copy_gb_per_s']:.0f} GB/s; an operator that "
        "finds its input in a cache can touch more.",
        "",
        *table(header, rows),
        "",
        f"`python benchmarks/profile.py {command}`; {where(r)}",
        "",
    ]


def profiles_section() -> list[str]:
    records = newest("profile", ("size", "pixels", "dtype"))
    records += newest("profile", ("size", "pixels", "dtype"), RESULTS / "gpu")
    sections = [line for record in records for line in profile_section(record)]
    return ["## Where the time goes", "", *sections] if records else []


def aoti_section() -> list[str]:
    """A bundle of AOTInductor beside eager PyTorch and torch.compile."""
    records = newest("aoti", ("size", "frames"))
    if not records:
        return []
    r = records[-1]
    columns = {"start_s": "first prediction", "other_frames_s": "then with other frames", "call_s": "a call"}
    rows = [
        [name, *(f"{row[key]:.3g} s" if key in row else "" for key in columns)]
        for name, row in r["rows"].items()
    ]
    return [
        "## An AOTInductor bundle",
        "",
        f"The {r['size']} network, {r['frames']} frames of {r['pixels']}×{r['pixels']} latents, two branches, fp32. "
        "The first prediction counts from the start of a process, imports and reading of weights included; then one "
        f"window with another number of frames; then the median of {r['rounds']} rounds. "
        f"The export took {r['export_s']:.0f} s.",
        "",
        *table(["", *columns.values()], rows),
        "",
        f"`python benchmarks/aoti.py`; {where(r)}",
        "",
    ]


def controls_section() -> list[str]:
    """What a ControlNet adds to a step."""
    records = newest("controls", ("size", "dtype"))
    if not records:
        return []
    rows = [
        [
            f"{r['size']}, {r['dtype']}",
            f"{r['without_s']:.2f} s",
            f"{r['controlled_s']:.2f} s",
            f"{r['unshared_s']:.2f} s",
            f"{r['controlled_s'] / r['without_s'] - 1:.0%}; {r['unshared_s'] / r['without_s'] - 1:.0%}",
        ]
        for r in records
    ]
    header = [
        "network",
        "a step without",
        "with a ControlNet",
        "every window its own",
        "what it adds; would add",
    ]
    return [
        "## A ControlNet",
        "",
        f"One guided step of {records[-1]['frames']} frames, windows of 16, stride 8, with a ControlNet of the "
        "network's encoder, and with what neighbouring windows share computed anew for each.",
        "",
        *table(header, rows),
        "",
        f"`python benchmarks/controls.py`; {where(records[-1])}",
        "",
    ]


def tuning_section() -> list[str]:
    records = newest("tuning", ("loss", "frames"))
    if not records:
        return []
    programs = ("ours", "ours, recomputing", "published", "published, bare")
    rows = []
    for r in records:
        for program in programs:
            of = r[program]
            peak = f"{of['peak_bytes'] / 2**20:.0f} MiB" if "peak_bytes" in of else ""
            rows.append([r["loss"], program, f"{of['median']:.2f} s", f"{of['times_ours']:.2f}", peak])
    differ = max(r["loss_difference"] for r in records)
    return [
        "## Tuning",
        "",
        f"One step on sprite-world, {records[0]['frames']} frames of 128×128, fp32, Tune-A-Video's choice of layers. "
        "The published step recomputes activations and encodes clip and caption anew; bare does neither. The first ten "
        f"losses of all agree to {differ:.0e}. The peak is that of a process of its own.",
        "",
        *table(["objective", "program", "a step", "times ours", "peak"], rows),
        "",
        f"`python benchmarks/tuning.py`; {where(records[-1])}",
        "",
    ]


def evaluation_section() -> list[str]:
    passes, scores = newest("evaluate", ("frames", "size")), newest("vl_score", ("size", "threads"))
    if not passes and not scores:
        return []
    text = ["## Judging a video", ""]
    for r in passes:
        memory = " and ".join(f"{mib:.0f} MiB for {frames} frames" for frames, mib in r["peak_mib"].items())
        text += [
            f"All {len(r['metrics'])} weight-free metrics of {r['frames']} frames of {r['size']}×{r['size']} in one "
            f"pass: {r['seconds']:.1f} s, decoding included. Peak memory: {memory}.",
            "",
            f"`python benchmarks/evaluate.py`; {where(r)}",
            "",
        ]
    for r in scores:
        text += [
            f"VL score, {r['frames']} frames of {r['channels']}×{r['size']}×{r['size']} latents, {r['shifts']} shifts, "
            f"threads: {r['threads']}; {r['ours_ms']:.2f} ms, {r['ratio']:.0f} times as fast as a loop over the shifts "
            f"({r['loop_ms']:.0f} ms), the same to {r['error']:.0e}.",
            "",
            f"`python benchmarks/vl_score.py`; {where(r)}",
            "",
        ]
    return text


def memory_section() -> list[str]:
    records = newest("memory", ("kind", "case"))
    if not records:
        return []
    text = [
        "## Memory",
        "",
        "Peak of the whole process, Python and its libraries included, two CPU threads.",
        "",
    ]
    estimates = [r for r in records if r["kind"] == "estimates"]
    if estimates:
        rows = [
            [
                r["case"],
                f"{r['estimate_mib']:.0f} MiB",
                f"{r['peak_mib']:.0f} MiB",
                f"{r['estimate_mib'] / r['peak_mib']:.2f}",
            ]
            for r in estimates
        ]
        text += [*table(["case, 2 steps", "printed before it starts", "peak", "ratio"], rows), ""]
    lengths = [r for r in records if r["kind"] == "lengths"]
    if lengths:
        first, timed = lengths[0], all(r.get("seconds_per_frame") for r in lengths)
        header = ["frames", "peak", f"per frame beyond {first['frames']}", "memory estimated ÷ peak"]
        if timed:
            header += ["time per frame", "time estimated ÷ taken"]
        rows = []
        for r in lengths:
            more = r["frames"] - first["frames"]
            grown = f"{1024 * (r['peak_mib'] - first['peak_mib']) / more:.0f} KiB" if more else ""
            cells = [
                str(r["frames"]),
                f"{r['peak_mib']:.0f} MiB",
                grown,
                f"{r['estimate_mib'] / r['peak_mib']:.2f}",
            ]
            if timed:
                seconds = r["seconds_per_frame"]
                cells += [f"{1e3 * seconds:.1f} ms", f"{r['estimated_seconds_per_frame'] / seconds:.2f}"]
            rows.append(cells)
        text += [
            "Over the length of the video, sprite-world at 64×64 pixels, 3 steps without guidance, into a file:",
            "",
            *table(header, rows),
            "",
        ]
    return [*text, f"`python benchmarks/memory.py`; {where(records[-1])}", ""]


def main() -> None:
    lines = [INTRODUCTION, *end_to_end_section(), *switches_section(), *profiles_section()]
    for name, title in OPERATORS.items():
        lines += operator_section(name, title)
    lines += tuning_section()
    lines += controls_section()
    lines += aoti_section()
    lines += memory_section()
    lines += evaluation_section()
    gpu = RESULTS / "gpu"
    lines += _gpu_report.section(gpu, _gpu_report.plot(gpu, PAGE.parent / "images"))
    PAGE.write_text("\n".join(lines).rstrip() + "\n")
    print(PAGE)


if __name__ == "__main__":
    main()
