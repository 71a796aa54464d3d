"""The loop against the published programs, and against itself: batching, merging, prediction types, overflow."""

import pytest
import torch

from vidsmooth_fast.conditioning.prompts import PromptTrack
from vidsmooth_fast.models.unet import VideoUNet
from vidsmooth_fast.sampling.denoiser import UNetDenoiser
from vidsmooth_fast.sampling.engine import Guidance, State, denoise
from vidsmooth_fast.sampling.inversion import invert_latents
from vidsmooth_fast.sampling.schedule import make_schedule
from vidsmooth_fast.sampling.smoothing import InversionBlend, NoiseConstraint
from vidsmooth_fast.sampling.windowed import WindowedPredictor, Windows
from vidsmooth_fast.sampling.windows import plan, window_weights

SD = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD |= {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}


def unet_of(arrays, parameters, **changes):
    unet = VideoUNet.from_config({**parameters["config"], **changes})
    weights = {k.removeprefix("weights."): v for k, v in arrays.items() if k.startswith("weights.")}
    known = unet.state_dict().keys()
    unet.load_state_dict({k: v for k, v in weights.items() if k in known})
    return unet.eval()


def windows_of(frames, window=None, stride=None, weights="flat", loop=False):
    window = window or frames
    starts = plan(frames, window, stride or window, loop)
    return Windows(starts, window_weights(weights, min(window, frames)), frames, loop)


def predictor(denoiser, windows, *texts, max_batch=100):
    return WindowedPredictor(
        denoiser, windows, [PromptTrack((0,), text) for text in texts], max_batch=max_batch
    )


def schedule_of(steps, prediction_type="epsilon", scheduler="ddim", config=SD, eta=0.0):
    return make_schedule(config, scheduler=scheduler, steps=steps, prediction_type=prediction_type, eta=eta)


class Wobble:
    """A made-up denoiser: nonlinear, depends on text, time and neighbouring frames; no weights to load."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, form="epsilon", schedule=None, dtype=torch.float32, bad_at=()):
        self.form, self.schedule, self.dtype, self.bad_at = form, schedule, dtype, bad_at

    def prepare_text(self, text):
        return _Rows(text)

    def predict(self, latents, timestep, text, controls=None, frame_offsets=None, branches=1):
        x = latents.float().repeat_interleave(branches, 0)
        near = 0.5 * x + 0.25 * (x.roll(1, 2) + x.roll(-1, 2))
        eps = torch.tanh(near + 0.1 * text.value.mean((1, 2))[:, None, None, None, None]) * (
            0.5 + timestep / 1000
        )
        if self.form != "epsilon":
            level = {step.timestep: (step.alpha, step.sigma) for step in self.schedule.steps}
            alpha, sigma = level[timestep]
            clean = (x - sigma * eps) / alpha
            eps = alpha * eps - sigma * clean if self.form == "v_prediction" else clean
        if timestep in self.bad_at and self.dtype != torch.float32:
            eps = eps * float("inf")
        return eps.to(self.dtype)

    def in_float32(self):
        return Wobble(self.form, self.schedule)


class _Rows:
    def __init__(self, value):
        self.value = value

    def select(self, rows):
        return _Rows(self.value[rows])


def texts(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, 4, generator=g), torch.randn(1, 3, 4, generator=g)


def noise(frames, seed=1, size=4):
    return torch.randn(1, 4, frames, size, size, generator=torch.Generator().manual_seed(seed))


class TestPublished:
    def test_ddim_inversion(self, golden):
        arrays, parameters = golden("tav_ddim")
        unet, steps = UNetDenoiser(unet_of(arrays, parameters)), []
        predict = predictor(unet, windows_of(6), arrays["input.inversion_text"])
        schedule = schedule_of(10, config=parameters["scheduler"])
        with torch.inference_mode():
            invert_latents(
                predict,
                arrays["input.latent"],
                schedule,
                after_step=lambda state: steps.append(state.latents.clone()),
            )
        torch.testing.assert_close(
            torch.tensor([s.timestep for s in schedule.inversion_steps()]), arrays["inversion.timesteps"]
        )
        torch.testing.assert_close(torch.stack(steps), arrays["inversion.latents"][1:], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("max_batch", [1, 2])
    def test_guided_ddim_sampling(self, golden, max_batch):
        arrays, parameters = golden("tav_ddim")
        unet, steps = UNetDenoiser(unet_of(arrays, parameters)), []
        text = arrays["input.uncond_text"], arrays["input.cond_text"]
        with torch.inference_mode():
            denoise(
                predictor(unet, windows_of(6), *text, max_batch=max_batch),
                State(arrays["inversion.latents"][-1]),
                schedule_of(10, config=parameters["scheduler"]),
                guidance=Guidance.of_scale(parameters["guidance_scale"]),
                after_step=lambda state: steps.append(state.latents.clone()),
            )
            plain = denoise(
                predictor(unet, windows_of(6), text[1]),
                State(arrays["inversion.latents"][-1]),
                schedule_of(10, config=parameters["scheduler"]),
                guidance=Guidance.of_scale(1),
            )
        torch.testing.assert_close(torch.stack(steps), arrays["sampling.latents"], rtol=0, atol=1e-3)
        torch.testing.assert_close(plain, arrays["sampling_nocfg.final"], rtol=0, atol=1e-4)

    @pytest.mark.parametrize(("name", "keys"), [("tavunet", "first-previous"), ("glvunet", "neighbours")])
    def test_gen_l_video(self, golden, name, keys):
        """Per-window DDIM steps averaged by count equal one step on the merged prediction ([000] eq. 19)."""
        arrays, parameters = golden(f"genlv_merge_{name}_even")
        unet = UNetDenoiser(unet_of(arrays, parameters, attn1_frames=keys))
        frames, window, stride = (parameters[k] for k in ("video_length", "window_size", "stride"))
        windows = windows_of(frames, window, stride)
        schedule, steps, inverted = schedule_of(10, config=parameters["scheduler"]), [], []
        with torch.inference_mode():
            denoise(
                predictor(unet, windows, arrays["input.uncond_text"], arrays["input.cond_text"], max_batch=3),
                State(arrays["input.latents"]),
                schedule,
                guidance=Guidance.of_scale(parameters["guidance_scale"]),
                after_step=lambda state: steps.append(state.latents.clone()),
            )
            invert_latents(
                predictor(unet, windows, arrays["inversion.text"]),
                arrays["inversion.input"],
                schedule,
                after_step=lambda state: inverted.append(state.latents.clone()),
            )
        torch.testing.assert_close(torch.stack(steps), arrays["gen.latents"], rtol=0, atol=1e-3)
        torch.testing.assert_close(torch.stack(inverted), arrays["inversion.latents"][1:], rtol=0, atol=1e-4)


def run(
    denoiser,
    *,
    frames=11,
    scheduler="ddim",
    steps=6,
    guidance=3.0,
    smooth=None,
    max_batch=100,
    form="epsilon",
    **kw,
):
    windows = windows_of(frames, 5, 2, "hann")
    predict = predictor(denoiser, windows, *texts(), max_batch=max_batch)
    schedule = schedule_of(steps, form, scheduler)
    return denoise(
        predict, State(noise(frames)), schedule, guidance=Guidance.of_scale(guidance), smooth=smooth, **kw
    )


@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp_2m", "euler", "ddpm"])
@pytest.mark.parametrize("smooth", [None, NoiseConstraint(0.2), NoiseConstraint(0.2, "published")])
def test_one_video_whatever_the_network_predicts(scheduler, smooth):
    schedule = schedule_of(6, "epsilon", scheduler)
    expected = run(Wobble(), scheduler=scheduler, smooth=smooth)
    for form in ("v_prediction", "sample"):
        video = run(Wobble(form, schedule), scheduler=scheduler, smooth=smooth, form=form)
        torch.testing.assert_close(video, expected, rtol=1e-4, atol=1e-4)


def test_ddim_and_euler_step_for_step():
    """On the same timesteps, Euler in variance-preserving coordinates is DDIM."""
    spaced = {**SD, "timestep_spacing": "linspace", "set_alpha_to_one": True}
    euler = schedule_of(8, scheduler="euler", config=spaced)
    for step, after in zip(euler.steps, euler.steps[1:], strict=False):
        assert (step.to_alpha, step.to_sigma) == pytest.approx((after.alpha, after.sigma), abs=1e-12)
        assert step.a == pytest.approx(after.alpha / step.alpha, rel=1e-9)
        assert step.b == pytest.approx(after.sigma - step.a * step.sigma, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("max_batch", [1, 2, 3, 5, 8])
def test_batching_changes_nothing(max_batch):
    torch.testing.assert_close(run(Wobble(), max_batch=max_batch), run(Wobble()), rtol=1e-6, atol=1e-6)


def test_overflow_in_half_precision_is_stepped_again_in_float32():
    timesteps = schedule_of(6).timesteps
    clean = run(Wobble(dtype=torch.bfloat16))
    for bad_at in ([timesteps[0]], [timesteps[3]], [timesteps[-1]], list(timesteps)):
        states = []
        video = run(Wobble(dtype=torch.bfloat16, bad_at=bad_at), after_step=states.append)
        assert len(states) == 6 and all(state.latents.isfinite().all() for state in states)
        torch.testing.assert_close(video, clean, rtol=0.05, atol=0.05)


def test_not_finite_in_float32_either_is_an_error():
    class Broken(Wobble):
        def predict(self, latents, *args, branches=1, **kwargs):
            return latents.repeat_interleave(branches, 0) * float("nan")

        def in_float32(self):
            return self

    with pytest.raises(FloatingPointError, match="step 1"):
        run(Broken())


def test_interrupted_state_goes_on_to_the_same_result():
    for scheduler in ("ddim", "dpmpp_2m", "ddpm"):
        states = []
        whole = run(Wobble(), scheduler=scheduler, after_step=states.append)
        windows = windows_of(11, 5, 2, "hann")
        for state in states:
            rest = denoise(
                predictor(Wobble(), windows, *texts()),
                State(state.latents, state.history, state.done),
                schedule_of(6, "epsilon", scheduler),
                guidance=Guidance.of_scale(3.0),
            )
            assert torch.equal(rest, whole)


def test_smoothing_with_a_source_keeps_the_sources_motion():
    """target='source' leaves alone differences that the source has too; target='clean' removes them."""
    source = noise(11, seed=5)

    class Oracle(Wobble):
        """Always predicts the source as the clean video."""

        def predict(self, latents, timestep, text, controls=None, frame_offsets=None, branches=1):
            level = {step.timestep: (step.alpha, step.sigma) for step in schedule_of(6).steps}
            alpha, sigma = level[timestep]
            frames = (frame_offsets[:, None] + torch.arange(latents.shape[2])) % 11
            clean = torch.stack([source[0][:, index] for index in frames])
            return ((latents - alpha * clean) / sigma).repeat_interleave(branches, 0)

    kept = run(Oracle(), smooth=NoiseConstraint(0.25, "source"), source=source)
    flattened = run(Oracle(), smooth=NoiseConstraint(0.25, "clean"))
    assert (kept - source).abs().mean() < 0.03  # the noise that a schedule without set_alpha_to_one leaves
    assert (flattened - source)[:, :, 1:-1].abs().mean() > 0.2


@pytest.mark.parametrize("blend_noise", ["implied", "shared", "independent"])
@pytest.mark.parametrize("at", ["step", "end"])
def test_inversion_blend(blend_noise, at):
    """Weight 0 is plain inversion; averaging with neighbours ("shared") makes the inverted noise smoother."""
    windows, clean, schedule = (
        windows_of(11, 5, 2),
        noise(1).expand(1, 4, 11, 4, 4).contiguous(),
        schedule_of(6),
    )
    clean = clean + 0.3 * noise(11, seed=3)

    def inverted(weight):
        blend = InversionBlend(weight, noise=blend_noise, at=at)
        return invert_latents(predictor(Wobble(), windows, texts()[0]), clean, schedule, blend=blend)

    plain = invert_latents(predictor(Wobble(), windows, texts()[0]), clean, schedule)
    torch.testing.assert_close(inverted(0.0), plain, rtol=1e-5, atol=1e-5)
    changed = inverted(0.5)
    assert changed.isfinite().all() and not torch.allclose(changed, plain, atol=1e-3)
    if blend_noise == "shared":
        roughness = [x.diff(n=2, dim=2).abs().mean() for x in (changed, plain)]
        assert roughness[0] < roughness[1]
