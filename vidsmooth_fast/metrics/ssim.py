"""SSIM to the source, frame by frame."""

from __future__ import annotations

from skimage.metrics import structural_similarity

from vidsmooth_fast.metrics.base import Metric, Moment


class SSIM(Metric):
    """Mean over frames of the structural similarity of luma to the source's frame (windows of 7 x 7)."""

    name = "ssim"
    title = "SSIM to the source"
    low, high = -1.0, 1.0
    better = "higher"
    unit = ""
    source = "Wang et al. 2004, by scikit-image"
    cost = "8 ms a frame at 256 x 256"
    needs = ("source",)

    def frame(self, moment: Moment) -> None:
        if moment.source is not None:
            value = structural_similarity(moment.grey, moment.source_grey, data_range=255)
            self.series[moment.number] = float(value)

    @classmethod
    def objection(cls, setting, frames, size) -> str | None:
        if setting.source and size is not None and min(size) < 7:
            return f"needs frames of at least 7x7, got {size[0]}x{size[1]}"
        return super().objection(setting, frames, size)
