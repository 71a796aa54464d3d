"""Sampling at Stable Diffusion 1.5's size on a GPU, with random weights; end_to_end.py --device cuda calls it.

    python benchmarks/_gpu_end_to_end.py [--part ours|published|published-compiled|picture] [--output FILE]

512x512, 256 frames in windows of 16, stride 8, guidance, DDIM, bf16 (--tiny: a small network, to try the program).
ours: steps of the engine, latents merged and attention merged, as they are, as CUDA graphs and with compiled blocks;
published, published-compiled: the published network on SDPA, window by window and branch by branch as its authors' loop
calls it, eager and with torch.compile; picture: the 2D network alone, guided, in iterations per second. Everything is
timed over at least three steady steps; a run of 50 is multiplied out. Needs torch and psutil; the rate of the decoder
comes where diffusers is. One JSON line per row, with the bf16 rate of a large product measured in the same run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from _networks import SCHEDULER, STABLE_DIFFUSION, TINY, TOKENS, flop_counter, random_unet
from _timing import RESULTS, environment
from baselines import PublishedUNet, attention_sdpa

from vidsmooth_fast.conditioning.prompts import PromptTrack
from vidsmooth_fast.models import AttentionWindows, VideoUNet
from vidsmooth_fast.sampling.denoiser import UNetDenoiser
from vidsmooth_fast.sampling.engine import Guidance, State, denoise
from vidsmooth_fast.sampling.schedule import make_schedule
from vidsmooth_fast.sampling.windowed import WindowedPredictor, Windows
from vidsmooth_fast.sampling.windows import plan, window_weights

PARTS = ("ours", "published", "published-compiled", "picture")
STEPS, STEADY, GUIDANCE, WINDOW, STRIDE = 50, 3, 7.5, 16, 8
STABLE_FAST = (
    104.6  # iterations/s of stable-fast, Stable Diffusion 1.5 at 512x512 on an H100, as its table says
)


class Setting:
    """The problem: sizes, device, dtype, latents and text."""

    def __init__(self, device: str, tiny: bool):
        self.device = torch.device(device)
        self.dtype = torch.bfloat16
        self.config = TINY if tiny else STABLE_DIFFUSION
        self.size = "tiny" if tiny else "sd15"
        self.frames = 32 if tiny else 256
        self.edge = self.config["sample_size"]
        self.pairs = (2,) if tiny else (4, 8, 16, 32)  # (window, branch) pairs in one call
        self.batches = (1, 2) if tiny else (1, 2, 4, 8, 16)
        width = self.config["cross_attention_dim"]
        generator = torch.Generator().manual_seed(0)
        self.latents = torch.randn(1, 4, self.frames, self.edge, self.edge, generator=generator)
        self.texts = torch.randn(2, 1, TOKENS, width, generator=generator)

    def unet(self) -> VideoUNet:
        return random_unet(self.config, self.device, self.dtype)

    def seconds(self, call: Callable[[], object]) -> float:
        """Of one call, on the device."""
        self._wait()
        began = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def window_gflop(setting: Setting, unet: VideoUNet) -> float:
    """GFLOP of one guided window of one step, as our algorithm needs it (branches share what they can)."""
    x = setting.latents[:, :, :WINDOW].to(setting.device, setting.dtype)
    kv = unet.project_text(setting.texts[:, 0])
    time_embedding = unet.embed_time(500)
    with flop_counter() as counter:
        unet(x, time_embedding, kv, branches=2)
    return counter.get_total_flops() / 1e9


def predictor(setting: Setting, unet: VideoUNet, merge: str, pairs: int) -> WindowedPredictor:
    starts, weights = plan(setting.frames, WINDOW, STRIDE), window_weights("hann", WINDOW)
    tracks = [PromptTrack((0,), text) for text in setting.texts]
    if merge == "attention":
        inside = AttentionWindows(starts, weights.to(setting.device))
        whole = Windows((0,), torch.ones(setting.frames), setting.frames)
        return WindowedPredictor(UNetDenoiser(unet, inside), whole, tracks, max_batch=pairs)
    windows = Windows(starts, weights, setting.frames)
    return WindowedPredictor(UNetDenoiser(unet), windows, tracks, max_batch=pairs)


def step_seconds(setting: Setting, predict: WindowedPredictor, *, graphs: bool = False) -> float:
    """Of one steady step of the engine: some to warm up, then STEADY together."""
    schedule = make_schedule(SCHEDULER, steps=STEPS)

    def run(steps: int) -> None:
        part = replace(schedule, steps=schedule.steps[:steps])
        denoise(predict, State(setting.latents), part, guidance=Guidance.of_scale(GUIDANCE))

    # The second call of a shape is recorded, which takes longer; the last call of a step may be of a shape of its own.
    run(2 if graphs else 1)
    return setting.seconds(lambda: run(STEADY)) / STEADY


def ours(setting: Setting) -> Iterator[dict]:
    unet = setting.unet()
    gflop = window_gflop(setting, unet) * len(plan(setting.frames, WINDOW, STRIDE))
    taken = {
        pairs: step_seconds(setting, predictor(setting, unet, "latent", pairs)) for pairs in setting.pairs
    }
    best = min(taken, key=taken.__getitem__)
    facts = {"gflop_per_step": gflop, "pairs": best}
    yield {"row": "ours, exact", "seconds_per_step": taken[best], "by_pairs": taken, **facts}
    merged = predictor(setting, unet, "attention", 2)
    yield {"row": "ours, merged in attention", "seconds_per_step": step_seconds(setting, merged)}
    if setting.device.type == "cuda":
        unet.cuda_graphs = True
        graphed = step_seconds(setting, predictor(setting, unet, "latent", best), graphs=True)
        yield {"row": "ours, exact, CUDA graphs", "seconds_per_step": graphed, **facts}
        unet.cuda_graphs = False
    unet.compile_blocks()
    compiled = step_seconds(setting, predictor(setting, unet, "latent", best))
    yield {"row": "ours, exact, blocks compiled", "seconds_per_step": compiled, **facts}
    if importlib.util.find_spec("diffusers"):
        yield {"row": "decoder", "seconds_per_frame": decode_seconds(setting)}


def decode_seconds(setting: Setting) -> float:
    """Of a frame, eight at a time, by an autoencoder of Stable Diffusion's size."""
    from diffusers import AutoencoderKL

    levels = (32, 32) if setting.size == "tiny" else (128, 256, 512, 512)
    with torch.device(setting.device):
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * len(levels),
            up_block_types=["UpDecoderBlock2D"] * len(levels),
            block_out_channels=levels,
            layers_per_block=2,
            latent_channels=4,
        )
    torch.nn.Module.to(vae, setting.device, setting.dtype, memory_format=torch.channels_last)
    z = setting.latents[0, :, :8].transpose(0, 1).to(setting.device, setting.dtype)
    setting.seconds(lambda: vae.decode(z))
    return statistics.median(setting.seconds(lambda: vae.decode(z)) for _ in range(STEADY)) / len(z)


def published(setting: Setting, compiled: bool = False) -> Iterator[dict]:
    """STEADY steps' worth of its calls: every window twice, alone. Its scheduler's arithmetic is left out."""
    unet = setting.unet()
    network = PublishedUNet(unet.state_dict(), unet.config, dtype=setting.dtype, attention=attention_sdpa)
    call = torch.compile(network.__call__, dynamic=False) if compiled else network
    x = setting.latents[:, :, :WINDOW].to(setting.device)
    texts, t = setting.texts.to(setting.device), torch.tensor(500, device=setting.device)
    windows = len(plan(setting.frames, WINDOW, STRIDE))

    def step() -> None:
        for _ in range(windows):
            for text in texts:
                call(x, t, text)

    first = setting.seconds(lambda: [call(x, t, text) for text in texts])
    seconds = setting.seconds(lambda: [step() for _ in range(STEADY)]) / STEADY
    name = "published on SDPA, torch.compile" if compiled else "published on SDPA"
    yield {"row": name, "seconds_per_step": seconds, "first_call_seconds": first}


def picture(setting: Setting) -> Iterator[dict]:
    """The 2D network, guided, as it stands and as one CUDA graph: iterations/s, and pictures x iterations/s."""
    unet = setting.unet()
    unet.attn1_frames, unet.norm_over_frames = "self", False
    for graphs in (False, True) if setting.device.type == "cuda" else (False,):
        rates = {}
        for batch in setting.batches:
            unet.cuda_graphs = graphs
            denoiser = UNetDenoiser(unet)
            x = setting.latents[:, :, :batch].to(setting.device, setting.dtype)
            x = x[0].transpose(0, 1)[:, :, None].contiguous()
            text = denoiser.prepare_text(setting.texts[:, 0])
            text = text.select(torch.arange(2 * batch, device=setting.device) % 2)

            def iterate(denoiser=denoiser, x=x, text=text) -> None:
                for step in range(10):
                    denoiser.predict(x, float(step), text, branches=2)

            iterate()
            rates[batch] = 10 / statistics.median(setting.seconds(iterate) for _ in range(STEADY))
        best = max(rates, key=lambda batch: rates[batch] * batch)
        yield {
            "row": "2D network" + (", CUDA graph" if graphs else ""),
            "iterations_per_second": rates,
            "best_batch": best,
            "stable_fast_on_h100": STABLE_FAST,
        }


RUN: dict[str, Callable[[Setting], Iterator[dict]]] = {
    "ours": ours,
    "published": published,
    "published-compiled": lambda setting: published(setting, compiled=True),
    "picture": picture,
}


def measure_on_gpu(device: str, output: Path, *, tiny: bool, part: str | None) -> None:
    """Every part, or one; each row is printed and appended to `output` as soon as it is there."""
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device that torch can use: nothing to measure")
    setting = Setting(device, tiny)
    facts = environment(gpu=device == "cuda")
    gemm = facts.get("gemm_tflops")
    output.parent.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        for name in (part,) if part else PARTS:
            for row in RUN[name](setting):
                record = {
                    "benchmark": "end_to_end_gpu",
                    "size": setting.size,
                    "frames": setting.frames,
                    "latents": setting.edge,
                    "dtype": "bfloat16",
                    "steps": STEPS,
                    **row,
                    **facts,
                }
                if gemm and "gflop_per_step" in row:
                    rate = row["gflop_per_step"] / row["seconds_per_step"] / 1e3
                    record["fraction_of_gemm"] = rate / gemm
                print(
                    json.dumps(
                        {key: record[key] for key in ("row", *row, "fraction_of_gemm") if key in record}
                    )
                )
                sys.stdout.flush()
                with output.open("a") as lines:
                    lines.write(json.dumps(record) + "\n")
                if device == "cuda":
                    torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small network, to try the program")
    parser.add_argument("--part", choices=PARTS, help="one part of the measurement alone")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu" / "end_to_end_gpu.jsonl")
    chosen = parser.parse_args()
    measure_on_gpu(chosen.device, chosen.output, tiny=chosen.tiny, part=chosen.part)


if __name__ == "__main__":
    main()
