"""ONNX graphs: PyTorch's numbers in ONNX Runtime, from nodes that every runtime knows."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import vidsmooth_fast as vsf
from python_tests.tiny import tiny_model
from vidsmooth_fast.export import onnx as exporter
from vidsmooth_fast.export.graphs import graphs_of, ranges_of
from vidsmooth_fast.models.bundle import GraphFile
from vidsmooth_fast.models.runtimes.onnx import OnnxGraph, _providers

SIZES = [(1, 1, 8, 6, 3), (3, 2, 5, 9, 77), (2, 16, 7, 4, 16), (1, 64, 4, 4, 1)]
"""Videos, frames, height and width of latents, tokens; none of them traced."""


def inputs(videos: int, frames: int, height: int, width: int, tokens: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(frames)
    return {
        "sample": torch.randn(videos, 4, frames, height, width, generator=generator),
        "timestep": torch.linspace(3, 900, videos),
        "encoder_hidden_states": torch.randn(videos, tokens, 16, generator=generator),
    }


def in_network(unet, given: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return unet(given["sample"], given["timestep"], given["encoder_hidden_states"])


def written(model, folder: Path, *, controls: bool = False, **options) -> OnnxGraph:
    """The denoising network alone, exported into `folder` and opened."""
    graph = graphs_of(model, controls=controls)["unet"]
    ranges = ranges_of(model, (1, 64), None, None, (1, 64))
    file = exporter.Writer(**options).write("unet", graph, ranges, folder)
    return OnnxGraph(folder, GraphFile(file, graph.inputs, graph.outputs), torch.device("cpu"))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_one_call_at_sizes_that_were_not_traced(tiny, onnx_bundle, size):
    given = inputs(*size)
    expected = in_network(tiny.unet, given)
    got = vsf.load(onnx_bundle).network(**given)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_text_and_autoencoder(tiny, onnx_bundle):
    bundle, prompts = vsf.load(onnx_bundle), ["a red car", "", "the blue boat is on the sea"]
    torch.testing.assert_close(bundle.encode_text(prompts), tiny.encode_text(prompts), rtol=0, atol=1e-5)
    frames = list(np.random.default_rng(0).integers(0, 256, (11, 24, 18, 3), dtype=np.uint8))
    latents = tiny.encode_video(frames)
    torch.testing.assert_close(bundle.encode_video(frames), latents, rtol=0, atol=1e-5)
    decoded, expected = (np.stack(list(m.decode_latents(latents))) for m in (bundle, tiny))
    assert np.abs(decoded.astype(int) - expected).max() <= 1


def test_only_standard_nodes(onnx_bundle):
    for name in ("unet", "vae_encoder", "vae_decoder", "text_encoder"):
        model = onnx.load(onnx_bundle / f"{name}.onnx")
        assert {opset.domain for opset in model.opset_import if opset.domain} == set() and not model.functions
        assert [opset.version for opset in model.opset_import] == [23]
        if name == "unet":
            kinds = [node.op_type for node in model.graph.node]
            assert kinds.count("Attention") == 2 and kinds.count("GroupNormalization") == 18
            axes = [
                axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim
            ]
            assert axes == ["videos", 4, "frames", "height", "width"]
        assert str(Path(vsf.__file__).parents[1]).encode() not in model.SerializeToString()


def test_text_enters_once_for_each_sequence(tiny, onnx_bundle):
    """Keys and values of the text are computed for the rows of the batch, not for its frames."""
    model = onnx.shape_inference.infer_shapes(onnx.load(onnx_bundle / "unet.onnx"), data_prop=True)
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in model.graph.value_info
    }
    read = [n for n in model.graph.node if n.op_type == "MatMul" and "encoder_hidden_states" in n.input]
    assert len(read) == 2  # to_k and to_v of the one cross-attention
    assert all(shapes[node.output[0]] == ["videos", "tokens", 32] for node in read)


def half_error(network: OnnxGraph, tiny, half, given, **residuals) -> tuple[float, float]:
    """(largest error of a float16 graph, what PyTorch makes in float16 allows it)."""
    middle = residuals.get("mid_block_additional_residual")
    down = tuple(t for name, t in residuals.items() if name.startswith("down")) or None
    in_half = {"mid_residual": middle if middle is None else middle.half()}
    in_half["down_residuals"] = down and tuple(t.half() for t in down)
    with torch.no_grad():
        expected = tiny.unet(*given.values(), down_residuals=down, mid_residual=middle)
        in_torch = half.unet(*given.values(), **in_half)
    got = network(**given, **residuals)
    assert got.dtype == torch.float16
    error, usual = ((t.float() - expected).abs().max().item() for t in (got, in_torch))
    return error, 2 * usual + 2e-3 * expected.abs().max().item()


def test_float16_opset_21_controls_and_large_weights(tiny, tmp_path, monkeypatch):
    """Everything that one more graph can show.

    Half precision within what PyTorch itself makes of it, from nodes that older runtimes know; a ControlNet's residuals
    as inputs; weights beyond the limit in a file of their own; softmax and norms in float32.
    """
    monkeypatch.setattr(exporter, "EXTERNAL_ABOVE", 1000)
    half = tiny.placed(torch.device("cpu"), torch.float16)
    network = written(half, tmp_path, controls=True, opset=21)
    assert (tmp_path / "unet.onnx.data").stat().st_size > sum(p.nbytes for p in half.unet.parameters()) * 0.9
    model = onnx.load(tmp_path / "unet.onnx")
    assert [opset.version for opset in model.opset_import] == [21]
    assert "Attention" not in {node.op_type for node in model.graph.node}
    takes_sums_in_float32(model)
    given, generator = inputs(2, 3, 7, 9, 5), torch.Generator().manual_seed(0)
    sizes = {"videos": 2, "frames": 3, "height": 7, "width": 9}
    residuals = {
        name: torch.randn(port.size(sizes), generator=generator)
        for name, port in network.graph.inputs.items()
        if "residual" in name
    }
    assert residuals["mid_block_additional_residual"].shape == (6, 32, 4, 5) and len(residuals) == 5
    error, allowed = half_error(network, tiny, half, given, **residuals)
    assert error <= allowed


def takes_sums_in_float32(model: onnx.ModelProto) -> None:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds = {
        value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)
    }
    seen = set()
    for node in model.graph.node:
        seen.add(node.op_type)
        if node.op_type in ("Softmax", "GroupNormalization"):
            assert kinds[node.output[0]] == onnx.TensorProto.FLOAT
        elif node.op_type == "Attention":
            (precision,) = (a.i for a in node.attribute if a.name == "softmax_precision")
            assert precision == onnx.TensorProto.FLOAT
        elif node.op_type == "LayerNormalization":
            assert all(a.i == onnx.TensorProto.FLOAT for a in node.attribute if a.name == "stash_type")
        elif node.op_type in ("Conv", "Gemm"):
            assert kinds[node.output[0]] == onnx.TensorProto.FLOAT16
    assert {"Softmax", "GroupNormalization", "LayerNormalization", "Conv"} <= seen


@pytest.mark.slow
def test_float16_with_attention_nodes(tiny, tmp_path):
    half = tiny.placed(torch.device("cpu"), torch.float16)
    network = written(half, tmp_path)
    takes_sums_in_float32(onnx.load(tmp_path / "unet.onnx"))
    for size in SIZES[:3]:
        error, allowed = half_error(network, tiny, half, inputs(*size))
        assert error <= allowed


@pytest.mark.parametrize("attn1_frames", ["first", "self", "all", "neighbours"])
@pytest.mark.slow
def test_every_kind_of_self_attention(attn1_frames, tmp_path):
    model = tiny_model(attn1_frames=attn1_frames, norm_over_frames=False)
    network = written(model, tmp_path)
    for size in SIZES[:3]:
        given = inputs(*size)
        torch.testing.assert_close(network(**given), in_network(model.unet, given), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [({"opset": 17}, "opset: expected 21 or 23, got 17"), ({"fast": 1}, "fast: .* only opset")],
)
def test_options_that_do_not_exist(tiny, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        vsf.export(tiny, tmp_path / "b", **options)
    assert not list(tmp_path.iterdir())


def test_on_a_gpu_streams_wait_for_each_other(onnx_bundle, monkeypatch):
    """With stand-ins for the streams of a GPU: the run lies between what made its inputs and what reads its result."""
    events = []

    class Stream:
        cuda_stream = 7

        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            events.append(f"{self.name} waits for {other.name}")

    def run(self, inputs, sizes):
        events.append("run")
        return plain(self, inputs, sizes)

    plain, network = OnnxGraph._run, vsf.load(onnx_bundle).network
    given = inputs(*SIZES[1])
    expected = network(**given)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("caller's"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext(events.append("on ours")))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: events.append(stream.name))
    monkeypatch.setattr(OnnxGraph, "_run", run)
    network._stream = Stream("ours")
    torch.testing.assert_close(network(**given), expected)
    assert events == [
        "ours waits for caller's",
        "on ours",
        "run",
        "caller's waits for ours",
        "caller's",
    ]
    ((name, options), last) = _providers(torch.device("cuda", 1), network._stream)
    assert (name, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options == {"device_id": 1, "user_compute_stream": "7"}
