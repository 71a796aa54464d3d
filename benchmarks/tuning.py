"""One tuning step on sprite-world: ours against the plain published program (baselines.py), on the same weights.

    python benchmarks/tuning.py                                24 frames of 128x128, fp32, both objectives
    python benchmarks/tuning.py --frames 4 --repeats 2         a quick look
    python benchmarks/tuning.py --compare-only                 the loss curves, no timing

Both programs draw the same noise and timesteps, train the same parameters (Tune-A-Video's) with AdamW, and must show
the same loss, to 1e-4 relative, at each of the first 10 steps; otherwise nothing is timed. The published program
encodes the clip and the caption in every step and recomputes activations (its configuration's
`gradient_checkpointing`, here without the fault that loses gradients); "bare" leaves both out and differs in the
network's arithmetic alone. The programs take turns, a step each, so that a busy machine slows all of them.

Peak memory is that of a process of its own which takes two steps. Results are appended to
benchmarks/results/tuning.jsonl.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import re
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from _timing import RESULTS, environment
from baselines import PublishedUNet
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import vidsmooth_fast as vsf
from vidsmooth_fast.models import VideoModel
from vidsmooth_fast.spriteworld.captions import caption
from vidsmooth_fast.spriteworld.render import HELD_OUT_SEED, Scene, render_clip
from vidsmooth_fast.training.data import Dataset, clip_items
from vidsmooth_fast.training.losses import Objective, Predicted
from vidsmooth_fast.training.noising import Noising
from vidsmooth_fast.training.trainable import choose

SCENE = Scene("car", "red", "road", "cartoon", seed=HELD_OUT_SEED)
LR, TOLERANCE, COMPARED = 3e-5, 1e-4, 10
PROGRAMS = ("ours", "ours, recomputing", "published", "published, bare")


class RecomputingUNet(PublishedUNet):
    """The published network with gradient checkpointing of every ResNet and transformer."""

    def _resnet(self, name: str, x: Tensor, emb: Tensor) -> Tensor:
        return checkpoint(super()._resnet, name, x, emb, use_reentrant=False)

    def _transformer(self, name: str, x: Tensor, text: Tensor, heads: int) -> Tensor:
        return checkpoint(super()._transformer, name, x, text, heads, use_reentrant=False)


class Tuning:
    """A program that tunes a copy of the model's network, step by step, on the batches of `data`."""

    def __init__(
        self, program: str, model: VideoModel, clip: np.ndarray, data: Dataset, objective: Objective
    ) -> None:
        self.program, self.model, self.clip, self.data, self.objective = program, model, clip, data, objective
        unet = copy.deepcopy(model.unet)
        trained = choose(unet, "tune-a-video")
        if program.startswith("ours"):
            unet.gradient_checkpointing = program.endswith("recomputing")
            self.network, parameters = unet, list(trained.values())
        else:
            kind = PublishedUNet if program.endswith("bare") else RecomputingUNet
            self.network = kind(unet.state_dict(), unet.config)
            weights = self.network.weights
            for name in trained:
                weights[name] = weights[name].clone().requires_grad_(True)
            parameters = [weights[name] for name in trained]
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=1e-2)

    def step(self, number: int) -> float:
        """Take step `number`; returns its loss."""
        batch = self.data.batch(number)
        if self.program == "published":  # what its loop does before the network is called
            self.model.encode_video(self.clip)
            self.model.encode_text([caption(SCENE)])
        prediction = self.network(batch.noisy, batch.t, batch.text)
        noising = self.data.noising
        loss, _ = self.objective(
            Predicted(
                error=prediction - batch.target,
                epsilon=noising.epsilon(prediction, batch.noisy, batch.t),
                noisy=batch.noisy,
                constant=noising.constant(batch.t),
            )
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def prepare(frames: int, loss: str, programs: tuple[str, ...]) -> dict[str, Tuning]:
    model = vsf.load("sprite-world", device="cpu", dtype="float32")
    clip = render_clip(SCENE, frames, truth=False).frames
    noising = Noising(model.scheduler_config, model.prediction_type)
    data = Dataset(
        clip_items(model, clip, caption(SCENE), None, pictures=False), noising, (0, 1000), 1, seed=0
    )
    return {program: Tuning(program, model, clip, data, Objective(loss)) for program in programs}


def compare(tunings: dict[str, Tuning]) -> float:
    """Largest relative difference of the first losses. Raises ValueError above the tolerance."""
    worst = 0.0
    for number in range(COMPARED):
        losses = {program: tuning.step(number) for program, tuning in tunings.items()}
        reference = losses["published, bare"]
        worst = max(worst, max(abs(value / reference - 1) for value in losses.values()))
    if worst > TOLERANCE:
        raise ValueError(
            f"the loss curves differ by {worst:.1e} in {COMPARED} steps, more than {TOLERANCE:.0e}"
        )
    return worst


def _peak(program: str, frames: int, loss: str, threads: int, pipe) -> None:
    torch.set_num_threads(threads)
    tuning = prepare(frames, loss, (program,))[program]
    before = _resident()
    for number in range(2):
        tuning.step(number)
    pipe.send((_most_resident(), before))


def _resident() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def _most_resident() -> int:
    """Peak bytes of this program (Linux). getrusage would count the parent, from which the process was forked."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024


def peak_memory(program: str, frames: int, loss: str) -> tuple[int, int]:
    """(peak, before the first step) bytes of a process that takes two steps."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_peak, args=(program, frames, loss, torch.get_num_threads(), send))
    process.start()
    send.close()
    result = receive.recv()
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each program")
    parser.add_argument("--loss", nargs="+", default=["plain", "inr"])
    parser.add_argument("--compare-only", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    options = parser.parse_args()
    for loss in options.loss:
        tunings = prepare(options.frames, loss, PROGRAMS)
        worst = compare(tunings)
        print(f"{loss}, {options.frames} frames: {COMPARED} losses agree to {worst:.1e}")
        if options.compare_only:
            continue
        seconds: dict[str, list[float]] = {program: [] for program in PROGRAMS}
        for number in range(COMPARED, COMPARED + options.repeats):
            for program, tuning in tunings.items():
                began = time.perf_counter()
                tuning.step(number)
                seconds[program].append(time.perf_counter() - began)
        del tunings
        row = {
            "benchmark": "tuning",
            "loss": loss,
            "frames": options.frames,
            "loss_difference": worst,
            **environment(),
        }
        for program in PROGRAMS:
            times = sorted(seconds[program])
            entry = {"median": statistics.median(times), "least": times[0], "most": times[-1]}
            if not options.no_memory:
                entry["peak_bytes"], entry["before_bytes"] = peak_memory(program, options.frames, loss)
            row[program] = entry
        for program in PROGRAMS:
            ratio = statistics.median(
                theirs / ours for theirs, ours in zip(seconds[program], seconds["ours"], strict=True)
            )
            row[program]["times_ours"] = ratio
            memory = row[program].get("peak_bytes")
            said = "" if memory is None else f", peak {memory / 2**20:.0f} MiB"
            print(f"  {program:<18} {row[program]['median']:7.3f} s a step, {ratio:5.2f} x ours{said}")
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / "tuning.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
