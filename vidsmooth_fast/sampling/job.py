"""What sampling and inversion have in common: a model, checked options, and the plan that follows from them."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vidsmooth_fast.conditioning.prompts import Prompt, PromptTrack, encode_prompt
from vidsmooth_fast.models.unet import AttentionWindows
from vidsmooth_fast.models.video_model import VideoModel
from vidsmooth_fast.sampling import budget
from vidsmooth_fast.sampling.denoiser import UNetDenoiser
from vidsmooth_fast.sampling.options import Options
from vidsmooth_fast.sampling.schedule import Schedule, make_schedule
from vidsmooth_fast.sampling.windowed import WindowedPredictor, Windows
from vidsmooth_fast.sampling.windows import plan, window_length, window_weights
from vidsmooth_fast.video import Video


class Job:
    """One run's model, options (complete, see Options.for_model), windows and schedule."""

    def __init__(self, model: VideoModel, options: Options):
        self.model = model
        self.options = options
        length = window_length(options.frames, options.window)
        starts = plan(options.frames, options.window, options.stride, loop=options.loop)
        overlapping = Windows(tuple(starts), window_weights(options.window_weights, length), options.frames)
        self.attention_windows: AttentionWindows | None = None
        self.windows = overlapping
        if options.merge == "attention":
            self.attention_windows = AttentionWindows(overlapping.starts, overlapping.weights, options.loop)
            self.windows = Windows((0,), torch.ones(options.frames), options.frames)

    @cached_property
    def schedule(self) -> Schedule:
        options = self.options
        return make_schedule(
            self.model.scheduler_config,
            scheduler=options.scheduler,
            steps=options.steps,
            eta=options.eta,
            prediction_type=self.model.prediction_type,
            strength=options.strength,
        )

    @property
    def latent_shape(self) -> tuple[int, int, int, int, int]:
        """(1, C, F, h, w)."""
        options, down = self.options, self.model.downsampling
        return 1, self.model.latent_channels, options.frames, options.height // down, options.width // down

    @property
    def guided(self) -> bool:
        return self.options.guidance != 1

    def items(self, branches: int) -> int:
        """(window, branch) pairs that the network sees in one step."""
        return branches * len(self.windows.starts)

    def max_batch(self, branches: int) -> int:
        """(window, branch) pairs in one network call: what was asked for, or what half of the free memory holds.

        Raises MemoryError, naming what would help, where it does not fit.
        """
        free = budget.free_bytes(self.model.device)
        fixed = self._state_bytes(branches)
        asked = self.options.max_batch
        if asked == "auto":
            affordable = int((free * budget.SHARE - fixed) // self._network_bytes(1))
            chosen = min(max(affordable, 1), self.items(branches))
        else:
            chosen = min(asked, self.items(branches))
        needed = fixed + self._network_bytes(chosen)
        if needed > free:
            raise MemoryError(
                f"about {_size(needed)} of memory needed for {self.windows.length} frames at {self.options.width}x"
                f"{self.options.height} in one network call, {_size(free)} free: reduce height and width, "
                + ("use merge='latent'" if self.attention_windows else "the window, or frames")
            )
        return chosen

    def _network_bytes(self, pairs: int) -> int:
        unet, (height, width) = self.model.unet, self.latent_shape[-2:]
        return budget.network_bytes(unet.config, unet.dtype, pairs, self.windows.length, height, width)

    def _state_bytes(self, branches: int) -> int:
        """Latents, their successor, history, source and noise in float32, and the predictions of all windows."""
        latents = math.prod(self.latent_shape)
        predictions = self.items(branches) * self.windows.length * latents // self.options.frames
        return 5 * 4 * latents + 4 * predictions

    def describe(self, branches: int) -> str:
        """One line: what will be computed, and the memory that it will take."""
        options, pairs = self.options, self.max_batch(branches)
        total = budget.used_bytes() + self._state_bytes(branches) + self._network_bytes(pairs)
        return (
            f"{options.frames} frames at {options.width}x{options.height}, {len(self.schedule.steps)} steps of "
            f"{options.scheduler}, {self.items(branches)} network items of {self.windows.length} frames a step, "
            f"{pairs} at a time, {str(self.model.dtype).removeprefix('torch.')}; about {_size(total)} of memory"
        )

    def decode_seconds(self) -> float:
        """Seconds that decoding the whole video will take, from decoding a few frames of noise."""
        count = min(4, self.options.frames)
        sample = torch.randn(1, self.latent_shape[1], count, *self.latent_shape[3:])
        began = time.perf_counter()
        for _ in self.model.decode_latents(sample):
            pass
        return (time.perf_counter() - began) * self.options.frames / count

    def track(self, prompt: Prompt, name: str = "prompt") -> PromptTrack:
        return encode_prompt(
            prompt, self.options.frames, self.model.encode_text, loop=self.options.loop, name=name
        )

    def predictor(self, tracks: Sequence[PromptTrack]) -> WindowedPredictor:
        """The network over all windows, one guidance branch per track."""
        in_attention = self.attention_windows is not None
        return WindowedPredictor(
            UNetDenoiser(self.model.unet, self.attention_windows),
            self.windows,
            tracks,
            max_batch=self.max_batch(len(tracks)),
            per_frame_text=in_attention and any(len(track.keys) > 1 for track in tracks),
        )

    def encode(self, source: Video) -> Tensor:
        """The clean latents (1, C, F, h, w) of `source`, continued back and forth where it is shorter."""
        frames = list(_take(source, self.options.frames))
        latents = self.model.encode_video(frames)
        return latents[:, :, back_and_forth(len(frames), self.options.frames)]


def open_source(source: Video | str | os.PathLike, options: Options) -> Video:
    """The source clip at the size of the run. Raises ValueError for one without frames."""
    size = (options.height, options.width)
    path_or_video = source
    video = path_or_video.resized(size) if isinstance(source, Video) else Video.open(source, size=size)
    if len(video) < 1:
        raise ValueError("source: expected at least one frame, got none")
    return video


def back_and_forth(length: int, frames: int) -> Tensor:
    """Indices (frames,) that run 0..length-1 and back without repeating the ends; int64."""
    period = max(2 * (length - 1), 1)
    position = torch.arange(frames) % period
    return torch.where(position < length, position, period - position)


def _take(video: Video, count: int) -> Iterator[np.ndarray]:
    for index, frame in enumerate(video):
        if index == count:
            return
        yield frame


def _size(count: float) -> str:
    """Bytes as a person reads them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
