"""Graphs as machine code by AOTInductor: PyTorch loads them in a new process without compiling anything.

The package's own operators are kept as calls to themselves, so that their kernels run inside the compiled graph.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from vidsmooth_fast.export.graphs import Ranges, Traceable
from vidsmooth_fast.models.loading import choose_device
from vidsmooth_fast.models.runtimes.aoti import UNPROVEN, machine


@dataclass(frozen=True)
class Writer:
    """device: "cpu" or "cuda", for which the graphs are compiled: they run on processors or GPUs like this machine's.

    machine: what they need, see `runtimes.aoti.machine`.
    """

    device: str = "cpu"
    machine: dict[str, str] = field(init=False)

    dtypes: ClassVar = ("float32", "bfloat16", "float16")
    packages: ClassVar = ()

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device: format 'aoti' compiles for cpu or cuda, got {self.device!r}")
        choose_device(self.device)
        _check_compiler()
        object.__setattr__(self, "machine", machine(self.device))

    def notes(self) -> tuple[str, ...]:
        if self.device == "cuda":
            return (f"AOTInductor {UNPROVEN}.",)
        return ()

    def write(self, name: str, graph: Traceable, ranges: Ranges, folder: Path) -> str:
        program = graph.program(ranges)
        file = folder / f"{name}.pt2"
        with warnings.catch_warnings(), _undecided_sizes_stay_open():
            warnings.simplefilter("ignore")  # PyTorch's remarks about its own workings
            torch._inductor.aoti_compile_and_package(program, package_path=str(file))
        return file.name


@contextlib.contextmanager
def _undecided_sizes_stay_open() -> Iterator[None]:
    """What PyTorch cannot prove of free sizes is unknown, inside the block, instead of an error.

    Of networks with three levels, torch 2.13 wants to know whether (a·b + a + b + 1) / (a + 1) is whole, a and b being
    halved heights and widths, and fails with ValueRangeError while it bounds the power -1.
    """
    from torch.fx.experimental.symbolic_shapes import ShapeEnv
    from torch.utils._sympy.value_ranges import ValueRangeError

    decide = ShapeEnv._maybe_evaluate_static
    log = logging.getLogger("torch.utils._sympy.interp")  # tells of each
    silent = log.disabled

    @functools.wraps(decide)  # PyTorch clears its cache through an attribute
    def decide_or_leave_open(self, expression, *, unbacked_only=False, **keywords):
        try:
            return decide(self, expression, unbacked_only=unbacked_only, **keywords)
        except ValueRangeError:
            return expression if unbacked_only else None

    ShapeEnv._maybe_evaluate_static, log.disabled = decide_or_leave_open, True
    try:
        yield
    finally:
        ShapeEnv._maybe_evaluate_static, log.disabled = decide, silent


def _check_compiler() -> None:
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise ValueError(
            "format: 'aoti' compiles with a C++ compiler, and there is none (Debian, Ubuntu: apt install g++)"
        ) from error
