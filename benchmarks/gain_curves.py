"""What the smoothing settings do to each temporal frequency: the tables and figures of docs/smoothing.md.

    python benchmarks/gain_curves.py            print the tables
    python benchmarks/gain_curves.py --write    put them into docs/smoothing.md and draw docs/images (matplotlib)

The model is an exact denoiser of Gaussian latents of standard deviation 0.5 that are independent from frame to frame,
E[e | x] = sigma x / (alpha^2 0.25 + sigma^2). It has no idea of time, so that all smoothing seen here is the
constraint's. Sampling runs through the package's own schedule and operators on a circle of frames, where an impulse
in one frame shows every temporal frequency at once: the gain at frequency w is the Fourier transform of the result.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

from vidsmooth_fast import ops
from vidsmooth_fast.sampling.noise import initial_noise
from vidsmooth_fast.sampling.schedule import Schedule, make_schedule
from vidsmooth_fast.sampling.smoothing import InversionBlend, NoiseConstraint

DOCS = Path(__file__).parents[1] / "docs"
STABLE_DIFFUSION = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
DATA_STD = 0.5
FRAMES = 64
PERIODS = (0, 16, 8, 4, 2)  # in frames; 0: what does not change


def schedule(steps: int = 50, scheduler: str = "ddim") -> Schedule:
    return make_schedule(STABLE_DIFFUSION, scheduler=scheduler, steps=steps)


def denoiser(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """The exact noise prediction at the level (alpha, sigma)."""
    return sigma / (alpha**2 * DATA_STD**2 + sigma**2) * x


def sample(
    x: torch.Tensor,
    plan: Schedule,
    smooth: NoiseConstraint | None = None,
    source: torch.Tensor | None = None,
    loop: bool = True,
) -> torch.Tensor:
    """Sampling with the engine's operator: x (1, C, F, H, W) at the schedule's first level -> clean latents."""
    weights, history = torch.ones(x.shape[2]), None
    for index, step in enumerate(plan.steps):
        c_over_lambda, strength = smooth.coefficients(index, plan) if smooth else (0.0, 0.0)
        reference = None
        if source is not None and strength:
            reference = smooth.reference_scale(step) * source
        x, history = ops.denoise_step(
            denoiser(x, step.alpha, step.sigma)[None, :, None],
            x,
            (0,),
            weights,
            branch_weights=(1.0,),
            a=step.a,
            b=step.b,
            c=step.c,
            history=history,
            to_eps=step.to_eps,
            to_clean=step.to_clean,
            c_over_lambda=c_over_lambda,
            strength=strength,
            reference=reference,
            loop=loop,
        )
    return x


def invert(clip: torch.Tensor, plan: Schedule, blend: InversionBlend, noise: torch.Tensor) -> torch.Tensor:
    """DDIM inversion of clean latents on a circle of frames; `noise` serves "independent" and "shared"."""

    def blended(inverted, x, alpha, sigma):
        if blend.noise == "implied":
            if sigma == 0:
                return inverted
            e = (x - alpha * clip) / sigma
        else:
            e = noise
        shares = dict(weight=blend.weight, forward=blend.forward, backward=blend.backward)
        return ops.inversion_blend(inverted, e, loop=True, **shares)

    x = clip
    levels = {step.timestep: (step.alpha, step.sigma) for step in plan.steps}
    for step in plan.inversion_steps():
        e = denoiser(x, *levels[step.timestep])
        if blend.at == "step":
            e = blended(e, x, step.alpha, step.sigma)
        x = step.a * x + step.b * e
    return blended(x, x, step.to_alpha, step.to_sigma) if blend.at == "end" else x


def impulse() -> torch.Tensor:
    x = torch.zeros(1, 1, FRAMES, 1, 1)
    x[:, :, 0] = 1
    return x


def spectrum(x: torch.Tensor) -> torch.Tensor:
    """Response at each temporal frequency 0 ... pi of a result whose input was an impulse in frame 0: (F/2 + 1,)."""
    return torch.fft.rfft(x.double().flatten()).real


def at_periods(gains: torch.Tensor) -> list[float]:
    return [float(gains[FRAMES // period if period else 0]) for period in PERIODS]


def constraint_gain(smooth: NoiseConstraint | None, plan: Schedule) -> torch.Tensor:
    """Initial noise -> result, per temporal frequency."""
    return spectrum(sample(impulse(), plan, smooth, source=torch.zeros_like(impulse()) if smooth else None))


def source_gain(smooth: NoiseConstraint, plan: Schedule) -> torch.Tensor:
    """Source clip -> result, per temporal frequency, for target "source"."""
    return spectrum(sample(torch.zeros_like(impulse()), plan, smooth, source=impulse()))


def flicker(smooth: NoiseConstraint | None, init: str, plan: Schedule) -> float:
    """Root mean square of the difference between neighbouring frames of a sampled video (open ends)."""
    x = sample(initial_noise(init, seed=0, frames=FRAMES, shape=(4, 16, 16)), plan, smooth, loop=False)
    return float((x[:, :, 1:] - x[:, :, :-1]).square().mean().sqrt())


def blend_gain(blend: InversionBlend, plan: Schedule) -> tuple[torch.Tensor, torch.Tensor]:
    """(clip -> its reconstruction, random noise -> reconstruction), per temporal frequency."""
    nothing = torch.zeros_like(impulse())
    clip = spectrum(sample(invert(impulse(), plan, blend, nothing), plan))
    noise = impulse() if blend.noise == "independent" else nothing
    return clip, spectrum(sample(invert(nothing, plan, blend, noise), plan))


def number(value: float) -> str:
    text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return "0.00" if text == "-0.00" else text


def table(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---"] * len(head)]
    lines += [[cell if isinstance(cell, str) else number(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables() -> dict[str, str]:
    """Every table of docs/smoothing.md, by name."""
    periods = ["still"] + [f"{period} frames" for period in PERIODS[1:]]
    plan = schedule()
    settings = [(target, s) for target in ("clean", "published", "simple") for s in (0.1, 0.25, 0.5)]
    rows = [["none", "", *at_periods(constraint_gain(None, plan))]]
    for target, s in settings:
        rows.append([target, f"{s:g}", *at_periods(constraint_gain(NoiseConstraint(s, target), plan))])
    result = {"constraint": table(["target", "strength", *periods], rows)}

    rows = []
    for s in (0.1, 0.25, 0.5):
        smooth = NoiseConstraint(s, "source")
        rows.append([f"{s:g}", "initial noise", *at_periods(constraint_gain(smooth, plan))])
        rows.append([f"{s:g}", "source", *at_periods(source_gain(smooth, plan))])
    result["source"] = table(["strength", "from", *periods], rows)

    inits = ("independent", "freenoise", "shared")
    none = flicker(None, "independent", plan)
    rows = [["none", "", *(flicker(None, init, plan) / none for init in inits)]]
    for target, s in settings:
        smooth = NoiseConstraint(s, target)
        rows.append([target, f"{s:g}", *(flicker(smooth, init, plan) / none for init in inits)])
    result["init"] = table(["target", "strength", *inits], rows)

    rows = []
    for scheduler, steps in (("ddim", 10), ("ddim", 20), ("ddim", 50), ("ddim", 200), ("dpmpp_2m", 20)):
        other = schedule(steps, scheduler)
        kept = constraint_gain(NoiseConstraint(0.25), other) / constraint_gain(None, other)
        rows.append([f"{scheduler}, {steps} steps", *at_periods(kept)])
    result["steps"] = table(["sampler", *periods], rows)

    rows = []
    for at in ("step", "end"):
        for noise in ("implied", "shared", "independent"):
            for weight in (0.25, 0.5, 1.0):
                clip, added = blend_gain(InversionBlend(weight, noise, at), plan)
                spread = float(added[1:-1].square().mean().sqrt())
                rows.append([at, noise, f"{weight:g}", *at_periods(clip), spread])
    result["blend"] = table(["at", "noise", "weight", *periods, "noise added"], rows)
    return result


def block(name: str) -> re.Pattern:
    """Where a table stands in docs/smoothing.md; group 2 is the table."""
    return re.compile(rf"(<!-- table {name} -->\n\n)(.*?)(\n\n<!-- end -->)", re.DOTALL)


def draw(folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    plan = schedule()
    cycles = torch.arange(FRAMES // 2 + 1) / FRAMES
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), sharey=True, layout="constrained")
    for axis, target in zip(axes, ("clean", "simple", "published"), strict=True):
        axis.plot(cycles, constraint_gain(None, plan).abs(), color="black", label="none")
        for s in (0.05, 0.1, 0.25, 0.5):
            gains = constraint_gain(NoiseConstraint(s, target), plan).abs()
            axis.plot(cycles, gains, label=f"strength {s:g}")
        axis.set(title=f'target="{target}"', xlabel="cycles per frame", yscale="log", ylim=(1e-3, 3e3))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("gain, initial noise to result")
    axes[0].legend(fontsize=8)
    figure.savefig(folder / "gain-constraint.png", dpi=110)

    figure, axes = pyplot.subplots(1, 4, figsize=(14, 3.6), sharey=True, layout="constrained")
    cases = [("step", "implied"), ("step", "shared"), ("end", "implied"), ("end", "shared")]
    for axis, (at, noise) in zip(axes, cases, strict=True):
        for weight in (0.0, 0.25, 0.5, 1.0):
            gains = blend_gain(InversionBlend(weight, noise, at), plan)[0]
            axis.plot(cycles, gains, color="black" if weight == 0 else None, label=f"weight {weight:g}")
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.set(title=f'at="{at}", noise="{noise}"', xlabel="cycles per frame", ylim=(-2.5, 1.2))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("gain, clip to its reconstruction")
    axes[0].legend(fontsize=8)
    figure.savefig(folder / "gain-blend.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="update docs/smoothing.md and docs/images")
    arguments = parser.parse_args()
    computed = tables()
    for name, text in computed.items():
        print(f"{name}\n\n{text}\n")
    if arguments.write:
        page = DOCS / "smoothing.md"
        text = page.read_text()
        for name, rows in computed.items():
            text = block(name).sub(lambda match, rows=rows: match[1] + rows + match[3], text)
        page.write_text(text)
        (DOCS / "images").mkdir(exist_ok=True)
        draw(DOCS / "images")


if __name__ == "__main__":
    main()
