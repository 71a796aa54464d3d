"""A classifier of the world's words, trained on renders alone: an independent eye for what a sample shows."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .autoencoder import to_tensor
from .backgrounds import BACKGROUNDS
from .objects import OBJECTS
from .render import COLOURS, STYLES, Scene, random_scene, render_frame

WORDS = {
    "object": list(OBJECTS),
    "colour": list(COLOURS),
    "background": list(BACKGROUNDS),
    "style": list(STYLES),
}


def labels(scene: Scene) -> list[int]:
    return [names.index(getattr(scene, word)) for word, names in WORDS.items()]


class Classifier(nn.Module):
    """Pictures (N, 3, H, W) in -1..1 -> one row of scores per word."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        layers, c = [nn.Conv2d(3, width, 4, stride=2, padding=1)], width
        for _ in range(4):
            d = min(2 * c, 128)
            layers += [nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, d, 4, stride=2, padding=1)]
            c = d
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(c), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(c * 16, len(names)) for names in WORDS.values())

    def features(self, x: Tensor) -> Tensor:
        """(N, 16 * C): the last feature map, pooled to 4 x 4."""
        return F.adaptive_avg_pool2d(self.body(x), 4).flatten(1)

    def forward(self, x: Tensor) -> list[Tensor]:
        f = self.features(x)
        return [head(f) for head in self.heads]


def renders(count: int, seed: int, *, held_out: bool = False) -> tuple[np.ndarray, Tensor]:
    """Random frames (count, 128, 128, 3) uint8 and their labels (count, 4)."""
    rng = np.random.default_rng([seed, 7])
    frames, found = [], []
    for _ in range(count):
        scene = random_scene(rng, held_out=held_out)
        frames.append(render_frame(scene, float(rng.uniform(0, 400))).picture())
        found.append(labels(scene))
    return np.stack(frames), torch.tensor(found)


def train_classifier(
    *, steps: int = 500, batch: int = 48, count: int = 3000, seed: int = 0, log=print
) -> Classifier:
    """Adam, with blur, noise and small shifts of colour so that it looks at shapes and not at sharpness."""
    torch.manual_seed(seed)
    frames, found = renders(count, seed)
    model = Classifier()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    rng = np.random.default_rng([seed, 8])
    for step in range(steps):
        pick = rng.integers(len(frames), size=batch)
        x = to_tensor(frames[pick])
        if rng.random() < 0.5:
            x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
        x = x * float(rng.uniform(0.9, 1.1)) + float(rng.uniform(-0.1, 0.1)) + 0.05 * torch.randn_like(x)
        loss = sum(F.cross_entropy(s, found[pick, i]) for i, s in enumerate(model(x)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for g in optimiser.param_groups:
            g["lr"] = 2e-3 * (1 - (step + 1) / steps)
        if (step + 1) % 100 == 0:
            log(f"classifier: step {step + 1}/{steps} loss {loss.item():.3f}")
    return model.eval()


@torch.inference_mode()
def predict(model: Classifier, frames: np.ndarray) -> Tensor:
    """(N, 4) predicted labels."""
    out = []
    for i in range(0, len(frames), 64):
        out.append(torch.stack([s.argmax(1) for s in model(to_tensor(frames[i : i + 64]))], 1))
    return torch.cat(out)


def accuracy(model: Classifier, frames: np.ndarray, found: Tensor) -> dict[str, float]:
    """Share of frames whose object, colour, background and style are what `found` says."""
    right = (predict(model, frames) == found).float().mean(0)
    return dict(zip(WORDS, right.tolist(), strict=True))
