"""`tune`: a model and one captioned clip to a model that has learned the clip's motion."""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from vidsmooth_fast.models.loading import choose_device, choose_dtype, load, load_networks
from vidsmooth_fast.models.video_model import VideoModel
from vidsmooth_fast.sampling.fast_sample import fast_sample
from vidsmooth_fast.sampling.tensor_files import check_folder, write_tensors
from vidsmooth_fast.training.data import Pair, read_clip
from vidsmooth_fast.training.losses import Objective
from vidsmooth_fast.training.run import Run
from vidsmooth_fast.training.settings import Settings
from vidsmooth_fast.training.trainable import Trainable
from vidsmooth_fast.video import Video

COMBINED = {
    "loss": "plain",
    "steps": 1000,
    "lr": 1e-5,
    "frames": 30,
    "timesteps": (0, 500),
    "trainable": "all",
}
"""[002]'s settings for `tune(..., pairs=[...], **COMBINED)`; about 400 steps do for people."""


def tune(
    model: VideoModel | str | os.PathLike,
    video: Video | str | os.PathLike,
    prompt: str,
    *,
    loss: str | Mapping[str, float] = "inr",
    steps: int = 500,
    lr: float = 3e-5,
    frames: int = 24,
    size: tuple[int, int] | None = None,
    timesteps: tuple[int, int] = (0, 1000),
    trainable: Trainable = "tune-a-video",
    mask: np.ndarray | None = None,
    pairs: Sequence[Pair] = (),
    pictures: bool = False,
    batch_size: int = 1,
    lr_schedule: str = "constant",
    warmup: int = 0,
    weight_decay: float = 1e-2,
    clip_norm: float = 1.0,
    precision: str = "auto",
    gradient_checkpointing: bool | str = "auto",
    seed: int = 0,
    validation_prompts: Sequence[str] = (),
    validation_every: int = 100,
    validation_options: Mapping | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    progress: bool = True,
    callback: Callable[[int, int, dict[str, float]], None] | None = None,
    output: str | os.PathLike | None = None,
    resume: str | os.PathLike | None = None,
    checkpoint_every: int = 50,
) -> VideoModel:
    """Tune a model on one captioned clip, so that it samples the clip's motion under other prompts.

    Trained in fp32 master weights with AdamW (betas 0.9 and 0.999); latents and text are encoded once. Under
    `accelerate launch` or `torchrun` several processes share each step, every one with its own noise.

    model: a VideoModel (left as it is), an embedded name, a directory, or a Hub id. A network that was just inflated
        from 2D weights is given norm statistics over all frames, as Tune-A-Video trains it.
    video: the clip; its first `frames` frames are used, at `size` (height, width) or the model's own.
    prompt: what it shows; may be empty only with pairs.
    loss: "plain", "smooth", "smooth-naive", "smooth-simple" ([003]), "inr", "inr-forward", "inr-backward" ([004]),
        "foreground" ([000]; needs mask), or {term: weight}; see `training.losses`.
    steps, lr, batch_size: optimiser steps, learning rate, and timesteps (or pictures) drawn in each step.
    timesteps: (first, last + 1) of the noise levels trained on; (0, 500) is [002]'s "late steps".
    trainable: "tune-a-video", "temporal", "all", patterns of parameter names, or the rank of low-rank updates.
    mask: foreground, (F, H, W) bool or 0..1; `conditioning.masks.foreground_masks` makes one.
    pairs: the text-conditioned part of [002]'s combined dataset; the clip is its unconditional part, under `prompt`,
        there "". COMBINED holds the settings of its author. Sample the result with fast_sample(source=, strength=).
    pictures: tune on single frames, without the temporal layers.
    lr_schedule, warmup: a name of diffusers' schedules ("constant", "cosine", "linear", ...), and its first steps.
    weight_decay, clip_norm: of AdamW; greatest norm of a step's gradients.
    precision: "fp32", or autocast to "bf16" or "fp16"; "auto": bf16 (else fp16) on cuda, fp32 on a CPU.
    gradient_checkpointing: compute activations again instead of keeping them; "auto": where memory is short.
    seed: every random number is a function of it, the step and the process.
    validation_prompts, validation_every, validation_options: every so many steps, sample these prompts from the clip's
        inversion beside the clip (a video in the resume folder), with further options of `fast_sample`.
    device, dtype: where to train; dtype of the returned model, the given one's (or load's choice) by default.
    progress: bar with time left, and estimates, on standard error.
    callback: called as callback(step, steps, {"loss": ..., "loss/term": ...}) after every step.
    output: write the tuned model to this directory, in fp32, with `tuning.json` (prompt, clip, settings).
    resume: a folder that keeps checkpoints, loss curves and validation samples; OUTPUT.run by default when there is
        an output. A run that finds its checkpoint there goes on from it, to the same weights.
    checkpoint_every: steps between checkpoints; the last two are kept.

    Returns the tuned VideoModel, with its prompt, clip statistics and settings in `.tuning`.

    Raises ValueError before any work for bad input; MemoryError when the estimate exceeds what is free;
    FloatingPointError when the loss is not finite (the last checkpoint stays); OSError when a file cannot be written.
    """
    settings = Settings(
        prompt=prompt,
        loss=Objective(loss).weights,
        steps=steps,
        lr=lr,
        frames=frames,
        size=size,
        timesteps=timesteps,
        trainable=trainable,
        pictures=pictures,
        batch_size=batch_size,
        lr_schedule=lr_schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        precision=precision,
        seed=seed,
        pairs=len(pairs),
    )
    for name, value in (("validation_every", validation_every), ("checkpoint_every", checkpoint_every)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
    texts = isinstance(validation_prompts, (list, tuple)) and all(
        isinstance(p, str) and p for p in validation_prompts
    )
    if not texts:
        raise ValueError(f"validation_prompts: expected a list of texts, got {validation_prompts!r}")
    if validation_prompts and output is None and resume is None:
        raise ValueError("validation_prompts: their samples need a folder; give output or resume")
    if Objective(loss).needs_mask and mask is None:
        raise ValueError(
            "mask: this loss needs the clip's foreground; vidsmooth_fast.conditioning.masks.foreground_masks finds it"
        )
    if Objective(loss).needs_mask and pairs:
        raise ValueError("loss: foreground and background need masks, and pairs have none")
    target = _target(output)
    if resume is None and target is not None:
        resume = target.with_name(target.name + ".run")
    if not isinstance(video, Video):
        video = Video.open(video)
    returned_dtype, model = _master(model, device, dtype)
    settings = settings.for_model(model)
    clip = read_clip(video, settings.frames, settings.size, pictures=pictures)
    seen = 1 if pictures or pairs else len(clip)
    if seen < Objective(loss).least_frames:
        raise ValueError(f"loss: its terms compare neighbouring frames and vanish for {seen} of them")
    if unknown := set(validation_options or {}) - set(inspect.signature(fast_sample).parameters):
        raise ValueError(
            f"validation_options: fast_sample has no option {', '.join(sorted(map(str, unknown)))}"
        )
    run = Run(
        model,
        settings,
        clip,
        video,
        mask,
        pairs,
        folder=None if resume is None else Path(resume),
        checkpoint_every=checkpoint_every,
        gradient_checkpointing=gradient_checkpointing,
        validation=(list(validation_prompts), validation_every, dict(validation_options or {})),
        progress=progress,
        callback=callback,
    )
    updates = run.train()
    if target is not None and run.is_main:
        try:
            model.save(target)
            if updates:
                write_tensors(target / "lora.safetensors", updates, {"format": "pt"})
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"cannot write the tuned model {target}: {error}; {resume} holds its last checkpoint, and the same "
                "call goes on from there"
            ) from error
        model.path = target
    return model.to(dtype=returned_dtype)


def _target(output: str | os.PathLike | None) -> Path | None:
    """Where the result goes, checked before any work."""
    if output is None:
        return None
    target = Path(output).absolute()
    if target.exists() and not (
        target.is_dir() and ((target / "model_index.json").is_file() or not any(target.iterdir()))
    ):
        raise ValueError(f"output: expected a new, empty or earlier model directory, got {target}")
    check_folder("output", target, made=True)
    return target


def _master(model: VideoModel | str | os.PathLike, device, dtype) -> tuple[torch.dtype, VideoModel]:
    """(dtype to return, a copy of the model in fp32).

    A model in half precision holds rounded weights. Where its files still say what was rounded, they are read again.
    """
    if not isinstance(model, VideoModel):
        device = _own_gpu(choose_device(device or "auto"))
        return choose_dtype(dtype or "auto", device), load_networks(model, device=device, dtype=torch.float32)
    device = _own_gpu(choose_device(device or model.device))
    wanted = choose_dtype(dtype or model.dtype, device)
    if model.dtype == torch.float32:
        return wanted, copy.deepcopy(model).to(device)
    if model.path is not None:
        try:
            full = load(model.path, device=model.device, dtype=torch.float32)
        except (ValueError, OSError):
            full = None
        if full is not None and _rounds_to(full, model):
            full.name = model.name
            return wanted, full.to(device)
    held = str(model.dtype).removeprefix("torch.")
    warnings.warn(
        f"model: its weights are tuned as rounded to {held}; load(..., dtype='float32') keeps them whole",
        stacklevel=3,
    )
    return wanted, copy.deepcopy(model).to(device, torch.float32)


def _own_gpu(device: torch.device) -> torch.device:
    """Under `accelerate launch` with several processes each has the GPU of its number."""
    if device.type == "cuda" and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def _rounds_to(full: VideoModel, model: VideoModel) -> bool:
    for part in ("unet", "vae", "text_encoder"):
        theirs = getattr(model, part).state_dict()
        ours = getattr(full, part).state_dict()
        if theirs.keys() != ours.keys():
            return False
        if not all(torch.equal(ours[name].to(value.dtype), value) for name, value in theirs.items()):
            return False
    settings = ("norm_over_frames", "attn1_frames")
    return all(getattr(full.unet, s) == getattr(model.unet, s) for s in settings) and (
        full.scheduler_config == model.scheduler_config
    )
