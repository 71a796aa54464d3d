"""The one pass over a video that feeds every metric."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from vidsmooth_fast.metrics.base import Metric, Moment, Pair, Setting

PIXELS = 1 << 21
"""Pixels of the frames that go through a network together (8 frames of 512 x 512)."""
MOST = 32


def run_metrics(
    metrics: Sequence[type[Metric]],
    frames: Iterable[np.ndarray],
    setting: Setting,
    source: Iterable[np.ndarray] | None = None,
) -> tuple[list[Metric], int]:
    """Show each metric every frame and every pair of neighbours, once, in order.

    frames, source: (H, W, 3) uint8 of one size; `source` may be longer. Returns the metrics, with what they have
    seen, and the number of frames. A metric that needs more frames than there were is left as it is.
    Raises: ValueError for frames of other types or of different shapes.
    """
    running = [metric(setting) for metric in metrics]
    wanted = {need for metric in metrics for need in metric.needs}
    first = before = None
    count = 0
    for moment in _prepared(_moments(frames, source), setting, wanted):
        count += 1
        for metric in running:
            metric.frame(moment)
        if before is not None:
            _show(running, Pair(before, moment, setting.flow))
        first, before = first or moment, moment
    if setting.loop and count > 1:
        _show(running, Pair(before, first, setting.flow, closing=True))
    return running, count


def _show(running: Iterable[Metric], pair: Pair) -> None:
    for metric in running:
        metric.pair(pair)


def _moments(frames: Iterable[np.ndarray], source: Iterable[np.ndarray] | None) -> Iterator[Moment]:
    shape, others = None, None if source is None else iter(source)
    for number, frame in enumerate(frames):
        if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.size):
            got = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise ValueError(f"frames must be uint8 arrays of shape (height, width, 3), got {got}")
        shape = shape or frame.shape
        if frame.shape != shape:
            raise ValueError(f"frames must all have shape {shape}, frame {number} has {frame.shape}")
        yield Moment(number, frame, None if others is None else next(others, None))


def _prepared(moments: Iterator[Moment], setting: Setting, wanted: set[str]) -> Iterator[Moment]:
    """The same moments, with embeddings and latents where a metric wants them: computed for a few together."""
    networks = [name for name in ("clip", "autoencoder") if name in wanted]
    if not networks:
        yield from moments
        return
    for head in moments:
        height, width = head.frame.shape[:2]
        batch = [head, *islice(moments, min(MOST, max(1, PIXELS // (height * width))) - 1)]
        pictures = [moment.frame for moment in batch]
        if "clip" in networks:
            for moment, embedding in zip(batch, setting.clip.images(pictures), strict=True):
                moment.embedding = embedding
        if "autoencoder" in networks:
            for moment, latents in zip(batch, setting.autoencoder.latents(pictures), strict=True):
                moment.latents = latents
        yield from batch
