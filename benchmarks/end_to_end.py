"""fast_sample against the published program (baselines.py) on the same weights: seconds per denoising step.

    python benchmarks/end_to_end.py                              both sizes, fp32 and bf16, a few minutes
    python benchmarks/end_to_end.py --size sprite-world --dtype fp32 --repeats 5

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
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from _timing import RESULTS, environment
from baselines import PublishedUNet, attention_sdpa, published_sample
from torch.utils.flop_counter import FlopCounterMode

import vidsmooth_fast as vsf
from vidsmooth_fast.models import VideoModel, VideoUNet

FRAMES, WINDOW, STRIDE, GUIDANCE, STEPS = 48, 16, 8, 7.5, 2
EVALUATIONS = 2 * len(range(0, FRAMES - WINDOW + 1, STRIDE))  # (window, branch) pairs of one step
PROMPT = "a red car is driving on the snow"
TOLERANCE = 1e-3
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

# 37 million parameters with Stable Diffusion's layout: attention at the first two levels, two layers each.
MEDIUM = {
    "sample_size": 32,
    "block_out_channels": [128, 256, 256],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"],
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"],
    "attention_head_dim": 8,
    "cross_attention_dim": 256,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def random_model(config: dict, tokens: int) -> VideoModel:
    """A network with random weights, temporal layers awake, behind a small text encoder and autoencoder."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    from vidsmooth_fast.spriteworld.text import build_tokenizer

    torch.manual_seed(0)
    unet = VideoUNet.from_config(config)
    for name, parameter in unet.named_parameters():
        if "attn_temp.to_out.0.weight" in name:
            torch.nn.init.normal_(parameter, std=0.02)
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
    if size == "37m":
        return random_model(MEDIUM, tokens=77), "random"
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


def run_ours(model: VideoModel, latents: torch.Tensor) -> tuple[list[float], torch.Tensor]:
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
            FRAMES,
            steps=STEPS,
            guidance=GUIDANCE,
            window=WINDOW,
            stride=STRIDE,
            window_weights="flat",
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


def timed(call: Callable[[], object], repeats: int = 3) -> float:
    """Median seconds of a call, after one to warm up."""
    call()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def matrix_rates(dtype: torch.dtype) -> dict[str, float]:
    """GFLOP/s of a 2048 x 2048 x 2048 product and of a 3x3 convolution of 256 channels on 16 images of 32 x 32."""
    a, b = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)
    x = torch.randn(16, 256, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
    w = torch.randn(256, 256, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    product = 2 * 2048**3 / timed(lambda: a @ b)
    convolution = 2 * 9 * 256 * x.numel() / timed(lambda: torch.nn.functional.conv2d(x, w, padding=1))
    return {"product": product / 1e9, "convolution": convolution / 1e9}


def _attention_flop(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    """(B, heads, tokens, width) each: q k^T, then the product with v."""
    batch, heads, tokens, width = query
    return 2 * batch * heads * tokens * key[-2] * (width + value[-1])


def _temporal_flop(query: torch.Size, *_: object, frames: int, **__: object) -> int:
    return 4 * math.prod(query) * frames


def _sparse_causal_flop(query: torch.Size, _key, _value, kv_frames: torch.Size, **__: object) -> int:
    return 4 * math.prod(query) * kv_frames[-1] * query[1]


def gflop_of_step(model: VideoModel, latents: torch.Tensor, text: torch.Tensor) -> float:
    """GFLOP that our algorithm needs for one step, with the attentions that PyTorch's counter does not know."""
    known = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop}
    for name, formula in (("temporal", _temporal_flop), ("sparse_causal", _sparse_causal_flop)):
        if hasattr(torch.ops.vidsmooth, f"{name}_attention"):
            known[getattr(torch.ops.vidsmooth, f"{name}_attention")] = formula
    kv, time_embedding = model.unet.project_text(text), model.unet.embed_time(500)
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
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

    ours, theirs = [], []
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
        "gflop_per_step": gflop,
        "gflop_per_second": gflop / statistics.median(ours),
        "matrix_rate": rates,
        "fraction_of_matrix_rate": gflop / statistics.median(ours) / max(rates.values()),
        "max_abs_difference": error,
        "samples": {"ours": ours, "published": theirs},
    }
    if rival:
        network = PublishedUNet(state, config, dtype=dtype, attention=attention_sdpa)
        seconds = timed(lambda: network(part, 500, text), 1) * EVALUATIONS
        record["published_with_sdpa_seconds_per_step"] = seconds
        record["ratio_to_published_with_sdpa"] = seconds / record["seconds_per_step"]
    return {**record, "matrix_units": has_matrix_units(), **environment()}


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
    if "ratio_to_published_with_sdpa" in record:
        print(
            f"    to the published network on SDPA: {record['ratio_to_published_with_sdpa']:.2f}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("all", "sprite-world", "37m"), default="all")
    parser.add_argument("--dtype", choices=("all", *DTYPES), default="all")
    parser.add_argument("--repeats", type=int, help="turns of each program; 3 for sprite-world, 1 for 37m")
    parser.add_argument("--no-rival", action="store_true", help="leave the SDPA rival out")
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "end_to_end.jsonl", help="JSON lines are appended here"
    )
    arguments = parser.parse_args()
    sizes = ("sprite-world", "37m") if arguments.size == "all" else (arguments.size,)
    names = tuple(DTYPES) if arguments.dtype == "all" else (arguments.dtype,)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for size in sizes:
        model, weights = load_size(size)
        repeats = arguments.repeats or (3 if size == "sprite-world" else 1)
        fp32 = None
        for name in names:
            with torch.inference_mode():
                record = measure(size, name, model, weights, repeats, not arguments.no_rival)
            show(record, fp32)
            fp32 = record if name == "fp32" else fp32
            with arguments.output.open("a") as lines:
                lines.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
