"""The section on speed of docs/results.md, from benchmarks/results/speed.jsonl; called by _tables_report.py."""

from __future__ import annotations

import numpy as np
import speed
from tables import FRAMES, GUIDANCE

from vidsmooth_fast.metrics.registry import ARROWS
from vidsmooth_fast.metrics.registry import METRICS as REGISTRY
from vidsmooth_fast.metrics.report import bootstrap_interval

COLUMNS = (
    "clip_t",
    "agreement",
    "clip_f_adjacent",
    "vl_score",
    "motion",
    "warping_error",
    "flicker",
    "jitter",
)


def _interval(numbers: list[float], clips: list[int]) -> str:
    mean, low, high = bootstrap_interval(numbers, clips)
    digits = 3 if abs(mean) < 10 else 2
    return f"{mean:.{digits}f}" + (f" [{low:.{digits}f}, {high:.{digits}f}]" if low == low else "")


def _name(column: str) -> str:
    if column == "agreement":
        return "text agreement ↑"
    return f"{column} {ARROWS[REGISTRY[column].better]}".strip()


def section() -> list[str]:
    """Nothing where nothing was measured."""
    done = speed.lines()
    exact = {clip: record for (clip, name), record in done.items() if name == "exact"}
    rows = []
    for name, point in speed.POINTS.items():
        records = {clip: record for (clip, which), record in done.items() if which == name}
        both = sorted(records.keys() & exact.keys())
        if not both:
            continue
        ratio = np.median([exact[clip]["seconds"] / records[clip]["seconds"] for clip in both])
        cells = [
            point.title,
            str(len(records)),
            f"{np.median([r['seconds'] for r in records.values()]):.1f} s",
        ]
        cells.append(f"{ratio:.2f}×")
        for column in (*COLUMNS, "psnr"):
            found = {
                clip: record[column] for clip, record in records.items() if record.get(column) is not None
            }
            cells.append(_interval(list(found.values()), list(found)) if found else "")
        rows.append(f"| {' | '.join(cells)} |")
    if not rows:
        return []
    last = list(done.values())[-1]
    head = ["", "clips", "time", "faster than exact", *map(_name, COLUMNS), "psnr to exact ↑"]
    return [
        "## Quality against time",
        "",
        f"Text to video of the same scenes, {FRAMES} frames, guidance {GUIDANCE:g}; `speed=` and its options "
        "([speed](speed.md)). Time: sampling and decoding one video, median; ratios are medians over clips. psnr is to "
        "the frames of `exact` with the same seed: another picture of the same prompt is far from it and no worse.",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *rows,
        "",
        f"`python benchmarks/speed.py run`; *{last['machine']}, {last['threads']} threads, torch {last['torch']}; "
        f"newest line: commit {last['commit']}, {last['date'][:10]}.*",
        "",
    ]
