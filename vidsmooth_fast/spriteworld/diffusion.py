"""The diffusion stages: pictures first (2D weights and text encoder), then clips (temporal layers).

v-prediction on Stable Diffusion's schedule: 1000 steps, scaled-linear betas 0.00085 … 0.012,
    x_t = a z + s e,   v = a e - s z,   a² = the cumulative product of 1 - beta,   s² = 1 - a².
Norm statistics are per frame, so that a frame means the same in a window of any length.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..models.unet import VideoUNet
from .autoencoder import load_vae
from .captions import random_caption
from .dataset import clip_latents, object_masks
from .render import Scene
from .runner import Schedule, load_average, train
from .text import build_text_encoder, build_tokenizer, tokens

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
CHANNELS = (48, 96, 128)


def unet_config(channels: tuple[int, ...] = CHANNELS, width: int = 128, groups: int = 16) -> dict:
    return {
        "sample_size": 32, "in_channels": 4, "out_channels": 4, "block_out_channels": channels, "layers_per_block": 1,
        "down_block_types": ["DownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D"],
        "up_block_types": ["CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "UpBlock3D"],
        "cross_attention_dim": width, "attention_head_dim": [max(c // 32, 1) for c in channels],
        "norm_num_groups": groups, "norm_over_frames": False, "attn1_frames": "first-previous",
        "temporal_conv": True,
    }  # fmt: skip


class TextToVideo(nn.Module):
    """Text encoder and UNet, trained together. forward: noisy (B, F, 4, h, w), t (B,), ids (B, L) -> v, same shape."""

    def __init__(self, *, tiny: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        width = 32 if tiny else 128
        self.tokenizer = build_tokenizer(seed=seed)
        self.text_encoder = build_text_encoder(self.tokenizer, width=width, layers=1 if tiny else 2)
        self.unet = VideoUNet.from_config(unet_config((16, 32, 32), width, 8) if tiny else unet_config())

    @classmethod
    def of(cls, model) -> TextToVideo:
        """The networks of a loaded VideoModel, to be called as here."""
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new.tokenizer, new.text_encoder, new.unet = model.tokenizer, model.text_encoder, model.unet
        return new.eval()

    def encode(self, texts: list[str]) -> Tensor:
        return self.text_encoder(tokens(self.tokenizer, texts).to(self.text_encoder.device))[0]

    @staticmethod
    def _attention(device: torch.device):
        """Plain matrices on CPUs, where they train twice as fast as the fused attention."""
        return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()

    def forward(self, x: Tensor, t: Tensor, texts: list[str], *, pictures: bool) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16), self._attention(x.device):
            text = self.encode(texts)
            v = self.unet(x.transpose(1, 2), t, text, skip_temporal=pictures)
        return v.float().transpose(1, 2)


def alphas(device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """a and s of x_t = a z + s e for t = 0 … 999."""
    beta = (
        torch.linspace(
            SCHEDULER["beta_start"] ** 0.5, SCHEDULER["beta_end"] ** 0.5, 1000, dtype=torch.float64
        )
        ** 2
    )
    bar = torch.cumprod(1 - beta, 0)
    return bar.sqrt().float().to(device), (1 - bar).sqrt().float().to(device)


def loss_of(
    model: TextToVideo, data, shapes, pictures: bool, step: int, generator: torch.Generator
) -> Tensor:
    """Squared error of v, four times as heavy where the object is.

    The object fills a tenth of the picture and is what people look at. data: latents, scenes, object masks. shapes:
    (clips, frames) to draw from, each of the same number of frames in all. One caption in ten is empty (for guidance).
    Frames of a clip share t; their noises are independent.
    """
    z_all, scenes, masks = data
    rng = np.random.default_rng([step, 5])
    clips, frames = shapes[int(rng.integers(len(shapes)))]
    pick = rng.integers(len(scenes), size=clips)
    start = rng.integers(z_all.shape[1] - frames + 1, size=clips)
    chosen = torch.from_numpy(pick)[:, None], torch.from_numpy(start)[:, None] + torch.arange(frames)
    z, heavy = z_all[chosen].float(), 1 + 3 * masks[chosen].float()
    texts = ["" if rng.random() < 0.1 else random_caption(scenes[i], rng) for i in pick]
    # Stratified in t: less variance for the same number of pictures.
    u = torch.arange(clips, device=z.device)
    u = (u + torch.rand(clips, generator=generator, device=z.device)) / clips
    t = (u * 1000).long().clamp(max=999)
    a, s = (c[t][:, None, None, None, None] for c in alphas(z.device))
    noise = torch.randn(z.shape, generator=generator, device=z.device)
    v = model(a * z + s * noise, t, texts, pictures=pictures)
    return (heavy[:, :, None] * (v - (a * noise - s * z)).pow(2)).mean()


@torch.inference_mode()
def sample(
    model: TextToVideo, texts: list[str], *, frames: int = 1, steps: int = 25, guidance: float = 4.0, seed: int = 0,
    size: int = 32,
) -> Tensor:  # fmt: skip
    """DDIM with guidance -> scaled latents (n, frames, 4, size, size). For looking at training, not for users."""
    device = next(model.parameters()).device
    a, s = alphas(device)
    times = torch.linspace(999, 0, steps + 1, device=device).round().long()
    x = torch.randn(len(texts), frames, 4, size, size, generator=torch.Generator().manual_seed(seed)).to(
        device
    )
    both = texts + [""] * len(texts)
    for now, after in zip(times[:-1], times[1:], strict=True):
        v, plain = model(torch.cat([x, x]), now.repeat(len(both)), both, pictures=frames == 1).chunk(2)
        v = plain + guidance * (v - plain)
        clean, noise = a[now] * x - s[now] * v, s[now] * x + a[now] * v
        x = a[after] * clean + s[after] * noise
    return clean


def training_set(
    out: Path, scenes: int, frames: int, *, seed: int, size: int, part: int, device: torch.device | str, log
) -> tuple[Tensor, list[Scene], Tensor]:
    """Latents (scenes, frames, 4, h, w) fp16 on the device, the scenes that they show, and object masks."""
    vae = load_vae(out).to(device)
    z, shown = clip_latents(vae, out / "latents", scenes, frames, seed=seed, size=size, part=part, log=log)
    return z, shown, object_masks(scenes, frames, seed=seed, size=size // 4, device=vae.device)


def train_images(
    out: Path, *, steps: int, minutes: float, device: torch.device | str = "cpu", seed: int = 0, batch: int = 16,
    scenes: int = 5000, tiny: bool = False, lr: float = 1.2e-3, log=print,
) -> None:  # fmt: skip
    """Text encoder and 2D weights, from single frames and from pairs of frames (whose keys are another frame's)."""
    scenes, batch, size = (6, 2, 32) if tiny else (scenes, batch, 128)
    data = training_set(out, scenes, 2, seed=seed, size=size, part=100, device=device, log=log)
    model = TextToVideo(tiny=tiny, seed=seed).to(device)
    temporal = [p for n, p in model.named_parameters() if "_temp" in n]
    rest = [p for n, p in model.named_parameters() if "_temp" not in n]
    for p in temporal:
        p.requires_grad_(False)
    schedule = Schedule(steps, lr=lr, warmup=min(150, steps), ema=0.998)
    shapes = ((batch, 1), (batch, 1), (batch // 2, 2))
    train(
        model, partial(loss_of, model, data, shapes, True), schedule, out / "unet.pt", seed=seed, minutes=minutes,
        groups=[{"params": rest, "scale": 1.0}], log=log,
    )  # fmt: skip


def train_clips(
    out: Path, *, steps: int, minutes: float, device: torch.device | str = "cpu", seed: int = 0, batch: int = 16,
    scenes: int = 1500, frames: int = 16, tiny: bool = False, lr: float = 6e-4, log=print,
) -> None:  # fmt: skip
    """Temporal layers at the full rate, everything else at a quarter of it, from clips of 8 and 16 frames.

    One batch in three is of single frames, so that many captions stay in view and one frame alone still works.
    """
    scenes, batch, frames, size = (2, 4, 4, 32) if tiny else (scenes, batch, frames, 128)
    if batch % frames:
        raise ValueError(f"batch: expected a multiple of the {frames} frames of a clip, got {batch}")
    data = training_set(out, scenes, frames, seed=seed + 1, size=size, part=20, device=device, log=log)
    model = TextToVideo(tiny=tiny, seed=seed).to(device)
    load_average(model, out / "unet.pt")
    temporal = [p for n, p in model.named_parameters() if "_temp" in n]
    rest = [p for n, p in model.named_parameters() if "_temp" not in n]
    schedule = Schedule(steps, lr=lr, warmup=min(50, steps), ema=0.995)
    shapes = tuple((batch // length, length) for length in (frames, frames // 2, 1))
    train(
        model, partial(loss_of, model, data, shapes, False), schedule, out / "temporal.pt", seed=seed + 1,
        minutes=minutes, groups=[{"params": temporal, "scale": 1.0}, {"params": rest, "scale": 0.25}], log=log,
    )  # fmt: skip


def trained(out: Path, *, tiny: bool = False) -> TextToVideo:
    """The furthest trained model in `out` (clips if there, else pictures), with its moving average."""
    model = TextToVideo(tiny=tiny)
    checkpoint = out / "temporal.pt"
    load_average(model, checkpoint if checkpoint.exists() else out / "unet.pt")
    return model.eval()
