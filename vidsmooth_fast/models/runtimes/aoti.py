"""Graphs compiled ahead of time by AOTInductor: machine code, loaded by PyTorch without a compiler.

The package's own operators stay calls through PyTorch's dispatcher, so that the kernels of this installation compute
them, and `ops.backend` chooses among them as everywhere.
"""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from torch import Tensor

import vidsmooth_fast.ops  # noqa: F401 - registers the operators that the graphs call
from vidsmooth_fast.models.bundle import Bundle, GraphFile

UNPROVEN = "bundles for CUDA have not been compiled or run on a GPU by this project's tests"

_FAMILIES = tuple("abm adx amx avx bmi f16c fma gfni movbe popcnt sse4_ vaes vpclmul".split())
"""Of the instruction sets that /proc/cpuinfo lists, those that a compiler chooses by itself."""


def machine(device: str) -> dict[str, str]:
    """What machine code made here is good for: device, system, PyTorch, and the processor's or GPU's abilities."""
    here = {
        "device": device,
        "system": f"{platform.system()} {platform.machine()}",
        "torch": _release(torch.__version__),
    }
    if device == "cuda":
        here["capability"] = "{}.{}".format(*torch.cuda.get_device_capability())
    return {**here, "instructions": " ".join(_instructions())}


def unfit(made_for: dict[str, str], here: dict[str, str]) -> str:
    """Why code made for one machine cannot run on another, both as :func:`machine` describes them; empty if it can."""
    for key, what in (
        ("system", "the system"),
        ("torch", "PyTorch"),
        ("capability", "a GPU of compute capability"),
    ):
        if key in made_for and made_for[key] != here.get(key):
            return f"it was compiled for {what} {made_for[key]}, this is {here.get(key, 'none')}"
    if missing := sorted(set(made_for["instructions"].split()) - set(here["instructions"].split())):
        return f"it was compiled for a processor with {', '.join(missing)}, which this one lacks"
    return ""


def available() -> str:
    return f"PyTorch on cpu{', cuda' if torch.cuda.is_available() else ''}; {UNPROVEN}"


def choose_device(bundle: Bundle, device: str | torch.device) -> torch.device:
    """The device the bundle was compiled for; "auto" takes it, another is an error."""
    made_for = bundle.settings["machine"]
    kind = made_for["device"]
    chosen = torch.device(kind if device == "auto" else device)
    if chosen.type != kind:
        raise ValueError(
            f"device: {bundle.path} was compiled for {kind}, got {chosen}; export the model again with "
            f"format='aoti', device={chosen.type!r}"
        )
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {bundle.path} was compiled for cuda, and PyTorch finds no GPU here")
    if why := unfit(made_for, machine(kind)):
        raise ValueError(
            f"bundle: {bundle.path} cannot run here: {why}; export the model again on a machine like this one with "
            f"format='aoti', device={kind!r}"
        )
    return chosen


def open_graph(bundle: Bundle, name: str, device: torch.device) -> AotiGraph:
    return AotiGraph(bundle, name, device)


class AotiGraph:
    """A compiled network.

    It goes straight to PyTorch's loader. `torch._inductor.aoti_load_package` (torch 2.13) asks for the processor's
    vector instructions first, for which it runs the C++ compiler; what that would tell, `unfit` has checked.
    """

    def __init__(self, bundle: Bundle, name: str, device: torch.device):
        self.device = device
        self.graph: GraphFile = bundle.graphs[name]
        index = -1 if device.index is None else device.index
        file, single_threaded, runners = str(bundle.path / self.graph.file), False, 1
        self._loader = torch._C._aoti.AOTIModelPackageLoader(file, "model", single_threaded, runners, index)

    def __call__(self, **inputs: Tensor) -> Tensor:
        self.graph.sizes({name: tuple(tensor.shape) for name, tensor in inputs.items()})  # or ValueError
        dense = [
            inputs[name].to(self.device, getattr(torch, port.dtype)).contiguous()  # strides as compiled
            for name, port in self.graph.inputs.items()
        ]
        with torch.inference_mode():
            (out,) = self._loader.boxed_run(dense)
        return out


def _release(version: str) -> str:
    """Major and minor number: what PyTorch's binary interface is kept for."""
    return ".".join(version.split(".")[:2])


def _instructions() -> list[str]:
    """Instruction sets of this processor beyond its family's oldest; empty where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    return sorted(flag for flag in flags if flag.startswith(_FAMILIES))
