"""Exporting the denoising network at Stable Diffusion 1.5's size, random weights: python benchmarks/export.py

    python benchmarks/export.py --dtype float16 --opset 21
    python benchmarks/export.py --size tiny                     a small one, to try the program

Seconds and peak memory of tracing, conversion and checking, size of the files, and how far one call in ONNX Runtime is
from PyTorch at a size that was not traced. The line is appended to benchmarks/results/export.jsonl.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import tempfile
import time
from pathlib import Path

import torch
from _networks import SIZES, random_unet
from _timing import environment

from vidsmooth_fast.export.graphs import Traceable, unet_graph
from vidsmooth_fast.export.onnx import Writer
from vidsmooth_fast.models.bundle import GraphFile
from vidsmooth_fast.models.runtimes.onnx import OnnxGraph

RANGES = {"videos": (1, 64), "frames": (1, 64), "height": (16, 256), "width": (16, 256), "tokens": (1, 1024)}
SIZE = {"videos": 1, "frames": 3, "height": 16, "width": 24, "tokens": 77}


def peak_gib() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def example(graph: Traceable) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    inputs = {name: torch.randn(port.size(SIZE)) for name, port in graph.inputs.items()}
    return {**inputs, "timestep": torch.tensor([500.0])}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="sd15")
    parser.add_argument("--dtype", choices=Writer.dtypes, default="float32")
    parser.add_argument("--opset", type=int, default=23)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    chosen = parser.parse_args()
    unet = random_unet(SIZES[chosen.size])
    inputs = example(unet_graph(unet, "float32"))
    with torch.no_grad():
        expected = unet(*inputs.values())
    parameters = sum(p.numel() for p in unet.parameters())
    graph = unet_graph(unet.to(getattr(torch, chosen.dtype)), chosen.dtype)
    loaded_gib = peak_gib()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        file = Writer(chosen.opset).write("unet", graph, RANGES, Path(folder))
        seconds = time.perf_counter() - began
        exported_gib = peak_gib()
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        described = GraphFile(file, graph.inputs, graph.outputs)
        del unet, graph
        gc.collect()
        session = OnnxGraph(Path(folder), described, torch.device("cpu"))
        got = session(**inputs).float()
    record = {
        "size": chosen.size,
        "parameters": parameters,
        "dtype": chosen.dtype,
        "opset": chosen.opset,
        "seconds": seconds,
        "peak_gib_model": loaded_gib,
        "peak_gib_export": exported_gib,
        "file_gib": size / 2**30,
        "error": (got - expected).abs().max().item(),
        "largest": expected.abs().max().item(),
    }
    print(
        "  ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in record.items()
        )
    )
    chosen.results.mkdir(exist_ok=True)
    with (chosen.results / "export.jsonl").open("a") as out:
        out.write(json.dumps({**record, **environment()}) + "\n")


if __name__ == "__main__":
    main()
