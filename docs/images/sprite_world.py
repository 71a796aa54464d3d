"""The pictures of docs/sprite-world.md, from a model and the printed logs of its training.

    python docs/images/sprite_world.py [--model sprite-world] [--logs vae.log unet.log temporal.log ...]

Writes docs/images/sprite-world-{samples,clips}.png: one frame of a short video for each of the gallery's prompts, and
every third frame of three of them; with --logs also sprite-world-curves.png, a panel per file.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np

import vidsmooth_fast as vsf
from vidsmooth_fast.spriteworld.gallery import PROMPTS, SAMPLING
from vidsmooth_fast.video_panels import contact_sheet, write_picture

IMAGES = Path(__file__).parent
FRAMES, SHOWN, STRIPS = 16, 6, (0, 1, 4)


def curves(logs: list[Path], target: Path) -> None:
    """Loss by step of every log."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6 * ((len(logs) + 1) // 2)), layout="constrained")
    FigureCanvasAgg(figure)
    for i, log in enumerate(logs):
        found = dict(re.findall(r"step (\d+)/\d+ loss ([\d.]+)", log.read_text()))
        steps = sorted(map(int, found))
        axes = figure.add_subplot((len(logs) + 1) // 2, 2, i + 1)
        axes.plot(steps, [float(found[str(step)]) for step in steps])
        axes.set(title=f"stage {log.stem}", xlabel="step", ylabel="loss", ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.savefig(target, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="sprite-world")
    parser.add_argument("--logs", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    if options.logs:
        curves(options.logs, IMAGES / "sprite-world-curves.png")
    model = vsf.load(options.model)
    videos = [
        np.stack(list(vsf.fast_sample(model, prompt, FRAMES, seed=i, progress=False, **SAMPLING)))
        for i, prompt in enumerate(PROMPTS)
    ]
    size = (256, 256)
    sheet = contact_sheet([video[FRAMES // 2] for video in videos], columns=4, size=size)
    write_picture(IMAGES / "sprite-world-samples.png", sheet)
    chosen = np.linspace(0, FRAMES - 1, SHOWN).round().astype(int)
    strips = contact_sheet([videos[i][f] for i in STRIPS for f in chosen], columns=SHOWN, size=(192, 192))
    write_picture(IMAGES / "sprite-world-clips.png", strips)


if __name__ == "__main__":
    main()
