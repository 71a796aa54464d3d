"""Peak memory of fast_sample beside the estimate that it prints before it starts: python benchmarks/memory.py

Every case runs in a process of its own, two steps long, and the peak is that process's (CPU only). Results are
appended to benchmarks/results/memory.jsonl.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import resource
import subprocess
import sys

from _timing import RESULTS, environment

CASES = {
    "sprite-world, 64 frames": {"frames": 64},
    "sprite-world, 512 frames": {"frames": 512},
    "sprite-world, 64 frames, merged in attention": {"frames": 64, "merge": "attention"},
    "sprite-world, 256 frames, merged in attention": {"frames": 256, "merge": "attention"},
    "sprite-world, 64 frames of 256 x 256": {"frames": 64, "height": 256, "width": 256},
    "37M, 48 frames": {"model": "37m", "frames": 48, "height": 64, "width": 64},
    "37M, 48 frames, one window at a time": {"model": "37m", "frames": 48, "height": 64, "width": 64, "max_batch": 1},
}  # fmt: skip
UNITS = {"MiB": 2**20, "GiB": 2**30}


def run_case(options: dict) -> dict[str, float]:
    """Estimated and actual peak, in MiB, of this process."""
    import torch
    from end_to_end import load_size

    import vidsmooth_fast as vsf

    torch.set_num_threads(2)
    name = options.pop("model", "sprite-world")
    model = load_size("37m")[0] if name == "37m" else vsf.load(name)
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        vsf.fast_sample(model, "a red car", steps=2, **options)
    said, unit = re.search(r"about ([\d.]+) (MiB|GiB) of memory", printed.getvalue()).groups()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"estimate_mib": float(said) * UNITS[unit] / 2**20, "peak_mib": peak / 2**20}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(run_case(json.loads(sys.argv[1]))))
        return
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "memory.jsonl").open("a") as file:
        for label, options in CASES.items():
            command = [sys.executable, __file__, json.dumps(options)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            record = {"case": label, **json.loads(output.splitlines()[-1])}
            print(f"{label:50} estimate {record['estimate_mib']:6.0f} MiB, peak {record['peak_mib']:6.0f} MiB, "
                  f"ratio {record['estimate_mib'] / record['peak_mib']:.2f}", flush=True)  # fmt: skip
            file.write(json.dumps({**record, **environment()}) + "\n")


if __name__ == "__main__":
    main()
