"""CLIP-T: how well the frames show what the prompt says."""

from __future__ import annotations

from vidsmooth_fast.metrics.base import Metric, Moment


class ClipT(Metric):
    """100 times the mean over frames of the cosine between CLIP's embeddings of the prompt and of the frame.

    Values of different CLIP models have different ranges and must not be compared.
    """

    name = "clip_t"
    title = "text agreement (CLIP-T)"
    low, high = -100.0, 100.0
    better = "higher"
    unit = "cosine, hundredths"
    source = '[003] section 4.2, [004] "Dataset and metrics"'
    cost = "one CLIP image embedding a frame, shared with clip_f; the embedded model: 3 ms at 256 x 256"
    needs = ("prompt", "clip")

    def __init__(self, setting) -> None:
        super().__init__(setting)
        self._text, self.cut = setting.clip.text(setting.prompt)

    def frame(self, moment: Moment) -> None:
        self.series[moment.number] = 100 * float(moment.embedding @ self._text)
