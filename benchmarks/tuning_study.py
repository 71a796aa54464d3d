"""What each tuning objective does to edits: sprite-world clips, four edits each, the same seeds. Writes docs/tuning.md.

    python benchmarks/tuning_study.py                     what is missing; goes on where it stopped, row by row
    python benchmarks/tuning_study.py --clips 0 3 --methods plain inr
    python benchmarks/tuning_study.py --minutes 120       start no row after so long
    python benchmarks/tuning_study.py --report            only write docs/tuning.md and docs/images/tuning.png

A row of benchmarks/results/tuning_study.jsonl is one clip tuned by one method, with the metrics of its edits. Clips are
held-out scenes (seeds that the model never saw), numbered 0 to 11, and two real clips where VIDSMOOTH_SHARED (or
../shared) has them. A classifier that was trained on renders alone says how many of an edit's words are seen in it;
it has nothing to say about real clips.

The objectives come first, all of them on one clip before the next, then the real clips, then directions and λ:
wherever the study ends, methods were compared on the same clips. Each row says how long it took and about how long the
rest will.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from _judges import kept_classifier, weights
from _timing import environment
from PIL import Image

import vidsmooth_fast as vsf
from vidsmooth_fast.metrics.evaluate import evaluate
from vidsmooth_fast.metrics.report import bootstrap_interval
from vidsmooth_fast.spriteworld.captions import caption
from vidsmooth_fast.spriteworld.classifier import labels, predict
from vidsmooth_fast.spriteworld.render import HELD_OUT_SEED, Scene, render_clip
from vidsmooth_fast.video import Video
from vidsmooth_fast.video_panels import contact_sheet, evenly_spaced, write_picture

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks" / "results" / "tuning_study.jsonl"
WORK = ROOT / "out" / "tuning_study"
PAGE, SHEET = ROOT / "docs" / "tuning.md", ROOT / "docs" / "images" / "tuning.png"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

SETTINGS = {"frames": 12, "steps": 60, "lr": 3e-4, "sampling_steps": 20, "guidance": 4.0, "seed": 0}
METHODS = {
    "untuned": None,
    "plain": "plain",
    "smooth": "smooth",
    "inr": "inr",
    "inr-forward": "inr-forward",
    "inr-backward": "inr-backward",
    "inr, λ 0.63": {"plain": 1.0, "inr": 0.63},
    "inr, λ 6.3": {"plain": 1.0, "inr": 6.3},
}
"""λ = 2 in "inr": the three values span a decade."""
MAIN = ("untuned", "plain", "smooth", "inr")
METRICS = {
    "flicker": "lower",
    "warping_error": "lower",
    "vl_score": "higher",
    "agreement": "higher",
    "motion": "",
}

SCENES = [
    Scene("car", "red", "road", "cartoon", seed=HELD_OUT_SEED + 100),
    Scene("boat", "blue", "sea", "realistic", seed=HELD_OUT_SEED + 101),
    Scene("bird", "green", "meadow", "cartoon", seed=HELD_OUT_SEED + 102),
    Scene("fish", "orange", "sea", "cartoon", seed=HELD_OUT_SEED + 103),
    Scene("ball", "yellow", "beach", "realistic", seed=HELD_OUT_SEED + 104),
    Scene("rocket", "purple", "city", "cartoon", seed=HELD_OUT_SEED + 105),
    Scene("car", "blue", "snow", "realistic", seed=HELD_OUT_SEED + 106),
    Scene("boat", "red", "sea", "cartoon", seed=HELD_OUT_SEED + 107),
    Scene("bird", "yellow", "city", "realistic", seed=HELD_OUT_SEED + 108),
    Scene("fish", "purple", "beach", "realistic", seed=HELD_OUT_SEED + 109),
    Scene("ball", "green", "road", "cartoon", seed=HELD_OUT_SEED + 110),
    Scene("car", "orange", "meadow", "cartoon", seed=HELD_OUT_SEED + 111),
]
REAL = {
    "man-skiing": ("a man is skiing on the snow", ["a red bird is flying over the snow, cartoon style",
        "a man is skiing on the beach", "a man is skiing, cartoon style", "a blue car is driving on the snow"]),
    "car-turn": ("a car is driving on the road", ["a red car is driving on the snow, cartoon style",
        "a blue car is driving on the beach", "a car is driving in the city at night", "a boat is sailing on the sea"]),
}  # fmt: skip


def edits(scene: Scene) -> list[Scene]:
    """Another colour, another place, another style, and colour and place together."""
    colour = "purple" if scene.colour in ("red", "yellow") else "yellow"
    place = "snow" if scene.background != "snow" else "beach"
    style = "realistic" if scene.style == "cartoon" else "cartoon"
    both = scene.edit(colour="green" if scene.colour != "green" else "red", background="city")
    if scene.background == "city":
        both = both.edit(background="meadow")
    return [scene.edit(colour=colour), scene.edit(background=place), scene.edit(style=style), both]


def load_clip(name: str, frames: int) -> tuple[Video, str, list[str], list[Scene] | None] | None:
    """(clip, its caption, prompts, scenes of the prompts or None) of a clip's number or name; None where it is not."""
    if name in REAL:
        shared = Path(os.environ.get("VIDSMOOTH_SHARED", ROOT.parent / "shared"))
        path = shared / "videos" / f"{name}.mp4"
        if not path.is_file():
            return None
        source, prompts = REAL[name]
        return Video.open(path, frames=frames, size=(128, 128)), source, prompts, None
    scene = SCENES[int(name)]
    clip = Video.from_frames(render_clip(scene, frames, truth=False).frames, fps=16)
    wanted = edits(scene)
    return clip, caption(scene), [caption(s) for s in wanted], wanted


def one_row(name: str, method: str, settings: dict) -> dict | None:
    """Tune on one clip by one method, sample its edits, judge them."""
    loaded = load_clip(name, settings["frames"])
    if loaded is None:
        return None
    clip, words, prompts, scenes = loaded
    judge = kept_classifier() if scenes is not None else None
    began = time.perf_counter()
    model = vsf.load("sprite-world", dtype="float32")
    losses: list[float] = []
    if METHODS[method] is not None:
        model = vsf.tune(
            model, clip, words, loss=METHODS[method], steps=settings["steps"], lr=settings["lr"],
            frames=settings["frames"], size=clip.size, seed=settings["seed"], progress=False,
            callback=lambda step, steps, values: losses.append(values["loss"]),
        )  # fmt: skip
    tuned = time.perf_counter() - began
    sampling = dict(
        steps=settings["sampling_steps"], height=clip.size[0], width=clip.size[1], window=len(clip), stride=len(clip),
        seed=settings["seed"], progress=False,
    )  # fmt: skip
    inverted = vsf.invert(model, clip, words, **sampling).latents  # once for all edits
    found: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for index, prompt in enumerate(prompts):
        video = vsf.fast_sample(
            model, prompt, len(clip), source=clip, latents=inverted,
            guidance=settings["guidance"], **sampling,
        )  # fmt: skip
        report = evaluate(video, source=clip, metrics=[m for m in METRICS if m != "agreement"], flow="dis")
        frames = np.stack(list(video))
        for metric in METRICS:
            if metric == "agreement":
                if judge is not None:
                    right = predict(judge, frames) == torch.tensor(labels(scenes[index]))
                    found[metric].append(float(right.float().mean()))
            else:
                found[metric].append(float(report[metric]))
        if index == 3:
            stills = [frames[i] for i in evenly_spaced(len(frames), 4)]
            write_picture(WORK / f"{name}-{method}.png", np.concatenate(stills, axis=1))
            shown = np.stack(list(clip))[evenly_spaced(len(clip), 4)]
            write_picture(WORK / f"{name}-source.png", np.concatenate(list(shown), axis=1))
    return {
        "clip": name, "method": method, "weights": weights(), **settings, "prompts": prompts, "metrics": found,
        "last_losses": losses[-10:], "tuning_seconds": round(tuned, 1),
        "seconds": round(time.perf_counter() - began, 1), **environment(),
    }  # fmt: skip


def read_rows() -> list[dict]:
    """Those of the present weights and settings."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    return [row for row in rows if row["weights"] == weights() and SETTINGS.items() <= row.items()]


def per_clip(rows: list[dict], method: str, metric: str) -> dict[str, float]:
    """Mean over a clip's edits, without those that a metric has no number for (nan)."""
    return {
        r["clip"]: float(np.nanmean(r["metrics"][metric]))
        for r in rows
        if r["method"] == method and np.isfinite(r["metrics"][metric]).any()
    }


def table(rows: list[dict], methods: list[str]) -> list[str]:
    lines = ["| method | clips | " + " | ".join(f"{m} {'↓' if b == 'lower' else '↑' if b else ''}".strip()
             for m, b in METRICS.items()) + " |", "|---|---|" + "---|" * len(METRICS)]  # fmt: skip
    for method in methods:
        cells, clips = [], 0
        for metric in METRICS:
            values = per_clip(rows, method, metric)
            clips = max(clips, len(values))
            if not values:
                cells.append("–")
                continue
            mean, low, high = bootstrap_interval(list(values.values()))
            cells.append(f"{mean:.3g}" + ("" if math.isnan(low) else f" ({low:.3g} … {high:.3g})"))
        if clips:
            lines.append(f"| {method} | {clips} | " + " | ".join(cells) + " |")
    return lines


def differences(rows: list[dict], methods: list[str], *, base: str = "plain") -> list[str]:
    """What each objective changes against `plain` on the same clips, and whether that is more than chance."""
    lines = []
    for method in methods:
        if method in (base, "untuned"):
            continue
        said = []
        for metric, better in METRICS.items():
            ours, theirs = per_clip(rows, method, metric), per_clip(rows, base, metric)
            both = [clip for clip in ours if clip in theirs]
            if not better or len(both) < 3:
                continue
            mean, low, high = bootstrap_interval([ours[c] - theirs[c] for c in both])
            helps = (mean < 0) == (better == "lower")
            verdict = "no clear difference" if low <= 0 <= high else "better" if helps else "worse"
            said.append(f"{metric} {mean:+.3g} ({low:+.3g} … {high:+.3g}): **{verdict}**")
        if said:
            lines.append(f"- `{method}` against `{base}`, {len(both)} clips: " + "; ".join(said) + ".")
    return lines


def report() -> None:
    """Write the results into docs/tuning.md and draw the contact sheet."""
    rows = read_rows()
    if not rows:
        raise SystemExit("no row yet for the present weights and settings: python benchmarks/tuning_study.py")
    world = [r for r in rows if r["clip"] not in REAL]
    real = [r for r in rows if r["clip"] in REAL]
    others = [m for m in METHODS if m not in MAIN]
    shown = len({r["clip"] for r in world}), len({r["clip"] for r in real})
    about = (
        f"{shown[0]} of {len(SCENES)} clips of sprite-world and {shown[1]} real ones, four edits each; "
        f"{SETTINGS['frames']} frames, {SETTINGS['steps']} steps of tuning at learning rate {SETTINGS['lr']:g}; "
        f"{SETTINGS['sampling_steps']} steps of DDIM from the clip's inversion, guidance {SETTINGS['guidance']:g}, "
        f"seed {SETTINGS['seed']}. In brackets: 95% bootstrap intervals over clips, widened for few "
        "clips as Student's are (none for one clip); `clips` is how "
        "many a row has. A difference is called better or worse where its interval leaves out zero, from 3 clips on; "
        "of twenty comparisons without any effect, one is."
    )
    last = rows[-1]
    machine = (
        f"*{last['machine']}, {last['threads']} threads, torch {last['torch']}; newest row: commit {last['commit']}, "
        f"{last['date'][:10]}; median {np.median([r['seconds'] for r in rows]):.0f} s a row.*"
    )
    text = [BEGIN, "", about, "", machine, "",
            "### sprite-world", "", *table(world, list(MAIN)), "", *differences(world, list(MAIN)), "",
            "### Directions, and λ over a decade", "", *table(world, ["inr", *others]), "",
            *differences(world, others), "", "### Real clips", "", *table(real, list(MAIN)), ""]  # fmt: skip
    stills, titles = [], []
    for clip in sorted({r["clip"] for r in rows}, key=str)[:3]:
        for method in ("source", *MAIN):
            path = WORK / f"{clip}-{method}.png"
            if path.exists():
                stills.append(np.asarray(Image.open(path).convert("RGB")))
                titles.append(f"clip {clip}: {method}")
    if stills:
        write_picture(SHEET, contact_sheet(stills, columns=1, labels=titles, size=(96, 384)))
        text += ["![stills of the fourth edit](images/tuning.png)", ""]
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(before + "\n".join(text) + END + after)
    print(f"{PAGE.relative_to(ROOT)}: {len(rows)} rows")


def to_do(clips: list[str], methods: list[str]) -> list[tuple[str, str]]:
    """(clip, method) of the rows that are missing, in the order in which they are made."""
    done = {(row["clip"], row["method"]) for row in read_rows()}
    others = [m for m in METHODS if m not in MAIN]
    order = [(c, m) for group in (MAIN, others) for c in clips for m in group]
    return [(c, m) for c, m in order if m in methods and (c, m) not in done and (c not in REAL or m in MAIN)]


def run(clips: list[str], methods: list[str], minutes: float) -> None:
    missing, end = to_do(clips, methods), time.monotonic() + 60 * minutes
    print(f"{len(missing)} rows to make, {torch.get_num_threads()} threads", flush=True)
    for index, (clip, method) in enumerate(missing):
        if time.monotonic() > end:
            return
        row = one_row(clip, method, SETTINGS)
        if row is None:
            print(f"{clip}: not found, left out", flush=True)
            continue
        ROWS.parent.mkdir(exist_ok=True)
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        means = {m: round(float(np.nanmean(v)), 3) for m, v in row["metrics"].items() if np.isfinite(v).any()}
        taken = {tuned: [r["seconds"] for r in read_rows() if (METHODS[r["method"]] is not None) == tuned]
                 for tuned in (True, False)}  # fmt: skip
        left = sum(
            float(np.median(taken[METHODS[m] is not None] or taken[METHODS[m] is None]))
            for _, m in missing[index + 1 :]
        )
        print(
            f"{clip} {method}: {row['seconds']:.0f} s, of them tuning {row['tuning_seconds']:.0f}; {means} "
            f"({len(missing) - index - 1} rows left, about {left / 3600:.1f} h)",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [*map(str, range(len(SCENES))), *REAL]
    parser.add_argument("--clips", nargs="+", default=every, choices=every)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no row after so long")
    parser.add_argument("--report", action="store_true", help="write the page only")
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    if not options.report:
        run(options.clips, options.methods, options.minutes)
    report()


if __name__ == "__main__":
    main()
