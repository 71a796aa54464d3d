"""DDIM inversion of long videos by windows, and the blend of inversion noise between frames."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vidsmooth_fast import ops
from vidsmooth_fast.models.loading import load
from vidsmooth_fast.models.video_model import VideoModel
from vidsmooth_fast.sampling.engine import State
from vidsmooth_fast.sampling.job import Job, open_source
from vidsmooth_fast.sampling.noise import frame_noise
from vidsmooth_fast.sampling.options import Options
from vidsmooth_fast.sampling.progress import Progress
from vidsmooth_fast.sampling.schedule import Schedule, Step
from vidsmooth_fast.sampling.smoothing import InversionBlend
from vidsmooth_fast.sampling.windowed import WindowedPredictor
from vidsmooth_fast.video import Video


@dataclass(frozen=True)
class Inversion:
    """The noise from which deterministic sampling returns to a video.

    latents: (1, C, F, h, w) float32, the noisiest; `fast_sample(..., latents=inversion.latents)` starts there.
    clean: (1, C, F, h, w) float32, the video's own latents. timesteps: the network's, in the order of evaluation.
    prompt: the text used. fps: of the source.
    """

    latents: Tensor
    clean: Tensor
    timesteps: tuple[float, ...]
    prompt: str
    fps: float

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file, under a temporary name until it is complete."""
        path = Path(path)
        partial = path.with_name(path.name + ".part")
        tensors = {
            "latents": self.latents.cpu(),
            "clean": self.clean.cpu(),
            "timesteps": torch.tensor(self.timesteps),
        }
        save_file(tensors, partial, metadata={"prompt": self.prompt, "fps": str(self.fps)})
        os.replace(partial, path)

    @classmethod
    def open(cls, path: str | os.PathLike) -> Inversion:
        """Read what `save` wrote. Raises ValueError for another file."""
        try:
            with safe_open(path, framework="pt") as file:
                meta = file.metadata()
                latents, clean, timesteps = (
                    file.get_tensor(name) for name in ("latents", "clean", "timesteps")
                )
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a saved inversion ({error})") from None
        return cls(latents, clean, tuple(timesteps.tolist()), meta["prompt"], float(meta["fps"]))


def invert_latents(
    predict: WindowedPredictor,
    clean: Tensor,
    schedule: Schedule,
    *,
    blend: InversionBlend | None = None,
    loop: bool = False,
    seed: int = 0,
    state: State | None = None,
    after_step: Callable[[State], None] = lambda state: None,
) -> Tensor:
    """Clean latents to noise along `schedule`, (1, C, F, H, W) float32 to the same.

    Step i evaluates the network at the timestep it goes *to*, on the latents it comes from, as Tune-A-Video and
    Gen-L-Video do; windows are merged before the step, which equals averaging their latents ([000] eq. 19).
    blend: mixes each step's noise between neighbouring frames, or the final noise ([004]).
    state: where an interrupted inversion stood. after_step: called with the state after each finished step.
    """
    steps = schedule.inversion_steps()
    state = state or State(clean)
    per_step = blend if blend is not None and blend.at == "step" else None
    while state.done < len(steps):
        latents = _inversion_step(predict, state.latents, clean, steps[state.done], per_step, loop, seed)
        state = State(latents, None, state.done + 1)
        after_step(state)
    if blend is not None and blend.at == "end":
        return _blend(
            blend, state.latents, state.latents, clean, steps[-1].to_alpha, steps[-1].to_sigma, loop, seed
        )
    return state.latents


def _inversion_step(
    predict: WindowedPredictor,
    x: Tensor,
    clean: Tensor,
    step: Step,
    blend: InversionBlend | None,
    loop: bool,
    seed: int,
) -> Tensor:
    windows = predict.windows
    weights = windows.weights.to(x.device)
    pred = predict(x, step.timestep)
    if blend is None:
        common = dict(branch_weights=(1.0,), to_eps=step.to_eps)
        return ops.denoise_step(pred, x, windows.starts, weights, a=step.a, b=step.b, **common)[0]
    merged = ops.window_merge(pred[0].float(), windows.starts, weights, frames=windows.frames)
    eps = step.to_eps[0] * x + step.to_eps[1] * merged
    eps = _blend(blend, eps, x, clean, step.alpha, step.sigma, loop, seed)
    return step.a * x + step.b * eps


def _blend(
    blend: InversionBlend,
    inverted: Tensor,
    x: Tensor,
    clean: Tensor,
    alpha: float,
    sigma: float,
    loop: bool,
    seed: int,
) -> Tensor:
    """`inverted` blended with its neighbours; x = alpha*clean + sigma*(implied noise)."""
    if blend.noise == "implied":
        if sigma == 0:  # no noise has been added yet, so none is implied
            return inverted
        noise = (x - alpha * clean) / sigma
    else:
        shape, shared = (x.shape[1], *x.shape[3:]), blend.noise == "shared"
        noise = frame_noise(seed, "blend", x.shape[2], 0, shape, shared=shared).to(x.device)
    return ops.inversion_blend(
        inverted, noise, weight=blend.weight, forward=blend.forward, backward=blend.backward, loop=loop
    )


def invert(
    model: VideoModel | str | os.PathLike,
    video: Video | str | os.PathLike,
    prompt: str = "",
    *,
    steps: int = 50,
    blend: InversionBlend | None = None,
    frames: int | None = None,
    window: int = 16,
    stride: int = 8,
    window_weights: str = "hann",
    loop: bool = False,
    merge: str = "latent",
    scheduler: str = "ddim",
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    max_batch: int | str = "auto",
    progress: bool = True,
) -> Inversion:
    """DDIM inversion of a video of any length: the noise from which sampling without guidance returns to it.

    model, video: as in `fast_sample`. prompt: what the video shows; may be empty. frames: how many; all by default.
    steps, scheduler: the schedule on which sampling will come back. The other options are those of `fast_sample`.

    Returns an Inversion; `fast_sample(model, prompt, frames=len(video), latents=inversion.latents, ...)` starts there.
    Raises ValueError for options that cannot be met, MemoryError when the estimate exceeds what is free.
    Source: Song et al., DDIM, eq. 14 reversed; network evaluated at the target timestep as in Tune-A-Video.
    """
    if not isinstance(model, VideoModel):
        model = load(model)
    if not isinstance(video, Video):
        video = Video.open(video)
    options = Options(
        frames=len(video) if frames is None else frames,
        source_prompt=prompt,
        steps=steps,
        blend=blend,
        window=window,
        stride=stride,
        window_weights=window_weights,
        loop=loop,
        merge=merge,
        scheduler=scheduler,
        height=height,
        width=width,
        seed=seed,
        max_batch=max_batch,
    )
    job = Job(model, options.for_model(model, has_source=True, has_latents=False))
    with torch.inference_mode():
        clean = job.encode(open_source(video, job.options)).to(model.device)
        bar = Progress(progress, len(job.schedule.steps) * job.items(1), lambda: 0.0)
        bar.say(job.describe(1))
        bar.phase("inverting", len(job.schedule.steps), items=job.items(1))
        latents = invert_latents(
            job.predictor([job.track(prompt)]),
            clean,
            job.schedule,
            blend=blend,
            loop=loop,
            seed=seed,
            after_step=lambda state: bar.step(),
        )
        bar.close()
    timesteps = tuple(step.timestep for step in job.schedule.inversion_steps())
    return Inversion(latents, clean, timesteps, prompt, float(video.fps))
