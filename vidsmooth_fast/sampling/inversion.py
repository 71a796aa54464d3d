"""DDIM inversion of long videos by windows, and the blend of inversion noise between frames."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vidsmooth_fast import ops
from vidsmooth_fast.models.latent_model import LatentModel
from vidsmooth_fast.models.loading import load_placed
from vidsmooth_fast.sampling.engine import State, run_steps
from vidsmooth_fast.sampling.job import Job
from vidsmooth_fast.sampling.latents import Store, send
from vidsmooth_fast.sampling.noise import frame_noise
from vidsmooth_fast.sampling.options import Options
from vidsmooth_fast.sampling.progress import Progress
from vidsmooth_fast.sampling.schedule import Schedule
from vidsmooth_fast.sampling.smoothing import InversionBlend
from vidsmooth_fast.sampling.tensor_files import check_folder, read_tensors, write_tensors
from vidsmooth_fast.sampling.windowed import Piece, WindowedPredictor
from vidsmooth_fast.video import Video, check_spared


@dataclass(frozen=True)
class Inversion:
    """The noise from which deterministic sampling returns to a video.

    latents: (1, C, F, h, w) float32, the noisiest; `fast_sample(..., latents=inversion)` starts there.
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
        tensors = {"latents": self.latents, "clean": self.clean, "timesteps": torch.tensor(self.timesteps)}
        write_tensors(Path(path), tensors, {"prompt": self.prompt, "fps": str(self.fps)})

    @classmethod
    def open(cls, path: str | os.PathLike) -> Inversion:
        """Read what `save` wrote. Raises ValueError for another file."""
        tensors, meta = read_tensors(Path(path))
        if not {"latents", "clean", "timesteps"} <= tensors.keys() or not {"prompt", "fps"} <= meta.keys():
            raise ValueError(
                f"{path} is not a saved inversion: it lacks latents, clean, timesteps, prompt or fps"
            )
        timesteps = tuple(tensors["timesteps"].tolist())
        return cls(tensors["latents"], tensors["clean"], timesteps, meta["prompt"], float(meta["fps"]))

    def check_schedule(self, schedule: Schedule) -> None:
        """Raises ValueError for a schedule that does not start at the noise level of `latents`."""
        ends, starts = self.timesteps[-1], schedule.steps[0].timestep
        if not math.isclose(ends, starts, rel_tol=1e-6, abs_tol=1e-3):
            raise ValueError(
                f"latents: inverted to timestep {ends:g} in {len(self.timesteps)} steps, and this run's "
                f"{len(schedule.steps)} start at {starts:g}; expected the steps and scheduler of the inversion"
            )


def invert_latents(
    predict: WindowedPredictor,
    clean: Tensor,
    schedule: Schedule,
    *,
    blend: InversionBlend | None = None,
    seed: int = 0,
    state: State | None = None,
    after_step: Callable[[State], None] = lambda state: None,
) -> Tensor:
    """Clean latents to noise along `schedule`, (1, C, F, H, W) float32 to the same, on the host.

    Step i evaluates the network at the timestep it goes *to*, on the latents it comes from, as Tune-A-Video and
    Gen-L-Video do; windows are merged before the step, which equals averaging their latents ([000] eq. 19).
    blend: mixes each step's noise between neighbouring frames, or the final noise ([004]).
    state: where an interrupted inversion stood. after_step: called with the state after each finished step.
    Overflow is handled as in `run_steps`.
    """
    steps = schedule.inversion_steps()
    per_step = blend if blend is not None and blend.at == "step" else None

    store = Store(clean.shape, predict.denoiser.device)

    def step(state: State, predict: WindowedPredictor) -> tuple[State, Tensor]:
        now = steps[state.done]
        # At the first step, the clip itself has no noise yet that could be blended.
        blends = per_step is not None and state.done > 0
        a, b = (0.0, 1.0) if blends else (now.a, now.b)
        result, finite = State(store.empty(), None, state.done + 1), []
        for piece in predict(state.latents, now.timestep):
            latents, _ = ops.denoise_step(
                piece.predictions,
                piece.x,
                piece.segment.starts,
                predict.weights,
                branch_weights=(1.0,),
                a=a,
                b=b,
                to_eps=now.to_eps,
            )
            if blends:
                eps = _blend(per_step, latents, piece.x, piece.read(clean), now.alpha, now.sigma, piece, seed)
                latents = now.a * piece.x + now.b * eps
            piece.write(latents, result.latents)
            finite.append(piece.complete(latents).isfinite().all())
        return result, torch.stack(finite).all()

    latents = run_steps(predict, step, state or State(clean), len(steps), after_step).latents
    if blend is None or blend.at == "step":
        return latents
    blended, last = store.empty(), steps[-1]
    for piece in predict.pieces(latents):
        x = piece.x
        piece.write(
            _blend(blend, x, x, piece.read(clean), last.to_alpha, last.to_sigma, piece, seed), blended
        )
    store.wait()
    return blended


def _blend(
    blend: InversionBlend,
    inverted: Tensor,
    x: Tensor,
    clean: Tensor,
    alpha: float,
    sigma: float,
    piece: Piece,
    seed: int,
) -> Tensor:
    """`inverted` blended with its neighbours; x = alpha*clean + sigma*(implied noise). All of one piece's frames."""
    if blend.noise == "implied":
        noise = (x - alpha * clean) / sigma
    else:
        shape, shared = (x.shape[1], *x.shape[3:]), blend.noise == "shared"
        numbers = [frame % piece.frames for frame in range(piece.segment.begin, piece.segment.end)]
        noise = send(frame_noise(seed, "blend", numbers, 0, shape, shared=shared), x.device)
    return ops.inversion_blend(
        inverted,
        noise,
        weight=blend.weight,
        forward=blend.forward,
        backward=blend.backward,
        loop=piece.segment.closed,
    )


def invert(
    model: LatentModel | str | os.PathLike,
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
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    progress: bool = True,
    output: str | os.PathLike | None = None,
) -> Inversion:
    """DDIM inversion of a video of any length: the noise from which sampling without guidance returns to it.

    model, video: as in `fast_sample`. prompt: what the video shows; may be empty. frames: how many; all by default.
    steps, scheduler: the schedule on which sampling will come back. device, dtype: run a copy of the model there; the
    caller's stays as it is. output: also save the result there, a .safetensors file. The other options are those of
    `fast_sample`.

    Returns an Inversion; `fast_sample(model, prompt, frames=len(video), latents=inversion, ...)` starts there.
    Raises ValueError for options that cannot be met, MemoryError when the estimate exceeds what is free.
    Source: Song et al., DDIM, eq. 14 reversed; network evaluated at the target timestep as in Tune-A-Video.
    """
    if not isinstance(prompt, str):
        raise ValueError(f"prompt: expected a text, got {type(prompt).__name__}")
    target = _target(output) if output is not None else None
    if not isinstance(video, Video):
        video = Video.open(video)
    if target is not None:
        check_spared(target, video.path)
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
    model = load_placed(model, device, dtype)
    job = Job(model, options.for_model(model, has_source=True, has_latents=False), branches=(1,))
    bar = Progress(progress, len(job.schedule.steps) * job.items(1), lambda: 0.0)
    bar.say(job.describe(1))
    with torch.inference_mode(), bar:
        clean = job.encode(video)
        bar.phase("inverting", len(job.schedule.steps), costs=[job.items(1)] * len(job.schedule.steps))
        latents = invert_latents(
            job.predictor([job.track(prompt)]),
            clean,
            job.schedule,
            blend=blend,
            seed=seed,
            after_step=lambda state: bar.step(),
        )
    timesteps = tuple(step.timestep for step in job.schedule.inversion_steps())
    inversion = Inversion(latents.clone(), clean.clone(), timesteps, prompt, float(video.fps))
    if target is not None:
        inversion.save(target)
    return inversion


def _target(output: str | os.PathLike) -> Path:
    """Where the result goes, checked before any work."""
    path = Path(output).expanduser()
    if path.suffix != ".safetensors" or path.is_dir():
        raise ValueError(f"output: expected the name of a .safetensors file, got {path}")
    check_folder("output", path)
    return path
