"""What installing and importing the package promises."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("accelerate", "av", "cv2", "diffusers", "PIL", "transformers", "typer")

# What a library must leave as it found it, as an expression that a fresh interpreter evaluates twice.
STATE = """{
    "default dtype": torch.get_default_dtype(),
    "default device": str(torch.get_default_device()),
    "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
    "grad": torch.is_grad_enabled(),
    "matmul precision": torch.get_float32_matmul_precision(),
    "deterministic": torch.are_deterministic_algorithms_enabled(),
    "fills": torch.utils.deterministic.fill_uninitialized_memory,
    "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
    "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark),
    "mkldnn": torch.backends.mkldnn.enabled,
    "random": (torch.initial_seed(), torch.random.get_rng_state().sum().item()),
    "numpy errors": numpy.geterr(),
    "environment": dict(os.environ),
    "warnings": list(warnings.filters),
    "log handlers": list(logging.getLogger().handlers),
    "log level": logging.getLogger().level,
    "interrupt": signal.getsignal(signal.SIGINT),
    "path": list(sys.path),
}"""


def run(code: str, **options) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_needs_only_torch_and_numpy():
    code = f"import sys, vidsmooth_fast; print([name for name in {HEAVY} if name in sys.modules])"
    assert run(code).strip() == "[]"


def test_import_changes_no_global_state():
    run(
        "import logging, os, signal, sys, warnings, numpy, torch\n"
        f"before = {STATE}\n"
        "import vidsmooth_fast, vidsmooth_fast.ops, vidsmooth_fast.models.unet\n"
        f"after = {STATE}\n"
        "changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}\n"
        "assert not changed, changed\n"
    )


def test_every_public_name_is_found():
    run("import vidsmooth_fast as vsf\nfor name in vsf.__all__:\n    getattr(vsf, name)\n")


def test_environment_variables_are_documented():
    used = set()
    for folder, suffixes in (
        ("vidsmooth_fast", (".py",)),
        ("python_tests", (".py",)),
        ("csrc", (".cpp", ".h")),
    ):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in suffixes and path != Path(__file__):
                used |= set(
                    re.findall(
                        r"environ\S*?[\"'](VIDSMOOTH_[A-Z_]+)|getenv\(\"(VIDSMOOTH_[A-Z_]+)", path.read_text()
                    )
                )
    used = {name for pair in used for name in pair if name}
    page = (ROOT / "docs" / "environment.md").read_text()
    documented = set(re.findall(r"^\| `(VIDSMOOTH_[A-Z_]+)`", page, flags=re.MULTILINE))
    assert used <= documented, f"docs/environment.md does not mention {sorted(used - documented)}"


def build_wheel(folder: Path, **environment: str) -> tuple[Path, str]:
    """A wheel of the checkout, built from a copy so that the checkout's own build folder is left alone."""
    source = folder / "source"
    for name in ("vidsmooth_fast", "triton_kernels", "csrc"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-v",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        source,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=600
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    (wheel,) = folder.glob("vidsmooth_fast-*.whl")
    return wheel, output


def run_installed(wheel: Path, folder: Path, code: str) -> tuple[str, str]:
    """Install the wheel into a folder and run code there.

    -S: the checkout's own editable install must not answer; site-packages is added without its start-up files.
    """
    target = folder / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    head = (
        f"import sys; sys.path[:0] = [{str(target)!r}]; sys.path.append({sysconfig.get_path('purelib')!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", head + code], capture_output=True, text=True, cwd=folder, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def python_files(folder: Path) -> set[str]:
    source = folder / "source"
    return {str(path.relative_to(source)) for path in (source / "vidsmooth_fast").rglob("*.py")}


def test_without_a_compiler_the_references_serve(tmp_path):
    pytest.importorskip("scikit_build_core", reason="the dev extra holds the build tools")
    wheel, output = build_wheel(tmp_path, CC="/nonexistent", CXX="/nonexistent", CMAKE_ARGS="")
    assert "WITHOUT its compiled kernels" in output
    names = set(zipfile.ZipFile(wheel).namelist())
    assert not [name for name in names if "_C." in name]
    assert python_files(tmp_path) <= names
    code = """
import torch, vidsmooth_fast
assert "installed" in vidsmooth_fast.__file__, vidsmooth_fast.__file__
from vidsmooth_fast import ops
x = torch.randn(1, 4, 5, 8, 8)
for _ in range(3):
    ops.noise_constraint(x, x, c_over_lambda=1.0, strength=0.1)
"""
    out, err = run_installed(wheel, tmp_path, code)
    said = [line for line in (out + err).splitlines() if "compile" in line.lower()]
    assert len(said) == 1, out + err


@pytest.mark.slow
def test_wheel_holds_the_whole_package(tmp_path):
    pytest.importorskip("scikit_build_core", reason="the dev extra holds the build tools")
    wheel, _ = build_wheel(tmp_path)
    archive = zipfile.ZipFile(wheel)
    names = set(archive.namelist())
    assert python_files(tmp_path) <= names
    assert len([name for name in names if name.startswith("vidsmooth_fast/_C.")]) == 1
    tracked = subprocess.run(
        ["git", "ls-files", "vidsmooth_fast/models/embedded"], cwd=ROOT, capture_output=True, text=True
    )
    assert set(tracked.stdout.split()) <= names
    embedded = [info.file_size for info in archive.infolist() if "/embedded/" in info.filename]
    assert sum(embedded) <= 22 * 10**6  # sprite-world at most 16 MB, its CLIP at most 6
    assert not [name for name in names if name.startswith(("csrc/", "python_tests/", "triton_kernels/"))]
    assert "vidsmooth_fast/triton_kernels/noise_constraint.py" in names
    code = """
import torch, vidsmooth_fast._C
from vidsmooth_fast import ops
x = torch.randn(1, 4, 5, 8, 8)
ours = ops.noise_constraint(x, x, c_over_lambda=1.0, strength=0.1)
with ops.backend("torch"):
    torch.testing.assert_close(ours, ops.noise_constraint(x, x, c_over_lambda=1.0, strength=0.1))
"""
    run_installed(wheel, tmp_path, code)
