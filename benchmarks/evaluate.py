"""`evaluate` on 256 frames of 512 x 512: every weight-free metric in one pass, with a source and window joins.

    python benchmarks/evaluate.py [--frames 256] [--size 512]     the whole pass, and its peak memory at two lengths
    python benchmarks/evaluate.py --each [METRIC ...]             also each metric alone (or these)

The video is the sprite world's, written as H.264 and read back, so that decoding counts; its source is another
rendering. The pass is timed, printed and appended to benchmarks/results/evaluate.jsonl before anything else; a metric
alone pays for the flow that it shares with others in the pass, so those seconds do not add up to it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _timing import RESULTS, environment

import vidsmooth_fast as vsf
from vidsmooth_fast.metrics.registry import WEIGHT_FREE
from vidsmooth_fast.spriteworld.render import HELD_OUT_SEED, Scene, render_frame
from vidsmooth_fast.video import VideoWriter

SCENE = Scene("car", "red", "snow", "realistic", seed=HELD_OUT_SEED)
LIMIT = 60.0


def write(path: Path, scene: Scene, frames: int, size: int) -> Path:
    with VideoWriter(path, 16, (size, size)) as writer:
        for n in range(frames):
            writer.write(render_frame(scene, n, size).picture())
    return path


def seconds_of(video: Path, source: Path, metrics: tuple[str, ...]) -> float:
    began = time.perf_counter()
    vsf.evaluate(video, source=source, metrics=metrics, window=16, stride=8, flow="dis")
    return time.perf_counter() - began


def peak_mib(video: Path, source: Path, frames: int) -> float:
    """Peak memory of a fresh process that judges the first `frames` frames."""
    code = (
        "import resource, sys, vidsmooth_fast as vsf; from vidsmooth_fast.metrics.registry import WEIGHT_FREE; "
        f"video = vsf.Video.open({str(video)!r}, frames={frames}); "
        f"vsf.evaluate(video, source={str(source)!r}, metrics=WEIGHT_FREE, window=16, stride=8, flow='dis'); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return int(out) * (1 if sys.platform == "darwin" else 1024) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument(
        "--each", nargs="*", metavar="METRIC", help="time these alone, too; all without names"
    )
    options = parser.parse_args()
    each = WEIGHT_FREE if options.each == [] else options.each or ()
    if unknown := [name for name in each if name not in WEIGHT_FREE]:
        parser.error(f"--each: expected some of {', '.join(WEIGHT_FREE)}, got {', '.join(unknown)}")
    record = {"benchmark": "evaluate", "frames": options.frames, "size": options.size, "metrics": WEIGHT_FREE}
    with tempfile.TemporaryDirectory() as folder:
        video = write(Path(folder) / "video.mp4", SCENE.edit(colour="blue"), options.frames, options.size)
        source = write(Path(folder) / "source.mp4", SCENE, options.frames, options.size)
        seconds_of(video, source, WEIGHT_FREE[:1])  # warm: imports, threads
        busy = time.process_time()
        record["seconds"] = seconds_of(video, source, WEIGHT_FREE)
        record["cpu_seconds"] = time.process_time() - busy
        limit = LIMIT * options.frames * (options.size / 512) ** 2 / 256
        print(
            f"{options.frames} frames of {options.size} x {options.size}, {len(WEIGHT_FREE)} metrics: "
            f"{record['seconds']:.1f} s, {record['cpu_seconds']:.1f} s of processor time; to reach {limit:.1f} s",
            flush=True,
        )
        lengths = sorted({min(max(options.frames // 8, 24), options.frames), options.frames})
        record["peak_mib"] = {n: round(peak_mib(video, source, n), 1) for n in lengths}
        print(
            "peak memory: "
            + ", ".join(f"{mib:.0f} MiB for {n} frames" for n, mib in record["peak_mib"].items())
        )
        RESULTS.mkdir(exist_ok=True)
        with open(RESULTS / "evaluate.jsonl", "a") as lines:
            lines.write(json.dumps({**record, **environment()}) + "\n")
        for name in each:
            print(f"{name} alone: {seconds_of(video, source, (name,)):.2f} s", flush=True)


if __name__ == "__main__":
    main()
