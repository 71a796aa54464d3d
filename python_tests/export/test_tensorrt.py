"""TensorRT bundles without TensorRT: every decision, and every call against the signatures of NVIDIA's own bindings.

Nothing here runs an engine. What it computes is tested on a GPU only (`python_tests/device`).
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from python_tests.export.typed_tensorrt import Library, StandIn, bindings
from python_tests.tiny import tiny_model
from vidsmooth_fast.export import tensorrt as export
from vidsmooth_fast.export.graphs import graphs_of, ranges_of
from vidsmooth_fast.info import report
from vidsmooth_fast.models.bundle import Bundle, GraphFile
from vidsmooth_fast.models.runtimes import runtime
from vidsmooth_fast.models.runtimes import tensorrt as run

HERE = {"tensorrt": "11.4.0.106", "capability": "9.0"}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip("NVIDIA's bindings are not installed: pip install tensorrt-cu13-bindings")
    return bindings(tmp_path_factory.mktemp("tensorrt"))


@pytest.fixture
def library(real, monkeypatch):
    """TensorRT as the code under test imports it; tests fill in its answers."""
    library = Library(real, {})
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    return library


def bundle(model, path=Path("car.d"), **changes) -> Bundle:
    ranges = ranges_of(model, (4, 16), (16, 32), (16, 64), (1, 8))
    graphs = {
        name: GraphFile(f"{name}.engine", graph.inputs, graph.outputs)
        for name, graph in graphs_of(model).items()
    }
    record = {
        "path": path,
        "format": "tensorrt",
        "name": "tiny",
        "dtype": "float16",
        "ranges": ranges,
        "graphs": graphs,
        "files": {},
        "network": model.network_config,
        "autoencoder": dict(model.autoencoder_config),
        "text": {"length": 16, "mask": False},
        "scheduler": model.scheduler_config,
        "tuning": None,
        "source": {},
        "versions": {},
        "settings": {"machine": HERE},
    }
    return Bundle(**{**record, **changes})


def test_profiles_follow_from_the_ranges(model):
    graphs, ranges = graphs_of(model), ranges_of(model, (4, 24), (16, 32), (16, 16), (1, 8))
    shapes = export.profile(graphs["unet"], ranges)
    assert shapes["sample"] == ((1, 4, 4, 8, 8), (8, 4, 16, 16, 8), (8, 4, 24, 16, 8))
    assert shapes["timestep"] == ((1,), (8,), (8,))
    assert [s[1] for s in shapes["encoder_hidden_states"]] == [1, 77, 1024]
    decoder = export.profile(graphs["vae_decoder"], ranges)["latent_sample"]
    assert decoder == ((1, 4, 8, 8), (8, 4, 16, 8), (8, 4, 16, 8))  # as many images as the engine is made for
    assert export.profile(graphs["text_encoder"], ranges)["input_ids"] == ((1, 16), (2, 16), (16, 16))


@pytest.mark.parametrize("frames", [(1, 8), (32, 64)])
def test_the_best_shape_lies_inside_the_range(model, frames):
    shapes = export.profile(graphs_of(model)["unet"], ranges_of(model, frames, None, None, (1, 4)))
    for least, best, most in shapes.values():
        assert all(a <= b <= c for a, b, c in zip(least, best, most, strict=True))


def test_tensors_too_large_for_tensorrt_are_refused_before_the_work(model):
    unet = graphs_of(model)["unet"]
    export.check_volume("unet", unet, ranges_of(model, (16, 16), (16, 32), (16, 32), (1, 8)))
    with pytest.raises(
        ValueError, match=r"^batch, frames, height, width: .*takes 2147483647; export with narrower"
    ):
        export.check_volume("unet", unet, ranges_of(model, (1, 64), None, None, (1, 64)))


def test_another_version_or_architecture_is_refused_with_the_call_that_rebuilds(model, monkeypatch):
    assert run.unfit(HERE, HERE) == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for changed, expected in (
        ({"tensorrt": "10.9.0.34"}, "its engines are of TensorRT 11.4.0.106, this is TensorRT 10.9.0.34"),
        ({"capability": "8.6"}, "are for GPUs of compute capability 9.0, this one has 8.6"),
    ):
        monkeypatch.setattr(run, "machine", lambda device, changed=changed: {**HERE, **changed})
        with pytest.raises(ValueError) as error:
            run.choose_device(bundle(model), "auto")
        message = str(error.value)
        assert expected in message and "\n" not in message
        call = "vidsmooth_fast.export('tiny', 'car.d', format='tensorrt', dtype='float16', frames=(4, 16), "
        assert message.endswith(call + "height=(16, 32), width=(16, 64), batch=(1, 8))")
    monkeypatch.setattr(run, "machine", lambda device: HERE)
    assert run.choose_device(bundle(model), "cuda:1") == torch.device("cuda:1")


def test_without_a_gpu_or_without_tensorrt_one_line_says_so(model, monkeypatch):
    with pytest.raises(ValueError, match="^device: TensorRT bundles run on cuda, got cpu$"):
        run.choose_device(bundle(model), "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="^device: car.d needs an NVIDIA GPU"):
        run.choose_device(bundle(model), "auto")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ValueError, match=r"needs TensorRT .* pip install 'vidsmooth-fast\[tensorrt\]'"):
        export.Writer()


def test_info_says_what_never_ran_on_hardware(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    lines = {line.split()[0]: line for line in report().splitlines() if line}
    assert "not here: pip install 'vidsmooth-fast[tensorrt]'" in lines["tensorrt"]
    for name in ("tensorrt", "aoti"):
        assert lines[name].endswith("run on a GPU by this project's tests")


def test_a_batch_goes_in_equal_parts():
    assert run.pieces(8, 8) == [8] and run.pieces(3, 8) == [3]
    assert run.pieces(9, 8) == [5, 4] and run.pieces(20, 8) == [7, 7, 6]


def test_the_timing_cache_is_replaced_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = export.default_cache(HERE)
    assert cache == tmp_path / "vidsmooth-fast" / "tensorrt-11.4.0.106-9.0.timing"
    for content in (b"first", b"second"):
        export.replace_file(cache, content)
        assert cache.read_bytes() == content and list(cache.parent.iterdir()) == [cache]


SHAPES = {"sample": export.Shapes((1, 4), (2, 4), (8, 4))}


def test_building_asks_for_what_was_decided(library):
    library._answers |= {("IHostMemory", "bytes"): b"engine"}
    assert export.build(Path("unet.onnx"), SHAPES, b"known") == (b"engine", b"engine")
    flag = library.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert library.method("Builder", "create_network") == [(1 << int(flag),)]
    assert library.method("OnnxParser", "parse_from_file") == [("unet.onnx",)]
    assert library.method("IBuilderConfig", "clear_flag") == [(library.BuilderFlag.TF32,)]
    assert library.method("IOptimizationProfile", "set_shape") == [("sample", (1, 4), (2, 4), (8, 4))]
    assert library.method("IBuilderConfig", "create_timing_cache") == [(b"known",)]


def test_a_timing_cache_of_another_gpu_is_measured_anew(library):
    library._answers |= {("IHostMemory", "bytes"): b"x", ("IBuilderConfig", "set_timing_cache"): False}
    export.build(Path("unet.onnx"), SHAPES, b"known")
    assert library.method("IBuilderConfig", "create_timing_cache") == [(b"known",), (b"",)]


@pytest.mark.parametrize(
    "answers, expected",
    [
        (
            {("OnnxParser", "parse_from_file"): False, ("OnnxParser", "num_errors"): 1},
            "cannot read unet.onnx: no",
        ),
        (
            {("IBuilderConfig", "add_optimization_profile"): -1},
            "does not take the shapes of unet.onnx: it gives no",
        ),
        ({("Builder", "build_serialized_network"): None}, "cannot build unet.onnx: it gives no reason"),
    ],
)
def test_tensorrts_own_reason_is_passed_on(library, answers, expected):
    library._answers |= {("ParserError", "desc"): "no such node", **answers}
    library._answers["OnnxParser", "get_error"] = lambda index: StandIn(library, library._real.ParserError)
    with pytest.raises(ValueError, match=expected):
        export.build(Path("unet.onnx"), SHAPES, b"")


def test_the_logger_keeps_errors(library):
    logger, severity = export._logger(library), library.ILogger.Severity
    logger.log(severity.INFO, "fine")
    logger.log(severity.ERROR, "no kernel")
    assert logger.errors == ["no kernel"]


def test_a_graph_becomes_an_engine_file(library, model, monkeypatch, tmp_path):
    for module, name, value in (
        (export, "machine", lambda device: HERE),
        (export, "choose_device", torch.device),
        (
            export.onnx.Writer,
            "write",
            lambda self, name, graph, ranges, folder: f"{name} {self.opset} in {folder.name}",
        ),
    ):
        monkeypatch.setattr(module, name, value)
    library._answers |= {("IHostMemory", "bytes"): b"engine"}
    writer = export.Writer(timing_cache=str(tmp_path / "measured" / "timing"))
    assert dataclasses.asdict(writer) == {"timing_cache": writer.timing_cache, "machine": HERE}
    assert writer.notes() == (f"TensorRT {run.UNPROVEN}.",)
    ranges = ranges_of(model, (4, 16), (16, 32), (16, 32), (1, 8))
    for known in (b"", b"engine"):
        assert writer.write("unet", graphs_of(model)["unet"], ranges, tmp_path) == "unet.engine"
        assert (tmp_path / "unet.engine").read_bytes() == b"engine"
        assert library.method("IBuilderConfig", "create_timing_cache")[-1] == (known,)
    ((file,), _) = library.method("OnnxParser", "parse_from_file")
    assert Path(file).name.startswith("unet 21 in ")
    shapes = {name: tuple(rest) for name, *rest in library.method("IOptimizationProfile", "set_shape")}
    assert shapes == export.profile(graphs_of(model)["unet"], ranges)
    with pytest.raises(ValueError, match="^batch, frames, height, width: "):
        writer.write(
            "unet", graphs_of(model)["unet"], ranges_of(model, (1, 64), None, None, (1, 64)), tmp_path
        )


class Stream:
    """A CUDA stream's part in the code under test, on the CPU."""

    cuda_stream = 7

    def __init__(self, device=None):
        self.device = torch.device("cpu")
        self.waited = []

    def wait_stream(self, other):
        self.waited.append(other)

    def synchronize(self):
        pass


class Graph:
    """A CUDA graph that is run again by calling what was captured."""

    executions = []

    def replay(self):
        self.executions.append("replay")
        self.run()


@pytest.fixture
def engine(library, model, monkeypatch, tmp_path):
    """A text encoder's engine that answers with the sum of its inputs; 4 prompts at most."""
    made = bundle(model, tmp_path)
    (tmp_path / "text_encoder.engine").write_bytes(b"plan")
    port = made.graphs["text_encoder"].outputs["last_hidden_state"]
    state = {}

    def set_address(name, address):
        state[name] = address
        return True

    def execute(stream):
        assert stream == Stream.cuda_stream
        shape = state["shape"]
        ids = (ctypes.c_int64 * (shape[0] * shape[1])).from_address(state["input_ids"])
        out = (ctypes.c_float * (shape[0] * shape[1] * port.shape[2])).from_address(
            state["last_hidden_state"]
        )
        for row in range(shape[0]):
            total = sum(ids[row * shape[1] : (row + 1) * shape[1]])
            for i in range(shape[1] * port.shape[2]):
                out[row * shape[1] * port.shape[2] + i] = total
        return True

    def set_shape(name, shape):
        state["shape"] = shape
        return 1 <= shape[0] <= 4

    library._answers |= {
        ("ICudaEngine", "get_tensor_profile_shape"): [(1, 16), (2, 16), (4, 16)],
        ("IExecutionContext", "set_tensor_address"): set_address,
        ("IExecutionContext", "set_input_shape"): set_shape,
        ("IExecutionContext", "update_device_memory_size_for_shapes"): 1000,
        ("IExecutionContext", "execute_async_v3"): execute,
    }
    Graph.executions = []

    @contextlib.contextmanager
    def capture(graph, stream, capture_error_mode):
        addresses = dict(state)
        yield
        graph.run = lambda: (state.update(addresses), execute(stream.cuda_stream))

    for name, value in (
        ("Stream", Stream),
        ("CUDAGraph", Graph),
        ("graph", capture),
        ("current_stream", lambda device: Stream()),
        ("stream", lambda stream: contextlib.nullcontext()),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    assert runtime("tensorrt") is run
    return run.open_graph(made, "text_encoder", torch.device("cpu"))


def rows(count):
    return torch.arange(count)[:, None].expand(count, 16)


def test_an_engine_is_captured_once_per_shape_and_replayed(engine, library):
    for _ in range(2):
        out = engine(input_ids=rows(3))
        assert out[:, 0, 0].tolist() == [0, 16, 32]
    assert len(library.method("IExecutionContext", "execute_async_v3")) == 2  # before the capture, and in it
    assert Graph.executions == ["replay", "replay"]
    (memory,) = library.method("IExecutionContext", "set_device_memory")
    assert memory[1] == 1000
    first = engine(input_ids=rows(3))
    engine(input_ids=rows(3) + 1)
    assert first[:, 0, 0].tolist() == [0, 16, 32]  # a result is not overwritten by the next


def test_larger_batches_go_in_parts_and_few_shapes_are_kept(engine):
    assert engine(input_ids=rows(7))[:, 0, 0].tolist() == [16 * i for i in range(7)]
    for count in (1, 2, 3, 4, 1):
        engine(input_ids=rows(count))
    assert len(engine._captured) == run.KEPT


def test_a_shape_beyond_the_engine_is_named(engine, library):
    library._answers["IExecutionContext", "set_input_shape"] = False
    with pytest.raises(
        ValueError, match=r"^input_ids: this engine takes shapes from \(1, 16\) to \(4, 16\), got"
    ):
        engine(input_ids=rows(2))
    with pytest.raises(ValueError, match="expected the inputs input_ids, got"):
        engine(tokens=rows(2))


def test_a_plan_that_tensorrt_cannot_read(engine, library, model, tmp_path):
    library._answers["Runtime", "deserialize_cuda_engine"] = None
    with pytest.raises(
        ValueError, match=r"TensorRT cannot read .*text_encoder.engine; rebuild it with vidsmooth"
    ):
        run.open_graph(bundle(model, tmp_path), "text_encoder", torch.device("cpu"))


def test_the_stand_in_refuses_what_tensorrt_does_not_have(library):
    builder = library.Builder(library.Logger(library.Logger.ERROR))
    with pytest.raises(AttributeError):
        builder.build_engine()  # until version 7
    with pytest.raises(AssertionError, match="fits none of"):
        builder.create_network("strong")
    with pytest.raises(AssertionError, match="fits none of"):
        builder.create_optimization_profile(1)


def test_a_batch_that_does_not_begin_at_one_is_refused(model):
    with pytest.raises(ValueError, match="^batch: expected a range from 1, got one from 2"):
        ranges_of(model, (4, 16), (16, 32), (16, 32), (2, 8))
