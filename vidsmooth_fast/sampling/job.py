"""What sampling and inversion have in common: a model, checked options, and the plan that follows from them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from vidsmooth_fast.conditioning.prompts import Prompt, PromptTrack, encode_prompt
from vidsmooth_fast.models.bundle_model import BundleModel
from vidsmooth_fast.models.latent_model import LatentModel
from vidsmooth_fast.models.preview import TinyDecoder, linear_preview
from vidsmooth_fast.models.unet import AttentionWindows
from vidsmooth_fast.sampling import budget
from vidsmooth_fast.sampling.controlled import ControlledDenoiser, ControlNets
from vidsmooth_fast.sampling.denoiser import denoiser_of
from vidsmooth_fast.sampling.engine import Guidance
from vidsmooth_fast.sampling.latents import Store, back_and_forth
from vidsmooth_fast.sampling.needs import Needs
from vidsmooth_fast.sampling.options import Options
from vidsmooth_fast.sampling.reuse import DeepMemory, DeepReuse, work_share
from vidsmooth_fast.sampling.schedule import Schedule, make_schedule
from vidsmooth_fast.sampling.windowed import WindowedPredictor, Windows
from vidsmooth_fast.sampling.windows import plan, ramp_weights, super_windows, window_length, window_weights
from vidsmooth_fast.video import Video

CPU_PAIRS = 2
"""(window, branch) pairs in one network call on a CPU: 10 take 8% longer each, because they leave the caches."""

DEEP_SHARE = 0.25
"""Of a GPU's free memory, what deep features may take before they wait on the host instead."""

CHUNK = 8
"""Frames that the autoencoder takes at a time, where memory allows."""


class Job:
    """One run's model, options (complete, see Options.for_model), windows, schedule and batch sizes.

    branches: the numbers of guidance branches that the run will need predictors for.
    keeps_frames: the decoded frames stay in memory.
    controls: the ControlNets of the run, or None.
    super_window: frames of one network call where `merge="attention"` does not find memory for the whole video, else
        None. The result depends on it: a run that is resumed gives that of the run before, 0 for none.
    Raises ValueError for options that the schedule cannot meet, MemoryError where a run would not fit.
    """

    def __init__(
        self,
        model: LatentModel,
        options: Options,
        branches: Sequence[int],
        *,
        keeps_frames: bool = True,
        controls: ControlNets | None = None,
        super_window: int | None = None,
    ):
        self.model = model
        self.options = options
        self.controls = controls
        self.schedule: Schedule = make_schedule(
            model.scheduler_config,
            scheduler=options.scheduler,
            steps=options.steps,
            eta=options.eta,
            prediction_type=model.prediction_type,
            strength=options.strength,
        )
        chosen = options.decoder
        self._tiny = None if chosen in ("full", "linear") else TinyDecoder(chosen, model)
        history = self.schedule.needs_history
        self._needs = Needs(
            model,
            options,
            self.latent_shape,
            history=history,
            keeps_frames=keeps_frames,
            controls=controls,
        )
        self._on_gpu = model.device.type == "cuda"
        self._free = budget.free_bytes(model.device)
        self._check_host()
        self.super_window: int | None = None
        self.attention_windows: AttentionWindows | None = None
        self.windows = self._plan(options.frames, options.window, options.stride)
        if options.merge == "attention":
            self._merge_in_attention(super_window)
        elif self.windows.loop and len(self.windows.starts) == 1:
            self._close_window()
        deep = self._needs.deep(self.windows, max(branches))
        self._deep_on_host = self._on_gpu and deep > self._free * DEEP_SHARE
        self._batches = {count: self._fit_batch(count) for count in branches}
        affordable = int(self._free * budget.SHARE // self._needs.autoencoder(1))
        self.chunk = min(max(affordable, 1), CHUNK)

    def _check_host(self) -> None:
        needed, free = self._needs.latents + self._needs.pictures, budget.free_bytes(torch.device("cpu"))
        if self._needs.pictures and needed > free:
            raise MemoryError(
                f"about {budget.in_words(needed)} of memory needed to keep {self.options.frames} frames, "
                f"{budget.in_words(free)} free: give output=, so that they are written to a file"
            )

    def _plan(self, frames: int, window: int, stride: int) -> Windows:
        options, length = self.options, window_length(frames, window)
        loop = options.loop and frames == options.frames  # a piece of a loop is none
        starts = plan(frames, window, stride, loop=loop)
        return Windows(tuple(starts), window_weights(options.window_weights, length), frames, loop)

    def _close_window(self) -> None:
        """A loop that is one window: inside the network too, the last frame is followed by the first."""
        if isinstance(self.model, BundleModel):
            warnings.warn(
                f"loop: {self.model.name} was exported, and does not join the ends of a single window; "
                "take a shorter window",
                stacklevel=4,
            )
        ones = torch.ones(self.windows.length, device=self.model.device)
        self.attention_windows = AttentionWindows((0,), ones, loop=True)

    def _merge_in_attention(self, kept: int | None) -> None:
        """Every frame through the network once: all at a time where memory suffices, in super-windows elsewhere."""
        options, inside = self.options, self.windows
        beside = 0 if self._on_gpu else self._needs.latents
        room = self._free * budget.SHARE - beside
        self.windows = Windows((0,), torch.ones(options.frames), options.frames, options.loop)
        lengths = super_windows(options.frames, options.window, options.stride)
        if kept in (0, *lengths):
            self.super_window = kept or None
        elif lengths and self._needs.network(1, options.frames) > room:
            fitting = (length for length in lengths if self._needs.network(1, length) <= room)
            self.super_window = next(fitting, lengths[-1])
        if self.super_window:
            length = self.super_window
            inside = self._plan(length, options.window, options.stride)
            starts = plan(options.frames, length, length - options.window, loop=options.loop)
            weights = ramp_weights(length, options.window)
            self.windows = Windows(tuple(starts), weights, options.frames, options.loop)
        self.attention_windows = AttentionWindows(
            inside.starts, inside.weights.to(self.model.device), inside.loop
        )

    @property
    def latent_shape(self) -> tuple[int, int, int, int, int]:
        """(1, C, F, h, w)."""
        options, down = self.options, self.model.downsampling
        return 1, self.model.latent_channels, options.frames, options.height // down, options.width // down

    def items(self, branches: int) -> int:
        """(window, branch) pairs that the network sees in one step."""
        return branches * len(self.windows.starts)

    def _fit_batch(self, branches: int) -> int:
        """(window, branch) pairs in one network call: what was asked for, or what half of the free memory holds."""
        needs, length, asked = self._needs, self.windows.length, self.options.max_batch
        if asked == "auto":
            room = self._free * budget.SHARE - self._fixed(branches, 1)
            asked = max(int(room // needs.network(1, length)), 1)
            if self._on_gpu:
                asked = min(
                    asked, budget.most_pairs(self.model.network_config, length, *self.latent_shape[3:])
                )
            else:
                asked = min(asked, CPU_PAIRS)
        chosen = min(asked, self.items(branches), self.model.max_pairs or asked)
        needed = self._fixed(branches, chosen) + max(needs.network(chosen, length), needs.autoencoder(1))
        if needed > self._free:
            size = f"{length} frames at {self.options.width}x{self.options.height}"
            advice = "use merge='latent'" if self.options.merge == "attention" else "the window, or frames"
            raise MemoryError(
                f"about {budget.in_words(needed)} of memory needed for {size} in one network call, "
                f"{budget.in_words(self._free)} free: reduce height and width, {advice}"
            )
        return chosen

    def _fixed(self, branches: int, pairs: int) -> int:
        """Bytes on the device, whatever it computes."""
        deep = 0 if self._deep_on_host else self._needs.deep(self.windows, branches)
        host = 0 if self._on_gpu else self._needs.latents
        return host + deep + self._needs.segment(self.windows, branches, pairs)

    def costs(self, guidance: Guidance) -> list[float]:
        """What the network computes at each denoising step, in (window, branch) pairs through all of it."""
        options, steps = self.options, len(self.schedule.steps)
        branches = [len(guidance.weights) if guidance.acts(step, steps) else 1 for step in range(steps)]
        shallow = 1.0 if options.reuse.period == 1 else work_share(self.model.unet, options.reuse.layers)
        return [
            self.items(count) * (1.0 if options.reuse.is_whole(step) else shallow)
            for step, count in enumerate(branches)
        ]

    def describe(self, branches: int) -> str:
        """One line: what will be computed, and the memory that it will take."""
        options, pairs, needs = self.options, self._batches[branches], self._needs
        length, decoding = self.windows.length, needs.autoencoder(self.chunk)
        if not self._on_gpu:
            decoding += needs.pictures
        work = max(needs.network(pairs, length), decoding)
        total = budget.used_bytes(self.model.device) + self._fixed(branches, pairs) + work
        memory = f"about {budget.in_words(total)} of memory"
        if self._on_gpu:
            on_host = budget.used_bytes(torch.device("cpu")) + needs.latents + needs.pictures
            on_host += needs.deep(self.windows, branches) if self._deep_on_host else 0
            memory += f" on the GPU and {budget.in_words(on_host)} on the host"
        pieces = "latents in memory-mapped files; " if needs.mapped else ""
        pieces += (
            "maps of controls in memory-mapped files; " if self.controls and self.controls.mapped else ""
        )
        if self.super_window:
            pieces += (
                f"merged in attention by super-windows of {self.super_window} frames, on which the result depends, "
                f"because memory does not hold all {options.frames} at once; "
            )
        return (
            f"{options.frames} frames at {options.width}x{options.height}, {len(self.schedule.steps)} steps of "
            f"{options.scheduler}, {self.items(branches)} network items of {length} frames a step, "
            f"{pairs} at a time, {str(self.model.dtype).removeprefix('torch.')}; {pieces}{memory}"
        )

    def decode(self, latents: Tensor) -> Iterator[np.ndarray]:
        """Frames (H, W, 3) uint8 of latents, decoded as they are asked for, by the decoder that was chosen."""
        if self.options.decoder == "full":
            return self.model.decode_latents(latents, chunk=self.chunk)
        if self._tiny is not None:
            return self._tiny(latents, chunk=self.chunk)
        return linear_preview(self.model, latents, chunk=self.chunk)

    def decode_seconds(self) -> float:
        """Seconds that decoding the whole video will take, from decoding a few frames."""
        count = min(self.chunk, self.options.frames)
        sample = torch.zeros(1, self.latent_shape[1], count, *self.latent_shape[3:])
        began = time.perf_counter()
        for _ in self.decode(sample):
            pass
        return (time.perf_counter() - began) * self.options.frames / count

    def track(self, prompt: Prompt, name: str = "prompt") -> PromptTrack:
        return encode_prompt(
            prompt, self.options.frames, self.model.encode_text, loop=self.options.loop, name=name
        )

    def predictor(
        self, tracks: Sequence[PromptTrack], reuse: DeepReuse | None = None, *, controlled: bool = False
    ) -> WindowedPredictor:
        """The network over all windows, one guidance branch per track.

        reuse: of deep features, its layers given. controlled: with the run's ControlNets, where it has any.
        """
        deep = None
        if reuse is not None and reuse.period > 1:
            deep = DeepMemory(reuse.period, reuse.layers, on_host=self._deep_on_host)
        denoiser = denoiser_of(self.model, self.attention_windows)
        if controlled and self.controls:
            denoiser = ControlledDenoiser(denoiser, self.controls)
        return WindowedPredictor(
            denoiser,
            self.windows,
            tracks,
            max_batch=self._batches[len(tracks)],
            shrinks=self.options.max_batch == "auto",
            per_frame_text=self.options.merge == "attention" and any(len(track.keys) > 1 for track in tracks),
            deep=deep,
        )

    def fit(self, source: Video) -> Video:
        """The part of a source that the run uses, at the size of the run."""
        part = source[: self.options.frames] if len(source) > self.options.frames else source
        return part.resized((self.options.height, self.options.width))

    def encode(self, source: Video) -> Tensor:
        """The clean latents (1, C, F, h, w) of a source, on the host, continued back and forth where it is shorter."""
        source = self.fit(source)
        shape = (*self.latent_shape[:2], len(source), *self.latent_shape[3:])
        latents, frames, at = Store(shape, self.model.device).empty(), iter(source), 0
        while batch := list(islice(frames, self.chunk)):
            latents[:, :, at : at + len(batch)] = self.model.encode_video(batch, chunk=self.chunk)
            at += len(batch)
        if len(source) == self.options.frames:
            return latents
        longer = Store(self.latent_shape, self.model.device).empty()
        for frame, where in enumerate(back_and_forth(len(source), self.options.frames).tolist()):
            longer[:, :, frame] = latents[:, :, where]
        return longer
