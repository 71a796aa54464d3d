"""A training loop that can be killed at any moment and continued to the same weights.

Every random choice of step i comes from (seed, stage, i), so a run that stops and resumes sees the same batches; the
checkpoint holds weights, optimiser, moving average and step, written under another name and then renamed.

Two processes of one thread each (`in_parallel`) train faster than one of two threads on the machine this was written
for: 2 cores shared with other work, where threads wait for one another at every operator and processes once a step.
"""

from __future__ import annotations

import math
import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn


@dataclass
class Schedule:
    """steps in total; lr peak with `warmup` steps, then a cosine to zero; ema: decay of the weights' moving average."""

    steps: int
    lr: float
    warmup: int = 100
    ema: float = 0.998

    def factor(self, step: int) -> float:
        """lr at `step` divided by the peak."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def in_parallel(workers: int, threads: int, job: Callable, *arguments) -> None:
    """Run job(*arguments) in `workers` processes that share their gradients; one worker runs here."""
    if workers == 1:
        torch.set_num_threads(threads)
        job(*arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (workers, threads, f"file://{folder}/meet", job, arguments), nprocs=workers)


def _worker(rank: int, workers: int, threads: int, meet: str, job: Callable, arguments: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what torch sends to workers whose parent has died
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=workers)
    try:
        job(*arguments)
    finally:
        dist.destroy_process_group()


def rank_and_workers() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _share_gradients(parameters: list[Tensor], workers: int) -> None:
    """Average the gradients over the workers; where a batch did not reach a parameter its gradient is zero."""
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    grads = [p.grad for p in parameters]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= workers
    for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view(g.shape))


def average(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def train(
    model: nn.Module,
    loss_of: Callable[[int, torch.Generator], Tensor],
    schedule: Schedule,
    checkpoint: Path,
    *,
    seed: int = 0,
    minutes: float = float("inf"),
    groups: list[dict] | None = None,
    save_every: float = 90.0,
    snapshot_every: int = 0,
    on_snapshot: Callable[[int], None] | None = None,
    log: Callable[[str], None] = print,
) -> int:
    """Minimise loss_of(step, generator) until `schedule.steps`, or for `minutes`. Returns the steps done in all.

    The generator is on the model's device. The model ends with its raw weights; `load_average` puts the moving average
    in. groups: optimiser parameter groups, each with its own `scale` of the learning rate. save_every: seconds between
    checkpoints.
    """
    groups = groups or [{"params": [p for p in model.parameters() if p.requires_grad], "scale": 1.0}]
    optimiser = torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.99), weight_decay=1e-3)
    mean, step, spent = average(model), 0, 0.0
    device = next(model.parameters()).device
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        mean, step, spent = state["mean"], state["step"], state["seconds"]
        log(f"resumed {checkpoint} at step {step}")
    rank, workers = rank_and_workers()
    began = saved = time.monotonic()
    running: float | None = None
    parameters = [p for g in groups for p in g["params"]]

    def save() -> None:
        if rank:
            return
        temporary = checkpoint.with_suffix(".writing")
        torch.save(
            {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "mean": mean, "step": step,
             "seconds": spent + time.monotonic() - began}, temporary,
        )  # fmt: skip
        os.replace(temporary, checkpoint)

    def in_time() -> bool:
        answer = torch.tensor(float(time.monotonic() - began < 60 * minutes))
        if workers > 1:
            dist.broadcast(answer, 0)
        return bool(answer)

    while step < schedule.steps and in_time():
        generator = torch.Generator(device).manual_seed((seed * 1_000_003 + step) * workers + rank)
        for g in optimiser.param_groups:
            g["lr"] = schedule.lr * g["scale"] * schedule.factor(step)
        loss = loss_of(step * workers + rank, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if workers > 1:
            _share_gradients(parameters, workers)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        decay = min(schedule.ema, step / (step + 10))
        with torch.no_grad():
            now = model.state_dict()
            floats = [k for k in mean if mean[k].is_floating_point()]
            torch._foreach_lerp_([mean[k] for k in floats], [now[k] for k in floats], 1 - decay)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"loss is {value} at step {step}; lower the learning rate")
        running = value if running is None else 0.98 * running + 0.02 * value
        if rank == 0 and (step % 50 == 0 or step == schedule.steps):
            log(
                f"step {step}/{schedule.steps} loss {running:.4f} seconds {spent + time.monotonic() - began:.0f}"
            )
        if snapshot_every and on_snapshot and step % snapshot_every == 0:
            save()
            if rank == 0:
                on_snapshot(step)
        if time.monotonic() - saved > save_every:
            save()
            saved = time.monotonic()
    save()
    if workers > 1:
        dist.barrier()
    return step


def load_average(model: nn.Module, checkpoint: Path, part: str = "") -> int:
    """Put the moving average of a checkpoint, or its part of that prefix, into the model. Returns its step."""
    if not checkpoint.exists():
        raise ValueError(f"out: expected a checkpoint {checkpoint.name} from an earlier stage, found none")
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    model.load_state_dict({k.removeprefix(part): v for k, v in state["mean"].items() if k.startswith(part)})
    return state["step"]
