"""An AOTInductor bundle beside eager PyTorch and torch.compile on a CPU: until a new process predicts, and per call.

python benchmarks/aoti.py [seconds] [--tiny] [--results FOLDER]: seconds of timed calls. The network has 37 million
parameters, with one window of 16 frames and two guidance branches. Starting is timed in processes of their own,
torch.compile with an empty cache and with the one that its first start left. Nothing is timed before all agree.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from _networks import MEDIUM, TINY, TOKENS, random_unet
from _start import CONTENDERS, prepare
from _timing import environment, keep_freed_memory, measure, options
from safetensors.torch import load_file, save_file

import vidsmooth_fast as vsf
from vidsmooth_fast.models.video_model import VideoModel

FRAMES, OTHER_FRAMES = 16, 12
TOLERANCE = 1e-4  # of the largest value


def make(folder: Path, config: dict) -> float:
    """The network as weights and as a bundle, and inputs; returns the seconds of the export."""
    base = vsf.load("sprite-world", device="cpu", dtype="float32")
    unet = random_unet({**config, "cross_attention_dim": base.network_config["cross_attention_dim"]})
    model = VideoModel(
        unet, base.vae, base.text_encoder, base.tokenizer, base.scheduler_config, name="benchmark"
    )
    model.save(folder / "model")
    (folder / "unet").symlink_to(folder / "model" / "unet")
    torch.manual_seed(0)
    size, width = config["sample_size"], unet.config["cross_attention_dim"]
    for name, frames in (("inputs", FRAMES), ("others", OTHER_FRAMES)):
        inputs = {
            "sample": torch.randn(2, 4, frames, size, size),
            "timestep": torch.full((2,), 500.0),
            "encoder_hidden_states": torch.randn(2, TOKENS, width),
        }
        save_file(inputs, folder / f"{name}.safetensors")
    began = time.perf_counter()
    vsf.export(model, folder / "bundle", format="aoti")
    return time.perf_counter() - began


def start(contender: str, folder: Path, cache: Path) -> dict[str, float]:
    """Seconds from the start of a process to its first prediction, and of its first call with other frames."""
    script = str(Path(__file__).with_name("_start.py"))
    began = time.time()
    done = subprocess.run(
        [sys.executable, script, contender, str(folder)],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{contender}: {done.stderr[-2000:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    return {"start_s": round(told["first"] - began, 3), "other_frames_s": round(told["other"], 3)}


def main() -> None:
    chosen, config = options(), TINY if options().tiny else MEDIUM
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as work:
        folder, cache = Path(work), Path(work) / "inductor"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache / "here")
        export_s = make(folder, config)
        print(f"exported in {export_s:.1f} s")
        rows = {name: start(name, folder, cache / "new") for name in CONTENDERS}
        rows["torch.compile, cached"] = start("torch.compile", folder, cache / "new")

        inputs = load_file(folder / "inputs.safetensors")
        runs = {name: prepare(name, folder) for name in CONTENDERS}
        expected = runs["eager"](inputs)
        for name, run in runs.items():
            error = ((run(inputs) - expected).abs().max() / expected.abs().max()).item()
            if not error <= TOLERANCE:
                sys.exit(f"{name}: differs from eager by {error:.2g} of the largest value")
        times = measure(
            {name: lambda run=run: run(inputs) for name, run in runs.items()}, chosen.seconds or 60.0
        )
    for name, taken in times.items():
        quantiles = torch.tensor(taken, dtype=torch.float64).quantile(
            torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
        )
        rows[name] |= dict(
            zip(("call_s", "p20_s", "p80_s"), (round(q, 4) for q in quantiles.tolist()), strict=True)
        )
    for name, row in rows.items():
        print(f"{name:24}" + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    record = {
        "size": "tiny" if chosen.tiny else "37m",
        "frames": FRAMES,
        "pixels": config["sample_size"],
        "export_s": round(export_s, 1),
        "rounds": len(times["eager"]),
        "rows": rows,
        **environment(),
    }
    chosen.results.mkdir(parents=True, exist_ok=True)
    with open(chosen.results / "aoti.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
