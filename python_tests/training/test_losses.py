"""The objectives: the published program's numbers, properties, and gradients."""

import math

import pytest
import torch

from vidsmooth_fast.models import VideoUNet
from vidsmooth_fast.training.losses import (
    FRAMES,
    OBJECTIVES,
    TERMS,
    Objective,
    Predicted,
    inr_loss,
    masked_loss,
    plain_loss,
    smooth_loss,
)
from vidsmooth_fast.training.noising import Noising

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def predicted(b=2, c=3, f=6, h=4, w=5, *, seed=0, dtype=torch.float32, grad=False) -> Predicted:
    g = torch.Generator().manual_seed(seed)
    pred, target, noisy = (torch.randn(b, c, f, h, w, generator=g, dtype=dtype) for _ in range(3))
    pred.requires_grad_(grad)
    constant = Noising(SCHEDULE, "epsilon").constant(torch.arange(b) * 200 + 99)
    mask = (torch.rand(b, 1, f, h, w, generator=g) > 0.5).float()
    return Predicted(pred - target, pred, noisy, constant, mask)


def test_smooth_loss_of_the_published_program(golden):
    arrays, p = golden("smooth_loss")
    noising = Noising(p["scheduler"], "epsilon")
    for row in p["table"]:
        if row["t"] == 0:  # the published t = 0 wraps to the last timestep
            continue
        key, f, t = row["key"], row["f"], torch.tensor([row["t"]])
        pred = arrays[f"f{f}.model_pred"].clone().requires_grad_(True)
        noisy, target = arrays[f"f{f}.noisy_latents"], arrays[f"f{f}.target"]
        constant = noising.constant(t)
        if "C" in row:
            assert float(constant) == pytest.approx(row["C_f64"], rel=1e-4)
        name = "smooth-simple" if row["simple"] else "smooth"
        total, parts = Objective(name)(Predicted(pred - target, pred, noisy, constant))
        assert float(parts[name]) == pytest.approx(row["smooth_loss_f64"], rel=1e-4)
        assert float(parts["plain"]) == pytest.approx(row["mse"], rel=1e-4)
        assert total.item() == pytest.approx(row["total"], rel=1e-4)
        loss = smooth_loss(pred, noisy, constant, variant="simple" if row["simple"] else "cross")
        for ours, theirs in (
            (torch.autograd.grad(loss, pred)[0], arrays[f"{key}.grad_smooth"]),
            (torch.autograd.grad(total, pred)[0], arrays[f"{key}.grad_total"]),
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


ADAMW = {"lr": 3e-5, "betas": (0.9, 0.999), "weight_decay": 1e-2, "eps": 1e-8}


@pytest.fixture(scope="module")
def published_step(golden):
    """The network of `train_step` as it was before its step, its trained parameters, the arrays, the settings.

    The file's weights are those *after* the plain run's AdamW step: the network gives `plain.loss` only when that
    step, w − lr g / (|g| + eps) after decay, is undone, which a few iterations of its inverse do.
    """
    arrays, p = golden("train_step")
    unet = VideoUNet.from_config(p["config"])
    unet.load_state_dict(
        {k.removeprefix("weights."): v for k, v in arrays.items() if k.startswith("weights.")}
    )
    unet.requires_grad_(False)
    parameters = dict(unet.named_parameters())
    trained = [parameters[n].requires_grad_(True) for n in p["trainable_parameters"]]
    after = [parameter.detach().clone() for parameter in trained]
    lr, decay, eps = ADAMW["lr"], ADAMW["weight_decay"], ADAMW["eps"]
    for _ in range(6):
        error = predict(unet, arrays) - arrays["target"]
        gradients = torch.autograd.grad(plain_loss(error), trained)
        with torch.no_grad():
            for parameter, w, g in zip(trained, after, gradients, strict=True):
                parameter.copy_((w + lr * g / (g.abs() + eps)) / (1 - lr * decay))
    return unet, trained, arrays, p


def predict(unet, arrays):
    t = arrays["input.timesteps"].long()
    return unet(arrays["input.noisy_latents"], t, arrays["input.encoder_hidden_states"])


@pytest.mark.parametrize("name", ["plain", "smooth", "smooth_simple"])
def test_a_step_of_the_published_program(published_step, name):
    """Loss, gradient norms, and what AdamW makes of them, on Tune-A-Video's trainable parameters."""
    unet, trained, arrays, p = published_step
    noising, t = Noising(p["scheduler"], p["prediction_type"]), arrays["input.timesteps"].long()
    clean, noise = arrays["input.latents"], arrays["input.noise"]
    noisy, target = noising.noisy(clean, noise, t), noising.target(clean, noise, t)
    torch.testing.assert_close(noisy, arrays["input.noisy_latents"], rtol=0, atol=1e-6)
    torch.testing.assert_close(target, arrays["target"], rtol=0, atol=1e-6)

    pred = predict(unet, arrays)
    batch = Predicted(pred - target, noising.epsilon(pred, noisy, t), noisy, noising.constant(t))
    total, _ = Objective(name.replace("_", "-"))(batch)
    assert total.item() == pytest.approx(float(arrays[f"{name}.loss"]), abs=1e-5)
    gradients = torch.autograd.grad(total, trained)
    norms = torch.stack([g.norm() for g in gradients])
    torch.testing.assert_close(norms, arrays[f"{name}.grad_norms"], rtol=1e-3, atol=1e-8)
    assert norms.norm().item() == pytest.approx(float(arrays[f"{name}.total_grad_norm"]), rel=1e-3)

    if f"{name}.adamw_delta_norms" in arrays:
        copies = [parameter.detach().clone().requires_grad_(True) for parameter in trained]
        for copy, g in zip(copies, gradients, strict=True):
            copy.grad = g
        torch.nn.utils.clip_grad_norm_(copies, 1.0)
        torch.optim.AdamW(copies, **ADAMW).step()
        deltas = torch.stack([(c - w).norm() for c, w in zip(copies, trained, strict=True)]).detach()
        torch.testing.assert_close(deltas, arrays[f"{name}.adamw_delta_norms"], rtol=1e-3, atol=1e-9)


def test_an_error_constant_in_time_costs_no_inr_smoothing():
    error = torch.randn(2, 3, 1, 4, 5).expand(-1, -1, 7, -1, -1)
    for forward, backward in ((0.5, 0.5), (1.0, 0.0), (0.0, 1.0)):
        assert float(inr_loss(error, forward=forward, backward=backward)) == 0


@pytest.mark.parametrize("name", [n for n in TERMS if n.startswith(("smooth", "inr"))])
def test_smoothing_depends_on_the_order_of_frames(name):
    p = predicted()
    order = [3, 0, 5, 1, 4, 2]
    shuffled = Predicted(p.error[:, :, order], p.epsilon[:, :, order], p.noisy[:, :, order], p.constant)
    assert abs(float(TERMS[name](p)) - float(TERMS[name](shuffled))) > 1e-4
    plain = TERMS["plain"]
    assert float(plain(p)) == pytest.approx(float(plain(shuffled)), rel=1e-6)


def test_inr_directions_have_one_value_and_their_own_gradients():
    values, gradients = [], []
    error = torch.randn(2, 3, 5, 4, 4, dtype=torch.float64).float()
    for forward, backward in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5)):
        e = error.clone().requires_grad_(True)
        loss = inr_loss(e, forward=forward, backward=backward)
        values.append(loss.item())
        gradients.append(torch.autograd.grad(loss, e)[0])
    assert values[0] == values[1] == pytest.approx(values[2], rel=1e-6)
    difference = 2 * (error[:, :, 1:] - error[:, :, :-1]) / error[:, :, 1:].numel()
    expected_forward, expected_backward = torch.zeros_like(error), torch.zeros_like(error)
    expected_forward[:, :, 1:] = difference  # each frame is pulled to the one before it
    expected_backward[:, :, :-1] = -difference
    torch.testing.assert_close(gradients[0], expected_forward)
    torch.testing.assert_close(gradients[1], expected_backward)
    torch.testing.assert_close(gradients[2], (expected_forward + expected_backward) / 2)


@pytest.mark.parametrize("variant", ["cross", "naive", "simple"])
def test_gradients_of_the_others(variant, monkeypatch):
    """Finite differences in float64; the losses themselves are computed in fp32 outside this test."""
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x)
    g = torch.Generator().manual_seed(1)
    e, x = (torch.randn(2, 2, 4, 3, 2, generator=g, dtype=torch.float64) for _ in range(2))
    constant = torch.tensor([-82.0, -350.0], dtype=torch.float64)
    e.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda y: smooth_loss(y, x, constant, variant=variant), e)
    assert torch.autograd.gradcheck(plain_loss, e)
    mask = (torch.rand(2, 1, 4, 3, 2, generator=g) > 0.5).double()
    assert torch.autograd.gradcheck(lambda y: masked_loss(y, mask), e)


def test_one_constant_per_clip_not_per_column():
    """A batch gives the mean of its clips alone, also when it is as large as the picture is wide."""
    p = predicted(b=5, w=5)
    alone = [smooth_loss(p.epsilon[i : i + 1], p.noisy[i : i + 1], p.constant[i : i + 1]) for i in range(5)]
    together = smooth_loss(p.epsilon, p.noisy, p.constant)
    assert float(together) == pytest.approx(float(torch.stack(alone).mean()), rel=1e-6)
    with pytest.raises(ValueError, match=r"constant: expected shape \(5,\)"):
        smooth_loss(p.epsilon, p.noisy, p.constant[:, None])


def test_t0_comes_from_the_picture():
    constant = Noising(SCHEDULE, "epsilon").constant(torch.arange(1000))
    assert constant.isfinite().all() and (constant < 0).all()
    abar0 = 1 - 0.00085
    assert float(constant[0]) == pytest.approx(-math.sqrt(abar0 / (1 - abar0)), rel=1e-4)


def test_zero_terminal_snr_is_finite():
    schedule = {**SCHEDULE, "rescale_betas_zero_snr": True}
    noising, t = Noising(schedule, "v_prediction"), torch.tensor([999])
    assert float(noising.constant(t)) == 0
    x = torch.randn(1, 4, 2, 3, 3)
    assert noising.epsilon(x, x, t).isfinite().all() and noising.clean(x, x, t).isfinite().all()


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_short_clips(name, frames):
    """Terms without neighbours are zero; nothing is NaN, values and gradients."""
    p = predicted(f=frames, grad=True)
    total, parts = Objective(name)(p)
    total.backward()
    assert total.isfinite() and p.epsilon.grad.isfinite().all()
    for term, value in parts.items():
        assert (float(value) == 0) == (frames < FRAMES.get(term, 1))
    assert Objective(name).least_frames == 1 and Objective({"smooth": 1.0}).least_frames == 3


def test_v_prediction_and_epsilon_agree():
    """The same prediction in either form: the same smoothing, and errors that differ by α."""
    g = torch.Generator().manual_seed(2)
    clean, noise, guess = (torch.randn(2, 4, 5, 3, 3, generator=g) for _ in range(3))
    t = torch.tensor([30, 700])
    eps, v = Noising(SCHEDULE, "epsilon"), Noising(SCHEDULE, "v_prediction")
    noisy = eps.noisy(clean, noise, t)
    as_v = (guess - v.sigma(t) * noisy) / v.alpha(t)
    torch.testing.assert_close(v.epsilon(as_v, noisy, t), guess)
    torch.testing.assert_close(v.clean(as_v, noisy, t), eps.clean(guess, noisy, t), rtol=1e-4, atol=1e-4)
    v_error = as_v - v.target(clean, noise, t)
    torch.testing.assert_close(v_error * v.alpha(t), guess - noise, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(v.implied_noise(noisy, clean, t), noise, rtol=1e-4, atol=1e-4)


def test_masks_split_the_plain_loss():
    p = predicted()
    whole = masked_loss(p.error, p.foreground) + masked_loss(p.error, 1 - p.foreground)
    assert float(whole) == pytest.approx(float(plain_loss(p.error)), rel=1e-5)


def test_half_precision_is_summed_in_fp32():
    p = predicted(b=1, f=24, h=32, w=32)
    half = Predicted(p.error.half(), p.epsilon.half(), p.noisy.half(), p.constant, p.foreground)
    for name in OBJECTIVES:
        assert float(Objective(name)(half)[0]) == pytest.approx(float(Objective(name)(p)[0]), rel=1e-3)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("smoth", "expected one of plain, smooth"),
        ({"plain": 1, "blur": 2}, "got 'blur'"),
        ({"plain": -1}, "at least 0 for plain, got -1"),
        ({"plain": math.nan}, "got nan"),
        ({"plain": 0}, "above 0"),
        ({}, "expected a name"),
        (3, "expected a name"),
    ],
)
def test_bad_objectives(loss, message):
    with pytest.raises(ValueError, match=message) as caught:
        Objective(loss)
    assert "\n" not in str(caught.value)


def test_weighted_sums():
    p = predicted()
    total, parts = Objective({"plain": 1, "smooth-naive": 0.1, "inr-forward": 3})(p)
    expected = parts["plain"] + 0.1 * parts["smooth-naive"] + 3 * parts["inr-forward"]
    assert float(total) == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(ValueError, match="need a mask"):
        Objective("foreground")(Predicted(p.error, p.epsilon, p.noisy, p.constant))
