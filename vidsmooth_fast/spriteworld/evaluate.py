"""Measure the embedded model against its world.

    python -m vidsmooth_fast.spriteworld.evaluate [--model sprite-world] [--prompts 200] [--videos FOLDER]

Prints one line of JSON: the autoencoder's PSNR on held-out world frames (and on real clips, where a folder is given),
and how often a classifier trained on renders alone finds in single-frame samples what the prompt said.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch

from ..models.loading import load
from .autoencoder import psnr, reconstruct, to_frames
from .captions import caption
from .classifier import accuracy, labels, renders, train_classifier
from .diffusion import TextToVideo, sample
from .images import world_frames
from .render import random_scene


def real_frames(folder: Path, per_clip: int = 8, size: int = 128) -> np.ndarray:
    """Frames spread over every mp4 of the folder: the shorter side scaled to `size`, the middle cut out."""
    import av

    out = []
    for path in sorted(folder.glob("*.mp4")):
        with av.open(str(path)) as container:
            frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        for i in np.linspace(0, len(frames) - 1, per_clip).round().astype(int):
            h, w = frames[i].shape[:2]
            scale = size / min(h, w)
            small = cv2.resize(frames[i], (round(w * scale), round(h * scale)), interpolation=cv2.INTER_AREA)
            y, x = (small.shape[0] - size) // 2, (small.shape[1] - size) // 2
            out.append(small[y : y + size, x : x + size])
    if not out:
        raise ValueError(f"videos: expected mp4 files in {folder}, found none")
    return np.stack(out)


def sharpness(frames: np.ndarray) -> float:
    """High-frequency energy: mean square of what a 5x5 binomial blur takes away, in 0..255 grey levels."""
    grey = frames.astype(np.float32).mean(-1)
    return float(np.mean([(g - cv2.GaussianBlur(g, (5, 5), 1.0)) ** 2 for g in grey]))


@torch.inference_mode()
def sampled(
    model, prompts: list[str], *, steps: int, guidance: float, seed: int, batch: int = 20
) -> np.ndarray:
    """One 128 x 128 frame for every prompt."""
    network, out = TextToVideo.of(model), []
    for i in range(0, len(prompts), batch):
        z = sample(network, prompts[i : i + batch], steps=steps, guidance=guidance, seed=seed + i)
        out.append(to_frames(model.vae.decode(z[:, 0] / model.vae.config.scaling_factor).sample))
    return np.concatenate(out)


def evaluate(
    name: str, *, prompts: int, videos: Path | None, steps: int, guidance: float, seed: int = 0
) -> dict:
    model = load(name, device="cpu", dtype="float32")
    world = world_frames(64, seed + 1, held_out=True)
    report = {"model": name, "autoencoder_world_db": round(psnr(world, reconstruct(model.vae, world)), 2)}
    if videos is not None:
        real = real_frames(videos)
        report["autoencoder_real_db"] = round(psnr(real, reconstruct(model.vae, real)), 2)
    if prompts:
        classifier = train_classifier(seed=seed)
        held_out = renders(400, seed + 1, held_out=True)
        report["classifier_on_renders"] = accuracy(classifier, *held_out)
        rng = np.random.default_rng([seed, 9])
        scenes = [random_scene(rng, held_out=True) for _ in range(prompts)]
        frames = sampled(model, [caption(s) for s in scenes], steps=steps, guidance=guidance, seed=seed)
        found = torch.tensor([labels(s) for s in scenes])
        report["samples"] = {"prompts": prompts, "steps": steps, "guidance": guidance}
        report["samples"] |= accuracy(classifier, frames, found)
        report["high_frequency_ratio"] = round(sharpness(frames) / sharpness(held_out[0]), 3)
    return report


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m vidsmooth_fast.spriteworld.evaluate", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", default="sprite-world", help="an embedded model's name or a directory")
    parser.add_argument(
        "--prompts", type=int, default=200, help="held-out prompts to sample; 0: the autoencoder only"
    )
    parser.add_argument(
        "--videos", type=Path, default=None, help="folder of real mp4 clips for the autoencoder"
    )
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    options = parser.parse_args(arguments)
    print(json.dumps(evaluate(
        options.model, prompts=options.prompts, videos=options.videos, steps=options.steps, guidance=options.guidance
    )))  # fmt: skip


if __name__ == "__main__":
    main()
