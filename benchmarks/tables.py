"""The papers' tables on sprite-world: [003] Tables 1 and 2, [004] Tables 1 and 2, and rows of our own.

    python benchmarks/tables.py list                       the methods, and the rows that are missing
    python benchmarks/tables.py run [--minutes 60]         compute what is not yet there, in the order below
    python benchmarks/tables.py run --methods papers       one group of methods; or --methods none,inr --clips 5
    python benchmarks/tables.py report                     docs/results.md from what is there

20 held-out scenes, each with an edit of its style, its object, its background, and of colour and background together.
One finished (clip, method) is one line of benchmarks/results/tables.jsonl, with its four edits; a run that is stopped
goes on with the first line that is missing. A line counts only for the weights and settings it was made with.

The order: the methods are in groups, what the papers and the defaults need first, then tuning, then the sweeps; inside
a group every method of a clip comes before the next clip. So wherever a run ends, methods were compared on the same
clips. Each line says how long it took and about how long the rest will.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from _judges import kept_classifier, weights
from _timing import RESULTS, environment

import vidsmooth_fast as vsf
from vidsmooth_fast import InversionBlend, NoiseConstraint
from vidsmooth_fast.metrics.autoencoder import Autoencoder
from vidsmooth_fast.metrics.clip_model import Clip as ClipModel
from vidsmooth_fast.spriteworld.backgrounds import BACKGROUNDS
from vidsmooth_fast.spriteworld.captions import caption
from vidsmooth_fast.spriteworld.classifier import Classifier, labels, predict
from vidsmooth_fast.spriteworld.objects import OBJECTS
from vidsmooth_fast.spriteworld.render import COLOURS, STYLES, Scene, random_scene, render_clip
from vidsmooth_fast.video import Video, VideoWriter

LINES = RESULTS / "tables.jsonl"
WORK = Path("out/tables")
FRAMES, FPS, CLIPS, SEED = 24, 16, 20, 0
SAMPLING = {
    "steps": 16,
    "scheduler": "ddim",
    "window": 16,
    "stride": 8,
    "window_weights": "hann",
    "merge": "latent",
}
GUIDANCE = 4.0
STRENGTH = 0.8  # of the noised source, where all frames share their noise
TUNING = {"steps": 100, "lr": 1e-4}
METRICS = (
    "clip_t", "clip_f", "clip_f_adjacent", "vl_score", "warping_error", "flicker", "flicker_raw", "jitter", "motion",
    "seam_score", "psnr",
)  # fmt: skip


@dataclass(frozen=True)
class Method:
    """One row. section: of the page. title: of the row. baseline: the method it is compared with, "" for none.

    sampling: what differs from SAMPLING. smooth, blend: as of fast_sample. start: "inversion", or an `init` from which
    the noised source is edited. loss: of tuning, "" for none. render: "source" or "edit", for rows that show what the
    metrics say of pictures that were drawn. paper: differences the paper found, by metric.
    """

    section: str
    title: str
    baseline: str = ""
    sampling: dict = field(default_factory=dict)
    smooth: NoiseConstraint | None = None
    blend: InversionBlend | None = None
    start: str = "inversion"
    loss: str = ""
    render: str = ""
    paper: dict = field(default_factory=dict)

    @property
    def settings(self) -> dict:
        kept = {k: v for k, v in asdict(self).items() if k not in ("section", "title", "baseline", "paper")}
        tuning = TUNING if self.loss else None
        return {
            **kept,
            "base": SAMPLING,
            "guidance": GUIDANCE,
            "frames": FRAMES,
            "strength": STRENGTH,
            "tuning": tuning,
        }


DRAWN, FREE, TARGETS, INVERTED, WINDOWS, TUNED = (
    "What the metrics say of drawn clips",
    "[003] Table 2: noise constraint at sampling, from one noise for all frames",
    "Noise constraint at sampling, from the source's inversion",
    "[004] Table 2: blend of inversion noise",
    "Windows",
    "[003] Table 1 and [004] Table 1: tuning",
)
_003_T2 = {"clip_t": 0.67, "clip_f": 0.70, "vl_score": 0.28}


def _methods() -> dict[str, Method]:
    found = {
        "source": Method(DRAWN, "the source itself, under the edit's prompt", render="source"),
        "ideal": Method(DRAWN, "the ideal edit: the same motion, drawn", render="edit"),
        "none": Method(TARGETS, "no smoothing"),
        "shared": Method(FREE, "no smoothing", start="shared"),
    }
    for strength in (0.05, 0.1, 0.25, 0.5):
        for target in ("clean", "source"):
            smooth = NoiseConstraint(strength, target)
            found[f"{target}-{strength:g}"] = Method(
                TARGETS, f"{target}, {strength:g}", "none", smooth=smooth
            )
        for target in ("published", "simple", "clean"):
            found[f"shared-{target}-{strength:g}"] = Method(
                FREE, f"{target}, {strength:g}", "shared", smooth=NoiseConstraint(strength, target), start="shared",
                paper=_003_T2 if (target, strength) == ("published", 0.5) else {},
            )  # fmt: skip
    for noise, at, weight in (
        ("implied", "step", 0.25), ("implied", "step", 0.5), ("implied", "end", 0.5), ("shared", "step", 0.25),
        ("shared", "step", 0.5), ("shared", "end", 0.5), ("independent", "step", 0.25), ("independent", "end", 0.5),
    ):  # fmt: skip
        found[f"blend-{noise}-{at}-{weight:g}"] = Method(
            INVERTED, f"{noise}, at each step, {weight:g}" if at == "step" else f"{noise}, at the end, {weight:g}",
            "none", blend=InversionBlend(weight, noise, at),
            paper={"clip_t": 1, "clip_f_adjacent": 1, "motion": -1} if weight == 0.5 and noise != "shared" else {},
        )  # fmt: skip
    for name, sampling in (
        ("flat", {"window_weights": "flat"}), ("pyramid", {"window_weights": "pyramid"}), ("stride-4", {"stride": 4}),
        ("stride-12", {"stride": 12}), ("attention", {"merge": "attention"}),
    ):  # fmt: skip
        title = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in sampling.items())
        found[name] = Method(WINDOWS, title, "none", sampling=sampling)
    smooth_003 = {"clip_t": -0.79, "clip_f": 0.38, "vl_score": 2.74}
    for loss, paper in (
        ("plain", {}), ("smooth", smooth_003), ("smooth-naive", {}), ("smooth-simple", {}),
        ("inr", {"clip_t": 1, "clip_f_adjacent": 1, "motion": -1}),
    ):  # fmt: skip
        found[loss] = Method(
            TUNED, f"{loss} loss", "none" if loss == "plain" else "plain", loss=loss, paper=paper
        )
    return found


METHODS = _methods()
GROUPS = {
    "papers": (
        "source", "ideal", "none", "clean-0.25", "source-0.25", "blend-implied-step-0.5", "blend-independent-end-0.5",
        "shared", "shared-published-0.5", "shared-clean-0.25", "flat", "attention",
    ),
    "tuned": ("plain", "smooth", "inr"),
    "forms": ("smooth-naive", "smooth-simple"),
}  # fmt: skip
GROUPS["sweeps"] = tuple(
    name for name in METHODS if name not in {n for group in GROUPS.values() for n in group}
)
"""Names for --methods, and the order of a run."""
MISSING = (
    "[003] Table 1: Make-A-Protagonist and ControlVideo, whose base systems are not built here",
    "[003] Table 2: InstructPix2Pix and Video InstructPix2Pix; the rows above stand in for them with the noised source "
    "and one noise for all frames",
    "[004] Table 1: ControlVideo; [004] Table 2: FateZero, Video-P2P, STEM",
)


@dataclass(frozen=True)
class Clip:
    """A held-out scene, its four edits, and its source."""

    number: int

    @cached_property
    def scene(self) -> Scene:
        return random_scene(np.random.default_rng([SEED, 21, self.number]), held_out=True)

    @cached_property
    def edits(self) -> dict[str, Scene]:
        rng = np.random.default_rng([SEED, 22, self.number])

        def other(word: str, known) -> str:
            return str(rng.choice([w for w in known if w != getattr(self.scene, word)]))

        style, thing, place = (
            other("style", STYLES),
            other("object", OBJECTS),
            other("background", BACKGROUNDS),
        )
        both = {"colour": other("colour", COLOURS), "background": other("background", BACKGROUNDS)}
        return {
            "style": self.scene.edit(style=style),
            "object": self.scene.edit(object=thing),
            "background": self.scene.edit(background=place),
            "multiple": self.scene.edit(**both),
        }

    def drawn(self, scene: Scene) -> Video:
        return Video.from_frames(render_clip(scene, FRAMES, truth=False).frames, fps=FPS)


class Bench:
    """The models and judges of a run, loaded when first used, and the newest clip's inversion."""

    def __init__(self) -> None:
        self._inverted: tuple[tuple, torch.Tensor] | None = None

    @cached_property
    def model(self):
        return vsf.load("sprite-world", device="cpu")

    @cached_property
    def judges(self) -> dict:
        return {
            "clip": ClipModel(device="cpu"),
            "autoencoder": Autoencoder(device="cpu"),
            "flow": "dis",
            "device": "cpu",
        }

    @cached_property
    def classifier(self) -> Classifier:
        return kept_classifier()

    def videos(self, method: Method, clip: Clip) -> Iterator[tuple[str, Video]]:
        """The four edits of a clip."""
        source = clip.drawn(clip.scene)
        if method.render:
            for edit, scene in clip.edits.items():
                yield edit, source if method.render == "source" else clip.drawn(scene)
            return
        model, options = self.model, {**SAMPLING, **method.sampling}
        if method.loss:
            model = vsf.tune(
                model,
                source,
                caption(clip.scene),
                loss=method.loss,
                frames=FRAMES,
                seed=SEED,
                progress=False,
                **TUNING,
            )
        common = {"guidance": GUIDANCE, "smooth": method.smooth, "seed": SEED, "progress": False, **options}
        if method.start == "inversion":
            common |= {"source": source, "latents": self._inversion(model, clip, source, method, options)}
        else:
            common |= {"source": source, "strength": STRENGTH, "init": method.start}
        for edit, scene in clip.edits.items():
            yield edit, vsf.fast_sample(model, caption(scene), FRAMES, **common)

    def _inversion(self, model, clip: Clip, source: Video, method: Method, options: dict) -> torch.Tensor:
        key = (clip.number, json.dumps(options, sort_keys=True))
        reusable = method.blend is None and not method.loss
        if reusable and self._inverted is not None and self._inverted[0] == key:
            return self._inverted[1]
        found = vsf.invert(
            model, source, caption(clip.scene), blend=method.blend, seed=SEED, progress=False, **options
        ).latents
        if reusable and not method.sampling:
            self._inverted = (key, found)
        return found

    def judge(self, video: Video, scene: Scene, ideal: Video, method: Method) -> dict:
        """Metrics of one edit; psnr is to the ideal edit; agreement is the classifier's, over words and frames."""
        options = {**SAMPLING, **method.sampling}
        report = vsf.evaluate(
            video, prompt=caption(scene), source=ideal, metrics=METRICS, window=options["window"],
            stride=options["stride"], **self.judges,
        )  # fmt: skip
        found = {name: value if math.isfinite(value) else None for name, value in report.items()}
        right = (
            (predict(self.classifier, np.stack(list(video))) == torch.tensor(labels(scene))).float().mean(0)
        )
        found["agreement"] = 100 * float(right.mean())
        if video.latents is not None:
            found["spectrum"] = temporal_spectrum(video.latents)
        return found

    def record(self, name: str, clip: Clip, *, keep: bool) -> dict:
        """One line: all edits of a clip by a method."""
        _ = self.model, self.judges, self.classifier  # loaded, and trained, outside the time
        method, began, edits = METHODS[name], time.perf_counter(), {}
        for edit, video in self.videos(method, clip):
            scene = clip.edits[edit]
            edits[edit] = self.judge(video, scene, clip.drawn(scene), method)
            if keep:
                folder = WORK / "examples"
                folder.mkdir(parents=True, exist_ok=True)
                with VideoWriter(folder / f"{clip.number}-{edit}-{name}.mp4", FPS, video.size) as writer:
                    for frame in video:
                        writer.write(frame)
        seconds = time.perf_counter() - began
        return {"clip": clip.number, "method": name, "key": key_of(name), "edits": edits, "seconds": seconds}


def temporal_spectrum(latents: torch.Tensor) -> list[float]:
    """Mean power of latents (1, C, F, h, w) at each temporal frequency 0 ... pi: (F / 2 + 1,), means removed, Hann."""
    z = latents[0].double()
    z = (z - z.mean(1, keepdim=True)) * torch.hann_window(z.shape[1], periodic=False, dtype=z.dtype)[
        :, None, None
    ]
    return [float(f"{p:.4g}") for p in torch.fft.rfft(z, dim=1).abs().square().mean((0, 2, 3)).tolist()]


@cache
def key_of(name: str) -> str:
    """What a line's numbers depend on, beside the code."""
    text = json.dumps([METHODS[name].settings, SEED, weights()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def lines() -> dict[tuple[int, str], dict]:
    """The lines that count, by clip and method."""
    if not LINES.exists():
        return {}
    every = [json.loads(line) for line in LINES.read_text().splitlines() if line.strip()]
    return {
        (r["clip"], r["method"]): r
        for r in every
        if r["method"] in METHODS and r["key"] == key_of(r["method"])
    }


def to_do(names: list[str], clips: int) -> list[tuple[int, str]]:
    """(clip, method) of every line that is asked for and missing, in the order in which they are computed."""
    done = lines()
    return [
        (number, name)
        for group in GROUPS.values()
        for number in range(clips)
        for name in group
        if name in names and (number, name) not in done
    ]


def expected(name: str) -> float:
    """Seconds that a line will take: the median of those of its method, else of its kind; nan where none is done."""

    def kind(method: str) -> tuple[bool, bool]:
        return bool(METHODS[method].loss), bool(METHODS[method].render)

    taken = [(method, record["seconds"]) for (_, method), record in lines().items()]
    alike = [s for m, s in taken if m == name] or [s for m, s in taken if kind(m) == kind(name)]
    return float(np.median(alike)) if alike else math.nan


def run(names: list[str], clips: int, minutes: float) -> None:
    """Compute the missing lines; start none after so many minutes."""
    missing, end = to_do(names, clips), time.monotonic() + 60 * minutes
    print(
        f"{len(missing)} of {len(names) * clips} lines are missing, {torch.get_num_threads()} threads",
        flush=True,
    )
    bench = Bench()
    RESULTS.mkdir(exist_ok=True)
    for index, (number, name) in enumerate(missing):
        if time.monotonic() > end:
            return
        record = {**bench.record(name, Clip(number), keep=number == 0), **environment()}
        with LINES.open("a") as file:
            file.write(json.dumps(record) + "\n")
        shown = {
            m: np.mean([math.nan if e[m] is None else e[m] for e in record["edits"].values()])
            for m in ("clip_t", "vl_score", "flicker")
        }
        numbers = " ".join(f"{m} {v:.2f}" for m, v in shown.items())
        each = {n: expected(n) for n in {n for _, n in missing}}
        left = sum(each[n] for _, n in missing[index + 1 :])
        rest = "" if math.isnan(left) else f"; about {left / 3600:.1f} h"
        print(
            f"clip {number} {name}: {record['seconds']:.0f} s, {numbers} ({len(missing) - index - 1} lines left{rest})",
            flush=True,
        )


def chosen(text: str | None) -> list[str]:
    if text is None:
        return list(METHODS)
    names = [n for name in text.split(",") for n in GROUPS.get(name.strip(), (name.strip(),))]
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise SystemExit(
            f"--methods: expected some of {', '.join([*GROUPS, *METHODS])}, got {', '.join(unknown)}"
        )
    return names


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", default="list", choices=("list", "run", "report"))
    parser.add_argument("--methods", help="names or groups, separated by commas; all by default")
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--minutes", type=float, default=math.inf, help="start nothing new after so long")
    options = parser.parse_args()
    if options.what == "list":
        done = lines()
        for group, names in GROUPS.items():
            print(f"{group}:")
            for name in names:
                count = sum(method == name for _, method in done)
                print(
                    f"  {name:26} {count:2} of {CLIPS} clips   {METHODS[name].section}: {METHODS[name].title}"
                )
        print("missing:", *MISSING, sep="\n  ")
    elif options.what == "run":
        run(chosen(options.methods), options.clips, options.minutes)
    else:
        from _tables_report import write_page

        print(write_page())


if __name__ == "__main__":
    main()
