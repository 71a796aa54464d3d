"""The CUDA sources compile, nothing spills, and the build says what it does about CUDA."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def _nvcc() -> str:
    for path in (os.environ.get("CUDACXX"), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if path and Path(path).is_file():
            return path
    pytest.skip("nvcc not found: the CUDA sources are not compiled (PATH, CUDACXX, /usr/local/cuda)")


def configure(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess:
    """CMake's first half, with the interpreter and pybind11 of this environment."""
    pybind11 = pytest.importorskip("pybind11", reason="the dev extra holds the build tools")
    if shutil.which("cmake") is None:
        pytest.skip("cmake not found")
    command = ["cmake", "-S", ROOT, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", *options]
    command += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )


def test_every_source_is_in_the_build():
    listed = re.findall(r"csrc/cuda/\w+\.cu", (ROOT / "CMakeLists.txt").read_text())
    assert sorted(listed) == [str(path.relative_to(ROOT)) for path in SOURCES]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_without_spills(source, tmp_path, record_property):
    command = [_nvcc(), "-std=c++17", "-O3", "-arch=sm_90", "-Xptxas", "-v", f"-I{ROOT / 'csrc'}"]
    done = subprocess.run(
        [*command, "-cubin", source, "-o", tmp_path / "kernels.cubin", "-keep", "-keep-dir", tmp_path],
        capture_output=True,
        text=True,
        timeout=390,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        done.stderr,
        flags=re.DOTALL,
    )
    assert kernels, done.stderr[-3000:]
    registers = {name: int(used) for name, _, _, used in kernels}
    record_property("registers", registers)
    print(
        f"{source.name}: {len(kernels)} kernels, {min(registers.values())} to {max(registers.values())} registers"
    )
    (assembly,) = tmp_path.glob("*.ptx")
    accesses = set(re.findall(r"\b(?:ld|st)\.(?:global|local)[\w.:]*", assembly.read_text()))
    assert any(name.endswith(".v4.u32") for name in accesses), "no access of 16 bytes"
    assert not [name for name in accesses if name.endswith("8") or ".local" in name], accesses
    spilling = [name for name, stores, loads, _ in kernels if (stores, loads) != ("0", "0")]
    assert not spilling, f"registers spill in {spilling}"


def test_without_cuda_the_build_says_so(tmp_path):
    done = configure(tmp_path, "-DVIDSMOOTH_CUDA=OFF")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "CUDA kernels: no (VIDSMOOTH_CUDA=OFF when it was built)" in done.stdout


def test_asking_for_cuda_without_a_toolkit_is_an_error(tmp_path):
    options = ("-DVIDSMOOTH_CUDA=ON", "-DCMAKE_CUDA_COMPILER=/nonexistent/nvcc")
    done = configure(tmp_path, *options, CUDACXX="/nonexistent/nvcc")
    assert done.returncode != 0
    assert "VIDSMOOTH_CUDA=ON" in done.stderr or "nvcc" in done.stderr


def test_the_installed_extension_knows_why_it_has_no_cuda():
    extension = pytest.importorskip("vidsmooth_fast._C", reason="installed without compiled kernels")
    assert bool(extension.cuda) != bool(extension.no_cuda)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_extension_builds_and_loads_without_a_gpu(tmp_path):
    options = ("-DVIDSMOOTH_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=90")
    done = configure(tmp_path, *options, CUDACXX=_nvcc())
    assert done.returncode == 0, done.stderr[-3000:]
    done = subprocess.run(["cmake", "--build", tmp_path, "-j2"], capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stdout[-3000:]
    (library,) = tmp_path.glob("_C.*")
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('_C', {str(library)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert module.cuda == '90' and module.no_cuda == ''\n"
        "needed = open('/proc/self/maps').read()\n"
        "assert 'libcudart' not in needed and 'libcuda.so' not in needed\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
