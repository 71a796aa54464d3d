"""`fast_sample`: a prompt, and perhaps a clip, to a long video."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vidsmooth_fast.conditioning.controls import Control, check_controls
from vidsmooth_fast.conditioning.prompts import Prompt, prompt_keys
from vidsmooth_fast.models.latent_model import LatentModel
from vidsmooth_fast.models.loading import load_placed
from vidsmooth_fast.sampling.checkpoint import check_resume, kept_super_window
from vidsmooth_fast.sampling.controlled import ControlNets
from vidsmooth_fast.sampling.inversion import Inversion
from vidsmooth_fast.sampling.job import Job
from vidsmooth_fast.sampling.options import Options
from vidsmooth_fast.sampling.reuse import DeepReuse
from vidsmooth_fast.sampling.run import DEFAULT_FPS, Run
from vidsmooth_fast.sampling.smoothing import InversionBlend, NoiseConstraint
from vidsmooth_fast.video import Video, check_output, check_spared


def fast_sample(
    model: LatentModel | str | os.PathLike,
    prompt: Prompt,
    frames: int = 256,
    *,
    source: Video | str | os.PathLike | None = None,
    source_prompt: str = "",
    strength: float = 1.0,
    speed: str = "exact",
    steps: int | None = None,
    guidance: float = 7.5,
    guidance_interval: tuple[float, float] | None = None,
    reuse: DeepReuse | None = None,
    negative_prompt: Prompt = "",
    window: int = 16,
    stride: int = 8,
    window_weights: str = "hann",
    loop: bool = False,
    merge: str = "latent",
    smooth: NoiseConstraint | None = None,
    blend: InversionBlend | None = None,
    init: str | None = None,
    scheduler: str | None = None,
    eta: float = 0.0,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    latents: Tensor | Inversion | None = None,
    decoder: str | os.PathLike = "full",
    controls: Control | Sequence[Control] | None = None,
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

    model: a VideoModel, an embedded name such as "sprite-world", a directory (an exported bundle too), or a Hub id.
    prompt, negative_prompt: a text, a list of texts spread over the video, or {frame: text}.
    frames: length of the video, in frames.
    source: a clip to edit, as Video or path. It is resized to cover height x width and cropped at the centre; a
        shorter one is continued back and forth. Its frame rate, and its sound when the length matches, are kept.
    source_prompt: what the source shows, for the inversion; may be empty.
    strength: 1 starts from the source's inversion, with its motion; less starts from the noised source, keeping
        1 - strength of the schedule ([002]).
    speed: "exact", "balanced" or "fast": what steps, scheduler, guidance_interval and reuse are where they are None
        (`sampling.presets`). Only "exact" computes everything.
    steps: network evaluations per window. scheduler: "ddim", "dpmpp_2m", "euler", "ddpm", "lcm" (networks distilled
        to it) or "flow". eta: DDIM's noise.
    guidance: scale of classifier-free guidance; 1 is none and halves the work.
    guidance_interval: (first, last) fraction of the steps that are guided, (0, 1) for all; the others cost half.
    reuse: a DeepReuse: the network's deep blocks are computed at some steps only; DeepReuse(1) at every one. An
        inversion is always computed in full.
    window, stride: frames that go through the network together, and frames between the starts of windows.
    window_weights: "flat", "pyramid" or "hann", how frames count by their place in a window.
    loop: the last frame is followed by the first.
    merge: "latent" runs every window through the network; "attention" runs every frame once and overlaps windows
        inside temporal attention only (FreeNoise), for about half the work at stride = window / 2. It needs memory for
        all frames at once; where there is less, it takes super-windows that overlap by a window, says so, and notes
        their length, on which the result depends, as "super_window" in the metadata.
    smooth: a NoiseConstraint between frames ([003] eq. 5), or None.
    blend: an InversionBlend for the source's inversion ([004]), or None.
    init: "inversion" (with a source), "freenoise", "independent" or "shared".
    height, width: in pixels; the model's own size by default.
    seed: every random number is a function of it and of the frame, so that in float32 results depend on batching by
        rounding only. In half precision rounding counts: give max_batch to repeat a run exactly.
    latents: initial latents (1, C, frames, h, w) at the noise of the first timestep, instead of `init`; or an
        Inversion, whose last timestep must be the run's first, and whose frame rate is taken where there is no source.
    decoder: "full"; "linear", a preview by a linear map fitted to a few frames; or the directory of a diffusers
        AutoencoderTiny, for previews that are nearly as sharp.
    controls: a Control, or several whose residuals are added: ControlNets, and the pictures that they make the frames
        follow. They act in sampling, not in the inversion of a source.
    device, dtype: run a copy of the model there, e.g. "cuda", torch.bfloat16; the caller's stays as it is.
    max_batch: windows x guidance branches in one network call; "auto" sizes it to memory, on a CPU to its caches (at
        most 2), and takes half where memory runs out all the same.
    progress: bars with time left, and estimates of memory and time, on standard error.
    callback: called as callback(step, steps, latents) after each denoising step; the latents are on the host.
    resume: a file that keeps the state after each step. If it exists the run goes on from there with the same result;
        it is removed when the run is finished.
    output: write the video to this path while it is decoded, instead of keeping the frames in memory.

    Returns a Video with its final latents in `.latents` (1, C, F, h, w) and the settings in `.metadata`.

    Raises ValueError before any work for options that cannot be met, MemoryError when the estimate exceeds what is
    free, FloatingPointError when the network's prediction is not finite.
    """
    controls = check_controls(controls)
    options = Options(
        frames=frames,
        source_prompt=source_prompt,
        strength=strength,
        speed=speed,
        steps=steps,
        guidance=guidance,
        guidance_interval=guidance_interval,
        reuse=reuse,
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
        decoder=decoder,
        max_batch=max_batch,
    )
    prompts = {"prompt": prompt, "negative_prompt": negative_prompt, "source_prompt": source_prompt}
    for name, text in prompts.items():
        prompt_keys(text, options.frames, loop=loop, name=name)
    inversion = latents if isinstance(latents, Inversion) else None
    latents = latents if inversion is None else inversion.latents
    if latents is not None and not (isinstance(latents, Tensor) and bool(latents.isfinite().all())):
        raise ValueError("latents: expected an Inversion, or a tensor of finite values")
    if callback is not None and not callable(callback):
        raise ValueError(f"callback: expected a function, got {type(callback).__name__}")
    target = check_output(output) if output is not None else None
    kept = check_resume(resume, target) if resume is not None else None
    if source is not None and not isinstance(source, Video):
        source = Video.open(source)
    if target is not None and source is not None:
        check_spared(target, source.path)
    maps = [control.video(source) for control in controls]
    if target is not None:
        for video in maps:
            check_spared(target, video.path, "one of the controls' maps")
    model = load_placed(model, device, dtype)
    options = options.for_model(model, has_source=source is not None, has_latents=latents is not None)
    branches = 1 if options.guidance == 1 else 2
    needed = (1, branches) if options.init == "inversion" else (branches,)
    networks = ControlNets(controls, maps, model, options) if controls else None
    job = Job(
        model,
        options,
        branches=needed,
        keeps_frames=target is None,
        controls=networks,
        super_window=kept_super_window(kept) if kept is not None else None,
    )
    if latents is not None and tuple(latents.shape) != job.latent_shape:
        raise ValueError(
            f"latents: expected shape {job.latent_shape}, got {tuple(latents.shape)}{_as_options(latents, model)}"
        )
    if inversion is not None:
        inversion.check_schedule(job.schedule)
    if source is not None and len(source) < options.frames:
        sound = ", without its sound" if source.audio is not None else ""
        warnings.warn(
            f"source: it has {len(source)} frames and the video {options.frames}: it goes on back and forth{sound}",
            stacklevel=2,
        )
    if networks is not None:
        networks.read_maps()
    rate = source.fps if source is not None else inversion.fps if inversion is not None else DEFAULT_FPS
    run = Run(job, prompt, negative_prompt, source, latents, progress, kept, fps=rate)
    return run.video(callback, target)


def _as_options(latents: Tensor, model: LatentModel) -> str:
    """What would make latents of another size fit."""
    if latents.dim() != 5:
        return ""
    frames, *sides = latents.shape[2:]
    height, width = (side * model.downsampling for side in sides)
    return f", which are those of frames={frames}, height={height}, width={width}"
