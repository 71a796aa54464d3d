"""CLIP-F over neighbouring frames: whether each frame shows what the one before showed."""

from __future__ import annotations

from vidsmooth_fast.metrics.base import Metric, Pair


class ClipFAdjacent(Metric):
    """100 times the mean cosine between CLIP's embeddings of neighbouring frames."""

    name = "clip_f_adjacent"
    title = "frame consistency, neighbours (CLIP-F)"
    low, high = -100.0, 100.0
    better = "higher"
    unit = "cosine, hundredths"
    source = '[004] "Dataset and metrics"'
    cost = "one CLIP image embedding a frame, shared; the embedded model: 3 ms at 256 x 256"
    needs = ("clip",)
    least = 2

    def pair(self, pair: Pair) -> None:
        self.series[pair.after.number] = 100 * float(pair.before.embedding @ pair.after.embedding)
