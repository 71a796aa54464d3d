"""Measure the embedded model against its world.

    python -m vidsmooth_fast.spriteworld.evaluate [--model sprite-world] [--videos FOLDER] [--parts pictures clips …]

Prints one line of JSON. The judges are a classifier of the captions' words and a segmenter of the object, both trained
here on renders alone, whose own scores on held-out renders are part of the result; real clips come from --videos.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from ..models.loading import load
from ..video import Video
from .autoencoder import psnr, reconstruct
from .classifier import accuracy, renders, train_classifier
from .images import world_frames
from .judge_clips import judge_clips
from .judge_edits import judge_edits, judge_inversion
from .judge_pictures import judge_pictures
from .segmenter import find_object, masked_renders, overlap, train_segmenter

PARTS = ("autoencoder", "pictures", "clips", "inversion", "edits")


def real_frames(folder: Path, per_clip: int = 8, size: int = 128) -> np.ndarray:
    """Frames spread over every mp4 of the folder: the shorter side scaled to `size`, the middle cut out."""
    out = []
    for path in sorted(folder.glob("*.mp4")):
        video = Video.open(path, size=(size, size))
        chosen = set(np.linspace(0, len(video) - 1, per_clip).round().astype(int).tolist())
        out += [frame for i, frame in enumerate(video) if i in chosen]
    if not out:
        raise ValueError(f"videos: expected mp4 files in {folder}, found none")
    return np.stack(out)


def judge_autoencoder(model, videos: Path | None, seed: int) -> dict[str, float]:
    """PSNR in dB on held-out world frames, and on frames of the real clips in `videos`."""
    world = world_frames(64, seed + 1, held_out=True)
    report = {"autoencoder_world_db": round(psnr(world, reconstruct(model.vae, world)), 2)}
    if videos is not None:
        real = real_frames(videos)
        report["autoencoder_real_db"] = round(psnr(real, reconstruct(model.vae, real)), 2)
    return report


def evaluate(
    name: str, *, parts: tuple[str, ...] = PARTS, videos: Path | None = None, pictures: int = 200, clips: int = 10,
    frames: int = 64, edits: int = 20, steps: int = 25, guidance: float = 4.0, smooth: float = 0.0, seed: int = 0,
    device: str = "cpu", log=print,
) -> dict[str, float]:  # fmt: skip
    """Every asked-for part's figures by name.

    smooth: of the videos from text, as in `judge_clips`. device: of the model; the judges look at frames on the CPU.
    """
    report: dict[str, float] = {"model": name}
    plain = load(name, device=device, dtype="float32")
    if "autoencoder" in parts:
        report |= judge_autoencoder(plain, videos, seed)
    if {"pictures", "edits"} & set(parts):
        classifier = train_classifier(seed=seed, log=log)
        own = accuracy(classifier, *renders(400, seed + 1, held_out=True))
        report |= {f"classifier_{word}": round(share, 3) for word, share in own.items()}
    if {"pictures", "clips", "edits"} & set(parts):
        segmenter = train_segmenter(seed=seed, log=log)
        drawn, masks = masked_renders(200, seed + 1, held_out=True)
        report["segmenter_iou"] = round(float(overlap(find_object(segmenter, drawn), masks).mean()), 3)
    sampling = {"steps": steps, "guidance": guidance, "seed": seed}
    if "pictures" in parts:
        report |= judge_pictures(plain, classifier, segmenter, prompts=pictures, **sampling)
    fast = load(name, device=device)  # as users get it
    if "clips" in parts:
        report |= judge_clips(fast, segmenter, clips=clips, frames=frames, smooth=smooth, log=log, **sampling)
    if "inversion" in parts:
        report |= judge_inversion(
            fast,
            clips=min(clips, 4),
            frames=min(frames, 24),
            steps=2 * steps,
            videos=videos,
            seed=seed,
            log=log,
        )
    if "edits" in parts:
        report |= judge_edits(
            fast, classifier, segmenter, clips=edits, frames=min(frames, 16), log=log, **sampling
        )
    return report


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m vidsmooth_fast.spriteworld.evaluate", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", default="sprite-world", help="an embedded model's name or a directory")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--videos", type=Path, default=None, help="folder of real mp4 clips")
    parser.add_argument("--pictures", type=int, default=200, help="held-out prompts, one picture each")
    parser.add_argument("--clips", type=int, default=10, help="videos sampled from text alone")
    parser.add_argument("--frames", type=int, default=64, help="of each of them")
    parser.add_argument("--edits", type=int, default=20, help="clips edited by inversion")
    parser.add_argument(
        "--steps", type=int, default=25, help="of sampling; inversion and back takes twice as many"
    )
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--smooth", type=float, default=0.0, help="NoiseConstraint on videos from text")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the model")
    options = vars(parser.parse_args(arguments))
    print(json.dumps(evaluate(options.pop("model"), **options)))


if __name__ == "__main__":
    main()
