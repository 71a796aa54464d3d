"""The VL score's shifts against a loop over them ([003] eq. 6): latents of 24 frames of a clip.

    python benchmarks/vl_score.py [--size 64] [--seconds 10] [--threads 1]

The embedded autoencoder makes the latents in the same process, as in use: a process that has allocated nothing large
asks the system for every temporary anew. Checks that both agree to 1e-5 in float64, then times them in turn. Appends to
benchmarks/results/vl_score.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from _timing import RESULTS, environment

from vidsmooth_fast.metrics.autoencoder import Autoencoder
from vidsmooth_fast.metrics.vl_score import TOGETHER, shifts, vl_scores
from vidsmooth_fast.spriteworld.render import HELD_OUT_SEED, Scene, render_clip

FRAMES = 24
SCENE = Scene("car", "red", "road", "cartoon", seed=HELD_OUT_SEED)


def latents(size: int) -> torch.Tensor:
    """Of a rendered clip, (F, C, size, size)."""
    autoencoder = Autoencoder(device="cpu")
    clip = render_clip(SCENE, FRAMES, size * autoencoder.downsampling, truth=False)
    return torch.from_numpy(np.concatenate([autoencoder.latents([frame]) for frame in clip.frames]))


def by_loop(z: torch.Tensor, k: int) -> float:
    """The score of z (F, C, h, w), as one would write it down: a cosine for every pair and shift."""
    h, w = z.shape[2] - k, z.shape[3] - k
    total = 0.0
    for m in range(1, len(z)):
        centre = z[m, :, k // 2 : k // 2 + h, k // 2 : k // 2 + w].reshape(1, -1)
        best = -1.0
        for i in range(k + 1):
            for j in range(k + 1):
                crop = z[m - 1, :, i : i + h, j : j + w].reshape(1, -1)
                best = max(best, F.cosine_similarity(centre, crop).item())
        total += best
    return 100 * total / (len(z) - 1)


def by_metric(z: torch.Tensor) -> float:
    """The score of z, in batches as the metric makes them."""
    pairs = zip(z[:-1].split(TOGETHER), z[1:].split(TOGETHER), strict=True)
    return torch.cat([vl_scores(before, after) for before, after in pairs]).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=64, help="latents a side")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    z = latents(options.size)
    k = shifts(options.size, options.size)
    error = abs(by_metric(z) - by_loop(z.double(), k))
    if error > 1e-5:
        raise SystemExit(f"scores differ by {error:.1e}: nothing timed")
    ours, loop = [], []
    end = time.perf_counter() + options.seconds
    while time.perf_counter() < end or len(loop) < 5:
        began = time.perf_counter()
        by_loop(z, k)
        loop.append(time.perf_counter() - began)
        for _ in range(5):
            began = time.perf_counter()
            by_metric(z)
            ours.append(time.perf_counter() - began)
    record = {
        "benchmark": "vl_score",
        "size": options.size,
        "frames": FRAMES,
        "channels": z.shape[1],
        "shifts": (k + 1) ** 2,
        "error": error,
        "loop_ms": 1e3 * statistics.median(loop),
        "ours_ms": 1e3 * statistics.median(ours),
        "ratio": statistics.median(loop) / statistics.median(ours),
        **environment(),
    }
    print(
        f"{FRAMES} frames of {z.shape[1]}x{options.size}x{options.size}, {record['shifts']} shifts: "
        f"loop {record['loop_ms']:.1f} ms, ours {record['ours_ms']:.2f} ms, {record['ratio']:.1f} times as fast"
    )
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / "vl_score.jsonl", "a") as lines:
        lines.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
