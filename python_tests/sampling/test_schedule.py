"""Schedules against diffusers' own schedulers, step by step, and the properties that make every form one video."""

from __future__ import annotations

import dataclasses
import math
import sys

import numpy as np
import pytest
import torch

from vidsmooth_fast.sampling.schedule import PREDICTIONS, SCHEDULERS, make_schedule

diffusers = pytest.importorskip("diffusers")

STABLE_DIFFUSION = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}
STEPS = (1, 2, 3, 10, 20, 50)
SHAPE = (1, 2, 3, 4, 4)


def network(x: torch.Tensor, timestep: float, salt: float = 1.0) -> torch.Tensor:
    """A made-up nonlinear network, in the precision of x."""
    t = float(timestep)
    return torch.sin(salt * 1.3 * x + 0.01 * t) + 0.4 * torch.tanh(x.flip(-1)) - 0.1 * x


def noise(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(SHAPE))


def take(step, x, prediction, history=None, z=None, clip=None):
    """One step, written out: (x_next, clean)."""
    y = step.to_eps[0] * x + step.to_eps[1] * prediction
    clean = step.to_clean[0] * x + step.to_clean[1] * y
    x_next = step.a * x + step.b * y
    if step.c:
        x_next = x_next + step.c * history
    if step.noise_scale:
        x_next = x_next + step.noise_scale * z
    if clip:
        x_next, clean = step.clipped(x_next, clean, clip)
    return x_next, clean


def sample(schedule, x, predict=network, zs=None):
    """All latents of a trajectory."""
    latents, history = [x], None
    for i, step in enumerate(schedule.steps):
        z = zs[i] if zs is not None else None
        x, history = take(step, x, predict(x, step.timestep), history, z, schedule.clip)
        latents.append(x)
    return latents


def exact(scheduler):
    """diffusers' scheduler with its table of noise levels in float64, so that only the formula is compared."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    return scheduler


@pytest.fixture
def double_steps(monkeypatch):
    """Let diffusers' schedulers, which cast latents to float32, step in float64: only their formulas count then."""

    class Torch:
        float32 = torch.float64

        def __getattr__(self, name):
            return getattr(torch, name)

    def use(scheduler):
        module = sys.modules[type(scheduler).__module__]
        monkeypatch.setattr(module, "torch", Torch())
        scheduler.sigmas = scheduler.sigmas.double()
        return scheduler

    return use


def check(ours, theirs, tolerance):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        error = (a - b).abs().max().item() / max(1.0, b.abs().max().item())
        assert error <= tolerance, error


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", STEPS)
def test_ddim_is_diffusers(steps, spacing, prediction):
    for one, offset, eta in ((False, 1, 0.0), (True, 0, 0.0), (False, 1, 0.7)):
        config = dict(STABLE_DIFFUSION, prediction_type=prediction, timestep_spacing=spacing)
        config |= dict(set_alpha_to_one=one, steps_offset=offset)
        theirs = exact(diffusers.DDIMScheduler(**config))
        theirs.set_timesteps(steps)
        schedule = make_schedule(config, scheduler="ddim", steps=steps, eta=eta)
        assert schedule.timesteps == tuple(theirs.timesteps.tolist())
        x, zs = noise(), [noise(i + 1) for i in range(steps)]
        expected = [x]
        for t, z in zip(theirs.timesteps, zs, strict=True):
            out = network(expected[-1], t)
            expected.append(theirs.step(out, t, expected[-1], eta=eta, variance_noise=z if eta else None)[0])
        check(sample(schedule, x, zs=zs), expected, 1e-10)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("steps", STEPS)
def test_ddim_from_zero_terminal_snr_is_diffusers(steps, prediction):
    config = dict(STABLE_DIFFUSION, prediction_type=prediction, timestep_spacing="trailing")
    config |= dict(rescale_betas_zero_snr=True, set_alpha_to_one=True)
    theirs = exact(diffusers.DDIMScheduler(**config))
    theirs.set_timesteps(steps)
    schedule = make_schedule(config, steps=steps)
    assert schedule.steps[0].alpha == 0 and schedule.steps[0].form == "sample"
    x = noise()
    expected = [x]
    for t in theirs.timesteps:
        if prediction == "sample" and t == 999:  # diffusers is exact here too: e = (x - 0) / 1
            assert theirs.alphas_cumprod[999] == 0
        expected.append(theirs.step(network(expected[-1], t), t, expected[-1])[0])
    check(sample(schedule, x), expected, 1e-10)
    check([v.double() for v in sample(schedule, x.float())], expected, 1e-5)  # and stays exact in fp32


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", STEPS)
def test_clipped_clean_estimate_is_diffusers(steps, prediction):
    config = dict(STABLE_DIFFUSION, prediction_type=prediction, clip_sample=True, clip_sample_range=0.8)
    theirs = exact(diffusers.DDIMScheduler(**config))
    theirs.set_timesteps(steps)
    x = noise()
    expected = [x]
    for t in theirs.timesteps:
        expected.append(theirs.step(network(expected[-1], t), t, expected[-1])[0])
    schedule = make_schedule(config, steps=steps)
    assert schedule.clip == 0.8
    check(sample(schedule, x), expected, 1e-10)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large"])
@pytest.mark.parametrize("steps", STEPS)
def test_ddpm_is_diffusers(steps, variance, prediction, monkeypatch):
    config = dict(STABLE_DIFFUSION, prediction_type=prediction, variance_type=variance, steps_offset=1)
    theirs = exact(diffusers.DDPMScheduler(**config))
    theirs.set_timesteps(steps)
    zs = [noise(i + 1) for i in range(steps)]
    drawn = iter(zs)
    module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    monkeypatch.setattr(module, lambda *args, **kwargs: next(drawn))
    schedule = make_schedule(config, scheduler="ddpm", steps=steps)
    assert schedule.timesteps == tuple(theirs.timesteps.tolist())
    x = noise()
    expected = [x]
    for t in theirs.timesteps:
        expected.append(theirs.step(network(expected[-1], t), t, expected[-1])[0])
    check(sample(schedule, x, zs=zs), expected, 1e-6)  # its variance is clamped in float32


def test_ddpm_adds_no_noise_at_timestep_zero():
    schedule = make_schedule(STABLE_DIFFUSION, scheduler="ddpm", steps=10)
    assert schedule.timesteps[-1] == 0 and schedule.steps[-1].noise_scale == 0
    assert all(step.noise_scale > 0 for step in schedule.steps[:-1])


def tolerance(config) -> float:
    """Schedules that begin at sigma/alpha = 4096 or 20000 multiply the rounding of diffusers' fp32 sigmas."""
    extreme = config.get("rescale_betas_zero_snr") or config["beta_schedule"] == "squaredcos_cap_v2"
    return 1e-5 if extreme else 1e-6


EULER_OPTIONS = [
    dict(timestep_spacing="linspace"),
    dict(timestep_spacing="leading", steps_offset=1),
    dict(timestep_spacing="trailing"),
    dict(use_karras_sigmas=True),
    dict(use_exponential_sigmas=True),
    dict(final_sigmas_type="sigma_min"),
    dict(beta_schedule="squaredcos_cap_v2"),
    dict(beta_schedule="linear", beta_start=1e-4, beta_end=0.02),
    dict(rescale_betas_zero_snr=True, timestep_spacing="trailing"),
]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("options", EULER_OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("steps", STEPS)
def test_euler_is_diffusers(steps, options, prediction, double_steps):
    """Theirs steps the variance-exploding latent; ours is that latent over sqrt(1 + sigma^2)."""
    config = dict(STABLE_DIFFUSION, prediction_type=prediction) | options
    theirs = diffusers.EulerDiscreteScheduler(**{k: v for k, v in config.items() if k != "clip_sample"})
    theirs.set_timesteps(steps)
    theirs = double_steps(theirs)
    schedule = make_schedule(config, scheduler="euler", steps=steps)
    np.testing.assert_allclose(schedule.timesteps, theirs.timesteps.tolist(), atol=2e-3, rtol=1e-6)
    x = noise()
    scale = (1 + theirs.sigmas**2).sqrt()
    expected, latent = [x], x * scale[0]
    for i, (t, step) in enumerate(zip(theirs.timesteps, schedule.steps, strict=True)):
        model_input = theirs.scale_model_input(latent, t)
        latent = theirs.step(network(model_input, step.timestep), t, latent)[0]
        expected.append(latent / scale[i + 1])
    check(sample(schedule, x), expected, tolerance(config))
    if not config.get("rescale_betas_zero_snr") and config["beta_schedule"] == "scaled_linear":
        check([v.double() for v in sample(schedule, x.float())], expected, 1e-5)


DPM_OPTIONS = [
    dict(),
    dict(timestep_spacing="leading", steps_offset=1),
    dict(timestep_spacing="trailing"),
    dict(use_karras_sigmas=True),
    dict(use_exponential_sigmas=True),
    dict(solver_type="heun"),
    dict(final_sigmas_type="sigma_min"),
    dict(final_sigmas_type="sigma_min", lower_order_final=False),
    dict(final_sigmas_type="sigma_min", euler_at_final=True),
    dict(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1),
    dict(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1, use_karras_sigmas=True),
    dict(rescale_betas_zero_snr=True, timestep_spacing="trailing"),
]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("options", DPM_OPTIONS, ids=lambda o: "-".join(map(str, o.values())) or "default")
@pytest.mark.parametrize("steps", STEPS)
def test_dpmpp_2m_is_diffusers(steps, options, prediction, double_steps):
    config = dict(STABLE_DIFFUSION, prediction_type=prediction) | options
    zero_snr = config.get("rescale_betas_zero_snr", False)
    arguments = {k: v for k, v in config.items() if k != "clip_sample"}
    theirs = diffusers.DPMSolverMultistepScheduler(**arguments)
    theirs.set_timesteps(steps)
    theirs.set_begin_index(0)  # where rounding makes two timesteps equal, it would start from the second
    theirs = double_steps(theirs)
    schedule = make_schedule(config, scheduler="dpmpp_2m", steps=steps)
    assert schedule.timesteps == tuple(theirs.timesteps.tolist())
    x = noise()
    expected = [x]
    for t in theirs.timesteps:
        expected.append(theirs.step(network(expected[-1], t), t, expected[-1])[0])
    check(sample(schedule, x), expected, tolerance(config))
    if not zero_snr and config["beta_schedule"] == "scaled_linear":
        check([v.double() for v in sample(schedule, x.float())], expected, 1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "options",
    [dict(), dict(original_inference_steps=20), dict(timestep_scaling=0.02), dict(clip_sample=True)],
)
@pytest.mark.parametrize("steps", (1, 2, 3, 4, 8, 20))
def test_lcm_is_diffusers(steps, options, prediction, monkeypatch):
    config = dict(STABLE_DIFFUSION, prediction_type=prediction) | options
    theirs = exact(diffusers.LCMScheduler(**config))
    theirs.set_timesteps(steps)
    zs = [noise(i + 1) for i in range(steps)]
    drawn = iter(zs)
    module = "diffusers.schedulers.scheduling_lcm.randn_tensor"
    monkeypatch.setattr(module, lambda *args, **kwargs: next(drawn))
    schedule = make_schedule(config, scheduler="lcm", steps=steps)
    assert schedule.timesteps == tuple(theirs.timesteps.tolist())
    assert schedule.steps[-1].noise_scale == 0
    x = noise()
    expected = [x]
    for t in theirs.timesteps.tolist():  # numbers: tensors would make the scalings float32
        expected.append(theirs.step(network(expected[-1], t), t, expected[-1])[0])
    check(sample(schedule, x, zs=zs), expected, 1e-10)


@pytest.mark.parametrize(
    "options", [dict(), dict(shift=3.0), dict(shift_terminal=0.1), dict(use_karras_sigmas=True)], ids=str
)
@pytest.mark.parametrize("steps", STEPS)
def test_flow_matching_is_diffusers(steps, options):
    if steps == 1 and "shift_terminal" in options:  # diffusers divides zero by zero
        with pytest.raises(ValueError, match="at least 2"):
            make_schedule(options, scheduler="flow", steps=1)
        return
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**options)
    theirs.set_timesteps(steps)
    schedule = make_schedule(options, scheduler="flow", steps=steps)
    np.testing.assert_allclose(schedule.timesteps, theirs.timesteps.tolist(), rtol=1e-6)
    assert schedule.prediction_type == "flow" and schedule.alphas_cumprod is None
    x = noise().float()
    expected = [x]
    for t, ours in zip(theirs.timesteps, schedule.timesteps, strict=True):
        expected.append(theirs.step(network(expected[-1], ours), t, expected[-1])[0])
    check(sample(schedule, x), expected, 1e-5)


@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp_2m", "euler", "ddpm", "lcm"])
@pytest.mark.parametrize("steps", STEPS)
def test_one_video_whatever_the_network_predicts(scheduler, steps):
    """The same network wrapped as e, v and x0: the same trajectory."""
    config = dict(STABLE_DIFFUSION, steps_offset=1)
    x, zs = noise(), [noise(i + 1) for i in range(steps)]
    base = make_schedule(config, scheduler=scheduler, steps=steps, prediction_type="epsilon")
    levels = {step.timestep: (step.alpha, step.sigma) for step in base.steps}

    def as_v(x, t):
        alpha, sigma = levels[t]
        return (network(x, t) - sigma * x) / alpha

    def as_x0(x, t):
        alpha, sigma = levels[t]
        return (x - sigma * network(x, t)) / alpha

    expected = sample(base, x, zs=zs)
    for prediction, wrapped in (("v_prediction", as_v), ("sample", as_x0)):
        schedule = make_schedule(config, scheduler=scheduler, steps=steps, prediction_type=prediction)
        check(sample(schedule, x, wrapped, zs), expected, 1e-10)
        inversion, wanted = schedule.inversion_steps(), base.inversion_steps()
        for a, b in zip(inversion, wanted, strict=True):
            check([take(a, x, wrapped(x, a.timestep))[0]], [take(b, x, network(x, b.timestep))[0]], 1e-10)


@pytest.mark.parametrize("steps", (1, 2, 5, 10, 50))
def test_ddim_and_euler_are_the_same_steps(steps):
    """At the same timesteps, with the same last level."""
    for offset, one, last in ((0, True, "zero"), (1, False, "sigma_min")):
        config = dict(STABLE_DIFFUSION, timestep_spacing="leading", steps_offset=offset)
        config |= dict(set_alpha_to_one=one, final_sigmas_type=last)
        ddim = make_schedule(config, scheduler="ddim", steps=steps)
        euler = make_schedule(config, scheduler="euler", steps=steps)
        for a, b in zip(ddim.steps, euler.steps, strict=True):
            ours, theirs = dataclasses.asdict(a), dataclasses.asdict(b)
            assert ours.pop("form") == theirs.pop("form")
            for name, value in ours.items():
                assert value == pytest.approx(theirs[name], rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_levels_belong_to_their_coordinates(scheduler):
    schedule = make_schedule(STABLE_DIFFUSION, scheduler=scheduler, steps=20)
    for step in schedule.steps:
        if scheduler == "flow":
            assert step.alpha + step.sigma == pytest.approx(1, abs=1e-12)
        else:
            assert step.alpha**2 + step.sigma**2 == pytest.approx(1, abs=1e-12)
    for before, after in zip(schedule.steps, schedule.steps[1:], strict=False):
        assert (before.to_alpha, before.to_sigma) == (after.alpha, after.sigma)


@pytest.mark.parametrize(
    "scheduler, prediction",
    [(s, p) for s in SCHEDULERS for p in PREDICTIONS if (s == "flow") == (p == "flow")],
)
def test_a_perfect_network_gives_the_picture_back(scheduler, prediction):
    """With the true e, x0, v or flow of x = alpha x0 + sigma e, every step lands on the next level exactly."""
    x0, e = noise(1), noise(2)
    schedule = make_schedule(STABLE_DIFFUSION, scheduler=scheduler, steps=20, prediction_type=prediction)
    for step in schedule.steps:
        x = step.alpha * x0 + step.sigma * e
        out = {
            "epsilon": e,
            "sample": x0,
            "v_prediction": step.alpha * e - step.sigma * x0,
            "flow": e - x0,
        }[prediction]
        p, q = step.network_to_eps
        assert torch.allclose(p * x + q * out, e, atol=1e-9)
        x_next, clean = take(step, x, out, history=x0, z=torch.zeros_like(x))
        assert torch.allclose(clean, x0, atol=1e-9)
        if scheduler == "ddpm":  # what its mean leaves out of e, its own noise replaces
            kept = (x_next - step.to_alpha * x0) / e
            assert torch.allclose(kept, kept.mean().expand_as(kept), atol=1e-6)
            assert math.hypot(float(kept.mean()), step.noise_scale) == pytest.approx(step.to_sigma, abs=1e-6)
        elif (
            scheduler == "lcm"
        ):  # all of e is replaced; c_skip and 1 - c_out are under 1e-5 from timestep 19 on
            assert torch.allclose(x_next, step.to_alpha * x0, atol=1e-4) and step.noise_scale == step.to_sigma
        else:
            assert torch.allclose(x_next, step.to_alpha * x0 + step.to_sigma * e, atol=1e-9)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpmpp_2m", "ddpm", "lcm"])
@pytest.mark.parametrize("steps, strength", [(50, 0.6), (10, 0.35), (4, 0.99), (20, 1.0), (3, 0.34)])
def test_strength_starts_later_as_image_to_image_does(scheduler, steps, strength):
    full = make_schedule(STABLE_DIFFUSION, scheduler=scheduler, steps=steps)
    part = make_schedule(STABLE_DIFFUSION, scheduler=scheduler, steps=steps, strength=strength)
    taken = min(int(steps * strength), steps)
    assert part.timesteps == full.timesteps[steps - taken :]
    assert [step.index for step in part.steps] == list(range(taken))
    assert not part.steps[0].needs_history
    assert (part.start_alpha, part.start_sigma) == (part.steps[0].alpha, part.steps[0].sigma)


def test_dpmpp_2m_with_strength_is_diffusers():
    """diffusers' image-to-image begins in the middle: the first step taken has no history."""
    theirs = diffusers.DPMSolverMultistepScheduler(
        **{k: v for k, v in STABLE_DIFFUSION.items() if k != "clip_sample"}
    )
    theirs.set_timesteps(10)
    theirs.set_begin_index(4)
    x = noise().float()
    expected = [x]
    for t in theirs.timesteps[4:]:
        expected.append(theirs.step(network(expected[-1], t), t, expected[-1])[0])
    schedule = make_schedule(STABLE_DIFFUSION, scheduler="dpmpp_2m", steps=10, strength=0.6)
    check(sample(schedule, x), expected, 1e-5)


def test_schedule_is_tune_a_videos(golden):
    """The published program (diffusers 0.11): timesteps, noise levels, and one inversion step by its formula."""
    arrays, parameters = golden("tav_ddim")
    schedule = make_schedule(parameters["scheduler"], scheduler="ddim", steps=parameters["steps"])
    assert schedule.timesteps == tuple(arrays["sampling.timesteps"].tolist())
    inversion = schedule.inversion_steps()
    assert tuple(step.timestep for step in inversion) == tuple(arrays["inversion.timesteps"].tolist())
    abar = arrays["scheduler.alphas_cumprod"].double()
    assert np.array_equal(schedule.alphas_cumprod, abar.numpy())
    final = float(arrays["scheduler.final_alpha_cumprod"])
    assert schedule.steps[-1].to_alpha == pytest.approx(math.sqrt(final), abs=1e-12)
    latents = arrays["inversion.latents"].double()
    for i, step in enumerate(inversion):
        before = int(step.timestep) - 1000 // len(inversion)
        now, then = float(abar[before]) if before >= 0 else final, float(abar[int(step.timestep)])
        # the network's answer in the published run, and their step on it
        e = (latents[i + 1] - math.sqrt(then / now) * latents[i]) / (
            math.sqrt(1 - then) - math.sqrt(then / now) * math.sqrt(1 - now)
        )
        clean = (latents[i] - math.sqrt(1 - now) * e) / math.sqrt(now)
        expected = math.sqrt(then) * clean + math.sqrt(1 - then) * e
        check([take(step, latents[i], e)[0]], [expected], 1e-10)
        assert (step.alpha, step.sigma) == pytest.approx((math.sqrt(now), math.sqrt(1 - now)), abs=1e-12)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpmpp_2m", "flow"])
def test_inversion_undoes_sampling(scheduler):
    """With predictions that do not depend on the latent, inverting and sampling return to the start."""
    kind = "flow" if scheduler == "flow" else "epsilon"
    schedule = make_schedule(STABLE_DIFFUSION, scheduler=scheduler, steps=12, prediction_type=kind)
    x0, e = noise(1), noise(2)
    x = schedule.steps[-1].to_alpha * x0 + schedule.steps[-1].to_sigma * e
    for step in schedule.inversion_steps():
        p, q = step.to_eps
        x = step.a * x + step.b * (p * x + q * ((e - p * x) / q))  # what a network that knows e answers
        assert torch.allclose(x, step.to_alpha * x0 + step.to_sigma * e, atol=1e-9)


def test_flow_inversion_is_eulers_method_backwards():
    schedule = make_schedule({}, scheduler="flow", steps=7)
    x, v = noise(1), noise(2)
    for step in schedule.inversion_steps():
        p, q = step.to_eps
        expected = x + (step.to_sigma - step.sigma) * v
        assert torch.allclose(step.a * x + step.b * (p * x + q * v), expected, atol=1e-12)


def test_trained_betas_and_unused_defaults():
    betas = np.linspace(1e-3, 0.02, 100)
    config = dict(trained_betas=betas.tolist(), num_train_timesteps=100, clip_sample=False)
    theirs = diffusers.DDIMScheduler(**config)
    schedule = make_schedule(config, steps=10)
    assert np.array_equal(schedule.alphas_cumprod, theirs.alphas_cumprod.double().numpy())
    noted = dict(STABLE_DIFFUSION, timestep_spacing="leading", _use_default_values=["timestep_spacing"])
    assert (
        make_schedule(noted, scheduler="euler", steps=5).timesteps[0] == 999
    )  # Euler's own default, linspace


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "euler", "dpmpp_2m"])
def test_every_number_of_steps_has_that_many_timesteps_on_the_grid(scheduler, spacing):
    config = dict(STABLE_DIFFUSION, timestep_spacing=spacing)
    for steps in (*range(1, 120), 250, 333, 500, 501, 777, 999, 1000):
        if scheduler == "dpmpp_2m" and spacing == "leading" and steps == 1000:
            continue  # 1000 // 1001 = 0: diffusers, too, has no timesteps to give
        times = make_schedule(config, scheduler=scheduler, steps=steps).timesteps
        assert len(times) == steps and 0 <= min(times) and max(times) <= 999
        assert all(a >= b for a, b in zip(times, times[1:], strict=False))


BAD = [
    (dict(scheduler="plms"), "scheduler must be one of"),
    (dict(prediction_type="score"), "prediction_type must be one of"),
    (dict(scheduler="ddim", prediction_type="flow"), "cannot sample"),
    (dict(scheduler="flow", prediction_type="epsilon"), "cannot sample"),
    (dict(steps=0), "steps must be"),
    (dict(steps=1001), "steps must be"),
    (dict(steps=2.5), "steps must be"),
    (dict(strength=0.0), "strength must be"),
    (dict(strength=1.2), "strength must be"),
    (dict(steps=10, strength=0.05), "leaves none"),
    (dict(eta=1.5), "eta must be"),
    (dict(eta=0.5, scheduler="euler"), "eta is an option"),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=str)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_schedule(STABLE_DIFFUSION, **arguments)
    assert "\n" not in str(caught.value)


BAD_CONFIGS = [
    ("ddim", dict(beta_schedule="sigmoid"), "beta_schedule"),
    ("ddim", dict(thresholding=True), "thresholding"),
    ("ddim", dict(timestep_spacing="random"), "timestep_spacing"),
    ("dpmpp_2m", dict(timestep_spacing="random"), "timestep_spacing"),
    ("ddim", dict(rescale_betas_zero_snr=True, timestep_spacing="trailing"), "no signal"),
    ("ddpm", dict(variance_type="learned_range"), "variance_type"),
    ("euler", dict(use_beta_sigmas=True), "use_beta_sigmas"),
    ("euler", dict(timestep_type="continuous"), "timestep_type"),
    ("euler", dict(interpolation_type="log_linear"), "interpolation_type"),
    ("euler", dict(final_sigmas_type="one"), "final_sigmas_type"),
    ("dpmpp_2m", dict(use_lu_lambdas=True), "use_lu_lambdas"),
    ("dpmpp_2m", dict(use_flow_sigmas=True), "use_flow_sigmas"),
    ("flow", dict(use_dynamic_shifting=True), "use_dynamic_shifting"),
    ("ddim", dict(num_train_timesteps=10, steps_offset=1), "ask for timestep 10"),
]


@pytest.mark.parametrize("scheduler, options, message", BAD_CONFIGS, ids=str)
def test_options_that_are_not_implemented_say_so(scheduler, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_schedule(dict(STABLE_DIFFUSION) | options, scheduler=scheduler, steps=10)
    assert "\n" not in str(caught.value)
