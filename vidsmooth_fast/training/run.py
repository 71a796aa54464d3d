"""One tuning run: the accelerated loop, its checkpoints, curves and validation samples."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from diffusers.optimization import get_scheduler
from torch import Tensor
from tqdm import tqdm

from vidsmooth_fast import __version__
from vidsmooth_fast.models.video_model import VideoModel
from vidsmooth_fast.models.weights import is_temporal
from vidsmooth_fast.sampling import budget
from vidsmooth_fast.sampling.checkpoint import fingerprint
from vidsmooth_fast.training.checkpoint import Checkpoints, State
from vidsmooth_fast.training.curves import Curves
from vidsmooth_fast.training.data import Dataset, Pair, clip_items, pair_items
from vidsmooth_fast.training.losses import Objective, Predicted
from vidsmooth_fast.training.memory import training_bytes
from vidsmooth_fast.training.noising import Noising
from vidsmooth_fast.training.settings import Settings
from vidsmooth_fast.training.trainable import choose, low_rank_updates, merge
from vidsmooth_fast.training.validation import grid_path, sample_grid
from vidsmooth_fast.video import Video

MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
Validation = tuple[list[str], int, dict]  # prompts, steps between samplings, further options of fast_sample


@contextmanager
def accelerated(device: torch.device, precision: str, *, unused: bool) -> Iterator[Accelerator]:
    """An Accelerator; the process-wide state that it needs is removed afterwards unless it was there before.

    device: where the network and its batches are, and stay. unused: some steps do not reach every trained parameter.
    """
    ours = AcceleratorState._shared_state == {}
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=unused)]
    accelerator = Accelerator(
        mixed_precision=MIXED[precision],
        cpu=device.type == "cpu",
        kwargs_handlers=handlers,
        device_placement=False,
    )
    try:
        yield accelerator
    finally:
        if ours:
            AcceleratorState._reset_state(reset_partial_state=accelerator.num_processes == 1)


class Run:
    """The inputs of one run, encoded, and checked against its checkpoint.

    model: in fp32; its network is tuned in place. clip: (F, H, W, 3) uint8, as it is trained on. video: where it comes
    from. folder: for checkpoints, curves and samples, or None. The others: as in `tune`.
    Raises ValueError for pairs, masks, patterns or a checkpoint that do not fit.
    """

    def __init__(
        self,
        model: VideoModel,
        settings: Settings,
        clip: np.ndarray,
        video: Video,
        mask: np.ndarray | None,
        pairs: Sequence[Pair],
        *,
        folder: Path | None,
        checkpoint_every: int,
        gradient_checkpointing: bool | str,
        validation: Validation,
        progress: bool,
        callback: Callable[[int, int, dict[str, float]], None] | None,
    ) -> None:
        self.model, self.settings, self.clip = model, settings, clip
        self.fps = video.fps
        self.folder = folder
        self.checkpoint_every = checkpoint_every
        self.gradient_checkpointing = gradient_checkpointing
        self.validation = validation
        self.progress, self.callback = progress, callback
        self.is_main = True

        self.noising = Noising(model.scheduler_config, model.prediction_type, model.device)
        self.objective = Objective(settings.loss)
        items = clip_items(model, clip, settings.prompt, mask, pictures=settings.pictures)
        items += pair_items(model, clip, pairs)
        self.data = Dataset(items, self.noising, settings.timesteps, settings.batch_size, settings.seed)
        if not settings.pictures and _freshly_inflated(model):
            model.unet.norm_over_frames = True
        mark = self._fingerprint(mask, pairs) if folder is not None else ""
        self.trained = choose(model.unet, settings.trainable, seed=settings.seed)
        if settings.pictures:  # these layers take no part
            for name in [n for n in self.trained if is_temporal(n)]:
                self.trained.pop(name).requires_grad_(False)
            if not self.trained:
                raise ValueError(
                    f"trainable: {settings.trainable!r} has temporal layers only, which pictures leave out"
                )
        self.checkpoints = None if folder is None else Checkpoints(folder, mark, model.unet.config)
        self.start = self.checkpoints.load() if self.checkpoints else None
        if self.start is not None and self.start.step > settings.steps:
            raise ValueError(
                f"resume: {self.checkpoints.last} has taken more than the {settings.steps} steps asked for; "
                "delete the folder to begin anew"
            )

    def _fingerprint(self, mask: np.ndarray | None, pairs: Sequence[Pair]) -> str:
        """Of everything that a step depends on; the number of steps only where the learning rate looks ahead.

        Pictures, not their latents, which another number of threads rounds otherwise.
        """
        settings = {**self.settings.as_dict(), "pairs": [(pair.frame, pair.prompt) for pair in pairs]}
        if self.settings.lr_schedule.startswith("constant"):
            del settings["steps"]
        model = self.model
        tensors = [p for part in (model.unet, model.vae, model.text_encoder) for p in part.parameters()]
        pictures = [*self.clip, *(pair.edited for pair in pairs), *([] if mask is None else [mask])]
        settings |= {"unet": model.unet.config, "scheduler": model.scheduler_config}
        return fingerprint(settings, tensors, pictures)

    def train(self) -> dict[str, Tensor]:
        """Take the steps that are left. Returns the low-rank updates, {} unless the run was of that kind.

        Afterwards the network has its usual parameters again, and the model says in `.tuning` what was done.
        """
        unused = len({item.origin.shape for item in self.data.items}) > 1
        with accelerated(self.model.device, self.settings.precision, unused=unused) as accelerator:
            self.is_main = accelerator.is_main_process
            self._fit_memory()
            self._loop(accelerator)
        updates = low_rank_updates(self.model.unet)
        merge(self.model.unet)
        self.model.unet.gradient_checkpointing = False
        self.model.tuning = self.describe()
        return updates

    def _loop(self, accelerator: Accelerator) -> None:
        settings, parameters = self.settings, list(self.trained.values())
        optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
        scheduler = get_scheduler(
            settings.lr_schedule,
            optimizer,
            num_warmup_steps=settings.warmup,
            num_training_steps=settings.steps,
        )
        done = self._restore(accelerator, optimizer, scheduler)
        network, stepper = accelerator.prepare(self.model.unet, optimizer)
        writes = self.is_main and self.folder is not None
        curves = Curves(self.folder, done) if writes else None
        bar = tqdm(
            desc="tuning", total=settings.steps, initial=done, unit="step",
            disable=not (self.progress and self.is_main),
        )  # fmt: skip
        try:
            if writes and done and not grid_path(self.folder, done).exists():
                self._sample_where_due(done)  # the kill came after the checkpoint
            for step in range(done, settings.steps):
                values = self._step(accelerator, network, stepper, step)
                scheduler.step()
                bar.update()
                bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
                taken = step + 1
                if curves is not None:
                    curves.add(taken, values)
                if writes and (taken == settings.steps or taken % self.checkpoint_every == 0):
                    self.checkpoints.save(self._state(taken, accelerator, optimizer, scheduler))
                if writes and self._sample_where_due(taken):
                    curves.draw()
                if self.callback is not None and self.is_main:
                    self.callback(taken, settings.steps, values)
        finally:
            bar.close()
            if curves is not None:
                curves.draw()
                curves.close()
                self._say_missing(curves.missing)
            accelerator.unwrap_model(network, keep_fp32_wrapper=False)
        accelerator.wait_for_everyone()

    def _step(self, accelerator: Accelerator, network, optimizer, step: int) -> dict[str, float]:
        """One step of AdamW; returns the losses. Raises FloatingPointError, with the weights as they were."""
        batch = self.data.batch(step, accelerator.process_index)
        prediction = network(batch.noisy, batch.t, batch.text, skip_temporal=self.settings.pictures).float()
        predicted = Predicted(
            error=prediction - batch.target,
            epsilon=self.noising.epsilon(prediction, batch.noisy, batch.t),
            noisy=batch.noisy,
            constant=self.noising.constant(batch.t),
            foreground=batch.mask,
        )
        total, parts = self.objective(predicted)
        logged = torch.stack([total.detach(), *parts.values()])
        logged = accelerator.reduce(logged, "mean").tolist()
        if not math.isfinite(logged[0]):
            raise self._stopped("loss", logged[0], step)
        accelerator.backward(total)
        norm = accelerator.clip_grad_norm_(list(self.trained.values()), self.settings.clip_norm)
        if accelerator.scaler is None and not math.isfinite(float(norm)):
            raise self._stopped("norm of the gradients", float(norm), step)
        optimizer.step()
        optimizer.zero_grad()
        names = ["loss", *(f"loss/{name}" for name in parts)] if len(parts) > 1 else ["loss"]
        return dict(zip(names, logged, strict=False))

    def _sample_where_due(self, taken: int) -> bool:
        """Validation samples, after every so many steps and the last."""
        prompts, every, _ = self.validation
        due = bool(prompts) and (taken == self.settings.steps or taken % every == 0)
        if not due:
            return False
        try:
            sample_grid(
                self.model, self.clip, self.fps, self.settings.prompt, self.validation, self.folder, taken
            )
        except (ValueError, OSError, MemoryError, FloatingPointError) as error:  # not worth the training
            warnings.warn(f"no validation samples after step {taken}: {error}", stacklevel=2)
            return False
        return True

    def _stopped(self, what: str, value: float, step: int) -> FloatingPointError:
        last = self.checkpoints.last if self.checkpoints else None
        kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        return FloatingPointError(
            f"the {what} is {value} at step {step + 1} of {self.settings.steps}; {kept}; "
            "lower lr or clip_norm, or use another precision"
        )

    def _state(self, step: int, accelerator: Accelerator, optimizer, scheduler) -> State:
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
        weights = {name: p.detach() for name, p in self.trained.items()}
        return State(step, weights, optimizer.state_dict(), scheduler.state_dict(), scaler)

    def _restore(self, accelerator: Accelerator, optimizer, scheduler) -> int:
        """Put the checkpoint's state into everything. Returns the steps already taken."""
        if self.start is None:
            return 0
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(self.start.weights[name])
        optimizer.load_state_dict(self.start.optimizer)
        scheduler.load_state_dict(self.start.scheduler)
        if accelerator.scaler is not None and self.start.scaler:
            accelerator.scaler.load_state_dict(self.start.scaler)
        if self.progress and self.is_main:
            tqdm.write(f"going on from {self.checkpoints.last}", file=sys.stderr)
        return self.start.step

    def _fit_memory(self) -> None:
        """Decide on gradient checkpointing; say what the run takes. Raises MemoryError where it would not fit."""
        unet, settings = self.model.unet, self.settings
        kept, recomputed = training_bytes(
            unet,
            self.data.batch(0),
            sum(p.numel() for p in self.trained.values()),
            skip_temporal=settings.pictures,
        )
        free, asked = budget.free_bytes(self.model.device), self.gradient_checkpointing
        if asked not in (True, False, "auto"):
            raise ValueError(f"gradient_checkpointing: expected True, False or 'auto', got {asked!r}")
        unet.gradient_checkpointing = kept > free * budget.SHARE if asked == "auto" else asked
        needed = recomputed if unet.gradient_checkpointing else kept
        if needed > free:
            raise MemoryError(
                f"about {budget.in_words(needed)} of memory needed for a step, {budget.in_words(free)} free: reduce "
                "frames, size or batch_size"
                + ("" if unet.gradient_checkpointing else ", or use gradient_checkpointing")
            )
        if self.progress and self.is_main:
            frames, height, width = self.clip.shape[:3]
            count = sum(p.numel() for p in self.trained.values())
            tqdm.write(
                f"{frames} frames at {width}x{height}, {settings.steps} steps, {count:,} trained parameters of "
                f"{sum(p.numel() for p in unet.parameters()):,}, {settings.precision}"
                f"{', activations computed again' if unet.gradient_checkpointing else ''}; about "
                f"{budget.in_words(budget.used_bytes(self.model.device) + needed)} of memory",
                file=sys.stderr,
            )

    def _say_missing(self, missing: list[str]) -> None:
        if missing and self.progress:
            tqdm.write(
                f"without {' and '.join(sorted(set(missing)))} (pip install 'vidsmooth-fast[train]') the losses are in "
                f"{self.folder / 'losses.jsonl'} only",
                file=sys.stderr,
            )

    def describe(self) -> dict:
        """What is written beside the weights: prompt, clip, settings."""
        clip, latents = self.clip.astype(np.float32), self.data.items[0].aim
        said = {
            "prompt": self.settings.prompt,
            "clip": {
                "frames": len(clip),
                "fps": str(self.fps),
                "height": clip.shape[1],
                "width": clip.shape[2],
                "mean": [round(float(v), 3) for v in clip.mean((0, 1, 2))],
                "std": [round(float(v), 3) for v in clip.std((0, 1, 2))],
                "latent_mean": round(float(latents.mean()), 5),
                "latent_std": round(float(latents.std()), 5),
            },
            "settings": self.settings.as_dict(),
            "model": self.model.name,
            "version": __version__,
        }
        return json.loads(json.dumps(said))  # as it will be read: lists, no tuples


def _freshly_inflated(model: VideoModel) -> bool:
    """Whether temporal attention still adds nothing, as right after inflation."""
    outputs = [p for n, p in model.unet.named_parameters() if "attn_temp.to_out" in n]
    return bool(outputs) and not any(bool(p.detach().any()) for p in outputs)
