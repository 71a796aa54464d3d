"""ControlNets in `fast_sample`: diffusers' pipeline frame by frame, windows that share, refusals."""

from __future__ import annotations

import copy
import sys
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    MultiControlNetModel,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)
from PIL import Image

from python_tests.tiny import tiny_model
from vidsmooth_fast import Control, Video, cli, fast_sample, invert
from vidsmooth_fast.export import export
from vidsmooth_fast.models.weights import build_unet
from vidsmooth_fast.sampling import budget
from vidsmooth_fast.sampling.controlled import ControlledDenoiser, _branches_first
from vidsmooth_fast.sampling.denoiser import UNetDenoiser
from vidsmooth_fast.sampling.windowed import WindowedPredictor

FRAMES = 12
QUICK = dict(steps=3, window=8, stride=4, guidance=4.0, progress=False)


def controlnet(unet: UNet2DConditionModel, seed: int = 0) -> ControlNetModel:
    """A ControlNet whose last layers are awake; two pixels of a map for each latent."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
        for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            torch.nn.init.normal_(block.weight, std=0.2)
            torch.nn.init.normal_(block.bias, std=0.2)
        torch.nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=0.5)
    return net.eval()


@pytest.fixture(scope="module")
def flat():
    """A 2D network of the tiny model's size."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=16,
    ).eval()


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def net(flat):
    return controlnet(flat)


@pytest.fixture(scope="module")
def maps():
    rng = np.random.default_rng(0)
    return Video.from_frames(list(rng.integers(0, 256, (FRAMES, 16, 16, 3), dtype=np.uint8)), fps=8)


def sample(model, controls, prompt="a red car", frames=FRAMES, **options):
    return fast_sample(model, prompt, frames, controls=controls, **{**QUICK, **options})


def test_a_2d_network_gives_the_frames_of_diffusers(flat, net, maps):
    """Freshly inflated, attending to itself: every frame is a picture of its own."""
    model = tiny_model()
    model.unet = build_unet(
        {**flat.config, "_class_name": "UNet2DConditionModel", "attn1_frames": "self"},
        flat.state_dict(),
        source="2D",
        dtype=torch.float32,
    ).eval()
    other = controlnet(flat, 1)
    pipeline = StableDiffusionControlNetPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=flat,
        controlnet=MultiControlNetModel([net, other]),
        scheduler=DDIMScheduler.from_config(model.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, FRAMES, 8, 8, generator=torch.Generator().manual_seed(1))
    black = Video.from_frames([np.zeros((16, 16, 3), np.uint8)], fps=8)
    expected = [
        pipeline(
            "a red car",
            image=[Image.fromarray(frame), Image.fromarray(black[0])],
            num_inference_steps=3,
            guidance_scale=4.0,
            negative_prompt="a boat",
            controlnet_conditioning_scale=[0.7, 0.4],
            latents=noise[:, :, number],
            output_type="latent",
            height=16,
            width=16,
        ).images
        for number, frame in enumerate(maps)
    ]
    expected = torch.cat(expected)
    controls = [Control(net, maps, 0.7), Control(other, black, 0.4)]
    got = sample(model, controls, latents=noise, negative_prompt="a boat").latents[0].transpose(0, 1)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)
    without = sample(model, None, latents=noise, negative_prompt="a boat").latents[0].transpose(0, 1)
    assert (without - expected).abs().max() > 0.01


def nothing_shared(monkeypatch):
    """From here on every window's residuals are computed for it alone."""
    window = ControlledDenoiser._window
    monkeypatch.setattr(
        ControlledDenoiser,
        "_window",
        lambda self, latents, texts, start, timestep, still: window(
            self, latents, texts, start, timestep, None
        ),
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loop": True},
        {"guidance": 1.0},
        {"guidance_interval": (0, 0.5)},
        {"prompt": {0: "a red car", 11: "a blue boat"}},
        {"prompt": {0: "a red car", 11: "a blue boat"}, "merge": "attention"},
        {"speed": "fast", "steps": 4},
        {"window": 4, "stride": 4},
        {"window": 2, "stride": 1, "prompt": {0: "a red car", 11: "a blue boat"}, "merge": "attention"},
    ],
    ids=str,
)
def test_the_result_does_not_depend_on_what_windows_share(model, net, maps, options, monkeypatch):
    control = Control(net, maps)
    together = sample(model, control, **options).latents
    one_by_one = sample(model, control, max_batch=1, **options).latents
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-4)
    nothing_shared(monkeypatch)
    torch.testing.assert_close(sample(model, control, **options).latents, together, rtol=1e-4, atol=1e-4)
    assert (together - sample(model, None, **options).latents).abs().max() > 0.01


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loop": True},
        {"prompt": {16: "a red car", 17: "a blue boat"}},
        {"prompt": {4: "a red car", 16: "a red car", 17: "a blue boat"}, "loop": True},
    ],
    ids=str,
)
def test_texts_of_two_segments_are_not_mixed_up(model, net, maps, options, monkeypatch):
    """Segments of two windows: each has one text of its own, and the next segment another."""
    cut = partial(WindowedPredictor, segment_frames=8)
    monkeypatch.setattr("vidsmooth_fast.sampling.job.WindowedPredictor", cut)
    options = {"frames": 32, "window": 4, "stride": 2, **options}
    strong = Control(sensitive(net), maps)
    shared = sample(model, strong, **options).latents
    nothing_shared(monkeypatch)
    alone = sample(model, strong, **options).latents
    torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-4)


def sensitive(net: ControlNetModel) -> ControlNetModel:
    """One that other texts change much."""
    net = copy.deepcopy(net)
    for name, parameter in net.named_parameters():
        if "attn2.to_out" in name:
            parameter.data.mul_(20)
    return net


@pytest.mark.parametrize("at", [1, 2, 4])
def test_memory_that_runs_out_on_the_way(model, net, maps, at, monkeypatch):
    whole, calls = sample(model, Control(net, maps)).latents, []
    predict = UNetDenoiser.predict

    def scarce(self, latents, *args, **kwargs):
        calls.append(len(latents))
        if len(calls) == at:
            raise torch.OutOfMemoryError("out of memory")
        return predict(self, latents, *args, **kwargs)

    monkeypatch.setattr(UNetDenoiser, "predict", scarce)
    torch.testing.assert_close(sample(model, Control(net, maps)).latents, whole, rtol=1e-4, atol=1e-4)
    assert len(calls) > at


def test_order_and_layout_of_residuals():
    """Frames faster than branches, branches faster than windows; channels last in memory."""
    windows, frames, branches = 2, 3, 2
    parts = [
        torch.arange(frames * branches).view(-1, 1, 1, 1).expand(-1, 5, 4, 4).contiguous() + 100 * n
        for n in range(windows)
    ]
    got = _branches_first(parts, branches)
    assert got.shape == (12, 5, 4, 4) and got.is_contiguous(memory_format=torch.channels_last)
    assert got[:, 0, 0, 0].tolist() == [0, 2, 4, 1, 3, 5, 100, 102, 104, 101, 103, 105]


def images_seen(monkeypatch, net, run) -> int:
    seen, forward = [], ControlNetModel.forward
    monkeypatch.setattr(
        ControlNetModel,
        "forward",
        lambda self, x, *a, **k: (seen.append(len(x)), forward(self, x, *a, **k))[1],
    )
    run()
    monkeypatch.undo()
    return sum(seen)


def test_frames_of_two_windows_are_computed_once(model, net, maps, monkeypatch):
    """24 images a step for windows of 16 each, and no more in a step after; not where texts differ."""
    control = Control(net, maps)
    assert images_seen(monkeypatch, net, lambda: sample(model, control)) == 3 * 2 * FRAMES
    assert images_seen(monkeypatch, net, lambda: sample(model, control, max_batch=4)) == 3 * 2 * FRAMES
    assert images_seen(monkeypatch, net, lambda: sample(model, control, guidance=1.0)) == 3 * FRAMES
    texts = {0: "a red car", 11: "a blue boat"}
    assert images_seen(monkeypatch, net, lambda: sample(model, control, texts)) == 3 * (8 + 8) * 2


def test_maps_follow_their_frames(model, net, maps):
    """Another map at the last frame changes the frames whose windows hold it, by the merge those after it alone."""
    frames = list(maps)
    other = Video.from_frames([*frames[:-1], 255 - frames[-1]], fps=8)
    a, b = (
        sample(model, Control(net, given), window=4, stride=4, steps=1).latents for given in (maps, other)
    )
    change = (a - b).abs().amax((0, 1, 3, 4))
    assert not change[:8].any() and change[-1] == change.max() > 1e-3


def test_fewer_maps_are_continued_back_and_forth(model, net, maps):
    few = maps[:5]
    longer = Video.from_frames([few[i] for i in (0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3)], fps=8)
    a, b = (sample(model, Control(net, given)).latents for given in (few, longer))
    assert torch.equal(a, b)


def test_edges_of_a_source_act_in_sampling_alone(model, net, maps):
    smooth = Video.from_frames([np.full((16, 16, 3), 30 + 5 * i, np.uint8) for i in range(FRAMES)], fps=8)
    black = Video.from_frames([np.zeros((16, 16, 3), np.uint8)], fps=8)
    a = sample(model, Control(net), source=smooth).latents  # a source without edges
    b = sample(model, Control(net, black), source=smooth).latents
    assert torch.equal(a, b)
    inverted = invert(model, smooth, steps=3, window=8, stride=4, progress=False)
    c = sample(model, Control(net, black), latents=inverted).latents
    torch.testing.assert_close(a, c, rtol=0, atol=1e-5)


def test_resumed_runs_and_their_settings(model, net, maps, tmp_path):
    state, control = tmp_path / "state", Control(net, maps, 0.5)

    def stop(step, steps, latents):
        if step == 2:
            raise KeyboardInterrupt

    whole = sample(model, control)
    assert whole.metadata["vidsmooth_fast"]["controls"] == [
        {"network": "ControlNetModel", "maps": "frames", "scale": 0.5}
    ]
    assert "controls" not in sample(model, None).metadata["vidsmooth_fast"]
    with pytest.raises(KeyboardInterrupt):
        sample(model, control, resume=state, callback=stop)
    frames = list(maps)
    frames[7] = frames[7].copy()
    frames[7][3, 3, 0] ^= 1
    for other in (
        None, Control(net, maps), Control(net, Video.from_frames(frames, fps=8), 0.5),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="belongs to a run with another"):
            sample(model, other, resume=state)
    assert torch.equal(sample(model, control, resume=state).latents, whole.latents)


def test_half_precision_and_its_refuge(model, net, maps, monkeypatch):
    control = Control(net, maps)
    exact = sample(model, control).latents
    half = sample(model, control, dtype="bfloat16").latents
    assert (half - exact).abs().mean() < 0.1 * exact.abs().mean()
    huge = Control(net, maps, 1e38)  # more than any precision holds
    with pytest.raises(FloatingPointError, match="in float32 too"):
        sample(model, huge, dtype="bfloat16")
    large, refuges = Control(net, maps, 1e6), []  # more than float16 holds
    in_float32 = ControlledDenoiser.in_float32
    monkeypatch.setattr(
        ControlledDenoiser, "in_float32", lambda self: (refuges.append(1), in_float32(self))[1]
    )
    saved = sample(model, large, dtype="float16").latents
    expected = sample(model, large).latents
    assert refuges and (saved - expected).abs().mean() < 0.05 * expected.abs().mean()
    assert net.dtype == torch.float32, "the caller's network stays as it is"


@pytest.mark.slow
def test_an_exported_network_takes_residuals(model, net, maps, tmp_path):
    options = {"format": "onnx", "frames": (1, 16), "batch": (1, 4)}
    export(model, tmp_path / "with", controls=True, **options)
    got = sample(tmp_path / "with", Control(net, maps)).latents
    expected = sample(model, Control(net, maps)).latents
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
    plain = sample(tmp_path / "with", None).latents
    torch.testing.assert_close(plain, sample(model, None).latents, rtol=0, atol=1e-3)


def test_residuals_fit_the_estimate(model, net, maps):
    images = 6
    down, middle = net(
        torch.randn(images, 4, 8, 8), 3, torch.randn(images, 5, 16), torch.rand(images, 3, 16, 16),
        return_dict=False,
    )  # fmt: skip
    held = sum(part.numel() * 4 for part in (*down, middle))
    config = model.unet.config
    assert budget.residual_bytes(config, torch.float32, images, 8, 8, on_cpu=False) == held


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"block_out_channels": (16, 16)}, r"channels \[16, 16\], here \[16, 32\]"),
        ({"cross_attention_dim": 12}, "text width 12, here 16"),
        ({"layers_per_block": 2}, "layers a level 2, here 1"),
        ({"conditioning_embedding_out_channels": (8, 16, 16)}, "pixels per latent 4, here 2"),
        ({"conditioning_channels": 1}, "map channels 1, here 3"),
        ({"num_class_embeds": 3}, "classes 3, here None"),
        ({"global_pool_conditions": True}, "pooled residuals True, here False"),
    ],
)
def test_a_controlnet_of_another_network(model, maps, changes, says):
    config = {
        "block_out_channels": (16, 32), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4, "cross_attention_dim": 16,
        "conditioning_embedding_out_channels": (8, 16), **changes,
    }  # fmt: skip
    with pytest.raises(
        ValueError, match=f"controls: the ControlNet was made for another network: {says}"
    ) as caught:
        sample(model, Control(ControlNetModel(**config), maps))
    assert "\n" not in str(caught.value)


def test_the_command_line(model, net, maps, tmp_path, monkeypatch, capsys):
    directory, clip = tmp_path / "net", maps.save(tmp_path / "maps.mp4")
    size = clip.stat().st_size
    model.save(tmp_path / "model")
    net.save_pretrained(directory)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{}")

    def run(*arguments):
        base = (
            "sample",
            tmp_path / "model",
            "a red car",
            "--steps",
            2,
            "--window",
            8,
            "--stride",
            4,
            "--quiet",
        )
        monkeypatch.setattr(sys, "argv", ["vidsmooth-fast", *map(str, (*base, *arguments))])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0, capsys.readouterr().err

    out = tmp_path / "out.mp4"
    given = ("--control", directory, "--control-maps", clip, "--control-scale", 0.5, "--frames", 6, "-o", out)
    assert run(*given) == (0, "")
    settings = Video.open(out).metadata["vidsmooth_fast"]["controls"]
    assert settings == [{"network": str(directory), "maps": str(clip), "scale": 0.5}]
    assert run("--control", directory, "--source", clip, "-o", out) == (0, "")
    assert Video.open(out).metadata["vidsmooth_fast"]["controls"][0]["maps"] == "canny"
    for wrong, says in (
        (("--control", directory), "there is none"),
        (("--control", tmp_path / "damaged", "--control-maps", clip), "cannot read a ControlNet"),
        (("--control", directory, "--control-maps", tmp_path / "no.mp4"), "no.mp4"),
        (("--control", directory, "--control-maps", clip, "-o", clip), "is one of the controls' maps itself"),
        (("--control-scale", 2), "--control-scale: expected one for each of 0 --control, got 1"),
    ):
        code, error = run("--frames", 6, "-o", tmp_path / "never.mp4", *wrong)
        assert code == 1 and says in error and error.count("\n") == 1
        assert not (tmp_path / "never.mp4").exists() and clip.stat().st_size == size
