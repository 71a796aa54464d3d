"""How videos sampled from text alone move, beside renders of the same scenes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..metrics.base import Moment, Pair
from ..metrics.flicker import compensated_flicker
from ..metrics.flow import DisFlow
from ..sampling.fast_sample import fast_sample
from ..sampling.smoothing import NoiseConstraint
from .captions import caption
from .render import random_scene, render_clip
from .segmenter import Segmenter, find_object

ONE_WAY = 0.8  # share of neighbouring frames whose background moves to the left, for a clip that scrolls


def motion(frames: Iterable[np.ndarray], segmenter: Segmenter) -> tuple[float, float]:
    """Mean length of the certain flow, pixels a frame; share of pairs whose background moves to the left."""
    frames = np.stack(list(frames))
    outside, flow = ~find_object(segmenter, frames), DisFlow()
    moments = [Moment(i, frame) for i, frame in enumerate(frames)]
    lengths, left = [], []
    for before, after in zip(moments[:-1], moments[1:], strict=True):
        moved, certain = Pair(before, after, flow).motion
        lengths.append(np.linalg.norm(moved, axis=-1)[certain].mean() if certain.any() else 0.0)
        left.append(moved[..., 0][certain & outside[before.number]].sum() < 0)
    return float(np.mean(lengths)), float(np.mean(left))


def judge_clips(
    model, segmenter: Segmenter, *, clips: int, frames: int, steps: int, guidance: float, seed: int,
    smooth: float = 0.0, log=print,
) -> dict[str, float]:  # fmt: skip
    """Sample `clips` videos of held-out scenes from their captions. Ratios and shares, by name.

    smooth: strength of the noise constraint on predicted clean latents, 0 for none.
    """
    constraint = NoiseConstraint(smooth) if smooth else None
    rng = np.random.default_rng([seed, 13])
    lengths, lefts, flickers = [], [], []
    for i in range(clips):
        scene = random_scene(rng, held_out=True)
        ours = fast_sample(
            model, caption(scene), frames, steps=steps, guidance=guidance, scheduler="dpmpp_2m", seed=seed + i,
            smooth=constraint, progress=False,
        )  # fmt: skip
        rendered = render_clip(scene, frames, truth=False).frames
        both = [motion(video, segmenter) for video in (ours, rendered)]
        lengths.append([length for length, _ in both])
        lefts.append([left for _, left in both])
        flickers.append([compensated_flicker(video) for video in (ours, rendered)])
        log(
            f"clip {i + 1}/{clips}: {caption(scene)}: flow {lengths[-1]}, left {lefts[-1]}, flicker {flickers[-1]}"
        )
    length, flicker = np.mean(lengths, 0), np.mean(flickers, 0)
    scrolls = (np.array(lefts) >= ONE_WAY).mean(0)
    return {
        "clips": clips,
        "clips_flow_ratio": round(float(length[0] / length[1]), 2),
        "clips_that_scroll": round(float(scrolls[0]), 2),
        "renders_that_scroll": round(float(scrolls[1]), 2),
        "clips_flicker_ratio": round(float(flicker[0] / flicker[1]), 2),
    }
