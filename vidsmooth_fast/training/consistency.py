"""Consistency tuning, the four modules of [000] in order: sample, average fusion, tune, window co-denoising."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidsmooth_fast.conditioning.masks import check_prompts, foreground_masks
from vidsmooth_fast.conditioning.segment_anything import load_predictor
from vidsmooth_fast.models.loading import load_networks
from vidsmooth_fast.models.video_model import VideoModel
from vidsmooth_fast.sampling.checkpoint import fingerprint
from vidsmooth_fast.sampling.engine import Guidance, State, denoise
from vidsmooth_fast.sampling.fast_sample import fast_sample
from vidsmooth_fast.sampling.job import Job
from vidsmooth_fast.sampling.noise import initial_noise
from vidsmooth_fast.sampling.options import Options
from vidsmooth_fast.sampling.progress import Progress
from vidsmooth_fast.sampling.tensor_files import check_folder
from vidsmooth_fast.training.fusion import MODES, average_fusion
from vidsmooth_fast.training.noising import Noising
from vidsmooth_fast.training.tuner import tune
from vidsmooth_fast.video import Video, check_spared
from vidsmooth_fast.video_panels import side_by_side

STAGES = ("1-separate.mp4", "2-masks.mp4", "2-fused.mp4", "3-tuned", "4-consistent.mp4", "stages.mp4")


def consistency(
    model: VideoModel | str | os.PathLike,
    video: Video | str | os.PathLike,
    prompt: str,
    output: str | os.PathLike,
    *,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    strength: float = 0.75,
    steps: int = 1000,
    step: int = 5,
    n: int = 5,
    mode: str = "corrected",
    sam: str | os.PathLike | None = None,
    point: tuple[float, float] | None = None,
    box: tuple[float, float, float, float] | None = None,
    tuning_steps: int = 250,
    lr: float = 2e-6,
    sampling_steps: int = 50,
    guidance: float = 7.5,
    window: int = 16,
    stride: int = 8,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Video:
    """Make a clip's edit consistent by [000]'s four modules, and keep what each of them makes.

    1. Frames are sampled by DDPM (`1-separate.mp4`). The paper's condition, a pose per frame, is here the clip itself,
       noised: `strength` of the schedule is taken from there.
    2. Their foreground is found (`2-masks.mp4`); at reverse step `step` the backgrounds are fused (see
       `average_fusion`; n, mode), and the remaining steps taken again from there (`2-fused.mp4`).
    3. The model is tuned on the result with the foreground objective (`3-tuned/`).
    4. The tuned model samples the video by window co-denoising from the fused one's inversion (`4-consistent.mp4`).

    model: a VideoModel, a name, a directory or a Hub id. video: the clip, as Video or path. prompt: of the edit.
    output: a folder for the results, and `stages.mp4`, all of them side by side.
    frames: how many of the clip, all by default. size: (height, width), the model's own by default.
    steps, step, n, tuning_steps, lr: the paper's settings. sam: Segment Anything's checkpoint; GrabCut without it.
    point, box: the object in the first frame, as for `foreground_masks`, in pixels of `size`.
    sampling_steps, guidance, window, stride: of the last stage; guidance and windows of the first two too.

    Returns the last stage's Video. The same call goes on from a tuning that was interrupted. Raises ValueError before
    any work for bad input, among it a step outside the schedule, or an output that holds the run of another clip, model
    or settings; later what `fast_sample`, `foreground_masks` and `tune` raise.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"prompt: expected what the result shall show, got {prompt!r}")
    if mode not in MODES:
        raise ValueError(f"mode: expected {' or '.join(MODES)}, got {mode!r}")
    for name, value in (("n", n), ("tuning_steps", tuning_steps)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
    if isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 < lr < math.inf:
        raise ValueError(f"lr: expected a number above 0, got {lr!r}")
    predictor = None if sam is None else load_predictor(sam)
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output: expected a folder, got the file {folder}")
    model = load_networks(model, device=device or "auto", dtype="float32")
    source = video if isinstance(video, Video) else Video.open(video)
    for stage in STAGES:
        check_spared(folder / stage, source.path)
    count = len(source) if frames is None else min(frames, len(source))
    if count < 2:
        raise ValueError(f"video: expected at least 2 frames to learn motion from, got {count}")
    check_prompts(point, box, size or model.default_size)
    Noising(model.scheduler_config, model.prediction_type)  # says what it cannot tune
    height, width = size or model.default_size
    common = dict(
        frames=count, guidance=guidance, window=window, stride=stride, seed=seed, height=height, width=width
    )
    Options(steps=sampling_steps, **common).for_model(model, has_source=True, has_latents=False)
    options = Options(strength=strength, steps=steps, scheduler="ddpm", init="independent", **common)
    options = options.for_model(model, has_source=True, has_latents=False)
    job = Job(model, options, branches=(1 if guidance == 1 else 2,))
    total = len(job.schedule.steps)
    if isinstance(step, bool) or not isinstance(step, int) or not 1 <= step < total:
        raise ValueError(
            f"step: expected 1 to {total - 1}, one of the {total} reverse steps taken, got {step!r}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    check_folder("output", folder / "x")

    clip = job.fit(source)
    reverse = _Reverse(job, prompt, clip, step, progress)
    settings = {
        "prompt": prompt, "model": model.name, "strength": strength, "steps": steps, "step": step, "n": n, "mode": mode,
        "sam": None if sam is None else Path(sam).name, "point": point, "box": box,
        "tuning_steps": tuning_steps, "lr": lr, "sampling_steps": sampling_steps, **common,
    }  # fmt: skip
    _claim(folder, settings, fingerprint(settings, [*model.unet.parameters(), reverse.start]))
    separate = reverse.run()
    first = _keep(job, separate, clip.fps, folder / STAGES[0])
    masks = foreground_masks(first, predictor=predictor, point=point, box=box)
    shown = [np.where(m[..., None], f, f // 4) for f, m in zip(first, masks, strict=True)]
    Video.from_frames(shown, fps=clip.fps).save(folder / STAGES[1])

    fg = torch.from_numpy(masks).float()[:, None]
    fg = F.adaptive_avg_pool2d(fg, separate.shape[-2:]).transpose(0, 1)[None].to(separate.device)
    now = job.schedule.steps[step]
    generator = torch.Generator().manual_seed(seed)
    fused_noisy = average_fusion(
        reverse.at_step,
        fg,
        1 - fg,
        n,
        generator=generator,
        clean=separate,
        level=(now.alpha, now.sigma),
        mode=mode,
    )
    fused = _keep(job, reverse.run(State(fused_noisy, None, step)), clip.fps, folder / STAGES[2])

    tuned = tune(
        model, fused, prompt, loss="foreground", mask=masks, steps=tuning_steps, lr=lr, frames=count,
        size=(height, width), seed=seed, progress=progress, output=folder / STAGES[3], device=device,
    )  # fmt: skip
    last = fast_sample(
        tuned, prompt, source=fused, source_prompt=prompt, steps=sampling_steps, progress=progress,
        output=folder / STAGES[4], **common,
    )  # fmt: skip

    panels = {"clip": clip, "sampled": first, "foreground": shown, "fused": fused, "consistent": last}
    Video.from_frames(list(side_by_side(list(panels.values()), list(panels))), fps=clip.fps).save(
        folder / STAGES[5]
    )
    return last


def _claim(folder: Path, settings: dict, mark: str) -> None:
    """Write what is made in this folder; raises ValueError where something else is, to which its tuning belongs."""
    said = folder / "consistency.json"
    try:
        before = json.loads(said.read_text())["fingerprint"] if said.exists() else mark
    except (ValueError, KeyError, TypeError):
        before = None
    if before != mark:
        raise ValueError(
            f"output: {folder} holds a run of another clip, model or settings; give another folder, or delete it"
        )
    partial = said.with_suffix(".part")
    partial.write_text(json.dumps({**settings, "fingerprint": mark}, indent=2) + "\n")
    os.replace(partial, said)


class _Reverse:
    """The reverse process of the first two stages, begun from the noised clip or in its middle."""

    def __init__(self, job: Job, prompt: str, clip: Video, step: int, progress: bool) -> None:
        self.job, self.step, self.shown = job, step, progress
        options, schedule = job.options, job.schedule
        guided = options.guidance != 1
        texts = ["", prompt] if guided else [prompt]
        self.predictor = job.predictor([job.track(text) for text in texts])
        _, channels, frames, height, width = job.latent_shape
        noise = initial_noise(
            "independent", seed=options.seed, frames=frames, shape=(channels, height, width)
        )
        clean = job.encode(clip)
        self.start = schedule.start_alpha * clean + schedule.start_sigma * noise.to(clean.device)
        self.at_step: Tensor | None = None

    def run(self, state: State | None = None) -> Tensor:
        """The clean latents; `at_step` keeps those after step `step`."""
        state = state or State(self.start)
        total = len(self.job.schedule.steps)
        with torch.inference_mode(), Progress(self.shown, 0, lambda: 0.0) as bar:
            bar.phase("sampling" if state.done == 0 else "sampling, fused", total, done=state.done)

            def after_step(now: State) -> None:
                bar.step()
                if now.done == self.step:
                    self.at_step = now.latents

            guidance = Guidance.of_scale(self.job.options.guidance)
            latents = denoise(
                self.predictor, state, self.job.schedule, guidance=guidance, seed=self.job.options.seed,
                after_step=after_step,
            )  # fmt: skip
        return latents.clone()


def _keep(job: Job, latents: Tensor, fps, path: Path) -> Video:
    video = Video.from_frames(list(job.decode(latents)), fps=fps)
    video.save(path)
    return video
