"""Sampling on a GPU, whose latents stay on the host and whose host does not wait; skipped where there is no GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from python_tests.tiny import tiny_unet_config
from vidsmooth_fast.conditioning.prompts import PromptTrack
from vidsmooth_fast.models import VideoUNet
from vidsmooth_fast.sampling.cuda_graphs import GraphedNetwork
from vidsmooth_fast.sampling.denoiser import UNetDenoiser
from vidsmooth_fast.sampling.engine import Guidance, State, denoise
from vidsmooth_fast.sampling.schedule import make_schedule
from vidsmooth_fast.sampling.smoothing import NoiseConstraint
from vidsmooth_fast.sampling.windowed import WindowedPredictor, Windows
from vidsmooth_fast.sampling.windows import plan, window_weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device that torch can use")

DEVICE = "cuda"
FRAMES, WINDOW, STRIDE, STEPS = 23, 6, 3, 5
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """PyTorch's convolutions on GPUs take fp32 as TF32 otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def network(device: str, dtype: torch.dtype, graphs: bool = False) -> VideoUNet:
    torch.manual_seed(0)
    unet = VideoUNet.from_config(tiny_unet_config()).eval().requires_grad_(False)
    for name, parameter in unet.named_parameters():
        if "attn_temp.to_out" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    unet.cuda_graphs = graphs
    return unet.to(device, dtype)


def predictor(denoiser: UNetDenoiser) -> WindowedPredictor:
    """Several segments, of whole and shorter calls, and prompts that change along the video."""
    windows = Windows(plan(FRAMES, WINDOW, STRIDE), window_weights("hann", WINDOW), FRAMES)
    texts = torch.randn(2, 2, 7, 16, generator=torch.Generator().manual_seed(1))
    tracks = [PromptTrack((0, FRAMES - 1), text) for text in texts]
    predict = WindowedPredictor(denoiser, windows, tracks, max_batch=4, segment_frames=2 * WINDOW)
    assert len(predict.segments) == 4
    return predict


def schedule(scheduler: str = "ddim"):
    return make_schedule(SCHEDULER, scheduler=scheduler, steps=STEPS)


def start() -> State:
    return State(torch.randn(1, 4, FRAMES, 8, 8, generator=torch.Generator().manual_seed(2)))


def sampled(denoiser: UNetDenoiser, scheduler: str = "ddim", **settings) -> torch.Tensor:
    settings |= {"guidance": Guidance.of_scale(3.0), "smooth": NoiseConstraint(0.2)}
    return denoise(predictor(denoiser), start(), schedule(scheduler), **settings)


class Overflowing(UNetDenoiser):
    """Not finite at one timestep, in half precision."""

    def __init__(self, unet: VideoUNet, bad_at: float):
        super().__init__(unet)
        self.bad_at = bad_at

    def predict(self, latents, timestep, *args, **settings):
        predicted = super().predict(latents, timestep, *args, **settings)
        return predicted * torch.inf if timestep == self.bad_at else predicted


@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp_2m", "ddpm"])
@torch.inference_mode()
def test_a_gpu_gives_what_a_cpu_gives(scheduler):
    states = []
    expected = sampled(UNetDenoiser(network("cpu", torch.float32)), scheduler)
    actual = sampled(UNetDenoiser(network(DEVICE, torch.float32)), scheduler, after_step=states.append)
    assert actual.device.type == "cpu" and [state.done for state in states] == [1, 2, 3, 4, 5]
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bad", [0, 2, STEPS - 1])
@torch.inference_mode()
def test_a_step_that_is_not_finite_is_taken_again_in_float32(bad):
    """As if that step alone had been taken in float32; the one launched after it, before the host knew, is dropped."""
    whole, states = schedule(), []
    unet = network(DEVICE, torch.bfloat16)
    denoiser = Overflowing(unet, whole.timesteps[bad])
    guidance = Guidance.of_scale(3.0)
    actual = denoise(predictor(denoiser), start(), whole, guidance=guidance, after_step=states.append)
    assert [state.done for state in states] == [1, 2, 3, 4, 5]
    assert all(state.latents.isfinite().all() for state in states)
    expected, half = start(), predictor(UNetDenoiser(unet))
    for predict, until in ((half, bad), (half.in_float32(), bad + 1), (half, STEPS)):
        part = replace(whole, steps=whole.steps[:until])
        expected = State(denoise(predict, expected, part, guidance=guidance), done=until)
    torch.testing.assert_close(actual, expected.latents, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.bfloat16, 0.02)], ids=str)
@torch.inference_mode()
def test_cuda_graphs_change_nothing(dtype, tolerance):
    graphed = UNetDenoiser(network(DEVICE, dtype, graphs=True))
    actual = sampled(graphed)
    assert isinstance(graphed._network, GraphedNetwork) and len(graphed._network._recorded) == 2
    expected = sampled(UNetDenoiser(network(DEVICE, dtype)))
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
