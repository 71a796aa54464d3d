"""A report as one HTML file: the videos inside it, playing in step, with plots and a table; nothing is fetched."""

from __future__ import annotations

import base64
import datetime
import json
import math
import tempfile
from pathlib import Path

import vidsmooth_fast
from vidsmooth_fast.metrics.batch import Batch
from vidsmooth_fast.metrics.registry import ARROWS, METRICS, summary
from vidsmooth_fast.metrics.report import number
from vidsmooth_fast.video import Video, VideoWriter

PAGE = Path(__file__).with_name("report.html")
HEIGHT = 512
"""Pixels; taller videos are scaled down for the page."""
TOGETHER = 8
"""Videos on the page at once, where they are not edits of one clip."""


def html(batch: Batch) -> str:
    """The page. Videos are written again as H.264, at most 512 pixels high.

    Raises: OSError, ValueError when a video can no longer be read.
    """
    sources: dict[str, dict] = {}
    videos = []
    for index, (item, report) in enumerate(batch.reports):
        s = report.settings
        if item.source is not None and str(item.source) not in sources:
            original = Video.open(item.source).resized((s["height"], s["width"]))
            sources[str(item.source)] = {"name": f"source: {item.source.name}", "data": _data(original)}
        shown = report.to_dict()
        videos.append(
            {
                "name": item.name,
                "group": item.group or f"videos {index // TOGETHER * TOGETHER + 1} and following",
                "prompt": s["prompt"] or "",
                "about": f"{s['frames']} frames, {s['width']}×{s['height']}, {s['fps']:g} fps",
                "fps": s["fps"],
                "source": str(item.source) if item.source is not None else None,
                "data": _data(Video.open(item.video)),
                "series": {name: _short(line) for name, line in shown["series"].items()},
                "values": {name: number(name, value) for name, value in report.items()},
                "raw": shown["values"],
                "skipped": report.skipped,
                "notes": report.notes,
            }
        )
    means = batch.summary()
    models = {
        (k, r.settings[k])
        for _, r in batch.reports
        for k in ("clip", "autoencoder", "flow")
        if r.settings.get(k)
    }
    data = {
        "version": vidsmooth_fast.__version__,
        "date": datetime.date.today().isoformat(),
        "models": [f"{kind}: {name}" for kind, name in sorted(models)],
        "sources": sources,
        "videos": videos,
        "metrics": [
            {
                "name": name,
                "title": METRICS[name].title,
                "unit": METRICS[name].unit,
                "arrow": ARROWS[METRICS[name].better],
                "better": METRICS[name].better,
                "what": summary(METRICS[name]),
                "mean": [number(name, v) if math.isfinite(v) else "–" for v in means[name][:3]],
                "count": means[name][3],
            }
            for name in batch.names
        ],
        "failures": batch.failures,
    }
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")  # nothing in it can close the script
    return PAGE.read_text(encoding="utf-8").replace("{{data}}", text)


def _short(line: list[float | None]) -> list[float | None]:
    return [None if v is None else float(f"{v:.5g}") for v in line]


def _data(video: Video) -> str:
    """A data: URI of the video as H.264."""
    height, width = video.size
    if height > HEIGHT:
        video = video.resized((HEIGHT, max(2, round(width * HEIGHT / height))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with VideoWriter(path, video.fps, video.size) as writer:
            for frame in video:
                writer.write(frame)
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
