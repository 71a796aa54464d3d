"""The autoencoder stages: diffusers' AutoencoderKL, downsampling 4, four channels, no attention (any picture size)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .images import crops, synthetic, world_frames
from .runner import Schedule, load_average, rank_and_workers, train

CHANNELS = (16, 32, 64)


def build(channels: tuple[int, ...] = CHANNELS) -> AutoencoderKL:
    n = len(channels)
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=channels, layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * n, up_block_types=["UpDecoderBlock2D"] * n,
        norm_num_groups=8, sample_size=128, mid_block_add_attention=False,
    ).to(memory_format=torch.channels_last)  # fmt: skip


def to_tensor(frames: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) fp32 in -1..1, channels_last."""
    return torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_frames(x: Tensor) -> np.ndarray:
    """The inverse of `to_tensor`, rounded and clipped."""
    return ((x.float() + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def mixed_crops(
    pools, batch: int, leaves: int, size: int, rng: np.random.Generator, device: torch.device
) -> Tensor:
    """(batch, 3, size, size) in -1..1: crops of the first pool, `leaves` of them of the second."""
    world, other = crops(pools[0], batch - leaves, size, rng), crops(pools[1], leaves, size, rng)
    return to_tensor(np.concatenate([world, other]), device)


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def loss_of(
    vae: AutoencoderKL, pools, batch: int, size: int, step: int, generator: torch.Generator
) -> Tensor:
    """L1 + 2 MSE + L1 of the horizontal and vertical differences (sharpness) + a little KL.

    Two thirds of the batch are crops of world frames, one third of dead leaves.
    """
    rng = np.random.default_rng([step, 3])
    leaves = batch // 3
    x = mixed_crops(pools, batch, leaves, size, rng, vae.device)
    with torch.autocast(x.device.type, torch.bfloat16):
        posterior = vae.encode(x).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        z = mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=generator, device=x.device)
        y = vae.decode(z).sample
    y = y.float()
    sharp = sum((a - b).abs().mean() for a, b in zip(edges(y), edges(x), strict=True))
    kl = 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).mean()
    return (y - x).abs().mean() + 2 * (y - x).pow(2).mean() + 0.5 * sharp + 3e-4 * kl


def decoder_loss(
    vae: AutoencoderKL, pools, batch: int, size: int, step: int, generator: torch.Generator
) -> Tensor:
    """The same without KL, on fixed latents that carry a little noise, as sampled latents do. Three quarters world."""
    rng = np.random.default_rng([step, 6])
    leaves = batch // 4
    x = mixed_crops(pools, batch, leaves, size, rng, vae.device)
    with torch.autocast(x.device.type, torch.bfloat16):
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mean.float()
        y = vae.decode(z + 0.03 * torch.randn(z.shape, generator=generator, device=x.device)).sample.float()
    sharp = sum((a - b).abs().mean() for a, b in zip(edges(y), edges(x), strict=True))
    return (y - x).abs().mean() + 4 * (y - x).pow(2).mean() + 0.5 * sharp


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB; uint8 (N, H, W, 3)."""
    error = ((a.astype(np.float32) - b.astype(np.float32)) ** 2).mean((1, 2, 3))
    return float((10 * np.log10(255.0**2 / np.maximum(error, 1e-3))).mean())


@torch.inference_mode()
def reconstruct(vae: AutoencoderKL, frames: np.ndarray, chunk: int = 16) -> np.ndarray:
    out = []
    for part in np.array_split(frames, max(1, len(frames) // chunk)):
        out.append(to_frames(vae.decode(vae.encode(to_tensor(part, vae.device)).latent_dist.mean).sample))
    return np.concatenate(out)


@torch.inference_mode()
def latents(vae: AutoencoderKL, frames: np.ndarray, chunk: int = 32) -> Tensor:
    """(N, 4, h, w) fp32 posterior means, unscaled, computed in bf16, where the autoencoder is."""
    out = []
    for i in range(0, len(frames), chunk):
        with torch.autocast(vae.device.type, torch.bfloat16):
            out.append(vae.encode(to_tensor(frames[i : i + chunk], vae.device)).latent_dist.mean.float())
    return torch.cat(out)


def train_autoencoder(
    out: Path, *, steps: int, minutes: float, device: torch.device | str = "cpu", seed: int = 0, batch: int = 8,
    size: int = 64, pool: int = 2400, tiny: bool = False, log=print,
) -> None:  # fmt: skip
    """Train or continue in `out`, `batch` pictures a step and process; at the end of every run write `out/vae`."""
    torch.manual_seed(seed)
    if tiny:
        batch, size, pool = 3, 16, 4
    vae = build((8, 8, 8) if tiny else CHANNELS).to(device)
    pools = world_frames(pool, seed), synthetic(max(pool // 8, 2), seed)
    schedule = Schedule(steps, lr=2e-3, warmup=min(100, steps), ema=0.997)
    checkpoint = out / "vae.pt"
    done = train(
        vae,
        partial(loss_of, vae, pools, batch, size),
        schedule,
        checkpoint,
        seed=seed,
        minutes=minutes,
        log=log,
    )
    if rank_and_workers()[0] == 0:
        _finish(vae, out, pools[0], done, seed, log)


def load_vae(out: Path) -> AutoencoderKL:
    """The autoencoder that the vae stage wrote, with the newest decoder: sharpened, polished, or its own."""
    if not (out / "vae" / "config.json").exists():
        raise ValueError(
            f"out: expected a trained autoencoder in {out / 'vae'}, found none; run the vae stage first"
        )
    vae = AutoencoderKL.from_pretrained(out / "vae", local_files_only=True, low_cpu_mem_usage=False)
    if (out / "sharpen.pt").exists():
        load_average(vae, out / "sharpen.pt", part="vae.")
    elif (out / "decoder.pt").exists():
        load_average(vae, out / "decoder.pt")
    return vae.eval().to(memory_format=torch.channels_last)


def train_decoder(
    out: Path, *, steps: int, minutes: float, device: torch.device | str = "cpu", seed: int = 0, batch: int = 8,
    size: int = 64, pool: int = 2400, tiny: bool = False, log=print,
) -> None:  # fmt: skip
    """Go on with the decoder alone: latents, and so every network trained on them, stay what they are."""
    if tiny:
        batch, size, pool = 4, 16, 4
    vae = load_vae(out).to(device)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    pools = world_frames(pool, seed + 2), synthetic(max(pool // 8, 2), seed + 2)
    schedule = Schedule(steps, lr=1e-3, warmup=min(50, steps), ema=0.997)
    done = train(vae, partial(decoder_loss, vae, pools, batch, size), schedule, out / "decoder.pt", seed=seed + 2,
                 minutes=minutes, log=log)  # fmt: skip
    if rank_and_workers()[0] == 0:
        held_out = world_frames(64, seed + 1, held_out=True)
        restored = reconstruct(load_vae(out).to(device), held_out)
        log(f"decoder at step {done}: held-out world {psnr(held_out, restored):.2f} dB")


def _finish(vae: AutoencoderKL, out: Path, pool: np.ndarray, done: int, seed: int, log) -> None:
    """Write `out/vae` from the moving average, with its scaling factor, and say how good it is."""
    load_average(vae, out / "vae.pt")
    vae.eval()
    _normalise(vae, latents(vae, pool[:256]))
    vae.save_pretrained(out / "vae")
    held_out = world_frames(64, seed + 1, held_out=True)
    log(f"autoencoder at step {done}: held-out world {psnr(held_out, reconstruct(vae, held_out)):.2f} dB, "
        f"every latent channel now of mean 0 and deviation 1")  # fmt: skip


@torch.no_grad()
def _normalise(vae: AutoencoderKL, z: Tensor) -> None:
    """Fold the mean and deviation of each channel of z (N, 4, h, w) into the 1x1 convolutions around the latents.

    Reconstructions stay the same; the latents get mean 0 and deviation 1, so that the scaling factor is 1.
    """
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    n = len(mean)
    before, after = vae.quant_conv, vae.post_quant_conv
    before.bias[:n].sub_(mean).div_(std)
    before.weight[:n].div_(std[:, None, None, None])
    before.bias[n:].sub_(2 * std.log())  # the log-variances
    after.bias.add_(torch.einsum("oihw,i->o", after.weight, mean))
    after.weight.mul_(std[None, :, None, None])
    vae.register_to_config(scaling_factor=1.0)
