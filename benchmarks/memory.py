"""Peak memory of fast_sample: beside the estimate that it prints before it starts, and over the length of the video.

python benchmarks/memory.py [estimates | lengths]

Every case runs in a process of its own, and the peak is that process's (CPU only). Results are appended to
benchmarks/results/memory.jsonl. Lengths sample sprite-world at 64 x 64 pixels with merge="latent", from 64 to 4,096
frames, into a file; seconds per frame are those of the whole run, decoding included.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from _timing import RESULTS, environment

ESTIMATES = {
    "sprite-world, 64 frames": {"frames": 64},
    "sprite-world, 512 frames": {"frames": 512},
    "sprite-world, 64 frames, merged in attention": {"frames": 64, "merge": "attention"},
    "sprite-world, 256 frames, merged in attention": {"frames": 256, "merge": "attention"},
    "sprite-world, 64 frames of 256 x 256": {"frames": 64, "height": 256, "width": 256},
    "37M, 48 frames": {"model": "37m", "frames": 48, "height": 64, "width": 64},
    "37M, 48 frames, one window at a time": {"model": "37m", "frames": 48, "height": 64, "width": 64, "max_batch": 1},
}  # fmt: skip
LENGTHS = {
    f"{frames} frames": {"frames": frames, "height": 64, "width": 64, "guidance": 1.0, "steps": 3}
    for frames in (64, 256, 1024, 4096)
}
THREADS = 2
UNITS = {"MiB": 2**20, "GiB": 2**30}


def run_case(options: dict) -> dict[str, float]:
    """Estimated and actual peak of this process, in MiB, and seconds per frame."""
    import torch
    from end_to_end import load_size

    import vidsmooth_fast as vsf

    torch.set_num_threads(THREADS)
    name = options.pop("model", "sprite-world")
    model = load_size("37m")[0] if name == "37m" else vsf.load(name)
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(printed):
        output = Path(folder) / "video.mp4" if "steps" in options else None
        video = vsf.fast_sample(model, "a red car", output=output, **{"steps": 2, **options})
    said, unit = re.search(r"about ([\d.]+) (MiB|GiB) of memory", printed.getvalue()).groups()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "frames": options["frames"],
        "estimate_mib": float(said) * UNITS[unit] / 2**20,
        "peak_mib": peak / 2**20,
        "seconds_per_frame": video.timing["seconds"] / options["frames"],
        "estimated_seconds_per_frame": video.timing["estimated_seconds"] / options["frames"],
    }


def main() -> None:
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        print(json.dumps(run_case(json.loads(sys.argv[1]))))
        return
    kinds = {"estimates": ESTIMATES, "lengths": LENGTHS}
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "memory.jsonl").open("a") as file:
        for kind in sys.argv[1:] or kinds:
            for label, options in kinds[kind].items():
                command = [sys.executable, __file__, json.dumps(options)]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                record = {"kind": kind, "case": label, **json.loads(output.splitlines()[-1])}
                print(f"{label:50} estimate {record['estimate_mib']:6.0f} MiB, peak {record['peak_mib']:6.0f} MiB, "
                      f"ratio {record['estimate_mib'] / record['peak_mib']:.2f}, "
                      f"{1e3 * record['seconds_per_frame']:.1f} ms a frame", flush=True)  # fmt: skip
                file.write(json.dumps({**record, **environment(), "threads": THREADS}) + "\n")
                file.flush()


if __name__ == "__main__":
    main()
