"""fast_sample against the published program (baselines.py) on the same weights: seconds per denoising step.

    python benchmarks/end_to_end.py                              both sizes, fp32 and bf16, a few minutes
    python benchmarks/end_to_end.py --size sprite-world --dtype fp32 --repeats 5
    python benchmarks/end_to_end.py --size 37m --switches        the share of every exact saving
    python benchmarks/end_to_end.py --device cuda                Stable Diffusion's size; see _gpu_end_to_end.py

48 frames in windows of 16, stride 8, guidance 7.5, DDIM: 5 windows, 10 network evaluations of 16 frames a step. The two
programs take turns, so that a busy machine slows both. A result is refused when the latents of the two differ
by more than 1e-3 in fp32. The matrix rate is the faster of a large product and a large 3x3 convolution, timed in
the same run (on some processors oneDNN's convolution beats its product, and the network is mostly convolution).
Results are appended to benchmarks/results/end_to_end.jsonl.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from _gpu_end_to_end import PARTS, measure_on_gpu
from _networks import SCHEDULER, SIZES, TOKENS, flop_counter, matrix_rates, random_unet, timed
from _switches import SWITCHES
from _timing import RESULTS, environment
from baselines import PublishedUNet, attention_sdpa, published_sample

import vidsmooth_fast as vsf
from vidsmooth_fast.models import VideoModel

FRAMES, WINDOW, STRIDE, GUIDANCE, STEPS = 48, 16, 8, 7.5, 2
EVALUATIONS = 2 * len(range(0, FRAMES - WINDOW + 1, STRIDE))  # (window, branch) pairs of one step
PROMPT = "a red car is driving on the snow"
TOLERANCE = 1e-3
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def random_model(config: dict, tokens: int) -> VideoModel:
    """A network with random weights, temporal layers awake, behind a small text encoder and autoencoder."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    from vidsmooth_fast.spriteworld.text import build_tokenizer

    unet = random_unet(config)
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = tokens
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config["cross_attention_dim"],
            intermediate_size=256,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 16],
        norm_num_groups=4,
        latent_channels=4,
    )
    return VideoModel(unet, vae, encoder, tokenizer, SCHEDULER, name="random")


def load_size(size: str) -> tuple[VideoModel, str]:
    """The model of a size, and where its weights come from."""
    if size in SIZES:
        return random_model(SIZES[size], tokens=TOKENS), "random"
    from vidsmooth_fast.models.loading import embedded_names

    if "sprite-world" in embedded_names():
        return vsf.load("sprite-world", device="cpu", dtype=torch.float32), "embedded"
    from vidsmooth_fast.spriteworld.diffusion import unet_config
    from vidsmooth_fast.spriteworld.text import LENGTH

    return random_model(unet_config(), tokens=LENGTH), "random"


def of_dtype(model: VideoModel, dtype: torch.dtype) -> VideoModel:
    return model if dtype == model.dtype else copy.deepcopy(model).to(dtype=dtype)


@contextmanager
def step_clock(unet: torch.nn.Module) -> Iterator[list[float]]:
    """Times at which each step's first network call began. (Callbacks come one step late, after the finite check.)"""
    began: list[float] = []
    seen: list[object] = []

    def before(_module: torch.nn.Module, arguments: tuple) -> None:
        if not seen or arguments[1] is not seen[-1]:  # the step's time embedding
            seen.append(arguments[1])
            began.append(time.perf_counter())

    hook = unet.register_forward_pre_hook(before)
    try:
        yield began
    finally:
        hook.remove()


def run_ours(
    model: VideoModel, latents: torch.Tensor, merge: str = "latent"
) -> tuple[list[float], torch.Tensor]:
    """Seconds of each step of fast_sample, and the latents after the first."""
    ended: list[float] = []
    states: list[torch.Tensor] = []

    def callback(_step: int, _steps: int, state: torch.Tensor) -> None:
        ended.append(time.perf_counter())
        states.append(state.clone())

    with step_clock(model.unet) as began:
        vsf.fast_sample(
            model,
            PROMPT,
            latents.shape[2],
            steps=STEPS,
            guidance=GUIDANCE,
            window=WINDOW,
            stride=STRIDE,
            window_weights="flat",
            merge=merge,
            scheduler="ddim",
            latents=latents,
            progress=False,
            callback=callback,
        )
    edges = [*began, ended[-1]]
    return [after - before for before, after in itertools.pairwise(edges)], states[0]


def run_published(
    network: PublishedUNet, model: VideoModel, latents: torch.Tensor
) -> tuple[float, torch.Tensor]:
    """Seconds of the first step of the published loop, and the latents after it. Text is encoded beforehand."""
    empty, text = model.encode_text(["", PROMPT])[:, None]
    began = time.perf_counter()
    result = published_sample(
        network,
        latents,
        text,
        empty,
        model.scheduler_config,
        steps=STEPS,
        guidance=GUIDANCE,
        window=WINDOW,
        stride=STRIDE,
        stop_after=1,
    )
    return time.perf_counter() - began, result


def gflop_of_step(model: VideoModel, latents: torch.Tensor, text: torch.Tensor) -> float:
    """GFLOP that our algorithm needs for one step, with the attentions that PyTorch's counter does not know."""
    kv, time_embedding = model.unet.project_text(text), model.unet.embed_time(500)
    with flop_counter() as counter:
        model.unet(latents[:, :, :WINDOW], time_embedding, kv)
    return counter.get_total_flops() * EVALUATIONS / 1e9


def has_matrix_units() -> bool:
    """Whether this processor multiplies bf16 matrices in units of their own (x86 AMX)."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def measure(size: str, dtype_name: str, model: VideoModel, weights: str, repeats: int, rival: bool) -> dict:
    """Both programs in turn: one record."""
    dtype = DTYPES[dtype_name]
    model = of_dtype(model, dtype)
    edge = model.default_size[0] // model.downsampling
    latents = torch.randn(
        1, model.latent_channels, FRAMES, edge, edge, generator=torch.Generator().manual_seed(0)
    )
    state, config = model.unet.state_dict(), model.unet.config
    published = PublishedUNet(state, config, dtype=dtype)
    text = model.encode_text([PROMPT])
    gflop = gflop_of_step(model, latents, text)
    part = latents[:, :, :WINDOW]
    published(part, 500, text)  # warm, as the count warmed ours
    rates = matrix_rates(dtype)

    ours, theirs, merged = [], [], []
    for _ in range(repeats):
        seconds, expected = run_published(published, model, latents)
        theirs.append(seconds)
        steps, got = run_ours(model, latents)
        ours += steps
        error = (got - expected).abs().max().item()
        if dtype == torch.float32 and not error <= TOLERANCE:
            raise SystemExit(
                f"{size} fp32: latents differ by {error:.1e} from the published program's: nothing timed"
            )
        merged += run_ours(model, latents, "attention")[0]
    record = {
        "benchmark": "end_to_end",
        "size": size,
        "weights": weights,
        "parameters": sum(p.numel() for p in model.unet.parameters()),
        "dtype": dtype_name,
        "frames": FRAMES,
        "window": WINDOW,
        "stride": STRIDE,
        "guidance": GUIDANCE,
        "latents": edge,
        "seconds_per_step": statistics.median(ours),
        "published_seconds_per_step": statistics.median(theirs),
        "ratio": statistics.median(theirs) / statistics.median(ours),
        "attention_seconds_per_step": statistics.median(merged),
        "ratio_merged_in_attention": statistics.median(theirs) / statistics.median(merged),
        "gflop_per_step": gflop,
        "gflop_per_second": gflop / statistics.median(ours),
        "matrix_rate": rates,
        "fraction_of_matrix_rate": gflop / statistics.median(ours) / max(rates.values()),
        "max_abs_difference": error,
        "samples": {"ours": ours, "published": theirs, "merged in attention": merged},
    }
    if rival:
        network = PublishedUNet(state, config, dtype=dtype, attention=attention_sdpa)
        seconds = timed(lambda: network(part, 500, text), 1) * EVALUATIONS
        record["published_with_sdpa_seconds_per_step"] = seconds
        record["ratio_to_published_with_sdpa"] = seconds / record["seconds_per_step"]
    return {**record, "matrix_units": has_matrix_units(), **environment()}


def measure_switches(size: str, dtype_name: str, model: VideoModel, repeats: int) -> dict:
    """Seconds of a guided step of one window with every exact saving, and with each of them left out in turn."""
    model = of_dtype(model, DTYPES[dtype_name])
    edge = model.default_size[0] // model.downsampling
    latents = torch.randn(1, model.latent_channels, WINDOW, edge, edge)
    expected = run_ours(model, latents)[1]
    samples: dict[str, list[float]] = {name: [] for name in ("everything on", *SWITCHES)}
    errors = {}
    for _ in range(repeats):
        for name in samples:
            with SWITCHES[name](model.unet) if name in SWITCHES else nullcontext():
                steps, got = run_ours(model, latents)
            samples[name] += steps[-1:]  # the first one warms up
            errors[name] = (got - expected).abs().max().item()
    medians = {name: statistics.median(taken) for name, taken in samples.items()}
    return {
        "benchmark": "switches",
        "size": size,
        "dtype": dtype_name,
        "frames": WINDOW,
        "latents": edge,
        "seconds": medians,
        "max_abs_difference": errors,
        "samples": samples,
        **environment(),
    }


def show_switches(record: dict) -> None:
    base = record["seconds"]["everything on"]
    print(f"{record['size']}, {record['dtype']}, {record['frames']} frames, guided: {base:.2f} s a step")
    for name, seconds in record["seconds"].items():
        print(
            f"    {name:45} {seconds:7.2f} s  {seconds / base:5.2f}  {record['max_abs_difference'][name]:.1e}"
        )


def show(record: dict, fp32: dict | None) -> None:
    rates = record["matrix_rate"]
    print(
        f"{record['size']} ({record['parameters'] / 1e6:.1f}M, {record['weights']} weights), {record['dtype']}: "
        f"{record['seconds_per_step']:.2f} s/step, published {record['published_seconds_per_step']:.2f} s/step, "
        f"ratio {record['ratio']:.2f}"
    )
    if fp32 is not None:
        across = fp32["published_seconds_per_step"] / record["seconds_per_step"]
        print(f"    to the published program in fp32: {across:.2f}; matrix units: {record['matrix_units']}")
    print(
        f"    {record['gflop_per_step']:.0f} GFLOP/step at {record['gflop_per_second']:.0f} GFLOP/s, "
        f"{record['fraction_of_matrix_rate']:.2f} of the matrix rate "
        f"(product {rates['product']:.0f}, convolution {rates['convolution']:.0f} GFLOP/s); "
        f"latents differ by {record['max_abs_difference']:.1e}"
    )
    print(
        f"    merged in attention: {record['attention_seconds_per_step']:.2f} s/step, "
        f"{record['ratio_merged_in_attention']:.2f} times as fast as published"
    )
    if "ratio_to_published_with_sdpa" in record:
        print(
            f"    to the published network on SDPA: {record['ratio_to_published_with_sdpa']:.2f}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("all", "sprite-world", *SIZES), default="all")
    parser.add_argument("--dtype", choices=("all", *DTYPES), default="all")
    parser.add_argument("--repeats", type=int, help="turns of each program; 3 for sprite-world, 1 for 37m")
    parser.add_argument("--no-rival", action="store_true", help="leave the SDPA rival out")
    parser.add_argument(
        "--switches", action="store_true", help="leave out each exact saving in turn, ours alone"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: Stable Diffusion's size"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="with --device: a tiny network, to try the program"
    )
    parser.add_argument("--part", choices=PARTS, help="with --device: one part of the measurement alone")
    parser.add_argument("--output", type=Path, help="JSON lines are appended here; in benchmarks/results")
    arguments = parser.parse_args()
    if arguments.device == "cuda" or arguments.tiny:
        output = arguments.output or RESULTS / "gpu" / "end_to_end_gpu.jsonl"
        measure_on_gpu(arguments.device, output, tiny=arguments.tiny, part=arguments.part)
        return
    arguments.output = arguments.output or RESULTS / "end_to_end.jsonl"
    sizes = ("sprite-world", "37m") if arguments.size == "all" else (arguments.size,)
    names = tuple(DTYPES) if arguments.dtype == "all" else (arguments.dtype,)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for size in sizes:
        model, weights = load_size(size)
        repeats = arguments.repeats or (3 if size == "sprite-world" else 1)
        fp32 = None
        for name in names:
            if arguments.switches:
                with torch.inference_mode():
                    record = measure_switches(size, name, model, arguments.repeats or 3)
                show_switches(record)
                with arguments.output.with_name("switches.jsonl").open("a") as lines:
                    lines.write(json.dumps(record) + "\n")
                continue
            with torch.inference_mode():
                record = measure(size, name, model, weights, repeats, not arguments.no_rival)
            show(record, fp32)
            fp32 = record if name == "fp32" else fp32
            with arguments.output.open("a") as lines:
                lines.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
