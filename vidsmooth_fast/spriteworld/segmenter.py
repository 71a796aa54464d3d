"""Where the object is in a picture of the world: a small network trained on renders, whose masks are exact."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .autoencoder import to_tensor
from .render import random_scene, render_frame


class Segmenter(nn.Module):
    """Pictures (N, 3, H, W) in -1..1, sides divisible by 8 -> scores (N, H, W), positive inside the object."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 4 * width]
        self.down = nn.ModuleList(
            _convolutions(c_in, c) for c_in, c in zip([3, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(
            _convolutions(widths[i + 1] + widths[i], widths[i]) for i in reversed(range(3))
        )
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.avg_pool2d(x, 2))
            skips.append(x)
        x = skips.pop()
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2), skips.pop()], 1))
        return self.out(x)[:, 0]


def _convolutions(c_in: int, c: int) -> nn.Sequential:
    layers = []
    for before in (c_in, c):
        layers += [nn.Conv2d(before, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU()]
    return nn.Sequential(*layers)


def masked_renders(count: int, seed: int, *, held_out: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Random frames (count, 128, 128, 3) uint8 and the object in each (count, 128, 128) bool."""
    rng = np.random.default_rng([seed, 11])
    frames, masks = [], []
    for _ in range(count):
        scene = random_scene(rng, held_out=held_out)
        canvas = render_frame(scene, float(rng.uniform(0, 400)), truth=True)
        frames.append(canvas.picture())
        masks.append(canvas.mask())
    return np.stack(frames), np.stack(masks)


def train_segmenter(
    *, steps: int = 300, batch: int = 16, count: int = 1200, seed: int = 0, log=print
) -> Segmenter:
    """Adam on renders, half of them blurred and all with noise, so that soft samples are read too."""
    torch.manual_seed(seed)
    frames, masks = masked_renders(count, seed)
    model = Segmenter().to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    rng = np.random.default_rng([seed, 12])
    for step in range(steps):
        pick = rng.integers(len(frames), size=batch)
        x, target = to_tensor(frames[pick]), torch.from_numpy(masks[pick]).float()
        if rng.random() < 0.5:
            x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
        x = (x + 0.05 * torch.randn_like(x)).contiguous(memory_format=torch.channels_last)
        loss = F.binary_cross_entropy_with_logits(model(x), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for g in optimiser.param_groups:
            g["lr"] = 3e-3 * (1 - (step + 1) / steps)
        if (step + 1) % 100 == 0:
            log(f"segmenter: step {step + 1}/{steps} loss {loss.item():.3f}")
    return model.eval()


@torch.inference_mode()
def find_object(model: Segmenter, frames: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 -> (N, H, W) bool."""
    parts = [model(to_tensor(frames[i : i + 32])) > 0 for i in range(0, len(frames), 32)]
    return torch.cat(parts).numpy()


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of masks (..., H, W), 0 where both are empty."""
    both, either = (a & b).sum((-2, -1)), (a | b).sum((-2, -1))
    return both / np.maximum(either, 1)
