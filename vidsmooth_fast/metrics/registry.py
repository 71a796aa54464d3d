"""Every metric by name: what `evaluate` computes, what the command line lists, what docs/metrics.md shows.

python -m vidsmooth_fast.metrics.registry            print the table of docs/metrics.md
python -m vidsmooth_fast.metrics.registry FILE       put it into FILE, between its two markers
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path

from vidsmooth_fast.metrics.base import Metric
from vidsmooth_fast.metrics.clip_f import ClipF
from vidsmooth_fast.metrics.clip_f_adjacent import ClipFAdjacent
from vidsmooth_fast.metrics.clip_t import ClipT
from vidsmooth_fast.metrics.colour_drift import ColourDrift
from vidsmooth_fast.metrics.flicker import Flicker, FlickerRaw
from vidsmooth_fast.metrics.jitter import Jitter
from vidsmooth_fast.metrics.loop_gap import LoopGap
from vidsmooth_fast.metrics.motion import Motion
from vidsmooth_fast.metrics.psnr import PSNR
from vidsmooth_fast.metrics.seam_score import SeamScore
from vidsmooth_fast.metrics.ssim import SSIM
from vidsmooth_fast.metrics.vl_score import VLScore
from vidsmooth_fast.metrics.warping_error import WarpingError

METRICS: dict[str, type[Metric]] = {
    metric.name: metric
    for metric in (
        ClipT,
        ClipF,
        ClipFAdjacent,
        VLScore,
        WarpingError,
        Flicker,
        FlickerRaw,
        Jitter,
        Motion,
        SeamScore,
        LoopGap,
        ColourDrift,
        PSNR,
        SSIM,
    )
}
WEIGHT_FREE = tuple(
    name for name, metric in METRICS.items() if not {"clip", "autoencoder"} & set(metric.needs)
)
ARROWS = {"lower": "↓", "higher": "↑", "neither": ""}
BEGIN, END = "<!-- metrics: begin -->", "<!-- metrics: end -->"


def choose(names: Iterable[str] | str | None) -> list[type[Metric]]:
    """Metrics by name, in the registry's order; all for None. Raises: ValueError naming an unknown one."""
    if names is None:
        return list(METRICS.values())
    names = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        got = ", ".join(map(repr, unknown)) or "none"
        raise ValueError(f"metrics: expected some of {', '.join(METRICS)}, got {got}")
    return [metric for name, metric in METRICS.items() if name in names]


def span(metric: type[Metric]) -> str:
    """The metric's range, for people."""
    high = "∞" if math.isinf(metric.high) else f"{metric.high:g}"
    return f"{metric.low:g} … {high}"


def needed(metric: type[Metric]) -> str:
    """What must be there beside frames, for people."""
    words = {"clip": "a CLIP", "autoencoder": "an autoencoder", "joins": "window and stride", "flow": ""}
    found = [words.get(need, need) for need in metric.needs]
    return ", ".join(word for word in found if word)


def summary(metric: type[Metric]) -> str:
    """The definition: the first paragraph of the metric's docstring, in one line."""
    return " ".join(metric.__doc__.split("\n\n")[0].split())


def listing() -> str:
    """One line per metric, for the terminal."""
    wide = max(map(len, METRICS))
    lines = []
    for name, metric in METRICS.items():
        wants = f"; needs {needed(metric)}" if needed(metric) else ""
        unit = f" {metric.unit}" if metric.unit else ""
        lines.append(
            f"{name:<{wide}}  {ARROWS[metric.better]:1} {metric.title} ({span(metric)}{unit}{wants})"
        )
    return "\n".join(lines)


def markdown() -> str:
    """The table of docs/metrics.md."""
    rows = [
        "| metric | what it is | better | range, unit | needs | source | cost |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, m in METRICS.items():
        cells = (
            f"`{name}`",
            summary(m),
            m.better,
            f"{span(m)} {m.unit}".strip(),
            needed(m),
            m.source,
            m.cost,
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def inserted(page: str) -> str:
    """A page with the table between its markers replaced by the registry's. Raises: ValueError without markers."""
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"page: expected the lines {BEGIN} and {END}, found none")
    return f"{before}{BEGIN}\n{markdown()}\n{END}{after}"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        target = Path(sys.argv[1])
        target.write_text(inserted(target.read_text()))
    else:
        print(markdown())
