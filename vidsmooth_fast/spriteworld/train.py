"""Train the embedded model, stage by stage; every stage can be killed and continued.

    python -m vidsmooth_fast.spriteworld.train vae      --out DIR --minutes 25
    python -m vidsmooth_fast.spriteworld.train unet     --out DIR --minutes 50
    python -m vidsmooth_fast.spriteworld.train temporal --out DIR --minutes 110
    python -m vidsmooth_fast.spriteworld.train decoder  --out DIR --minutes 15
    python -m vidsmooth_fast.spriteworld.train sharpen  --out DIR --minutes 15
    python -m vidsmooth_fast.spriteworld.train package  --out DIR --to vidsmooth_fast/models/embedded/sprite-world

--steps fixes the learning-rate schedule; --minutes only says when this run stops. Running a stage again continues it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

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
    parser.add_argument("--workers", type=int, default=2, help="processes that share the gradient")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a toy size, to try the machinery")
    parser.add_argument("--to", type=Path, default=None, help="package: where to write the model")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    steps = options.steps if options.steps is not None else STEPS.get(options.stage, 0)
    common = {
        "out": options.out,
        "steps": steps,
        "minutes": options.minutes,
        "seed": options.seed,
        "log": _log,
        "tiny": options.tiny,
    }
    if options.stage != "package":
        in_parallel(options.workers, options.threads, _stage, options.stage, common)
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
