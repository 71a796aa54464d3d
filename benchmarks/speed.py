"""Quality against time on sprite-world: what every approximation of `fast_sample` gains and loses.

    python benchmarks/speed.py list                       the points, and how many lines each has
    python benchmarks/speed.py run [--minutes 60]         compute what is not yet there: clip by clip, all points
    python benchmarks/speed.py run --points exact,fast --clips 5
    python benchmarks/speed.py report                     docs/results.md from what is there

Text to video of held-out scenes, 24 frames. One (clip, point) is one line of benchmarks/results/speed.jsonl; a run that
is stopped goes on with the first line that is missing. A line counts only for the weights and settings it was made
with. Seconds are of sampling and decoding together, on whatever else the machine does: run it alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from _judges import weights
from _timing import RESULTS, environment
from tables import CLIPS, FPS, FRAMES, GUIDANCE, Bench, Clip, predict

import vidsmooth_fast as vsf
from vidsmooth_fast import DeepReuse
from vidsmooth_fast.sampling.presets import PRESETS
from vidsmooth_fast.spriteworld.captions import caption
from vidsmooth_fast.spriteworld.classifier import labels
from vidsmooth_fast.video import Video

LINES = RESULTS / "speed.jsonl"
WORK = Path("out/speed")
BASE = {"window": 16, "stride": 8, "guidance": GUIDANCE}
METRICS = (
    "clip_t", "clip_f", "clip_f_adjacent", "vl_score", "warping_error", "flicker", "jitter", "motion", "seam_score",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One row: its title, and the options of fast_sample that differ from BASE."""

    title: str
    options: dict = field(default_factory=dict)

    @property
    def settings(self) -> dict:
        """What a line's numbers depend on; of a preset, what it sets."""
        speed = self.options.get("speed", "exact")
        options = {k: asdict(v) if isinstance(v, DeepReuse) else v for k, v in self.options.items()}
        return {**BASE, **asdict(PRESETS[speed]), **options, "frames": FRAMES}


_TWENTY = {"scheduler": "dpmpp_2m", "steps": 20}
POINTS = {
    "exact": Point("`exact`: 50 steps of DDIM"),
    "attention": Point("`exact`, merged in attention", {"merge": "attention"}),
    "ddim-20": Point("20 steps of DDIM", {"steps": 20}),
    "dpmpp-20": Point("20 steps of DPM-Solver++", _TWENTY),
    "dpmpp-12": Point("12 steps of DPM-Solver++", {**_TWENTY, "steps": 12}),
    "guided-0.8": Point("20 steps, guidance in the first 80%", {**_TWENTY, "guidance_interval": (0, 0.8)}),
    "guided-0.6": Point("20 steps, guidance in the first 60%", {**_TWENTY, "guidance_interval": (0, 0.6)}),
    "reuse-2": Point("20 steps, deep blocks at every second", {**_TWENTY, "reuse": DeepReuse(2)}),
    "reuse-3": Point("20 steps, deep blocks at every third", {**_TWENTY, "reuse": DeepReuse(3)}),
    "reuse-3-outer": Point(
        "20 steps, all but one layer at every third", {**_TWENTY, "reuse": DeepReuse(3, 1)}
    ),
    "exact-reuse-3": Point("`exact`, deep blocks at every third step", {"reuse": DeepReuse(3)}),
    "balanced": Point("`balanced`", {"speed": "balanced"}),
    "fast": Point("`fast`", {"speed": "fast"}),
    "linear": Point("`exact`, linear preview", {"decoder": "linear"}),
}


@cache
def key_of(name: str) -> str:
    """What a line's numbers depend on, beside the code."""
    text = json.dumps([POINTS[name].settings, weights()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def lines() -> dict[tuple[int, str], dict]:
    """The lines that count, by clip and point."""
    if not LINES.exists():
        return {}
    every = [json.loads(line) for line in LINES.read_text().splitlines() if line.strip()]
    return {
        (r["clip"], r["point"]): r for r in every if r["point"] in POINTS and r["key"] == key_of(r["point"])
    }


class Judge(Bench):
    """The models and judges of `tables.py`, and the exact videos, with which the others are compared."""

    def sample(self, point: Point, clip: Clip) -> tuple[Video, float]:
        """A video, and the seconds that it took."""
        began = time.perf_counter()
        video = vsf.fast_sample(
            self.model,
            caption(clip.scene),
            FRAMES,
            seed=clip.number,
            progress=False,
            **{**BASE, **point.options},
        )
        return video, time.perf_counter() - began

    def exact(self, clip: Clip) -> np.ndarray:
        """Frames of the exact video, (F, H, W, 3) uint8, kept between runs."""
        path = WORK / f"{clip.number}-{key_of('exact')}.npz"
        if not path.exists():
            self.keep(clip, self.sample(POINTS["exact"], clip)[0])
        return np.load(path)["frames"]

    def keep(self, clip: Clip, video: Video) -> None:
        WORK.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(WORK / f"{clip.number}-{key_of('exact')}.npz", frames=np.stack(list(video)))

    def record(self, name: str, clip: Clip) -> dict:
        """One line. psnr is to the exact video, of the same seed; agreement is the classifier's."""
        video, seconds = self.sample(POINTS[name], clip)
        frames = np.stack(list(video))
        if name == "exact":
            self.keep(clip, video)
        report = vsf.evaluate(
            Video.from_frames(list(frames), fps=FPS), prompt=caption(clip.scene), metrics=METRICS,
            window=BASE["window"], stride=BASE["stride"], **self.judges,
        )  # fmt: skip
        found = {metric: value if math.isfinite(value) else None for metric, value in report.items()}
        right = predict(self.classifier, frames) == torch.tensor(labels(clip.scene))
        found["agreement"] = 100 * float(right.float().mean())
        error = np.square(frames.astype(float) - self.exact(clip)).mean()
        found["psnr"] = None if name == "exact" else float(10 * np.log10(255**2 / max(error, 1e-9)))
        return {"clip": clip.number, "point": name, "key": key_of(name), "seconds": seconds, **found}


def run(names: list[str], clips: int, minutes: float) -> None:
    judge, done, end = Judge(), lines(), time.monotonic() + 60 * minutes
    _ = judge.model, judge.judges, judge.classifier  # loaded, and trained, outside the time
    judge.sample(Point("to warm up", {"steps": 1}), Clip(0))
    RESULTS.mkdir(exist_ok=True)
    for number in range(clips):
        for name in names:
            if (number, name) in done:
                continue
            if time.monotonic() > end:
                return
            record = {**judge.record(name, Clip(number)), **environment()}
            with LINES.open("a") as file:
                file.write(json.dumps(record) + "\n")
            shown = " ".join(
                f"{m} {record[m]:.2f}"
                for m in ("clip_t", "agreement", "flicker", "psnr")
                if record[m] is not None
            )
            print(f"clip {number} {name}: {record['seconds']:.1f} s, {shown}", flush=True)


def chosen(text: str | None) -> list[str]:
    if text is None:
        return list(POINTS)
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in POINTS]
    if unknown:
        raise SystemExit(f"--points: expected some of {', '.join(POINTS)}, got {', '.join(unknown)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", default="list", choices=("list", "run", "report"))
    parser.add_argument("--points", help="names, separated by commas; all by default")
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--minutes", type=float, default=math.inf, help="start nothing new after so long")
    options = parser.parse_args()
    if options.what == "list":
        done = lines()
        for name, point in POINTS.items():
            print(f"{name:15} {sum(which == name for _, which in done):3} clips  {point.title}")
    elif options.what == "run":
        run(chosen(options.points), options.clips, options.minutes)
    else:
        from _tables_report import write_page

        print(write_page())


if __name__ == "__main__":
    main()
