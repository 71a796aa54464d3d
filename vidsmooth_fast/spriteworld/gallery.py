"""The gallery: a page of videos sampled from a dozen prompts."""

from __future__ import annotations

import html
from pathlib import Path

from vidsmooth_fast.models.loading import load
from vidsmooth_fast.sampling.fast_sample import fast_sample

PROMPTS = (
    "a red car is driving on the road, cartoon style",
    "a blue boat is sailing on the sea, realistic style",
    "a yellow ball is rolling on the beach, cartoon style",
    "an orange fish is swimming over the sea, realistic style",
    "a purple bird is flying over the meadow, cartoon style",
    "a green rocket is flying over the city at night, realistic style",
    "a green car is driving on the snow, realistic style",
    "a purple boat is sailing on the sea, cartoon style",
    "a red ball is rolling in the meadow, realistic style",
    "a blue bird is flying over the beach, realistic style",
    "a yellow rocket is flying over the snow, cartoon style",
    "an orange car is driving in the city at night, cartoon style",
)
SAMPLING = dict(steps=25, scheduler="dpmpp_2m", guidance=4.0, window=16, stride=8)

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>sprite-world gallery</title>
<style>
  body {{ font: 16px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
         background: #fafafa; color: #222; }}
  main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.5rem; }}
  figure {{ margin: 0; }}
  video {{ width: 100%; border-radius: 6px; image-rendering: auto; background: #ddd; }}
  figcaption {{ margin-top: .4rem; }}
</style>
<h1>sprite-world</h1>
<p>{about}</p>
<main>
{figures}
</main>
</html>
"""
FIGURE = """<figure>
  <video src="{file}" autoplay loop muted playsinline controls></video>
  <figcaption>{prompt}</figcaption>
</figure>"""


def run_gallery(folder: Path, *, frames: int = 64, seed: int = 0, progress: bool = True) -> str:
    """Write gallery.html and one mp4 per prompt into `folder`, and return a line for people.

    frames: length of each video. Raises what `fast_sample` raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "gallery.html"
    model, figures = load("sprite-world"), []
    for i, prompt in enumerate(PROMPTS):
        file = f"gallery-{i + 1:02}.mp4"
        fast_sample(model, prompt, frames, seed=seed + i, output=folder / file, progress=progress, **SAMPLING)
        figures.append(FIGURE.format(file=file, prompt=html.escape(prompt)))
    settings = ", ".join(f"{name} {value}" for name, value in SAMPLING.items())
    about = (
        f"{len(PROMPTS)} videos of {frames} frames, sampled from text alone: {settings}, seeds from {seed}."
    )
    page.write_text(PAGE.format(about=about, figures="\n".join(figures)), encoding="utf-8")
    return f"{page}: {about}"
