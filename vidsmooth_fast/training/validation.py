"""Samples of the network as it is now, beside the clip it learns from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vidsmooth_fast.models.video_model import VideoModel
from vidsmooth_fast.sampling.fast_sample import fast_sample
from vidsmooth_fast.video import Video, VideoWriter
from vidsmooth_fast.video_panels import side_by_side

STEPS = 25


def grid_path(folder: Path, step: int) -> Path:
    return folder / f"samples-{step:06d}.mp4"


def sample_grid(
    model: VideoModel, clip: np.ndarray, fps, prompt: str, validation: tuple, folder: Path, step: int
) -> Path:
    """Write `samples-000100.mp4`: the clip, and every prompt sampled from its inversion, side by side.

    clip: (F, H, W, 3) uint8. validation: (prompts, every, options of fast_sample). Returns the path.
    """
    prompts, _, options = validation
    source = Video.from_frames(clip, fps=fps)
    height, width = clip.shape[1:3]
    window = max(len(clip), 2)  # all frames together, as they are trained
    defaults = {"steps": STEPS, "source_prompt": prompt, "window": window, "stride": window}
    videos = [
        fast_sample(
            model,
            text,
            len(clip),
            source=source,
            height=height,
            width=width,
            progress=False,
            **defaults | options,
        )
        for text in prompts
    ]
    pictures = side_by_side([source, *videos], [prompt or "clip", *prompts])
    target, first = grid_path(folder, step), next(pictures)
    with VideoWriter(target, fps, first.shape[:2]) as writer:
        writer.write(first)
        for picture in pictures:
            writer.write(picture)
    return target
