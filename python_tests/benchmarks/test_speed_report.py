"""The pages on speed from invented records, and the name `profile`, which is Python's too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ABOUT = {
    "machine": "m", "threads": 1, "isa": "avx512", "torch": "t", "commit": "c", "date": "2000-01-01", "device": "cpu",
}  # fmt: skip
ON_GPU = {**ABOUT, "device": "H", "gemm_tflops": 700.0, "driver": "1", "cuda": "2", "triton": "3"}


@pytest.fixture
def here(monkeypatch):
    """benchmarks/ as the place where modules are found, and none of them loaded before."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    for path in BENCHMARKS.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    yield monkeypatch
    for path in BENCHMARKS.glob("*.py"):
        sys.modules.pop(path.stem, None)


def write(path: Path, *records: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_quality_against_time(here, tmp_path):
    import _tables_report
    import speed
    import tables

    here.setattr(speed, "weights", lambda: "0")
    here.setattr(speed, "LINES", tmp_path / "speed.jsonl")
    here.setattr(tables, "LINES", tmp_path / "tables.jsonl")
    here.setattr(_tables_report, "PAGE", tmp_path / "results.md")
    with pytest.raises(SystemExit, match="nothing measured yet"):
        _tables_report.write_page()
    lines = []
    for clip in range(3):
        for name, seconds in (("exact", 40.0), ("fast", 10.0 + clip)):
            numbers = dict.fromkeys((*speed.METRICS, "agreement"), 20.0 + clip)
            psnr = None if name == "exact" else 30.0
            line = {"clip": clip, "point": name, "key": speed.key_of(name), "seconds": seconds, "psnr": psnr}
            lines.append({**line, **numbers, **ABOUT})
    write(tmp_path / "speed.jsonl", *lines, {**lines[0], "key": "of other weights", "seconds": 1000.0})
    page = _tables_report.write_page().read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| `fast` |")]
    assert row.startswith("| `fast` | 3 | 11.0 s | 3.64× | 21.00 [") and row.endswith(
        "| 30.00 [30.00, 30.00] |"
    )
    assert "| `exact`: 50 steps of DDIM | 3 | 40.0 s | 1.00× |" in page
    assert "`balanced`" not in page, "a row only where there are lines"


def test_points_and_presets_have_keys_of_their_own(here):
    import speed

    here.setattr(speed, "weights", lambda: "0")
    keys = [speed.key_of(name) for name in speed.POINTS]
    assert len(set(keys)) == len(keys)
    assert {"exact", "balanced", "fast"} <= set(speed.POINTS)
    with pytest.raises(SystemExit, match="--points: expected some of exact"):
        speed.chosen("exact,slow")


def test_performance_page(here, tmp_path):
    import _gpu_report
    import report

    here.setattr(report, "RESULTS", tmp_path)
    part = {"seconds": 1.0, "share": 0.5, "calls": 7, "gflop": 10.0, "of_matrix_rate": 0.4}
    record = {
        "size": "sd15", "frames": 16, "pixels": 128, "dtype": "float32", "seconds": 2.0, "gflop": 10.0,
        "matrix_gflop_per_s": 100.0, "floor_seconds": 0.1, "of_floor": 0.05, "calls": 9, "gap_seconds": 0.1,
        "profiled_seconds": 2.1, "copy_gb_per_s": 10.0, "kinds": {"convolution": part},
    }  # fmt: skip
    write(tmp_path / "profile.jsonl", {**record, **ABOUT})
    write(tmp_path / "gpu" / "profile.jsonl", {**record, "pixels": 512, **ON_GPU})
    here.setattr(report.newest, "__defaults__", (tmp_path,))
    text = "\n".join(report.profiles_section())
    assert "sd15, 16 frames of 128×128, float32\n" in text and "512×512, float32, H\n" in text
    assert "| convolution | 1.000 s | 50.0% | 7 | 10.0 | 0.40 |  |  |" in text
    switches = {
        "size": "37m",
        "dtype": "fp32",
        "frames": 16,
        "seconds": {"everything on": 2.0, "without x": 3.0},
    }
    write(tmp_path / "switches.jsonl", {**switches, **ABOUT})
    assert "| without x | 3.00 s |" in report.switches_section()

    assert _gpu_report.end_to_end(tmp_path / "gpu") == []
    common = {"frames": 256, "latents": 64, "dtype": "bfloat16", "steps": 50, **ON_GPU}
    write(
        tmp_path / "gpu" / "end_to_end_gpu.jsonl",
        {"row": "ours, exact", "seconds_per_step": 3.0, "fraction_of_gemm": 0.46, **common},
        {"row": "published on SDPA, torch.compile", "seconds_per_step": 6.0, **common},
        {"row": "2D network", "iterations_per_second": {"1": 50.0, "8": 10.0}, "best_batch": 8,
         "stable_fast_on_h100": 104.6, **common},
        {"row": "ours, exact", "seconds_per_step": 1.0, **common, "device": "cpu"},
    )  # fmt: skip
    text = "\n".join(_gpu_report.section(tmp_path / "gpu"))
    assert (
        "| ours, exact | 3.00 s | 150 s | 1.00× the time | 0.46 | 0.45 of the bf16 rate of a product |"
        in text
    )
    assert (
        "| published on SDPA, torch.compile | 6.00 s | 300 s | 2.00× the time |  | ours 1.3 × as fast |"
        in text
    )
    assert "50.0 iterations/s at batch 1; at batch 8, the best, 10.0 (80.0 pictures' iterations/s)" in text
    assert "No GPU figure" not in text


def test_importing_profile_beside_ours_gives_pythons():
    code = "import cProfile, profile; cProfile.Profile().runcall(len, ''); print(profile.Profile.__module__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "profile\n"), done.stderr
