"""The demonstration: a clip of the sprite world, an edit of it, and the same edit smoothed, side by side."""

from __future__ import annotations

import resource
import sys
import time
from itertools import chain
from pathlib import Path

from vidsmooth_fast.metrics.flicker import compensated_flicker, temporal_flicker
from vidsmooth_fast.models.loading import load
from vidsmooth_fast.models.video_model import VideoModel
from vidsmooth_fast.sampling.fast_sample import fast_sample
from vidsmooth_fast.sampling.inversion import invert
from vidsmooth_fast.sampling.progress import duration
from vidsmooth_fast.sampling.smoothing import NoiseConstraint
from vidsmooth_fast.spriteworld.captions import caption
from vidsmooth_fast.spriteworld.render import HELD_OUT_SEED, Scene, render_clip
from vidsmooth_fast.video import Video, VideoWriter, check_output
from vidsmooth_fast.video_panels import contact_sheet, evenly_spaced, side_by_side, write_picture

SCENE = Scene("car", "red", "road", "cartoon", seed=HELD_OUT_SEED)
EDIT = SCENE.edit(colour="blue")
FPS = 16
SAMPLING = dict(steps=16, scheduler="dpmpp_2m", merge="attention", window=16, stride=8)
GUIDANCE = 4.0
SMOOTH = NoiseConstraint(0.25, "source")
TUNING = dict(loss="inr", steps=60, lr=3e-4, frames=16)
STILLS = 6
"""Per panel, on the contact sheet."""


def run_demo(
    folder: Path, *, frames: int = 256, seed: int = 0, progress: bool = True, tuned: bool = False
) -> str:
    """Write demo.mp4 and demo.png into `folder` and return a summary for people.

    The source is rendered, inverted once, and sampled twice with the edited prompt: as it is, and with the noise
    constraint. frames: length of the video. tuned: a fourth panel, by a model that was first tuned on the source's
    beginning (see TUNING). Raises what `fast_sample` and `tune` raise.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output: expected a folder, and {folder} is a file")
    folder.mkdir(parents=True, exist_ok=True)
    target = check_output(folder / "demo.mp4")
    model = load("sprite-world")
    source = Video.from_frames(render_clip(SCENE, frames, truth=False).frames, fps=FPS)
    began = time.perf_counter()
    inversion = invert(model, source, caption(SCENE), seed=seed, progress=progress, **SAMPLING)
    edits = [
        fast_sample(
            model,
            caption(EDIT),
            frames,
            source=source,
            latents=inversion.latents,
            guidance=GUIDANCE,
            smooth=smooth,
            seed=seed,
            progress=progress,
            **SAMPLING,
        )
        for smooth in (None, SMOOTH)
    ]
    seconds = time.perf_counter() - began

    panels = {"source": source, "edited": edits[0], "edited, smoothed": edits[1]}
    if tuned:
        panels["edited, tuned"] = _tuned_edit(model, source, seed, progress)
    pictures = side_by_side(list(panels.values()), list(panels))
    first = next(pictures)
    chosen, stills = evenly_spaced(frames, STILLS), []
    with VideoWriter(target, FPS, first.shape[:2]) as writer:
        for index, picture in enumerate(chain([first], pictures)):
            writer.write(picture)
            if index in chosen:
                stills.append(picture)
    write_picture(folder / "demo.png", contact_sheet(stills, columns=1, size=first.shape[:2]))
    return _summary(folder, panels, frames, seconds)


def _tuned_edit(model: VideoModel, source: Video, seed: int, progress: bool) -> Video:
    """The same edit by a model that has seen the source."""
    from vidsmooth_fast.training.tuner import tune

    learned = tune(model, source, caption(SCENE), seed=seed, progress=progress, **TUNING)
    return fast_sample(
        learned,
        caption(EDIT),
        len(source),
        source=source,
        source_prompt=caption(SCENE),
        guidance=GUIDANCE,
        seed=seed,
        progress=progress,
        **SAMPLING,
    )


def _summary(folder: Path, panels: dict[str, Video], frames: int, seconds: float) -> str:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    settings = ", ".join(f"{name} {value}" for name, value in SAMPLING.items())
    lines = [
        f"{caption(SCENE)}  ->  {caption(EDIT)}",
        f"{frames} frames; {settings}; guidance {GUIDANCE:g}; smoothing {SMOOTH.strength:g} towards {SMOOTH.target}",
        f"inversion and two edits: {duration(seconds)}, {2 * frames / seconds:.1f} edited frames per second, "
        f"peak memory {memory / 2**30:.2f} GiB",
        "temporal flicker, in 8-bit levels (lower is smoother):",
        "                     raw    along the motion",
    ]
    for name, video in panels.items():
        if len(video) > 1:
            lines.append(f"  {name:<17}{temporal_flicker(video):7.2f}{compensated_flicker(video):10.2f}")
    lines.append(f"{folder / 'demo.mp4'}, {folder / 'demo.png'}")
    return "\n".join(lines)
