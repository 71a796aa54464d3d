"""One run of `fast_sample`: invert where a source asks for it, denoise, decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidsmooth_fast import __version__
from vidsmooth_fast.conditioning.prompts import Prompt
from vidsmooth_fast.sampling.checkpoint import Checkpoint, fingerprint
from vidsmooth_fast.sampling.encoding import EncodingThread
from vidsmooth_fast.sampling.engine import Guidance, State, denoise
from vidsmooth_fast.sampling.inversion import invert_latents
from vidsmooth_fast.sampling.job import Job
from vidsmooth_fast.sampling.noise import initial_noise
from vidsmooth_fast.sampling.progress import Progress
from vidsmooth_fast.video import Video, VideoWriter

DEFAULT_FPS = 8


class Run:
    """The inputs of one run, checked against its checkpoint.

    job: model and options. fps: of the result. The others: as in `fast_sample`.
    Raises ValueError for a checkpoint of another run.
    """

    def __init__(
        self,
        job: Job,
        prompt: Prompt,
        negative_prompt: Prompt,
        source: Video | None,
        latents: Tensor | None,
        progress: bool,
        resume: Path | None,
        *,
        fps: Fraction | float = DEFAULT_FPS,
    ):
        self.job, self.fps = job, fps
        self.source = job.fit(source) if source is not None else None
        self.latents = latents
        self.settings = {
            "version": __version__,
            "model": job.model.name,
            "dtype": str(job.model.dtype).removeprefix("torch."),
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            **job.options.as_dict(),
            **({"super_window": job.super_window} if job.super_window else {}),
            **({"controls": job.controls.settings()} if job.controls else {}),
        }
        self.checkpoint = None
        if resume is not None:
            self.checkpoint = Checkpoint(resume, self._fingerprint(), job.super_window)
        phase, self.state = (self.checkpoint.load() if self.checkpoint else None) or ("inversion", None)
        self.inverted = phase == "denoising"
        track = job.track(prompt)
        guided = job.options.guidance != 1
        self.guidance = Guidance.of_scale(job.options.guidance, job.options.guidance_interval)
        self.costs = job.costs(self.guidance)
        self.tracks = [job.track(negative_prompt, "negative_prompt"), track] if guided else [track]
        self.progress = Progress(progress, self._items_ahead(), job.decode_seconds)

    def _fingerprint(self) -> str:
        description, tensors = self.job.model.identity()
        given = [] if self.latents is None else [self.latents]
        frames = self.source or ()
        if self.job.controls:
            given += self.job.controls.weights()
            frames = chain(frames, self.job.controls.pictures())
        return fingerprint({**self.settings, **description}, [*tensors, *given], frames)

    def _items_ahead(self) -> float:
        """(window, branch) pairs still to be computed."""
        job, total = self.job, len(self.job.schedule.steps)
        done = self.state.done if self.state else 0
        denoising = sum(self.costs[done if self.inverted else 0 :])
        inverts = job.options.init == "inversion" and not self.inverted
        return denoising + (total - done) * job.items(1) * inverts

    def video(self, callback: Callable[[int, int, Tensor], None] | None, target: Path | None) -> Video:
        """Compute it, or what is left of it. See `fast_sample`."""
        with torch.inference_mode(), self.progress:
            self.progress.say(self.job.describe(len(self.tracks)))
            latents = self._sample(callback)
            video = self._decode(latents, target)
        video.latents = latents.clone()  # outside inference mode: an ordinary tensor
        video.timing = self.progress.timing()
        if self.checkpoint is not None:
            self.checkpoint.remove()
        return video

    def _sample(self, callback: Callable[[int, int, Tensor], None] | None) -> Tensor:
        """The clean latents of the result, (1, C, F, h, w) float32."""
        job, options = self.job, self.job.options
        followed = bool(options.smooth and options.smooth.needs_source)
        begins = not self.inverted and options.needs_source
        clean = job.encode(self.source) if self.source is not None and (followed or begins) else None
        state = self.state if self.inverted else State(self._initial_latents(clean))
        total = len(job.schedule.steps)
        self.progress.phase("denoising", total, done=state.done, costs=self.costs)

        def after_step(state: State) -> None:
            # Deep features are not kept on disk: a run can go on where none are needed.
            if options.reuse.is_whole(state.done) or state.done == total:
                self._keep("denoising", state)
            self.progress.step()
            if callback is not None:
                callback(state.done, total, state.latents)

        return denoise(
            job.predictor(self.tracks, options.reuse, controlled=True),
            state,
            job.schedule,
            guidance=self.guidance,
            smooth=options.smooth,
            source=clean if followed else None,
            seed=options.seed,
            after_step=after_step,
        )

    def _initial_latents(self, clean: Tensor | None) -> Tensor:
        """Latents at the first timestep: given, the source's inversion, the noised source, or noise alone."""
        job, options, schedule = self.job, self.job.options, self.job.schedule
        if self.latents is not None:
            return self.latents.to("cpu", torch.float32)
        if options.init == "inversion":
            return self._invert(clean)
        _, channels, frames, height, width = job.latent_shape
        noise = initial_noise(
            options.init,
            seed=options.seed,
            frames=frames,
            shape=(channels, height, width),
            window=options.window,
            stride=options.stride,
        )
        if options.strength < 1:
            return schedule.start_alpha * clean + schedule.start_sigma * noise
        return noise

    def _invert(self, clean: Tensor) -> Tensor:
        job, state = self.job, self.state
        total, done = len(job.schedule.steps), state.done if state else 0
        self.progress.phase("inverting", total, done=done, costs=[job.items(1)] * total)

        def after_step(state: State) -> None:
            self._keep("inversion", state)
            self.progress.step()

        return invert_latents(
            job.predictor([job.track(job.options.source_prompt, "source_prompt")]),
            clean,
            job.schedule,
            blend=job.options.blend,
            seed=job.options.seed,
            state=state,
            after_step=after_step,
        )

    def _keep(self, phase: str, state: State) -> None:
        if self.checkpoint is not None:
            self.checkpoint.save(phase, state)

    def _decode(self, latents: Tensor, target: Path | None) -> Video:
        """Frames from latents, a few at a time: into the file `target`, encoded meanwhile, or kept as bytes."""
        options = self.job.options
        sound = self.source if self.source is not None and len(self.source) == options.frames else None
        metadata = {"vidsmooth_fast": self.settings}
        self.progress.phase("decoding", options.frames, unit="frame")
        frames = self._decoded(latents)
        if target is None:
            return Video.from_frames(list(frames), fps=self.fps, audio=sound, metadata=metadata)
        size = (options.height, options.width)
        with (
            VideoWriter(target, self.fps, size, audio_from=sound, metadata=metadata) as writer,
            EncodingThread(writer) as encoder,
        ):
            for frame in frames:
                encoder.write(frame)
        return Video.open(target)

    def _decoded(self, latents: Tensor) -> Iterator[np.ndarray]:
        for frame in self.job.decode(latents):
            self.progress.step()
            yield frame
