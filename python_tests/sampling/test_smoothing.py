"""The smoothing options: what they mean at each step in every coordinate, and what they do to each frequency."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vidsmooth_fast import ops
from vidsmooth_fast.sampling.schedule import make_schedule
from vidsmooth_fast.sampling.smoothing import LAMBDA_1, InversionBlend, NoiseConstraint, published_constant

ROOT = Path(__file__).parents[2]
CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "final_sigmas_type": "sigma_min",
}
SHAPE = (1, 2, 7, 3, 3)


@pytest.fixture(scope="module")
def curves():
    """benchmarks/gain_curves.py, the script behind docs/smoothing.md."""
    spec = importlib.util.spec_from_file_location("gain_curves", ROOT / "benchmarks" / "gain_curves.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def normal(seed: int, shape=SHAPE) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def second_difference(y: torch.Tensor) -> torch.Tensor:
    """2 y_n - y_(n-1) - y_(n+1) over frames, zero at the two ends."""
    result = torch.zeros_like(y)
    result[:, :, 1:-1] = 2 * y[:, :, 1:-1] - y[:, :, :-2] - y[:, :, 2:]
    return result


def constrained_clean(step, plan, smooth, x, e, source=None):
    """The clean estimate after the operator has acted on the step's own form of the prediction e."""
    y = e if step.form == "epsilon" else (x - step.sigma * e) / step.alpha
    c, strength = smooth.coefficients(step.index, plan)
    reference = smooth.reference_scale(step) * source if smooth.needs_source else None
    if strength:
        y = ops.noise_constraint(y, x, c_over_lambda=c, strength=strength, reference=reference)
    return step.to_clean[0] * x + step.to_clean[1] * y


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpmpp_2m", "ddpm", "flow"])
def test_clean_and_source_smooth_the_predicted_clean_latents(scheduler):
    """x0_n - s (2 x0_n - x0_(n-1) - x0_(n+1)), and the same of x0 - source, in every sampler's coordinates."""
    plan = make_schedule(CONFIG, scheduler=scheduler, steps=10)
    x0, e, source = normal(1), normal(2), normal(3)
    for step in plan.steps:
        x = step.alpha * x0 + step.sigma * e
        if step.alpha == 0:  # the first step of flow matching: the clean estimate cannot be had from e
            continue
        scale = 3e-6 / step.alpha
        result = constrained_clean(step, plan, NoiseConstraint(0.2, "clean"), x, e)
        assert torch.allclose(result, x0 - 0.2 * second_difference(x0), atol=scale)
        result = constrained_clean(step, plan, NoiseConstraint(0.2, "source"), x, e, source)
        assert torch.allclose(result, x0 - 0.2 * second_difference(x0 - source), atol=scale)


@pytest.mark.parametrize("target", ["clean", "source"])
def test_clean_and_source_work_where_there_is_no_signal(target):
    """Zero terminal SNR and the first step of flow matching: the prediction is x0 itself there."""
    zero = CONFIG | dict(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    plans = [
        make_schedule(zero, steps=5, prediction_type="v_prediction"),
        make_schedule({}, scheduler="flow", steps=5),
    ]
    x0, x, source = normal(1), normal(2), normal(3)
    for plan in plans:
        step, smooth = plan.steps[0], NoiseConstraint(0.2, target)
        assert step.alpha == 0 and step.form == "sample"
        c, strength = smooth.coefficients(0, plan)
        reference = smooth.reference_scale(step) * source if target == "source" else None
        result = ops.noise_constraint(x0, x, c_over_lambda=c, strength=strength, reference=reference)
        expected = x0 - 0.2 * second_difference(x0 - source if target == "source" else x0)
        assert torch.allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("target", ["published", "simple"])
def test_published_is_the_paper_in_variance_preserving_coordinates(target):
    """e_n - s (De_n - (C/1000) Dx_n) for the latent scaled to alpha^2 + sigma^2 = 1, whatever the coordinates."""
    e, x0 = normal(2), normal(1)
    low_signal = CONFIG | dict(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)  # has steps in x0 form
    for config, scheduler in ((CONFIG, "ddim"), (low_signal, "ddim"), (CONFIG, "euler"), ({}, "flow")):
        plan = make_schedule(config, scheduler=scheduler, steps=20)
        for step in plan.steps:
            if step.alpha == 0:
                continue
            x = step.alpha * x0 + step.sigma * e
            preserved = x / math.hypot(step.alpha, step.sigma)
            c = published_constant(plan, step.timestep) / LAMBDA_1 if target == "published" else 0.0
            smoothed = e - 0.2 * (second_difference(e) - c * second_difference(preserved))
            expected = (x - step.sigma * smoothed) / step.alpha
            result = constrained_clean(step, plan, NoiseConstraint(0.2, target), x, e)
            assert torch.allclose(result, expected, atol=1e-4 / step.alpha), step


def test_published_constant():
    plan = make_schedule(CONFIG, steps=10)
    assert published_constant(plan, 500) == pytest.approx(-352, abs=0.5)
    by_timestep = {
        step.timestep: step for step in make_schedule(CONFIG | dict(steps_offset=0), steps=1000).steps
    }
    for t in (1, 2, 10, 500, 999):  # C = 1/b of the step to the timestep before
        assert published_constant(plan, t) == pytest.approx(1 / by_timestep[t].b, rel=1e-9)
    first = math.sqrt(plan.alphas_cumprod[0])
    assert published_constant(plan, 0) == pytest.approx(-first / math.sqrt(1 - first**2))
    for t in range(1000):
        assert -1000 < published_constant(plan, t) < 0
    flow = make_schedule({}, scheduler="flow", steps=10)
    assert all(math.isfinite(published_constant(flow, t)) for t in (0, 0.3, 1, 500.5, 999, 1000))


def test_published_does_not_act_without_signal():
    zero = CONFIG | dict(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    for config, scheduler in ((zero, "ddim"), (zero, "euler"), ({}, "flow")):
        prediction = "flow" if scheduler == "flow" else "v_prediction"
        plan = make_schedule(config, scheduler=scheduler, steps=5, prediction_type=prediction)
        for target in ("published", "simple"):
            assert NoiseConstraint(0.25, target).coefficients(0, plan) == (0.0, 0.0)
            assert NoiseConstraint(0.25, target).coefficients(1, plan)[1] == 0.25


def test_steps_limits_where_it_acts():
    plan = make_schedule(CONFIG, steps=10)

    def acting(first, last):
        smooth = NoiseConstraint(0.25, steps=(first, last))
        return [i for i in range(10) if smooth.coefficients(i, plan)[1]]

    assert acting(0.0, 1.0) == list(range(10))
    assert acting(0.0, 0.5) == [0, 1, 2, 3, 4]
    assert acting(0.3, 1.0) == [3, 4, 5, 6, 7, 8, 9]
    assert acting(0.5, 0.5) == []
    assert NoiseConstraint(0.0).coefficients(3, plan)[1] == 0


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpmpp_2m"])
@pytest.mark.parametrize("target", ["clean", "source", "published", "simple"])
def test_one_video_whatever_the_network_predicts(target, scheduler):
    """The constrained trajectory, history included, of one network wrapped as e, v and x0."""

    def trajectory(prediction):
        plan = make_schedule(CONFIG, scheduler=scheduler, steps=8, prediction_type=prediction)
        smooth = NoiseConstraint(0.2, target)
        x, history, source = normal(5), None, normal(6)
        for step in plan.steps:
            e = torch.sin(1.3 * x + 0.01 * step.timestep) * 0.8 + 0.1 * x
            out = {
                "epsilon": e,
                "v_prediction": (e - step.sigma * x) / step.alpha,
                "sample": (x - step.sigma * e) / step.alpha,
            }[prediction]
            c_over_lambda, strength = smooth.coefficients(step.index, plan)
            x, history = ops.denoise_step(
                out[None, :, None],
                x,
                (0,),
                torch.ones(SHAPE[2]),
                branch_weights=(1.0,),
                a=step.a,
                b=step.b,
                c=step.c,
                history=history,
                to_eps=step.to_eps,
                to_clean=step.to_clean,
                c_over_lambda=c_over_lambda,
                strength=strength,
                reference=smooth.reference_scale(step) * source if smooth.needs_source else None,
            )
        return x

    expected = trajectory("epsilon")
    for prediction in ("v_prediction", "sample"):
        error = (trajectory(prediction) - expected).abs().max() / expected.abs().max()
        assert error < 2e-5


def test_ddim_and_euler_give_one_smoothed_video():
    steps = [make_schedule(CONFIG, scheduler=scheduler, steps=9) for scheduler in ("ddim", "euler")]
    for target in ("clean", "source", "published", "simple"):
        smooth = NoiseConstraint(0.25, target)
        for i in range(9):
            a, b = (smooth.coefficients(i, plan) for plan in steps)
            assert a == pytest.approx(b, rel=1e-9)
            a, b = (smooth.reference_scale(plan.steps[i]) for plan in steps)
            assert a == pytest.approx(b, rel=1e-9)


def test_gains_are_what_the_design_says(curves):
    """Fastest flicker: 0.48 without, 34 and 1690 published, 0.19 and 0.03 clean; nothing changes what is still."""
    plan = curves.schedule()

    def fastest(target, strength):
        return float(curves.constraint_gain(NoiseConstraint(strength, target), plan)[-1])

    assert float(curves.constraint_gain(None, plan)[-1]) == pytest.approx(0.48, abs=0.005)
    assert fastest("published", 0.25) == pytest.approx(34, abs=0.5)
    assert fastest("published", 0.5) == pytest.approx(1690, abs=10)
    assert fastest("clean", 0.1) == pytest.approx(0.19, abs=0.005)
    assert fastest("clean", 0.25) == pytest.approx(0.03, abs=0.005)
    for target in ("clean", "source", "published", "simple"):
        still = float(curves.constraint_gain(NoiseConstraint(0.25, target), plan)[0])
        assert still == pytest.approx(0.4786, abs=1e-3)
    gains = curves.constraint_gain(NoiseConstraint(0.25), plan)
    assert (gains.diff() <= 1e-6).all()  # a low-pass: the faster, the less


def test_gain_of_one_frequency_is_its_own_formula(curves):
    """The impulse on the circle against the scalar recursion of one frequency, written out."""
    plan, smooth = curves.schedule(20), NoiseConstraint(0.2, "published")
    gains = curves.constraint_gain(smooth, plan)
    for k in (0, 5, 16, 32):
        x, curvature = 1.0, 2 - 2 * math.cos(2 * math.pi * k / curves.FRAMES)
        for i, step in enumerate(plan.steps):
            c, s = smooth.coefficients(i, plan)
            e = curves.denoiser(x, step.alpha, step.sigma)
            x = step.a * x + step.b * (e - s * curvature * (e - c * x))
        assert float(gains[k]) == pytest.approx(x, rel=1e-4)


def test_documented_tables_are_what_the_script_computes(curves):
    page = (ROOT / "docs" / "smoothing.md").read_text()
    for name, text in curves.tables().items():
        match = curves.block(name).search(page)
        assert match, f"docs/smoothing.md has no table {name}"
        ours, theirs = ([line.split("|") for line in t.strip().splitlines()] for t in (text, match[2]))
        assert len(ours) == len(theirs)
        for row, documented in zip(ours, theirs, strict=True):
            for cell, value in zip(row, documented, strict=True):
                try:
                    assert float(value) == pytest.approx(float(cell), rel=0.02, abs=0.0101)
                except ValueError:
                    assert cell.strip() == value.strip()


def test_shared_blend_at_weight_one_flips_the_fastest_flicker():
    flicker = torch.tensor([1.0, -1.0] * 4).reshape(1, 1, 8, 1, 1)
    blend = InversionBlend(1.0, "shared")
    noise = normal(1, (1, 1, 1, 1, 1)).expand_as(flicker).contiguous()
    for loop in (False, True):
        result = ops.inversion_blend(flicker, noise, weight=blend.weight, loop=loop)
        assert torch.allclose(result, -flicker, atol=1e-6)


@pytest.mark.parametrize("weight", [0.25, 0.5, 1.0])
def test_independent_blend_adds_variance(weight):
    """1.5 weight^2 in every frame with two neighbours; at an end, with one, 2 weight^2."""
    shape = (1, 4, 16, 64, 64)
    added = ops.inversion_blend(torch.zeros(shape), normal(1, shape), weight=weight)
    variance = added.square().mean(dim=(0, 1, 3, 4))
    assert torch.allclose(variance[1:-1], torch.full((14,), 1.5 * weight**2), rtol=0.05)
    assert torch.allclose(variance[[0, -1]], torch.full((2,), 2 * weight**2), rtol=0.05)
    on_a_circle = ops.inversion_blend(torch.zeros(shape), normal(1, shape), weight=weight, loop=True)
    assert float(on_a_circle.var()) == pytest.approx(1.5 * weight**2, rel=0.02)


def test_implied_blend_makes_predicted_clean_frames_differ_as_the_sources_do():
    """The clean frames implied by the result err from the source by the blend of their neighbours' errors."""
    plan = make_schedule(CONFIG, steps=10)
    clip, x, inverted, weight = normal(1), normal(2), normal(3), 0.7
    for step in plan.inversion_steps():
        implied = (x - step.alpha * clip) / step.sigma
        result = ops.inversion_blend(inverted, implied, weight=weight)
        error, after = ((x - step.sigma * e) / step.alpha - clip for e in (inverted, result))
        neighbours = torch.empty_like(error)
        neighbours[:, :, 1:-1] = (error[:, :, :-2] + error[:, :, 2:]) / 2
        neighbours[:, :, 0], neighbours[:, :, -1] = error[:, :, 1], error[:, :, -2]
        tolerance = 1e-5 * float(error.abs().max())
        assert torch.allclose(after, (1 - weight) * error + weight * neighbours, atol=max(tolerance, 1e-5))
        # and noise that already satisfies the relation is left alone
        assert torch.allclose(
            ops.inversion_blend(implied + 0.3, implied, weight=weight), implied + 0.3, atol=1e-4
        )


BAD = [
    (lambda: NoiseConstraint(0.6), "strength must be a number from 0 to 0.5"),
    (lambda: NoiseConstraint(-0.1), "strength must be"),
    (lambda: NoiseConstraint("strong"), "strength must be"),
    (lambda: NoiseConstraint(float("nan")), "strength must be"),
    (lambda: NoiseConstraint(target="latent"), "target must be one of clean, source, published, simple"),
    (lambda: NoiseConstraint(steps=0.5), "steps must be two fractions"),
    (lambda: NoiseConstraint(steps=(0.1, 0.5, 0.9)), "steps must be two fractions"),
    (lambda: NoiseConstraint(steps=(0.0, 20)), "steps must be a number from 0 to 1"),
    (lambda: NoiseConstraint(steps=(0.8, 0.2)), "must not end before they begin"),
    (lambda: InversionBlend(1.5), "weight must be a number from 0 to 1"),
    (lambda: InversionBlend(0.5, noise="random"), "noise must be one of implied, shared, independent"),
    (lambda: InversionBlend(0.5, at="start"), "at must be one of step, end"),
    (lambda: InversionBlend(0.5, forward=-1), "forward must be"),
    (lambda: InversionBlend(0.5, forward=0, backward=0), "must not both be 0"),
]


@pytest.mark.parametrize("make, message", BAD)
def test_bad_options_are_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_defaults_are_the_designs():
    assert NoiseConstraint() == NoiseConstraint(strength=0.25, target="clean", steps=(0.0, 1.0))
    assert InversionBlend(0.5) == InversionBlend(0.5, noise="implied", at="step", forward=0.5, backward=0.5)
    assert [
        NoiseConstraint(target=t).wants_shared_noise for t in ("clean", "source", "published", "simple")
    ] == [
        False,
        False,
        True,
        True,
    ]
    assert NoiseConstraint(steps=[0, 1]).steps == (0.0, 1.0)
