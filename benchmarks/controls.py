"""A ControlNet in the loop: what it adds to a step, with and without sharing what two windows have in common.

    python benchmarks/controls.py [--size 37m] [--dtype fp32] [--repeats 3]

A network and a ControlNet like its encoder, random weights, 48 frames, windows of 16, stride 8, guidance 7.5, DDIM. The
three take turns; no result is written unless sharing gives the latents that are given without, to 1e-3 in fp32 and to
5% of their deviation in 16 bits, where other batches round otherwise. Appends to benchmarks/results/controls.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import contextmanager
from unittest.mock import patch

import torch
from _networks import SIZES, TOKENS
from _timing import RESULTS, environment
from diffusers import ControlNetModel
from end_to_end import DTYPES, FRAMES, GUIDANCE, PROMPT, STRIDE, WINDOW, of_dtype, random_model

import vidsmooth_fast as vsf
from vidsmooth_fast.models import VideoModel
from vidsmooth_fast.sampling.controlled import ControlledDenoiser

STEPS = 2
TOLERANCE = 1e-3
ROUGH = 0.05  # of the deviation, in 16 bits


def random_controlnet(config: dict, pixels: int) -> ControlNetModel:
    """A ControlNet for a network of this configuration, its last layers awake. pixels: a side, of a latent."""
    torch.manual_seed(0)
    network = ControlNetModel(
        block_out_channels=config["block_out_channels"],
        down_block_types=[kind.replace("3D", "2D") for kind in config["down_block_types"]],
        layers_per_block=config["layers_per_block"],
        attention_head_dim=config["attention_head_dim"],
        norm_num_groups=config.get("norm_num_groups", 32),
        cross_attention_dim=config["cross_attention_dim"],
        conditioning_embedding_out_channels=[16 * 2**i for i in range(pixels.bit_length())],
    )
    for block in (*network.controlnet_down_blocks, network.controlnet_mid_block):
        torch.nn.init.normal_(block.weight, std=0.02)
    return network


@contextmanager
def unshared():
    """Every window's residuals computed anew."""
    window = ControlledDenoiser._window

    def alone(self, latents, texts, start, timestep, still):
        return window(self, latents, texts, start, timestep, None)

    with patch.object(ControlledDenoiser, "_window", alone):
        yield


def run(model: VideoModel, latents: torch.Tensor, controls: vsf.Control | None) -> tuple[float, torch.Tensor]:
    """Seconds of the last step, and the latents after it."""
    ended = []
    video = vsf.fast_sample(
        model, PROMPT, FRAMES, steps=STEPS, guidance=GUIDANCE, window=WINDOW, stride=STRIDE, latents=latents,
        scheduler="ddim", progress=False, controls=controls, decoder="linear",
        callback=lambda *_: ended.append(time.perf_counter()),
    )  # fmt: skip
    return ended[-1] - ended[-2], video.latents


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--size", choices=SIZES, default="37m")
    options = parser.parse_args()
    config = SIZES[options.size]
    model = of_dtype(random_model(config, tokens=TOKENS), DTYPES[options.dtype])
    side = config["sample_size"]
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, FRAMES, side, side, generator=rng)
    height, width = model.default_size
    pictures = torch.randint(0, 256, (FRAMES, height, width, 3), dtype=torch.uint8, generator=rng).numpy()
    maps = vsf.Video.from_frames(pictures, fps=8)
    control = vsf.Control(random_controlnet(config, model.downsampling), maps)

    error = 0.0
    seconds: dict[str, list[float]] = {"without": [], "controlled": [], "unshared": []}
    for _ in range(options.repeats):
        seconds["without"].append(run(model, latents, None)[0])
        taken, shared = run(model, latents, control)
        seconds["controlled"].append(taken)
        with unshared():
            taken, alone = run(model, latents, control)
        seconds["unshared"].append(taken)
        exact = model.dtype == torch.float32
        difference = (shared - alone).abs()
        error = max(error, (difference.max() if exact else difference.mean() / alone.std()).item())
        if error > (TOLERANCE if exact else ROUGH):
            raise SystemExit(f"latents differ by {error:.1e}: nothing measured")
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    record = {
        "benchmark": "controls",
        "size": options.size,
        "dtype": options.dtype,
        "frames": FRAMES,
        "error": error,
        **{f"{name}_s": value for name, value in median.items()},
        **environment(),
    }
    print(
        f"{options.size}, {options.dtype}: a step {median['without']:.2f} s without a ControlNet, "
        f"{median['controlled']:.2f} s with it, {median['unshared']:.2f} s with nothing shared; "
        f"latents differ by {error:.1e}"
    )
    with open(RESULTS / "controls.jsonl", "a") as lines:
        lines.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
