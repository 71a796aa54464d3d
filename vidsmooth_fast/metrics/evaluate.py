"""`evaluate`: a video to a Report, in one pass."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from vidsmooth_fast.metrics.autoencoder import EMBEDDED_AUTOENCODER, Autoencoder
from vidsmooth_fast.metrics.base import Metric, Setting
from vidsmooth_fast.metrics.clip_model import EMBEDDED_CLIP, Clip
from vidsmooth_fast.metrics.flow import make_flow
from vidsmooth_fast.metrics.registry import choose
from vidsmooth_fast.metrics.report import Report
from vidsmooth_fast.metrics.seam_score import window_joins
from vidsmooth_fast.metrics.stream import run_metrics
from vidsmooth_fast.models.loading import choose_device
from vidsmooth_fast.video import Video


def evaluate(
    video: Video | str | os.PathLike,
    *,
    prompt: str | None = None,
    source: Video | str | os.PathLike | None = None,
    metrics: Iterable[str] | str | None = None,
    window: int | None = None,
    stride: int | None = None,
    loop: bool | None = None,
    clip: str | os.PathLike | Clip = EMBEDDED_CLIP,
    autoencoder: str | os.PathLike | Autoencoder = EMBEDDED_AUTOENCODER,
    flow: str = "auto",
    device: str = "auto",
) -> Report:
    """Judge a video. docs/metrics.md says what each number means.

    video: a Video, or the path of one. It is read once; memory does not grow with its length.
    prompt: what it should show. source: the clip that it edits, as Video or path; scaled to cover the video's size and
        cut to its centre, as `fast_sample` does with a source, and compared frame by frame.
    metrics: names out of `vidsmooth-fast evaluate --list`; all that can be had by default.
    window, stride, loop: how it was sampled; by default what the file itself says, as does the prompt.
    clip: "sprite-world-clip" (embedded), a transformers CLIP directory, or a Hub id. autoencoder: "sprite-world"
        (embedded), a diffusers autoencoder or model directory, or a Hub id. flow: "dis", "raft" or "auto", which is
        RAFT where torchvision and its weights are at hand. device: for these networks.

    Returns a Report: a mapping from metric name to float. Metrics that lack something are in `.skipped`, and why.

    Raises ValueError, before any frame is judged, for a metric asked for by name that cannot be had, and for bad
    arguments; FileNotFoundError or ValueError for what cannot be read.
    """
    chosen = choose(metrics)
    if prompt is not None and not (isinstance(prompt, str) and prompt.strip()):
        raise ValueError(f"prompt: expected a text, got {prompt!r}")
    video, source = _opened("video", video), None if source is None else _opened("source", source)
    said = _said(video)
    prompt = prompt or said.get("prompt")
    for name, value in (("window", window), ("stride", stride)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
    window = said.get("window") if window is None else window
    stride = said.get("stride") if stride is None else stride
    loop = bool(said.get("loop", False) if loop is None else loop)
    notes = []
    if source is not None:
        source, notes = _matching(source, video)
    joins = window_joins(len(video), window, stride, loop=loop) if window and stride else frozenset()
    device = str(choose_device(device))
    setting = Setting(
        prompt=prompt, source=source is not None, joins=joins, loop=loop, flow=make_flow(flow, device),
        clip=clip, autoencoder=autoencoder,
    )  # fmt: skip
    setting, loaded = _with_models(chosen, setting, device)
    able, skipped = _sorted_out(chosen, setting, video, asked=metrics is not None)
    done, count = run_metrics(able, video, setting, source)
    for metric in done:
        if cut := getattr(metric, "cut", ""):
            notes.append(f"CLIP's text encoder could not read the end of the prompt: {cut!r}")
    settings = {
        "video": str(video.path or "frames"), "prompt": prompt,
        "source": None if source is None else str(source.path or "frames"),
        "frames": count, "height": video.size[0], "width": video.size[1], "fps": float(video.fps),
        "window": window, "stride": stride, "loop": loop, **loaded,
        "flow": setting.flow.name if any("flow" in metric.needs for metric in able) else None,
    }  # fmt: skip
    values = {metric.name: metric.result() for metric in done}
    series = {m.name: [m.series.get(n, math.nan) for n in range(count)] for m in done}
    return Report(values, series, skipped, settings, notes)


def _opened(name: str, given: Video | str | os.PathLike) -> Video:
    if isinstance(given, Video):
        return given
    if not isinstance(given, (str, os.PathLike)):
        raise ValueError(
            f"{name}: expected a Video or a path, got {type(given).__name__}; see Video.from_frames"
        )
    return Video.open(given)


def _said(video: Video) -> dict:
    """What the file says of how it was sampled: prompt, window, stride, loop, as far as they are of use here."""
    said = video.metadata.get("vidsmooth_fast")
    if not isinstance(said, dict):
        return {}
    kinds = {"prompt": str, "window": int, "stride": int, "loop": bool}
    if said.get("frames", len(video)) != len(video):  # a part of it: its windows join elsewhere
        kinds = {"prompt": str}
    return {
        name: said[name] for name, kind in kinds.items() if isinstance(said.get(name), kind) and said[name]
    }


def _matching(source: Video, video: Video) -> tuple[Video, list[str]]:
    """The source at the video's size, and notes on what differed."""
    notes = []
    if source.size != video.size:
        (h, w), (height, width) = source.size, video.size
        notes.append(f"the source, {w}x{h}, was scaled to cover {width}x{height} and cut to its centre")
        source = source.resized(video.size)
    if len(source) != len(video):
        common = min(len(source), len(video))
        notes.append(
            f"the source has {len(source)} frames and the video {len(video)}: the first {common} were compared"
        )
    return source, notes


def _with_models(chosen: list[type[Metric]], setting: Setting, device: str) -> tuple[Setting, dict]:
    """The setting with networks in place of their names, loaded only where a metric will use them; and their names."""
    loaded = {}
    makers = {"clip": partial(Clip, device=device), "autoencoder": partial(Autoencoder, device=device)}
    for need, make in makers.items():
        given = getattr(setting, need)
        used = [m for m in chosen if need in m.needs and (setting.prompt or "prompt" not in m.needs)]
        if not used:
            setting = replace(setting, **{need: None})
            continue
        network = make(given) if isinstance(given, (str, os.PathLike)) else given
        setting = replace(setting, **{need: network})
        loaded[need] = network.name
    return setting, loaded


def _sorted_out(
    chosen: list[type[Metric]], setting: Setting, video: Video, *, asked: bool
) -> tuple[list[type[Metric]], dict[str, str]]:
    """The metrics that can be had, and why the others cannot. Raises: ValueError for one that was asked for."""
    able, skipped = [], {}
    for metric in chosen:
        reason = metric.objection(setting, len(video), video.size)
        if reason is None:
            able.append(metric)
        elif asked:
            raise ValueError(f"{metric.name}: {reason}")
        else:
            skipped[metric.name] = reason
    return able, skipped
