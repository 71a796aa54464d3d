"""AOTInductor bundles: the same numbers as PyTorch at sizes that were not traced, and no compiler where they run."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vidsmooth_fast as vsf
from python_tests.tiny import tiny_model
from vidsmooth_fast.export.aoti import Writer
from vidsmooth_fast.export.graphs import graphs_of, ranges_of
from vidsmooth_fast.models.bundle import Bundle, GraphFile
from vidsmooth_fast.models.bundle_model import BundleModel
from vidsmooth_fast.models.runtimes import aoti as run
from vidsmooth_fast.ops import _dispatch

SMALLEST = {"down_block_types": ["DownBlock3D"], "up_block_types": ["UpBlock3D"], "block_out_channels": [16]}
"""One level, all operators of the network in its middle: half a minute of compiling."""

SIZES = [(1, 2, 8, 6), (2, 5, 8, 8), (3, 1, 4, 10), (2, 9, 16, 6)]
"""Videos, frames, height and width of latents; none of them traced."""


@pytest.fixture(scope="module")
def model():
    return tiny_model(**SMALLEST)


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory) -> Path:
    """A bundle whose network is compiled; its other graphs are named only."""
    folder = tmp_path_factory.mktemp("aoti")
    ranges, graphs, writer = ranges_of(model, (1, 64), None, None, (1, 64)), graphs_of(model), Writer()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        file = writer.write("unet", graphs["unet"], ranges, folder)
    described = Bundle(
        path=folder,
        format="aoti",
        name="tiny",
        dtype="float32",
        ranges=ranges,
        graphs={
            name: GraphFile(f"{name}.pt2", graph.inputs, graph.outputs) for name, graph in graphs.items()
        },
        files={file: (folder / file).stat().st_size},
        network=model.network_config,
        autoencoder=dict(model.autoencoder_config),
        text={"length": 16, "mask": False},
        scheduler=model.scheduler_config,
        tuning=None,
        source={},
        versions={},
        settings=dataclasses.asdict(writer),
    )
    (folder / "bundle.json").write_text(described.to_json())
    return folder


def inputs(videos, frames, height, width):
    generator = torch.Generator().manual_seed(frames)
    return {
        "sample": torch.randn(videos, 4, frames, height, width, generator=generator),
        "timestep": torch.linspace(3, 900, videos),
        "encoder_hidden_states": torch.randn(videos, 16, 16, generator=generator),
    }


def test_a_new_process_computes_the_same_without_compiling(model, bundle, tmp_path):
    cases = {f"case{i}": inputs(*size) for i, size in enumerate(SIZES)}
    save_file(
        {f"{case}.{name}": t for case, named in cases.items() for name, t in named.items()}, tmp_path / "in"
    )
    script = Path(__file__).with_name("run_without_compiler.py")
    arguments = [str(bundle), str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = load_file(tmp_path / "out")
    for case, named in cases.items():
        with torch.no_grad():
            expected = model.unet(*named.values())
        torch.testing.assert_close(results[case], expected, atol=1e-4, rtol=0)
    kernel = "torch" if _dispatch.extension() is None else "cpu"
    operators = ("group_norm_silu", "sparse_causal_attention", "temporal_attention")
    calls = json.loads(done.stdout.splitlines()[-1])
    assert calls.keys() == {
        f"{name} {kernel}" for name in operators
    }  # the registered kernels, not their parts


def test_requested_backends_are_followed_inside_the_graph(bundle):
    network, given = BundleModel(bundle).network, inputs(*SIZES[1])
    ours = network(**given)
    with vsf.ops.backend("torch"):
        plain = network(**given)
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=0)
    with (
        vsf.ops.backend("cuda"),
        pytest.raises((RuntimeError, ValueError), match="no requested backend can run"),
    ):
        network(**given)


def test_inputs_of_any_strides_and_dtypes(bundle):
    network, given = BundleModel(bundle).network, inputs(*SIZES[1])
    expected = network(**given)
    given["sample"] = given["sample"].double().transpose(3, 4).contiguous().transpose(3, 4)
    assert torch.equal(network(**given), expected)


def test_wrong_inputs_are_named(bundle):
    network, given = BundleModel(bundle).network, inputs(*SIZES[1])
    with pytest.raises(ValueError, match="^timestep: expected shape"):
        network(**{**given, "timestep": torch.zeros(3)})
    with pytest.raises(
        ValueError, match="expected the inputs sample, timestep, encoder_hidden_states, got sample"
    ):
        network(sample=given["sample"])


HERE = {"device": "cpu", "system": "Linux x86_64", "torch": "2.13", "instructions": "avx2 fma"}


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, ""),
        ({"instructions": "avx2 avx512f fma"}, ""),
        ({"instructions": "fma"}, "for a processor with avx2, which this one lacks"),
        ({"system": "Darwin arm64"}, "for the system Linux x86_64, this is Darwin arm64"),
        ({"torch": "2.14"}, "for PyTorch 2.13, this is 2.14"),
    ],
)
def test_what_a_compiled_graph_needs(changes, expected):
    assert run.unfit(HERE, {**HERE, **changes}).endswith(expected)
    assert bool(run.unfit(HERE, {**HERE, **changes})) == bool(expected)


def test_another_gpu_is_not_fit():
    gpu = {**HERE, "device": "cuda", "capability": "9.0"}
    assert run.unfit(gpu, gpu) == ""
    assert run.unfit(gpu, {**gpu, "capability": "8.6"}).endswith("compute capability 9.0, this is 8.6")
    assert run.unfit(gpu, HERE).endswith("compute capability 9.0, this is none")


def test_refused_on_another_machine_in_one_line(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    record = json.loads((copy / "bundle.json").read_text())
    record["settings"]["machine"]["instructions"] += " avx9000"
    (copy / "bundle.json").write_text(json.dumps(record))
    with pytest.raises(ValueError) as error:
        vsf.load(copy)
    assert "a processor with avx9000, which this one lacks; export the model again on a machine" in str(
        error.value
    )
    assert "\n" not in str(error.value)
    with pytest.raises(
        ValueError, match=r"^device: .* was compiled for cpu, got cuda; export the model again with"
    ):
        vsf.load(bundle, device="cuda")


def test_no_compiler_and_no_gpu_are_found_before_the_work(monkeypatch, tmp_path):
    from torch._inductor import cpp_builder, exc

    with pytest.raises(ValueError, match="^device: format 'aoti' compiles for cpu or cuda, got 'mps'"):
        vsf.export("sprite-world", tmp_path / "a", format="aoti", device="mps")
    if not torch.cuda.is_available():
        with pytest.raises(
            ValueError, match="^device: expected 'auto' or a device of this machine, got 'cuda'"
        ):
            vsf.export("sprite-world", tmp_path / "a", format="aoti", device="cuda")

    def absent():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", absent)
    with pytest.raises(ValueError, match=r"compiles with a C\+\+ compiler, and there is none"):
        vsf.export("sprite-world", tmp_path / "a", format="aoti")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_whole_bundle_samples_the_same_video(tmp_path):
    three_levels = {
        "down_block_types": ["CrossAttnDownBlock3D"] * 2 + ["DownBlock3D"],
        "up_block_types": ["UpBlock3D"] + ["CrossAttnUpBlock3D"] * 2,
        "block_out_channels": [16, 16, 32],
    }
    model = tiny_model(**three_levels)
    path = vsf.export(model, tmp_path / "tiny.aoti", format="aoti")
    options = dict(steps=3, window=4, stride=2, guidance=2.0, progress=False)
    ours, theirs = (vsf.fast_sample(m, "a red car", 11, **options) for m in (path, model))
    torch.testing.assert_close(ours.latents, theirs.latents, atol=1e-3, rtol=0)
    for mine, other in zip(ours, theirs, strict=True):
        assert abs(mine.astype(int) - other).max() <= 1
