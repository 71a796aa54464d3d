"""Bundles: what they say of themselves, `fast_sample` on them, and one line for everything that cannot be."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch

import vidsmooth_fast as vsf
from vidsmooth_fast import cli
from vidsmooth_fast.models.bundle import GraphFile, Port
from vidsmooth_fast.models.bundle_model import BundleModel
from vidsmooth_fast.models.controlnet import Residuals
from vidsmooth_fast.sampling.graph_denoiser import GraphDenoiser

SHORT = {
    "frames": 12,
    "window": 8,
    "stride": 4,
    "steps": 4,
    "guidance": 3.0,
    "height": 20,
    "width": 16,
    "progress": False,
}


def psnr(a, b) -> float:
    error = np.mean((np.stack(list(a)).astype(float) - np.stack(list(b))) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


@pytest.fixture
def copy(onnx_bundle, tmp_path):
    """A bundle to be damaged."""
    return shutil.copytree(onnx_bundle, tmp_path / "copy")


def change(bundle, **changes) -> None:
    manifest = bundle / "bundle.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))


def test_sampled_like_the_model(tiny, onnx_bundle):
    prompt = {0: "a red car is driving on the snow", 6: "a blue boat"}
    smooth = vsf.NoiseConstraint(0.2)
    expected = vsf.fast_sample(tiny, prompt, smooth=smooth, **SHORT)
    got = vsf.fast_sample(onnx_bundle, prompt, smooth=smooth, **SHORT)
    assert psnr(got, expected) >= 45 and len(got) == 12
    torch.testing.assert_close(got.latents, expected.latents, rtol=0, atol=1e-3)
    assert got.metadata["vidsmooth_fast"]["model"] == "tiny"


def test_an_edit_like_the_model_s(tiny, onnx_bundle):
    frames = np.random.default_rng(0).integers(0, 256, (5, 20, 16, 3), dtype=np.uint8)
    clip = vsf.Video.from_frames(list(frames), fps=8)
    options = {**SHORT, "frames": 5, "steps": 3, "source": clip}
    expected, got = (
        vsf.fast_sample(model, "a blue car", **options) for model in (tiny, vsf.load(onnx_bundle))
    )
    assert psnr(got, expected) >= 45


def test_what_it_says_of_itself(tiny, onnx_bundle):
    record = json.loads((onnx_bundle / "bundle.json").read_text())
    assert (record["format_version"], record["format"], record["dtype"], record["name"]) == (
        1,
        "onnx",
        "float32",
        "tiny",
    )
    assert record["ranges"]["frames"] == [1, 64] and record["scheduler"] == tiny.scheduler_config
    assert len(record["source"]["sha256"]) == 64 and record["versions"]["vidsmooth_fast"] == vsf.__version__
    assert record["graphs"]["unet"]["inputs"]["encoder_hidden_states"]["shape"] == ["videos", "tokens", 16]
    files = {str(p.relative_to(onnx_bundle)) for p in onnx_bundle.rglob("*") if p.is_file()} - {"bundle.json"}
    assert files == set(record["files"]) and not [
        name for name in files if name.endswith((".bin", ".pt", ".pkl"))
    ]
    model = vsf.load(onnx_bundle)
    for name in (
        "prediction_type",
        "latent_channels",
        "downsampling",
        "default_size",
        "text_length",
        "dtype",
    ):
        assert getattr(model, name) == getattr(tiny, name)


def test_the_verb_is_callable_in_any_order():
    from vidsmooth_fast.export.graphs import Traceable  # noqa: F401 - binds the package under the verb's name

    assert callable(vsf.export) and vsf.export.export.__doc__ == type(vsf.export).__call__.__doc__


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda b: (b / "unet.onnx").unlink(), "lacks unet.onnx"),
        (lambda b: (b / "vae_decoder.onnx").write_bytes(b"x"), "expected .* bytes, got 1"),
        (lambda b: change(b, format_version=2, versions={"vidsmooth_fast": "9.0"}), "made by .* 9.0.*upgrade"),
        (lambda b: (b / "bundle.json").write_text("{"), "is not a bundle's description"),
        (lambda b: (b / "bundle.json").write_text("[]"), "is not a bundle's description"),
        (lambda b: change(b, graphs={}), "lacks the graphs unet"),
        (lambda b: change(b, ranges={"frames": 3}), "cannot be understood"),
        (lambda b: change(b, format="core"), "expected a format of onnx, .*got 'core'"),
        (lambda b: (b / "bundle.json").write_text('{"format_version": 1}'), "lacks autoencoder, dtype"),
    ],
)  # fmt: skip
def test_damaged_bundles(copy, damage, message):
    damage(copy)
    with pytest.raises(ValueError, match=message) as caught:
        vsf.load(copy)
    assert "\n" not in str(caught.value)


def test_a_graph_that_is_none(copy):
    size = (copy / "unet.onnx").stat().st_size
    (copy / "unet.onnx").write_bytes(b"x" * size)
    with pytest.raises(ValueError, match="ONNX Runtime cannot load .*unet.onnx") as caught:
        vsf.fast_sample(copy, "a red car", **SHORT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"frames": 200, "window": 80}, "window: this bundle takes 1 to 64 frames in a window, got 80"),
        ({"height": 4}, "height: this bundle takes 8 to 2048 pixels, got 4"),
        ({"width": 4096}, "width: this bundle takes 8 to 2048 pixels, got 4096"),
        ({"merge": "attention"}, "merge: .* an exported graph does not"),
        ({"dtype": "float16"}, "dtype: this bundle computes in float32, got float16"),
        ({"device": "mps"}, "device"),
    ],
)  # fmt: skip
def test_runs_that_it_cannot_do(onnx_bundle, options, message):
    with pytest.raises(ValueError, match=message):
        vsf.fast_sample(onnx_bundle, "a red car", **{**SHORT, **options})


def test_inputs_of_another_shape(onnx_bundle):
    network = vsf.load(onnx_bundle).network
    given = {
        "sample": torch.zeros(2, 4, 3, 8, 8),
        "timestep": torch.zeros(2),
        "encoder_hidden_states": torch.zeros(1, 5, 16),
    }
    with pytest.raises(
        ValueError, match=r"encoder_hidden_states: expected shape \(videos, tokens, 16\), got \(1, 5, 16\)"
    ):
        network(**given)
    with pytest.raises(
        ValueError, match="expected the inputs sample, timestep, encoder_hidden_states, got sample"
    ):
        network(sample=given["sample"])


def test_sizes_that_follow_from_others():
    port = Port("float32", ("videos*frames", 8, "height/4", "2*width"))
    assert port.size({"videos": 2, "frames": 3, "height": 9, "width": 5}) == (6, 8, 3, 10)
    graph = GraphFile("g", {"x": Port("float32", ("images", 3, "8*height", "8*width"))}, {})
    assert graph.sizes({"x": (4, 3, 16, 24)}) == {"images": 4, "height": 2, "width": 3}
    with pytest.raises(ValueError, match="x: expected shape"):
        graph.sizes({"x": (4, 3, 20, 24)})


def test_where_a_bundle_cannot_go_on(tiny, tmp_path, onnx_bundle):
    with pytest.raises(ValueError, match="is an exported bundle, which has no networks"):
        vsf.export(onnx_bundle, tmp_path / "again")
    with pytest.raises(ValueError, match="lora: .* is exported"):
        vsf.models.load(onnx_bundle, lora="x.safetensors")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(ValueError, match="expected a new, empty or earlier bundle directory"):
        vsf.export(tiny, tmp_path / "mine")
    with pytest.raises(ValueError, match="format: expected one of onnx, "):
        vsf.export(tiny, tmp_path / "b", format="gguf")
    with pytest.raises(ValueError, match="dtype: format 'onnx' takes float32 or float16, got bfloat16"):
        vsf.export(tiny, tmp_path / "b", dtype="bfloat16")
    with pytest.raises(ValueError, match="height: expected a range of multiples of 2 from 8, got 7 to 64"):
        vsf.export(tiny, tmp_path / "b", height=(7, 64))
    assert not (tmp_path / "b").exists() and not (tmp_path / "again").exists()


def test_overflow_is_named(onnx_bundle):
    """A graph has one precision; what overflows in it is an error that says what to do."""
    model = vsf.load(onnx_bundle)
    assert GraphDenoiser(model).in_float32().dtype == torch.float32
    model.dtype = torch.float16
    with pytest.raises(
        FloatingPointError, match="computes in float16; export the model with dtype='float32'"
    ):
        GraphDenoiser(model).in_float32()
    assert isinstance(model, BundleModel)


def test_residuals_by_name():
    """Those of a run's controls; zeros where it has none, in the shapes that the bundle names."""
    port = Port("float32", ("videos*frames", 8, "height/2", "width/2"))
    names = ["down_block_additional_residual_0", "mid_block_additional_residual"]
    graph = GraphFile("unet.onnx", {"sample": Port("float32", ()), **dict.fromkeys(names, port)}, {})

    class Model:
        dtype, device = torch.float32, torch.device("cpu")
        bundle = type("Bundle", (), {"graphs": {"unet": graph}})

        @staticmethod
        def network(sample, timestep, encoder_hidden_states, **residuals):
            down, middle = (residuals[name] for name in names)
            assert down.shape == middle.shape == (12, 8, 3, 2)
            changed = sample + encoder_hidden_states[:, :1, :1, None, None] + 100 * down.max() + middle.max()
            return changed + timestep[:, None, None, None, None]

    denoiser = GraphDenoiser(Model)
    text = denoiser.prepare_text(torch.tensor([[[1.0]], [[2.0]]])).select(torch.tensor([0, 1, 1, 0]))
    got = denoiser.predict(torch.zeros(2, 4, 3, 5, 3), 7.0, text, branches=2)
    assert got[:, 0, 0, 0, 0].tolist() == [8.0, 9.0, 9.0, 8.0]
    given = Residuals((torch.full((12, 8, 3, 2), 2.0),), torch.ones(12, 8, 3, 2))
    got = denoiser.predict(torch.zeros(2, 4, 3, 5, 3), 7.0, text, given, branches=2)
    assert got[:, 0, 0, 0, 0].tolist() == [209.0, 210.0, 210.0, 209.0]


@pytest.mark.parametrize("command", [("info",), ("sample", "a red car", "-o", "car.mp4")])
def test_on_the_command_line(command, onnx_bundle, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    name, *rest = command
    options = (
        "--frames 6 --window 4 --stride 2 --steps 2 --height 16 --width 16 --quiet".split() if rest else []
    )
    monkeypatch.setattr("sys.argv", ["vidsmooth-fast", name, str(onnx_bundle), *rest, *options])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().out
    assert not stopped.value.code
    if rest:
        assert len(vsf.Video.open("car.mp4")) == 6
    else:
        for part in (
            "tiny as onnx, float32",
            "frames 1 to 64",
            "height 8 to 2048",
            "opset 23",
            "encoder_hidden_states",
        ):
            assert part in said


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_sprite_world_for_256_frames(tmp_path, dtype):
    """The embedded model, whole: one call at four sizes, and a long video against PyTorch's."""
    model = vsf.load("sprite-world", device="cpu", dtype="float32")
    bundle = vsf.load(vsf.export(model, tmp_path / "sprite-world", dtype=dtype))
    generator = torch.Generator().manual_seed(0)
    if dtype == "float32":
        for videos, frames, height, width in ((1, 3, 8, 12), (2, 16, 32, 32), (3, 1, 9, 11), (1, 24, 17, 8)):
            given = {
                "sample": torch.randn(videos, 4, frames, height, width, generator=generator),
                "timestep": torch.linspace(20, 900, videos),
                "encoder_hidden_states": torch.randn(videos, 24, 128, generator=generator),
            }
            with torch.no_grad():
                expected = model.unet(*given.values())
            got = bundle.network(**given)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    options = {
        "frames": 256,
        "steps": 6,
        "scheduler": "dpmpp_2m",
        "height": 64,
        "width": 64,
        "progress": False,
    }
    prompt = "a blue car is driving on the snow, cartoon style"
    expected, got = (vsf.fast_sample(m, prompt, **options) for m in (model, bundle))
    assert psnr(got, expected) >= (45 if dtype == "float32" else 30)
