"""Many videos: each judged by itself, what fails is named and the rest goes on; then tables, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

import vidsmooth_fast
from vidsmooth_fast.metrics.autoencoder import EMBEDDED_AUTOENCODER, Autoencoder
from vidsmooth_fast.metrics.clip_model import EMBEDDED_CLIP, Clip
from vidsmooth_fast.metrics.evaluate import evaluate
from vidsmooth_fast.metrics.flow import check_flow
from vidsmooth_fast.metrics.inputs import Inputs, Item
from vidsmooth_fast.metrics.registry import ARROWS, METRICS, choose
from vidsmooth_fast.metrics.report import Report, bootstrap_interval, number


@dataclass(frozen=True)
class Judged:
    """A video with its report, or with the reason why there is none."""

    item: Item
    report: Report | None
    error: str = ""


class Batch:
    """Judged videos, in order. problems: (name, what is wrong) of inputs that led to no video or no source."""

    def __init__(self, judged: Sequence[Judged], problems: Iterable[tuple[str, str]] = ()) -> None:
        self.judged, self.problems = list(judged), list(problems)

    @property
    def reports(self) -> list[tuple[Item, Report]]:
        return [(j.item, j.report) for j in self.judged if j.report is not None]

    @property
    def failures(self) -> list[tuple[str, str]]:
        """(name, reason), one for each thing that was asked for and is missing."""
        return self.problems + [(j.item.name, j.error) for j in self.judged if j.report is None]

    @property
    def names(self) -> list[str]:
        """The metrics that at least one video has, in the registry's order."""
        return [name for name in METRICS if any(name in report for _, report in self.reports)]

    def summary(self) -> dict[str, tuple[float, float, float, int]]:
        """Metric name -> mean over videos, 95% bootstrap interval (edits of a clip drawn together), videos counted."""
        found = {}
        for name in self.names:
            rows = [(item, report[name]) for item, report in self.reports if name in report]
            values = [value for _, value in rows]
            groups = [item.group or index for index, (item, _) in enumerate(rows)]
            found[name] = (*bootstrap_interval(values, groups), sum(map(math.isfinite, values)))
        return found

    def to_json(self) -> str:
        rows = []
        for j in self.judged:
            row = {"name": j.item.name, "group": j.item.group}
            rows.append({**row, **j.report.to_dict()} if j.report else {**row, "error": j.error})
        summary = {
            name: {"mean": _plain(mean), "low": _plain(low), "high": _plain(high), "videos": count}
            for name, (mean, low, high, count) in self.summary().items()
        }
        data = {"vidsmooth_fast": vidsmooth_fast.__version__, "videos": rows, "summary": summary}
        data["problems"] = [{"name": name, "reason": reason} for name, reason in self.problems]
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    def to_csv(self) -> str:
        """One row per video; what it was judged with in the last columns."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        about = ("prompt", "source", "frames", "height", "width", "clip", "autoencoder", "flow")
        rows.writerow(["name", "group", *self.names, *about, "error"])
        for j in self.judged:
            values = [j.report.get(name, math.nan) if j.report else math.nan for name in self.names]
            settings = j.report.settings if j.report else {}
            cells = ["" if math.isnan(v) else repr(v) for v in values]
            rows.writerow([j.item.name, j.item.group, *cells, *(settings.get(key) for key in about), j.error])
        return text.getvalue()

    def table(self, columns: int | None = None) -> str:
        """For the terminal: one video's own report, or a row per video and the mean with its interval."""
        if len(self.reports) <= 1:
            return "\n".join(str(report) for _, report in self.reports)
        columns = columns or shutil.get_terminal_size((110, 24)).columns
        means = self.summary()
        names = [item.name for item, _ in self.reports]
        left = [
            "",
            *(name if len(name) <= 40 else "…" + name[-39:] for name in names),
            "mean",
            "95% from",
            "to",
        ]
        blocks, block, used = [], [], max(map(len, left))
        wide = used
        for name in self.names:
            head = f"{name} {ARROWS[METRICS[name].better]}".strip()
            cells = [number(name, report[name]) if name in report else "-" for _, report in self.reports]
            summary = ("" if math.isnan(v) else number(name, v) for v in means[name][:3])
            column = [head, *cells, *summary]
            width = max(map(len, column)) + 2
            if block and used + width > columns:
                blocks.append(block)
                block, used = [], wide
            block.append([cell.rjust(width) for cell in column])
            used += width
        lines = []
        for some in [*blocks, block]:
            rows = ["".join([label.ljust(wide), *cells]) for label, *cells in zip(left, *some, strict=True)]
            rows.insert(1 + len(names), "-" * len(rows[0]))
            lines += [*rows, ""]
        keys = ("clip", "autoencoder", "flow")
        models = {(key, r.settings[key]) for _, r in self.reports for key in keys if r.settings.get(key)}
        lines += [f"{key}: {name}" for key, name in sorted(models)]
        notes = dict.fromkeys(
            f"{item.name}: {note}" for item, report in self.reports for note in report.notes
        )
        return "\n".join(lines + [f"note: {note}" for note in notes])


def evaluate_many(
    inputs: Inputs,
    *,
    metrics: Iterable[str] | None = None,
    clip: str | os.PathLike = EMBEDDED_CLIP,
    autoencoder: str | os.PathLike = EMBEDDED_AUTOENCODER,
    device: str = "auto",
    progress: bool = True,
    **options,
) -> Batch:
    """Judge every item. What cannot be read or judged is named in the batch, and the rest goes on.

    After Ctrl-C the batch holds what is judged, and names the rest.

    options: as of `evaluate`. Raises: ValueError for options that no video could meet, such as an unknown metric.
    """
    check_flow(options.get("flow", "auto"))
    needs = {need for metric in choose(metrics) for need in metric.needs}
    if "clip" in needs:
        clip = Clip(clip, device=device)
    if "autoencoder" in needs:
        autoencoder = Autoencoder(autoencoder, device=device)
    options |= {"metrics": metrics, "clip": clip, "autoencoder": autoencoder, "device": device}
    judged = []
    with tqdm(
        inputs.items, unit="video", disable=not progress or len(inputs.items) < 2, file=sys.stderr
    ) as bar:
        for item in bar:
            bar.set_postfix_str(item.name[-40:])
            try:
                judged.append(_judged(item, options))
            except KeyboardInterrupt:
                if not judged:
                    raise
                judged += [Judged(left, None, "interrupted") for left in inputs.items[len(judged) :]]
                break
    return Batch(judged, inputs.problems)


def _judged(item: Item, options: dict) -> Judged:
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            report = evaluate(item.video, prompt=item.prompt, source=item.source, **options)
        report.notes += [
            " ".join(str(w.message).split()) for w in said if issubclass(w.category, UserWarning)
        ]
        return Judged(item, report)
    except Exception as error:
        # Of a decoder, OpenCV, a network: one video's trouble never costs the others' numbers.
        return Judged(item, None, " ".join(str(error).split()) or type(error).__name__)


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
