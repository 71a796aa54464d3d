"""`fast_sample`: a prompt, and perhaps a clip, to a long video."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidsmooth_fast.conditioning.prompts import Prompt
from vidsmooth_fast.models.loading import choose_device, choose_dtype, load
from vidsmooth_fast.models.video_model import VideoModel
from vidsmooth_fast.sampling.checkpoint import Checkpoint, fingerprint
from vidsmooth_fast.sampling.engine import Guidance, State, denoise
from vidsmooth_fast.sampling.inversion import invert_latents
from vidsmooth_fast.sampling.job import Job, open_source
from vidsmooth_fast.sampling.noise import initial_noise
from vidsmooth_fast.sampling.options import Options
from vidsmooth_fast.sampling.progress import Progress
from vidsmooth_fast.sampling.smoothing import InversionBlend, NoiseConstraint
from vidsmooth_fast.video import Video, VideoWriter, check_output

DEFAULT_FPS = 8


def fast_sample(
    model: VideoModel | str | os.PathLike,
    prompt: Prompt,
    frames: int = 256,
    *,
    source: Video | str | os.PathLike | None = None,
    source_prompt: str = "",
    strength: float = 1.0,
    steps: int = 50,
    guidance: float = 7.5,
    negative_prompt: Prompt = "",
    window: int = 16,
    stride: int = 8,
    window_weights: str = "hann",
    loop: bool = False,
    merge: str = "latent",
    smooth: NoiseConstraint | None = None,
    blend: InversionBlend | None = None,
    init: str | None = None,
    scheduler: str = "ddim",
    eta: float = 0.0,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    latents: Tensor | None = None,
    controls: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    max_batch: int | str = "auto",
    progress: bool = True,
    callback: Callable[[int, int, Tensor], None] | None = None,
    resume: str | os.PathLike | None = None,
    output: str | os.PathLike | None = None,
) -> Video:
    """Sample a long, smooth video: a prompt to `frames` frames, or the edit of a source clip.

    All frames are denoised together. In every step the network sees overlapping windows; their predictions are
    merged, guided, optionally smoothed over time, and the whole video takes one step ([000] eq. 19).

    model: a VideoModel, an embedded name such as "sprite-world", a directory, or a Hub id.
    prompt, negative_prompt: a text, a list of texts spread over the video, or {frame: text}.
    frames: length of the video, in frames.
    source: a clip to edit, as Video or path. It is resized to cover height x width and cropped at the centre; a
        shorter one is continued back and forth. Its frame rate, and its sound when the length matches, are kept.
    source_prompt: what the source shows, for the inversion; may be empty.
    strength: 1 starts from the source's inversion, with its motion; less starts from the noised source, keeping
        1 - strength of the schedule ([002]).
    steps: network evaluations per window. scheduler: "ddim", "dpmpp_2m", "euler", "ddpm" or "flow". eta: DDIM's noise.
    guidance: scale of classifier-free guidance; 1 is none and halves the work.
    window, stride: frames that go through the network together, and frames between the starts of windows.
    window_weights: "flat", "pyramid" or "hann", how frames count by their place in a window.
    loop: the last frame is followed by the first.
    merge: "latent" runs every window through the network; "attention" runs every frame once and overlaps windows
        inside temporal attention only (FreeNoise), for about half the work at stride = window / 2.
    smooth: a NoiseConstraint between frames ([003] eq. 5), or None.
    blend: an InversionBlend for the source's inversion ([004]), or None.
    init: "inversion" (with a source), "freenoise", "independent" or "shared".
    height, width: in pixels; the model's own size by default.
    seed: every random number is a function of it and of the frame, so results do not depend on batching.
    latents: initial latents (1, C, frames, h, w) of unit variance instead of `init`.
    device, dtype: move or cast the network first, e.g. "cuda", torch.bfloat16.
    max_batch: windows x guidance branches in one network call; "auto" sizes it to memory.
    progress: bars with time left, and estimates of memory and time, on standard error.
    callback: called as callback(step, steps, latents) after each denoising step.
    resume: a file that keeps the state after each step. If it exists the run goes on from there with the same result;
        it is removed when the run is finished.
    output: write the video to this path while it is decoded, instead of keeping the frames in memory.

    Returns a Video with its final latents in `.latents` (1, C, F, h, w) and the settings in `.metadata`.

    Raises ValueError before any work for options that cannot be met, MemoryError when the estimate exceeds what is
    free, FloatingPointError when the network's prediction is not finite.
    """
    if controls is not None:
        raise ValueError("controls: not supported by this version; leave it out")
    options = Options(
        frames=frames,
        source_prompt=source_prompt,
        strength=strength,
        steps=steps,
        guidance=guidance,
        window=window,
        stride=stride,
        window_weights=window_weights,
        loop=loop,
        merge=merge,
        smooth=smooth,
        blend=blend,
        init=init,
        scheduler=scheduler,
        eta=eta,
        height=height,
        width=width,
        seed=seed,
        max_batch=max_batch,
    )
    target = check_output(output) if output is not None else None
    if not isinstance(model, VideoModel):
        model = load(model, device=device or "auto", dtype=dtype or "auto")
    elif device is not None or dtype is not None:
        device = choose_device(device or model.device)
        model = copy.deepcopy(model).to(device, choose_dtype(dtype or model.dtype, device))
    options = options.for_model(model, has_source=source is not None, has_latents=latents is not None)
    job = Job(model, options)
    if latents is not None and tuple(latents.shape) != job.latent_shape:
        raise ValueError(f"latents: expected shape {job.latent_shape}, got {tuple(latents.shape)}")
    with torch.inference_mode():
        run = _Run(job, prompt, negative_prompt, source, latents, progress, resume)
        video = run.decode(run.sample(callback), target)
        run.finish(video)
    return video


class _Run:
    """One call of `fast_sample`: invert where a source asks for it, denoise, decode."""

    def __init__(self, job, prompt, negative_prompt, source, latents, progress, resume):
        self.job = job
        self.prompt = prompt
        track = job.track(prompt)
        self.tracks = [job.track(negative_prompt, "negative_prompt"), track] if job.guided else [track]
        self.source = open_source(source, job.options) if source is not None else None
        self.latents = latents
        self.clean_source = job.encode(self.source).to(job.model.device) if self.source is not None else None
        self.checkpoint = None
        if resume is not None:
            self.checkpoint = Checkpoint(resume, self._fingerprint(prompt, negative_prompt))
        self.inverts = job.options.init == "inversion"
        self.progress = Progress(progress, self._items_ahead(), self._decode_seconds)
        self.progress.say(job.describe(len(self.tracks)))

    def _fingerprint(self, prompt: Prompt, negative_prompt: Prompt) -> str:
        job = self.job
        settings = {
            **job.options.as_dict(),
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "model": job.model.name,
        }
        settings["dtype"] = str(job.model.dtype)
        return fingerprint(settings, job.model.unet.conv_out.weight, self.latents, self.clean_source)

    def _items_ahead(self) -> int:
        steps = len(self.job.schedule.steps)
        return steps * (self.job.items(len(self.tracks)) + (self.job.items(1) if self.inverts else 0))

    def sample(self, callback: Callable[[int, int, Tensor], None] | None) -> Tensor:
        """The clean latents of the result, (1, C, F, h, w) float32."""
        job, options = self.job, self.job.options
        phase, state = (self.checkpoint.load() if self.checkpoint else None) or ("start", None)
        if phase in ("start", "inversion"):
            state = State(self._initial_latents(state))
        predict = job.predictor(self.tracks)
        total = len(job.schedule.steps)
        self.progress.phase("denoising", total, done=state.done, items=job.items(len(self.tracks)))

        def after_step(state: State) -> None:
            self._keep("denoising", state)
            self.progress.step()
            if callback is not None:
                callback(state.done, total, state.latents)

        return denoise(
            predict,
            State(
                *(t.to(job.model.device) if t is not None else None for t in (state.latents, state.history)),
                state.done,
            ),
            job.schedule,
            guidance=Guidance.of_scale(options.guidance),
            smooth=options.smooth,
            source=self.clean_source,
            loop=options.loop,
            seed=options.seed,
            after_step=after_step,
        )

    def _initial_latents(self, state: State | None) -> Tensor:
        """Latents at the first timestep: given, the source's inversion, the noised source, or noise alone."""
        job, options, schedule = self.job, self.job.options, self.job.schedule
        if self.latents is not None:
            return self.latents.to(job.model.device, torch.float32)
        if self.inverts:
            return self._invert(state)
        _, channels, frames, height, width = job.latent_shape
        noise = initial_noise(
            options.init,
            seed=options.seed,
            frames=frames,
            shape=(channels, height, width),
            window=options.window,
            stride=options.stride,
        ).to(job.model.device)
        if self.clean_source is not None and options.strength < 1:
            return schedule.start_alpha * self.clean_source + schedule.start_sigma * noise
        return noise

    def _invert(self, state: State | None) -> Tensor:
        job = self.job
        self.progress.phase(
            "inverting", len(job.schedule.steps), done=state.done if state else 0, items=job.items(1)
        )

        def after_step(state: State) -> None:
            self._keep("inversion", state)
            self.progress.step()

        return invert_latents(
            job.predictor([job.track(job.options.source_prompt, "source_prompt")]),
            self.clean_source,
            job.schedule,
            blend=job.options.blend,
            loop=job.options.loop,
            seed=job.options.seed,
            state=state,
            after_step=after_step,
        )

    def _keep(self, phase: str, state: State) -> None:
        if self.checkpoint is not None:
            self.checkpoint.save(phase, state)

    def _decode_seconds(self) -> float:
        return self.job.decode_seconds()

    def decode(self, latents: Tensor, target: Path | None) -> Video:
        """Frames from latents, a few at a time: into the file `target`, or kept as bytes."""
        options = self.job.options
        fps = self.source.fps if self.source is not None else DEFAULT_FPS
        metadata = {
            "vidsmooth_fast": {"model": self.job.model.name, "prompt": self.prompt, **options.as_dict()}
        }
        self.progress.phase("decoding", options.frames, unit="frame")
        frames = self._decoded(latents)
        if target is None:
            video = Video.from_frames(list(frames), fps=fps, audio=self.source, metadata=metadata)
        else:
            size = (options.height, options.width)
            with VideoWriter(target, fps, size, audio_from=self.source, metadata=metadata) as writer:
                for frame in frames:
                    writer.write(frame)
            video = Video.open(target)
        video.latents = latents
        return video

    def _decoded(self, latents: Tensor):
        for frame in self.job.model.decode_latents(latents):
            self.progress.step()
            yield frame

    def finish(self, video: Video) -> None:
        """The result is safe: report the time, and leave nothing to resume."""
        self.progress.close()
        video.timing = self.progress.timing()
        if self.checkpoint is not None:
            self.checkpoint.remove()
