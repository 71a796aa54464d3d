"""The baseline is worth beating only if it is the published program: compare it with the reference numbers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).parents[2] / "benchmarks" / "baselines.py"
spec = importlib.util.spec_from_file_location("baselines", SOURCE)
baselines = importlib.util.module_from_spec(spec)
spec.loader.exec_module(baselines)
ATTENTIONS = {"published": baselines.attention_published, "sdpa": baselines.attention_sdpa}


def weights(arrays: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix("weights."): value for name, value in arrays.items() if name.startswith("weights.")
    }


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_network_matches_the_published_program(golden, attention):
    arrays, about = golden("tav_unet")
    network = baselines.PublishedUNet(weights(arrays), about["config"], attention=ATTENTIONS[attention])
    sample, text = arrays["input.sample"], arrays["input.encoder_hidden_states"]
    with torch.no_grad():
        scalar = network(sample, int(arrays["input.timestep"]), text)
        rows = network(sample, arrays["input.timestep_per_sample"].long(), text)
    torch.testing.assert_close(scalar, arrays["output.sample"], rtol=0, atol=1e-5)
    torch.testing.assert_close(rows, arrays["output.sample_per_sample_timestep"], rtol=0, atol=1e-5)


def test_network_matches_ours(golden):
    from vidsmooth_fast.models import VideoUNet

    arrays, about = golden("tav_unet")
    ours = VideoUNet.from_config(about["config"])
    ours.load_state_dict(weights(arrays))
    published = baselines.PublishedUNet(ours.state_dict(), about["config"])
    sample, text = arrays["input.sample"], arrays["input.encoder_hidden_states"]
    with torch.no_grad():
        torch.testing.assert_close(ours(sample, 321, text), published(sample, 321, text), rtol=0, atol=1e-5)


def test_sampler_matches_the_published_program(golden):
    arrays, about = golden("genlv_merge_tavunet_even")
    network = baselines.PublishedUNet(weights(arrays), about["config"])
    trajectory = []
    final = baselines.published_sample(
        network,
        arrays["input.latents"],
        arrays["input.cond_text"],
        arrays["input.uncond_text"],
        about["scheduler"],
        steps=about["steps"],
        guidance=about["guidance_scale"],
        window=about["window_size"],
        stride=about["stride"],
        on_step=lambda step, latents: trajectory.append(latents),
    )
    torch.testing.assert_close(torch.stack(trajectory), arrays["gen.latents"], rtol=0, atol=1e-3)
    torch.testing.assert_close(final, arrays["gen.final"], rtol=0, atol=1e-3)


def test_views_refuse_an_uncovered_tail():
    assert baselines.published_views(48, 16, 8) == [(0, 16), (8, 24), (16, 32), (24, 40), (32, 48)]
    with pytest.raises(ValueError, match="frames"):
        baselines.published_views(47, 16, 8)


def test_unknown_key_frames_are_refused():
    with pytest.raises(ValueError, match="attn1_frames"):
        baselines.PublishedUNet({}, {"attn1_frames": "neighbours"})


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_fast_sample_gives_the_published_latents(prediction_type):
    import vidsmooth_fast
    from python_tests.tiny import tiny_model

    model = tiny_model(prediction_type=prediction_type)
    network = baselines.PublishedUNet(model.unet.state_dict(), model.unet.config)
    noise = torch.randn(1, 4, 12, 8, 8, generator=torch.Generator().manual_seed(5))
    options = {"steps": 4, "guidance": 7.5, "window": 6, "stride": 3}
    with torch.no_grad():
        empty, text = model.encode_text(["", "a red car"])[:, None]
    published = baselines.published_sample(network, noise, text, empty, model.scheduler_config, **options)
    ours = vidsmooth_fast.fast_sample(
        model, "a red car", 12, latents=noise, window_weights="flat", progress=False, **options
    )
    torch.testing.assert_close(ours.latents, published, rtol=0, atol=1e-3)
