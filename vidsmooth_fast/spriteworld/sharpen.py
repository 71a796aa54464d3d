"""The last stage: the decoder learns to draw sharply what the diffusion model makes, against a critic.

Squared and absolute errors reward a blurred edge where the edge's place is uncertain, and in sampled latents it is.
Here the decoder also sees latents as the model samples them (a world frame, noised and denoised again, so that the
picture it stands for is known) and is judged there by averages over 4 x 4 pixels and by a patch critic (hinge loss)
that tells its pictures from renders. On latents of the encoder it goes on as in the decoder stage, so reconstructions
stay true.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .autoencoder import decoder_loss, latents, load_vae, to_tensor
from .captions import caption
from .diffusion import TextToVideo, alphas, trained
from .images import synthetic, world_frames
from .render import random_scene, render_frame
from .runner import Schedule, rank_and_workers, train

DOWN = 4  # pixels of a latent's side
CONTEXT = 2  # latents around a crop that the decoder sees and the loss does not
START = 450  # timestep from which near samples are denoised: late enough to keep what the frame shows
STEPS = 6
CRITIC = 0.7  # at 1, reconstructions lose 0.7 dB; their high frequencies are the renders' at 1 already


class Critic(nn.Module):
    """Pictures (N, 3, H, W) in -1..1 -> one score per 8 x 8 pixels, high for what looks rendered."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers, c_in = [], 3
        for c_out in (width, 2 * width, 3 * width):
            layers += [nn.Conv2d(c_in, c_out, 4, 2, 1), nn.GroupNorm(4, c_out), nn.LeakyReLU(0.2)]
            c_in = c_out
        self.layers = nn.Sequential(*layers, nn.Conv2d(c_in, 1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Sharpening(nn.Module):
    """What this stage trains and keeps: the autoencoder's decoder, and its critic."""

    def __init__(self, vae, width: int = 32) -> None:
        super().__init__()
        self.vae, self.critic = vae, Critic(width)
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)


@torch.inference_mode()
def near_samples(
    model: TextToVideo, vae, count: int, *, seed: int, size: int = 128, batch: int = 16
) -> tuple[np.ndarray, Tensor]:
    """World frames (count, size, size, 3) uint8, and latents (count, 4, h, w) fp16 as the model would sample them.

    Each frame's latents are noised to timestep START and denoised in STEPS steps of DDIM with the frame's caption.
    """
    rng = np.random.default_rng([seed, 11])
    scenes = [random_scene(rng) for _ in range(count)]
    moments = rng.uniform(0, 400, count)
    frames = np.stack([render_frame(s, t, size).picture() for s, t in zip(scenes, moments, strict=True)])
    device = vae.device
    generator, (a, s) = torch.Generator(device).manual_seed(seed), alphas(device)
    times, near = torch.linspace(START, 0, STEPS + 1, device=device).round().long(), []
    for i in range(0, count, batch):
        z = latents(vae, frames[i : i + batch]) * vae.config.scaling_factor
        texts = [caption(scene) for scene in scenes[i : i + batch]]
        x = a[START] * z + s[START] * torch.randn(z.shape, generator=generator, device=device)
        for now, after in zip(times[:-1], times[1:], strict=True):
            v = model(x[:, None], now.repeat(len(x)), texts, pictures=True)[:, 0]
            clean, noise = a[now] * x - s[now] * v, s[now] * x + a[now] * v
            x = a[after] * clean + s[after] * noise
        near.append((clean / vae.config.scaling_factor).half())
    return frames, torch.cat(near)


def near_crops(near, count: int, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Random crops: pictures (count, 3, size, size) in -1..1, and their latents with CONTEXT more on every side."""
    frames, z = near
    side, wide = size // DOWN, size // DOWN + 2 * CONTEXT
    pictures, parts = [], []
    for i in rng.integers(len(frames), size=count):
        y, x = (int(rng.integers(0, z.shape[-1] - wide + 1)) for _ in range(2))
        parts.append(z[i, :, y : y + wide, x : x + wide])
        top, left = (DOWN * (at + CONTEXT) for at in (y, x))
        pictures.append(frames[i, top : top + DOWN * side, left : left + DOWN * side])
    return to_tensor(np.stack(pictures), z.device), torch.stack(parts).float()


def loss_of(
    both: Sharpening, pools, near, batch: int, size: int, step: int, generator: torch.Generator
) -> Tensor:
    """The decoder stage's loss on clean latents, and on near samples averages, critic and the critic's own loss.

    The decoder's gradient from the critic is scaled to CRITIC times that from the averages, at the picture.
    """
    rng = np.random.default_rng([step, 12])
    x, z = near_crops(near, batch, size, rng)
    z = z + 0.03 * torch.randn(z.shape, generator=generator, device=z.device)
    edge = DOWN * CONTEXT
    with torch.autocast(z.device.type, torch.bfloat16):
        y = both.vae.decode(z).sample.float()[..., edge:-edge, edge:-edge]
        both.critic.requires_grad_(False)
        fooled = -both.critic(y).float().mean()
        both.critic.requires_grad_(True)
        real, drawn = both.critic(x).float(), both.critic(y.detach()).float()
    true = (F.avg_pool2d(y, DOWN) - F.avg_pool2d(x, DOWN)).abs().mean() + 0.2 * (y - x).abs().mean()
    pull, push = (torch.autograd.grad(loss, y, retain_graph=True)[0].norm() for loss in (true, fooled))
    critic = F.relu(1 - real).mean() + F.relu(1 + drawn).mean()
    clean = decoder_loss(both.vae, pools, batch, size, step, generator)
    return 2 * clean + true + CRITIC * pull / (push + 1e-8) * fooled + critic


def train_sharp(
    out: Path, *, steps: int, minutes: float, device: torch.device | str = "cpu", seed: int = 0, batch: int = 6,
    size: int = 64, pool: int = 1200, tiny: bool = False, log=print,
) -> None:  # fmt: skip
    """Go on with the decoder of `out`, for the diffusion model of `out`; latents stay what they are."""
    if tiny:
        batch, size, pool = 4, 16, 4
    both = Sharpening(load_vae(out).to(device), 4 if tiny else 32).to(device)
    pools = world_frames(pool, seed + 3), synthetic(max(pool // 8, 2), seed + 3)
    rank, _ = rank_and_workers()
    near = near_samples(
        trained(out, tiny=tiny).to(device), both.vae, pool, seed=seed + 4 + rank, size=32 if tiny else 128
    )
    schedule = Schedule(steps, lr=5e-4, warmup=min(50, steps), ema=0.997)
    decoder = [p for p in both.vae.parameters() if p.requires_grad]
    train(
        both, partial(loss_of, both, pools, near, batch, size), schedule, out / "sharpen.pt", seed=seed + 4,
        minutes=minutes, log=log,
        groups=[{"params": decoder, "scale": 1.0}, {"params": list(both.critic.parameters()), "scale": 1.0}],
    )  # fmt: skip
