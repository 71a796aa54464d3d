"""Train the embedded model, stage by stage; every stage can be killed and continued.

    python -m vidsmooth_fast.spriteworld.train vae      --out DIR --minutes 25
    python -m vidsmooth_fast.spriteworld.train unet     --out DIR --minutes 50
    python -m vidsmooth_fast.spriteworld.train temporal --out DIR --minutes 110
    python -m vidsmooth_fast.spriteworld.train decoder  --out DIR --minutes 15
    python -m vidsmooth_fast.spriteworld.train sharpen  --out DIR --minutes 15
    python -m vidsmooth_fast.spriteworld.train package  --out DIR --to vidsmooth_fast/models/embedded/sprite-world

--steps fixes the learning-rate schedule; --minutes only says when this run stops. Running a stage again continues it,
on the same device or another. A GPU (--device cuda) is one process; what suits it is many more pictures a step (--batch
256) of more scenes (--scenes 8000), which all cores draw.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from .runner import in_parallel

STEPS = {"vae": 2000, "unet": 2450, "temporal": 3350, "decoder": 4200, "sharpen": 1600}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m vidsmooth_fast.spriteworld.train", description=__doc__.split("\n")[0]
    )
    parser.add_argument("stage", choices=["vae", "unet", "temporal", "decoder", "sharpen", "package"])
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and finished parts")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop this run after so long")
    parser.add_argument("--steps", type=int, default=None, help="length of the learning-rate schedule")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--batch", type=int, default=None, help="pictures a step and process; by default the stage's"
    )
    parser.add_argument(
        "--scenes", type=int, default=None, help="unet, temporal: scenes to draw and learn from"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that share the gradient, on CPUs")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process, on CPUs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a toy size, to try the machinery")
    parser.add_argument("--to", type=Path, default=None, help="package: where to write the model")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device: torch finds no CUDA device")
    steps = options.steps if options.steps is not None else STEPS.get(options.stage, 0)
    common = {
        "out": options.out,
        "device": device,
        "steps": steps,
        "minutes": options.minutes,
        "seed": options.seed,
        "log": _log,
        "tiny": options.tiny,
    }
    if options.batch is not None:
        common["batch"] = options.batch
    if options.scenes is not None:
        if options.stage not in ("unet", "temporal"):
            raise SystemExit(f"--scenes: of the stages unet and temporal, got {options.stage}")
        common["scenes"] = options.scenes
    if options.stage != "package":
        workers, threads = (options.workers, options.threads) if device.type == "cpu" else (1, os.cpu_count())
        in_parallel(workers, threads, _stage, options.stage, common)
    else:
        from .package import package

        print(package(options.out, options.to or options.out / "sprite-world", tiny=options.tiny))


def _stage(stage: str, common: dict) -> None:
    if stage == "vae":
        from .autoencoder import train_autoencoder as job
    elif stage == "decoder":
        from .autoencoder import train_decoder as job
    elif stage == "sharpen":
        from .sharpen import train_sharp as job
    elif stage == "unet":
        from .diffusion import train_images as job
    else:
        from .diffusion import train_clips as job
    job(**common)


def _log(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
