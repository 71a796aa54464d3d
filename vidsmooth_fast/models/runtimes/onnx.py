"""Graphs in ONNX Runtime: on the CPU, and on NVIDIA GPUs where its providers for them are installed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidsmooth_fast.models.bundle import Bundle, GraphFile

_INSTALL = "pip install 'vidsmooth-fast[onnx]'"


def _library():
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(f"bundle: format 'onnx' needs ONNX Runtime: {_INSTALL}") from error
    return onnxruntime


def available() -> str:
    try:
        providers = _library().get_available_providers()
    except ValueError:
        return f"not here: {_INSTALL}"
    on = [name.removesuffix("ExecutionProvider") for name in providers]
    return f"ONNX Runtime on {', '.join(on)}"


def choose_device(bundle: Bundle, device: str | torch.device) -> torch.device:
    """ "auto": cuda where PyTorch and ONNX Runtime both have it, else cpu."""
    offered = _library().get_available_providers()
    has_cuda = torch.cuda.is_available() and "CUDAExecutionProvider" in offered
    if device == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    chosen = torch.device(device)
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device: ONNX Runtime bundles run on cpu or cuda, got {device!r}")
    if chosen.type == "cuda" and not has_cuda:
        raise ValueError(
            f"device: {device} needs a GPU and onnxruntime-gpu in place of onnxruntime; this installation offers "
            f"{', '.join(offered)}"
        )
    return chosen


def open_graph(bundle: Bundle, name: str, device: torch.device) -> OnnxGraph:
    return OnnxGraph(bundle.path, bundle.graphs[name], device)


class OnnxGraph:
    """A session whose inputs and outputs are PyTorch's memory: nothing is copied, on the CPU or the GPU.

    On a GPU it works on a stream of its own, which waits for the caller's and which the caller's waits for: ONNX
    Runtime takes the number of the default stream for none given, and does not wait for what it reads.
    """

    def __init__(self, folder: Path, graph: GraphFile, device: torch.device):
        self.device, self.graph = device, graph
        library = _library()
        options = library.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        file, providers = folder / graph.file, _providers(device, self._stream)
        try:
            self.session = library.InferenceSession(file, options, providers=providers)
        except Exception as error:  # ONNX Runtime's classes derive from Exception alone
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"bundle: ONNX Runtime cannot load {file}: {reason}") from error
        if device.type == "cuda" and self.session.get_providers() == ["CPUExecutionProvider"]:
            raise ValueError(
                f"device: ONNX Runtime cannot use {device}; see that CUDA and cuDNN are those that onnxruntime-gpu "
                f"{library.__version__} was built for"
            )

    def __call__(self, **inputs: Tensor) -> Tensor:
        sizes = self.graph.sizes({name: tuple(tensor.shape) for name, tensor in inputs.items()})
        if self._stream is None:
            return self._run(inputs, sizes)
        caller = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            out = self._run(inputs, sizes)
        for tensor in inputs.values():
            if tensor.is_cuda:
                tensor.record_stream(self._stream)
        caller.wait_stream(self._stream)
        out.record_stream(caller)
        return out

    def _run(self, inputs: dict[str, Tensor], sizes: dict[str, int]) -> Tensor:
        binding = self.session.io_binding()
        kept = []  # alive until the run is over
        for name, port in self.graph.inputs.items():
            kept.append(inputs[name].to(self.device, getattr(torch, port.dtype)).contiguous())
            binding.bind_input(name, *self._where(), _numpy(port.dtype), kept[-1].shape, kept[-1].data_ptr())
        ((name, port),) = self.graph.outputs.items()
        out = torch.empty(port.size(sizes), dtype=getattr(torch, port.dtype), device=self.device)
        binding.bind_output(name, *self._where(), _numpy(port.dtype), out.shape, out.data_ptr())
        self.session.run_with_iobinding(binding)
        return out

    def _where(self) -> tuple[str, int]:
        return self.device.type, self.device.index or 0


def _numpy(dtype: str) -> type:
    return getattr(np, dtype)


def _providers(device: torch.device, stream: torch.cuda.Stream | None) -> list:
    """Execution providers, best first: those that VIDSMOOTH_ORT_PROVIDERS names, else what the device suggests."""
    if stream is None:
        return ["CPUExecutionProvider"]
    asked = os.environ.get("VIDSMOOTH_ORT_PROVIDERS") or "CUDAExecutionProvider"
    options = {"device_id": device.index or 0, "user_compute_stream": str(stream.cuda_stream)}
    return [*((name.strip(), options) for name in asked.split(",")), "CPUExecutionProvider"]
