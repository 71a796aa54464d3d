"""Graphs as TensorRT engines, built from the ONNX graphs of the same model on the GPU that is to run them.

Networks are strongly typed: each layer computes in the dtype that the ONNX graph says, so that norms and softmax keep
their float32 sums in a float16 bundle. What is asked of TensorRT is decided by functions that need none.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

from vidsmooth_fast.export import onnx
from vidsmooth_fast.export.graphs import Ranges, Traceable
from vidsmooth_fast.models.loading import choose_device
from vidsmooth_fast.models.runtimes.tensorrt import UNPROVEN, library, machine

OPSET = 21  # without nodes for attention: TensorRT recognises and fuses it itself

TYPICAL = {"frames": 16, "tokens": 77, "images": 8, "prompts": 2}
"""Sizes for which engines are made fastest, where the ranges allow them; the others, at their largest."""

LARGEST = {"images": 8, "prompts": 16}
"""Of sizes that no argument bounds: more go through the engine in parts."""

MOST_ELEMENTS = 2**31 - 1
"""Of a tensor in TensorRT."""


@dataclass(frozen=True)
class Writer:
    """timing_cache: a file of measured kernels, read and updated; by default one in the user's cache folder.

    machine: what the engines need, see `runtimes.tensorrt.machine`.
    """

    timing_cache: str = ""
    machine: dict[str, str] = field(init=False)

    dtypes: ClassVar = ("float32", "float16")
    device: ClassVar = "cuda"
    packages: ClassVar = onnx.Writer.packages

    def __post_init__(self) -> None:
        library()
        object.__setattr__(self, "machine", machine(choose_device("cuda")))

    def notes(self) -> tuple[str, ...]:
        return (f"TensorRT {UNPROVEN}.",)

    def write(self, name: str, graph: Traceable, ranges: Ranges, folder: Path) -> str:
        shapes = profile(graph, ranges)
        check_volume(name, graph, ranges)
        cache = Path(self.timing_cache).expanduser() if self.timing_cache else default_cache(self.machine)
        with tempfile.TemporaryDirectory() as work:
            exported = onnx.Writer(opset=OPSET).write(name, graph, ranges, Path(work))
            known = cache.read_bytes() if cache.is_file() else b""
            engine, measured = build(Path(work) / exported, shapes, known)
        file = folder / f"{name}.engine"
        file.write_bytes(engine)
        replace_file(cache, measured)
        return file.name


class Shapes(NamedTuple):
    """Of one input in an optimisation profile: what it takes at least, is fastest at, and takes at most."""

    least: tuple[int, ...]
    best: tuple[int, ...]
    most: tuple[int, ...]


def profile(graph: Traceable, ranges: Ranges) -> dict[str, Shapes]:
    """The shapes of every input that follow from the ranges of the named sizes."""
    least = {name: low for name, (low, _) in ranges.items()}
    most = {name: min(high, LARGEST.get(name, high)) for name, (_, high) in ranges.items()}
    best = {name: min(max(TYPICAL.get(name, high), least[name]), high) for name, high in most.items()}
    return {
        name: Shapes(port.size(least), port.size(best), port.size(most))
        for name, port in graph.inputs.items()
    }


def check_volume(name: str, graph: Traceable, ranges: Ranges) -> None:
    """Raises: ValueError where the network's largest tensor, inside its first feed-forward, is too large."""
    if name != "unet":
        return
    tokens = 1
    for size in ("videos", "frames", "height", "width"):
        tokens *= ranges[size][1]
    elements = 8 * graph.module.unet.config["block_out_channels"][0] * tokens
    if elements > MOST_ELEMENTS:
        raise ValueError(
            f"batch, frames, height, width: at their largest the network holds a tensor of {elements} numbers, and "
            f"TensorRT takes {MOST_ELEMENTS}; export with narrower ranges, such as batch=(1, 4), frames=(16, 16) and "
            "one height and width"
        )


def default_cache(made_for: dict[str, str]) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "vidsmooth-fast" / f"tensorrt-{made_for['tensorrt']}-{made_for['capability']}.timing"


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_bytes(content)
    staged.replace(path)


def build(file: Path, shapes: dict[str, Shapes], timing_cache: bytes) -> tuple[bytes, bytes]:
    """An engine from an ONNX file, and the timing cache with what was measured for it.

    Raises: ValueError with TensorRT's own reason where it cannot read the graph or build the engine.
    """
    trt = library()
    logger = _logger(trt)
    builder = trt.Builder(logger)
    strongly_typed = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED  # from version 11 on always
    network = builder.create_network(1 << int(strongly_typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(file)):
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise ValueError(_failure("cannot read", file, reasons))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is float32
    optimisation = builder.create_optimization_profile()
    for name, (least, best, most) in shapes.items():
        optimisation.set_shape(name, least, best, most)
    if config.add_optimization_profile(optimisation) < 0:
        raise ValueError(_failure("does not take the shapes of", file, logger.errors))
    cache = config.create_timing_cache(timing_cache)
    if not config.set_timing_cache(cache, False):  # of another GPU or version: measured anew
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError(_failure("cannot build", file, logger.errors))
    return bytes(engine), bytes(config.get_timing_cache().serialize())


def _failure(what: str, file: Path, reasons: Iterable[str]) -> str:
    why = " ".join("; ".join(list(reasons)[-2:]).split()) or "it gives no reason"
    return f"format: TensorRT {what} {file.name}: {why[:400]}"


def _logger(trt):
    """Keeps TensorRT's errors for the message of ours."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(msg)

    return Logger()
