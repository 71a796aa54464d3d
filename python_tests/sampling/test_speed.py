"""What trades quality for time: switched off it changes nothing, and switched on it does what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from python_tests.tiny import tiny_model
from vidsmooth_fast import DeepReuse, Video, fast_sample
from vidsmooth_fast.models.unet import VideoUNet
from vidsmooth_fast.sampling.engine import Guidance
from vidsmooth_fast.sampling.presets import PRESETS
from vidsmooth_fast.sampling.reuse import DeepMemory, work_share

QUICK = dict(steps=6, window=4, stride=2, guidance=2.0, progress=False)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def sample(model, frames=7, **options):
    return fast_sample(model, "a red car", frames, **{**QUICK, **options})


@pytest.fixture
def passes(monkeypatch):
    """(branches, "whole", "shallow" or "plain") of every network call."""
    seen, forward = [], VideoUNet.forward

    def counted(self, x, *args, deep=None, branches=1, **keywords):
        kind = "plain" if deep is None else "whole" if deep.value is None else "shallow"
        seen.append((branches, kind))
        return forward(self, x, *args, deep=deep, branches=branches, **keywords)

    monkeypatch.setattr(VideoUNet, "forward", counted)
    return seen


class TestDeepReuse:
    @pytest.mark.parametrize("options", [{}, {"merge": "attention"}, {"loop": True}])
    def test_period_one_is_exact(self, model, options):
        a = sample(model, frames=8, **options).latents
        b = sample(
            model, frames=8, reuse=DeepReuse(1), speed="exact", guidance_interval=(0, 1), **options
        ).latents
        assert torch.equal(a, b)

    def test_deep_blocks_are_computed_once_in_a_period(self, model, passes):
        sample(model, reuse=DeepReuse(3), max_batch=100)
        kinds = [kind for _, kind in passes]
        assert kinds == ["whole", "shallow", "shallow"] * 2

    @pytest.mark.parametrize(
        ("layers", "options"),
        [(1, {}), (2, {"merge": "attention"}), (2, {"scheduler": "dpmpp_2m"}), (3, {"loop": True})],
    )
    def test_it_is_near_the_exact_result(self, model, layers, options):
        kw = dict(frames=6, steps=12, **options)
        exact = sample(model, **kw).latents
        near, far = (sample(model, reuse=DeepReuse(period, layers), **kw).latents for period in (2, 12))
        assert not torch.equal(exact, near)
        assert (near - exact).pow(2).mean() < (far - exact).pow(2).mean()

    @pytest.mark.parametrize("max_batch", [1, 5])
    def test_result_does_not_depend_on_batching(self, model, max_batch):
        kw = dict(reuse=DeepReuse(3), guidance_interval=(0.2, 0.7))
        a, b = (sample(model, max_batch=m, **kw).latents for m in ("auto", max_batch))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    def test_a_loop_has_no_first_frame(self, model):
        noise = torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
        kw = dict(frames=8, loop=True, reuse=DeepReuse(2))
        still = sample(model, latents=noise, **kw).latents
        turned = sample(model, latents=noise.roll(2, 2), **kw).latents
        torch.testing.assert_close(turned, still.roll(2, 2), rtol=1e-4, atol=1e-4)

    def test_an_inversion_is_computed_in_full(self, model, passes):
        clip = Video.from_frames([np.full((16, 16, 3), 20 * i, np.uint8) for i in range(7)], fps=8)
        sample(model, source=clip, reuse=DeepReuse(3), max_batch=100)
        assert [kind for _, kind in passes] == ["plain"] * 6 + ["whole", "shallow", "shallow"] * 2

    @pytest.mark.parametrize("stop", [1, 3, 5])
    def test_a_resumed_run_gives_the_same_frames(self, model, tmp_path, stop):
        """Guidance begins and ends inside a period, so that both sets of features are old when they are met."""
        kw = dict(reuse=DeepReuse(3), guidance_interval=(0.3, 0.9), scheduler="dpmpp_2m")
        whole = sample(model, **kw).latents

        def interrupt(step, total, latents):
            if step == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            sample(model, resume=tmp_path / "state", callback=interrupt, **kw)
        assert torch.equal(sample(model, resume=tmp_path / "state", **kw).latents, whole)

    def test_overflow_is_stepped_again_with_features_of_its_own(self, monkeypatch):
        forward, calls = VideoUNet.forward, []

        def overflowing(self, *args, **keywords):
            out = forward(self, *args, **keywords)
            calls.append(self.dtype)
            return out * float("inf") if len(calls) == 2 else out

        monkeypatch.setattr(VideoUNet, "forward", overflowing)
        model = tiny_model(dtype=torch.bfloat16)
        assert sample(model, reuse=DeepReuse(3), max_batch=100).latents.isfinite().all()
        where = [i for i, dtype in enumerate(calls) if dtype == torch.float32]
        assert where and where == list(range(2, 2 + len(where))), "the step that overflowed, and no other"

    def test_memory_serves_one_period(self):
        memory = DeepMemory(3, 1)
        first = memory.of("call", 3)
        assert first.value is None
        first.value = torch.zeros(1)
        assert memory.of("call", 4) is first and memory.of("call", 5) is first
        assert memory.of("other", 4) is not first, "features belong to a network call"
        assert memory.of("call", 3) is not first, "a step that is taken again computes them again"
        assert memory.of("call", 6).value is None

    def test_features_that_wait_on_the_host(self, model):
        kept = DeepMemory(2, 1, on_host=True).of("call", 0)
        x, text = torch.randn(1, 4, 4, 8, 8), torch.randn(1, 7, 16)
        with torch.inference_mode():
            expected = model.unet(x, 10, text, deep=kept)
            torch.testing.assert_close(model.unet(x, 10, text, deep=kept), expected, rtol=0, atol=1e-5)

    def test_share_of_the_work(self, model):
        shares = [work_share(model.unet, layers) for layers in (1, 2, 3)]
        assert 0 < shares[0] < shares[1] < shares[2] < 1


class TestGuidanceInterval:
    def test_the_whole_interval_is_exact(self, model):
        assert torch.equal(sample(model, guidance_interval=(0, 1)).latents, sample(model).latents)

    def test_outside_the_interval_the_prompt_is_computed_alone(self, model, passes):
        sample(model, guidance_interval=(0.3, 0.7), max_batch=100)
        assert [branches for branches, _ in passes] == [1, 1, 2, 2, 1, 1]

    def test_an_empty_interval_is_no_guidance(self, model):
        # 0.5 lies between the middles of steps 2 and 3 of 6
        torch.testing.assert_close(
            sample(model, guidance_interval=(0.5, 0.5)).latents,
            sample(model, guidance=1.0).latents,
            rtol=1e-4,
            atol=1e-4,
        )

    def test_guidance_one_is_never_off(self):
        assert Guidance.of_scale(1.0, (0.4, 0.6)).acts(0, 10)
        assert not Guidance.of_scale(2.0, (0.4, 0.6)).acts(0, 10)


class TestPresets:
    def test_exact_is_the_default_and_computes_everything(self, model):
        video = fast_sample(model, "a red car", 2, window=2, stride=2, progress=False)
        settings = video.metadata["vidsmooth_fast"]
        assert (settings["speed"], settings["steps"], settings["scheduler"]) == ("exact", 50, "ddim")
        assert settings["guidance_interval"] == (0.0, 1.0) and settings["reuse"]["period"] == 1

    @pytest.mark.parametrize("speed", PRESETS)
    def test_what_a_preset_sets_is_written_into_the_metadata(self, model, speed):
        settings = sample(model, speed=speed, steps=None, window=7).metadata["vidsmooth_fast"]
        preset = PRESETS[speed]
        assert (settings["speed"], settings["steps"]) == (speed, preset.steps)
        assert (
            settings["scheduler"] == preset.scheduler and settings["reuse"]["period"] == preset.reuse.period
        )
        assert settings["guidance_interval"] == preset.guidance_interval

    def test_an_explicit_option_beats_the_preset(self, model):
        exact = dict(scheduler="ddim", steps=6, guidance_interval=(0, 1), reuse=DeepReuse(1))
        assert torch.equal(sample(model, speed="fast", **exact).latents, sample(model).latents)

    def test_a_flow_model_keeps_its_scheduler(self):
        model = tiny_model()
        model.scheduler_config = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
        settings = sample(model, speed="fast").metadata["vidsmooth_fast"]
        assert settings["scheduler"] == "flow"

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"speed": "slow"}, "speed: expected one of exact, balanced, fast; got 'slow'"),
            ({"reuse": 3}, "reuse: expected a DeepReuse or None, got int"),
            ({"reuse": DeepReuse(2, 4)}, "reuse: expected at most 3 layers for this network, got 4"),
            ({"guidance_interval": 0.5}, "guidance_interval: expected two fractions"),
            ({"guidance_interval": (0.7, 0.3)}, "guidance_interval: expected 0 <= first <= last <= 1"),
            ({"decoder": 3}, "decoder: expected full, linear or a directory, got 3"),
            ({"decoder": "nowhere"}, "decoder: expected full, linear or the directory of an AutoencoderTiny"),
            ({"scheduler": "lcm", "steps": 51}, "steps: scheduler 'lcm' takes at most"),
        ],
    )
    def test_bad_options_are_named(self, model, options, says):
        with pytest.raises(ValueError, match=says) as caught:
            sample(model, **options)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("options", [{"period": 0}, {"period": 2.5}, {"layers": 0}, {"period": True}])
    def test_bad_reuse_is_named(self, options):
        with pytest.raises(ValueError, match="DeepReuse"):
            DeepReuse(**options)


def test_few_consistency_steps(model):
    a, b = (sample(model, scheduler="lcm", steps=4, guidance=1.0, seed=s).latents for s in (0, 1))
    assert a.isfinite().all() and not torch.allclose(a, b)


class TestDecoders:
    def test_linear_preview_of_a_decoder_that_is_linear(self, model, monkeypatch):
        """Where the decoder is A z + b in every square, the preview has its very colours."""
        weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) * 8

        def decode(latents, *, chunk=8):
            for frame in latents[0].transpose(0, 1):
                rgb = (frame.permute(1, 2, 0) @ weights + 128).clamp(0, 255).to(torch.uint8).numpy()
                yield np.repeat(np.repeat(rgb, 2, 0), 2, 1)

        exact = sample(model, latents=torch.randn(1, 4, 7, 8, 8), steps=1)
        monkeypatch.setattr(model, "decode_latents", decode, raising=False)
        full, preview = (
            np.stack(list(sample(model, latents=exact.latents, steps=1, decoder=d)))
            for d in ("full", "linear")
        )
        assert preview.shape == full.shape == (7, 16, 16, 3)
        inner = np.abs(preview.astype(int) - full).reshape(7, 8, 2, 8, 2, 3).mean((2, 4))
        spread = full.std()
        assert inner.mean() < 0.5 * spread, "as near as bilinear enlargement allows"

    def test_tiny_autoencoder(self, model, tmp_path):
        from diffusers import AutoencoderTiny

        def save(name, **changes):
            config = dict(
                encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
                num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
            ) | changes  # fmt: skip
            torch.manual_seed(0)
            AutoencoderTiny(**config).save_pretrained(tmp_path / name)
            return tmp_path / name

        video = sample(model, decoder=save("tiny"))
        assert len(video) == 7 and video.size == (16, 16)
        assert video.metadata["vidsmooth_fast"]["decoder"] == str(tmp_path / "tiny")
        assert torch.equal(video.latents, sample(model).latents)
        with pytest.raises(ValueError, match="4 latent channels and 2 pixels per latent, got 3 and 2"):
            sample(model, decoder=save("other", latent_channels=3))
        (tmp_path / "tiny" / "diffusion_pytorch_model.safetensors").unlink()
        with pytest.raises(ValueError, match="does not load as an AutoencoderTiny"):
            sample(model, decoder=tmp_path / "tiny")
