"""Encoding and decoding of frames and text."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from python_tests.tiny import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def clip(n: int, height: int = 16, width: int = 16) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(n)]


def test_properties(model):
    assert (model.latent_channels, model.downsampling, model.default_size) == (4, 2, (16, 16))
    assert model.prediction_type == "epsilon" and model.dtype == torch.float32 and model.device.type == "cpu"
    assert tiny_model(downsampling=4).downsampling == 4


@pytest.mark.parametrize("shift", [None, 0.25])
def test_latents_are_the_scaled_posterior_mean(shift):
    model = tiny_model()
    model.vae.register_to_config(shift_factor=shift)
    frames = clip(2, 16, 24)
    x = torch.tensor(np.stack(frames)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        mean = model.vae.encode(x).latent_dist.mean
    expected = ((mean - (shift or 0)) * 0.5).transpose(0, 1)[None]
    latents = model.encode_video(frames)
    assert latents.shape == (1, 4, 2, 8, 12) and latents.dtype == torch.float32
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)
    with torch.inference_mode():
        pixels = model.vae.decode(latents[0].transpose(0, 1) / 0.5 + (shift or 0)).sample
    expected = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    decoded = np.stack(list(model.decode_latents(latents)))
    assert decoded.dtype == np.uint8 and np.abs(decoded.astype(int) - expected).max() <= 1


def test_chunks_make_no_difference(model):
    latents = model.encode_video(clip(5), chunk=8)
    torch.testing.assert_close(model.encode_video(clip(5), chunk=2), latents, rtol=0, atol=1e-6)
    one, many = (np.stack(list(model.decode_latents(latents, chunk=c))) for c in (1, 5))
    assert np.abs(one.astype(int) - many).max() <= 1


def test_overflow_of_the_autoencoder_is_computed_in_single_precision():
    """Black frames and a source of NaN otherwise, and nobody told."""
    single, half = tiny_model(), tiny_model(dtype=torch.float16)
    for vae in (single.vae, half.vae):
        with torch.no_grad():
            vae.decoder.conv_in.weight.mul_(2e5)
            vae.encoder.conv_in.weight.mul_(2e5)
    expected = single.encode_video(clip(3))
    assert expected.isfinite().all()
    with torch.inference_mode():
        pixels = torch.tensor(np.stack(clip(3))).permute(0, 3, 1, 2) / 127.5 - 1
        assert not half.vae.encode(pixels.half()).latent_dist.mean.isfinite().all()
    torch.testing.assert_close(half.encode_video(clip(3)), expected, rtol=1e-2, atol=1e-2)
    one, other = (np.stack(list(model.decode_latents(expected))).astype(int) for model in (single, half))
    assert one.std() > 1 and np.abs(one - other).mean() < 2
    assert half.vae.dtype == torch.float16
    with torch.no_grad():
        single.vae.decoder.conv_in.weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="autoencoder computes is not finite, in float32 too"):
        list(single.decode_latents(expected))


def test_decoding_is_lazy(model, monkeypatch):
    decoded = []
    decode = type(model.vae).decode
    monkeypatch.setattr(
        type(model.vae), "decode", lambda s, z, **k: decoded.append(len(z)) or decode(s, z, **k)
    )
    frames = model.decode_latents(torch.zeros(1, 4, 7, 8, 8), chunk=3)
    next(frames)
    assert decoded == [3]
    assert len(list(frames)) == 6 and decoded == [3, 3, 1]


def test_frames_that_do_not_fit(model):
    cases = {
        "divisible by 2": clip(1, 15, 16),
        "at least one frame": [],
        "uint8": [np.zeros((16, 16, 3))],
        r"\(H, W, 3\)": [np.zeros((16, 16), dtype=np.uint8)],
        "every frame": clip(1) + clip(1, 16, 18),
    }
    for message, frames in cases.items():
        with pytest.raises(ValueError, match=message):
            model.encode_video(frames)
    with pytest.raises(ValueError, match="latents"):
        model.decode_latents(torch.zeros(1, 3, 2, 8, 8))


def test_text_embeddings(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = model.encode_text(["a red car", ""])
    assert both.shape == (2, 16, 16) and both.dtype == torch.float32
    torch.testing.assert_close(model.encode_text([""]), both[1:], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="prompts"):
        model.encode_text("a red car")


def test_a_long_prompt_is_cut_with_a_warning(model):
    long = "a red car is driving on the snow , a red boat is driving on the sea"
    with pytest.warns(UserWarning, match=r"14 tokens.*cut: 'on the sea"):
        cut = model.encode_text([long])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = model.encode_text(["a red car is driving on the snow , a red boat is driving"])
    torch.testing.assert_close(cut, kept)


def test_half_precision_keeps_text_in_fp32(model):
    half = tiny_model().to(dtype=torch.bfloat16)
    assert half.dtype == half.vae.dtype == torch.bfloat16 and half.text_encoder.dtype == torch.float32
    assert torch.equal(half.encode_text(["a boat"]), model.encode_text(["a boat"]))
    latents = half.encode_video(clip(2))
    assert latents.dtype == torch.float32
    exact = model.encode_video(clip(2))
    assert (latents - exact).norm() < 0.05 * exact.norm()
    assert next(iter(half.decode_latents(latents))).shape == (16, 16, 3)
