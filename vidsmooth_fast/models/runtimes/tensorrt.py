"""Graphs as TensorRT engines, replayed as CUDA graphs on a stream of their own.

Which bundle may run where, and what is said when it may not, is decided in functions that need no TensorRT.
"""

from __future__ import annotations

from collections import OrderedDict
from types import ModuleType

import torch
from torch import Tensor

from vidsmooth_fast.models.bundle import Bundle, GraphFile

UNPROVEN = "engines have not been built or run on a GPU by this project's tests"
INSTALL = "pip install 'vidsmooth-fast[tensorrt]' --extra-index-url https://pypi.nvidia.com"

KEPT = 4
"""Captured input shapes per engine. A run has two or three: whole batches, the last one, the last frames."""


def library() -> ModuleType:
    try:
        import tensorrt
    except ImportError as error:
        raise ValueError(f"bundle: format 'tensorrt' needs TensorRT ({error}): {INSTALL}") from error
    return tensorrt


def available() -> str:
    try:
        found = f"TensorRT {library().__version__}"
    except ValueError:
        found = f"not here: {INSTALL}"
    return f"{found}; {UNPROVEN}"


def machine(device: torch.device) -> dict[str, str]:
    """What engines depend on: TensorRT's version, and the GPU's architecture (its compute capability)."""
    major, minor = torch.cuda.get_device_capability(device)
    return {"tensorrt": library().__version__, "capability": f"{major}.{minor}"}


def unfit(made_for: dict[str, str], here: dict[str, str]) -> str:
    """Why engines built for one machine do not run on another, both as :func:`machine` describes them; empty if so."""
    if made_for["tensorrt"] != here["tensorrt"]:
        return f"its engines are of TensorRT {made_for['tensorrt']}, this is TensorRT {here['tensorrt']}"
    if made_for["capability"] != here["capability"]:
        return (
            f"its engines are for GPUs of compute capability {made_for['capability']}, this one has "
            f"{here['capability']}"
        )
    return ""


def rebuild(bundle: Bundle) -> str:
    """The call that makes this bundle again from the model it was made of."""
    pixels = 2 ** (len(bundle.autoencoder["block_out_channels"]) - 1)
    ranges = {name: tuple(size * per for size in bundle.ranges[key]) for name, key, per in (
        ("frames", "frames", 1), ("height", "height", pixels), ("width", "width", pixels), ("batch", "videos", 1),
    )}  # fmt: skip
    arguments = ", ".join(f"{name}={value}" for name, value in ranges.items())
    return (
        f"vidsmooth_fast.export({bundle.name!r}, {str(bundle.path)!r}, format='tensorrt', dtype={bundle.dtype!r}, "
        f"{arguments})"
    )


def choose_device(bundle: Bundle, device: str | torch.device) -> torch.device:
    """The GPU that was asked for, where the bundle's engines run on it."""
    chosen = torch.device("cuda" if device == "auto" else device)
    if chosen.type != "cuda":
        raise ValueError(f"device: TensorRT bundles run on cuda, got {chosen}")
    if not torch.cuda.is_available():
        raise ValueError(f"device: {bundle.path} needs an NVIDIA GPU, and PyTorch finds none here")
    if why := unfit(bundle.settings["machine"], machine(chosen)):
        raise ValueError(
            f"bundle: {bundle.path} cannot run here: {why}; rebuild it here with {rebuild(bundle)}"
        )
    return chosen


def pieces(count: int, most: int) -> list[int]:
    """A batch of `count` as few, nearly equal parts of at most `most`: fewer shapes to capture than a short rest."""
    parts = -(-count // most)
    return [count // parts + (i < count % parts) for i in range(parts)]


def open_graph(bundle: Bundle, name: str, device: torch.device) -> Engine:
    return Engine(bundle, name, device)


class Engine:
    """An engine, and a captured execution for each of the last KEPT shapes of its inputs.

    Batches beyond the engine's largest go in parts. The caller's stream waits for the result, the host does not.
    """

    def __init__(self, bundle: Bundle, name: str, device: torch.device):
        trt = library()
        self.device = device
        self.graph: GraphFile = bundle.graphs[name]
        file = bundle.path / self.graph.file
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(file.read_bytes())
        if self._engine is None:
            raise ValueError(f"bundle: TensorRT cannot read {file}; rebuild it with {rebuild(bundle)}")
        first = next(iter(self.graph.inputs))
        self._largest_batch = self._engine.get_tensor_profile_shape(first, 0)[2][0]
        self._stream = torch.cuda.Stream(device)
        self._captured: OrderedDict[tuple, Captured] = OrderedDict()

    @torch.inference_mode()
    def __call__(self, **inputs: Tensor) -> Tensor:
        self.graph.sizes({name: tuple(tensor.shape) for name, tensor in inputs.items()})  # or ValueError
        count = len(next(iter(inputs.values())))
        parts = pieces(count, self._largest_batch)
        if len(parts) == 1:
            return self._run(inputs)
        split = {name: tensor.split(parts) for name, tensor in inputs.items()}
        return torch.cat([self._run({name: t[i] for name, t in split.items()}) for i in range(len(parts))])

    def _run(self, inputs: dict[str, Tensor]) -> Tensor:
        caller = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            captured = self._for_shapes({name: tuple(tensor.shape) for name, tensor in inputs.items()})
            for name, buffer in captured.inputs.items():
                buffer.copy_(inputs[name], non_blocking=True)
                if inputs[name].is_cuda:
                    inputs[name].record_stream(self._stream)
            captured.graph.replay()
            out = captured.output.clone()
        caller.wait_stream(self._stream)
        out.record_stream(caller)
        return out

    def _for_shapes(self, shapes: dict[str, tuple[int, ...]]) -> Captured:
        key = tuple(shapes.values())
        if key not in self._captured:
            while len(self._captured) >= KEPT:
                self._captured.popitem(last=False)
            self._captured[key] = Captured(self._engine, self.graph, shapes, self._stream)
        self._captured.move_to_end(key)
        return self._captured[key]


class Captured:
    """An execution of an engine as a CUDA graph, with buffers for inputs and output and memory for what is between.

    It has an execution context of its own, because a context that is given other shapes invalidates its graph.
    """

    def __init__(
        self, engine, graph: GraphFile, shapes: dict[str, tuple[int, ...]], stream: torch.cuda.Stream
    ):
        trt = library()
        ((output, port),) = graph.outputs.items()
        self.context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self.context.set_optimization_profile_async(0, stream.cuda_stream)
        for name, shape in shapes.items():
            if not self.context.set_input_shape(name, shape):
                least, _, most = engine.get_tensor_profile_shape(name, 0)
                raise ValueError(
                    f"{name}: this engine takes shapes from {tuple(least)} to {tuple(most)}, got {shape}"
                )

        def buffer(dtype: str, shape: tuple[int, ...]) -> Tensor:
            return torch.empty(shape, dtype=getattr(torch, dtype), device=stream.device)

        self.inputs = {name: buffer(graph.inputs[name].dtype, shape) for name, shape in shapes.items()}
        self.output = buffer(port.dtype, port.size(graph.sizes(shapes)))
        for name, tensor in {**self.inputs, output: self.output}.items():
            self.context.set_tensor_address(name, tensor.data_ptr())
        needed = self.context.update_device_memory_size_for_shapes()
        self._memory = buffer("uint8", (max(needed, 1),))
        self.context.set_device_memory(self._memory.data_ptr(), needed)

        self._execute(stream, graph.file)  # before the capture: what TensorRT does once per shape
        stream.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            self._execute(stream, graph.file)

    def _execute(self, stream: torch.cuda.Stream, file: str) -> None:
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError(f"TensorRT could not run {file}; its own message stands above")
