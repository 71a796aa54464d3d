"""How good single pictures sampled from text are: what a classifier finds in them, and whether they look rendered."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from .autoencoder import to_frames, to_tensor
from .captions import caption
from .classifier import Classifier, accuracy, labels
from .diffusion import TextToVideo, sample
from .objects import OBJECTS
from .render import Scene, object_mask, random_scene, render_frame
from .segmenter import Segmenter, find_object, overlap

POSES = 300  # rendered silhouettes of each object that samples are compared with
POSE_SIZE = 64


@torch.inference_mode()
def sampled(
    model, prompts: list[str], *, steps: int, guidance: float, seed: int, batch: int = 20
) -> np.ndarray:
    """One 128 x 128 frame for every prompt."""
    network, out = TextToVideo.of(model), []
    for i in range(0, len(prompts), batch):
        z = sample(network, prompts[i : i + batch], steps=steps, guidance=guidance, seed=seed + i)
        out.append(to_frames(model.vae.decode(z[:, 0] / model.vae.config.scaling_factor).sample))
    return np.concatenate(out)


def high_frequency_energy(frames: np.ndarray) -> float:
    """Mean square of what a 5x5 binomial blur takes away from grey levels 0..255."""
    grey = frames.astype(np.float32).mean(-1)
    return float(np.mean([(g - cv2.GaussianBlur(g, (5, 5), 1.0)) ** 2 for g in grey]))


@torch.inference_mode()
def features(classifier: Classifier, frames: np.ndarray) -> Tensor:
    return torch.cat([classifier.features(to_tensor(frames[i : i + 64])) for i in range(0, len(frames), 64)])


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy of two sets of features (n, D), with (x·y / D + 1)³ as in KID, biased.

    Biased, so that the distance between two draws of one distribution is its sampling error and not near zero.
    """

    def mean(x: Tensor, y: Tensor) -> float:
        return float(((x.double() @ y.double().T / x.shape[1] + 1) ** 3).mean())

    return mean(a, a) + mean(b, b) - 2 * mean(a, b)


def _centred(mask: np.ndarray) -> np.ndarray:
    y, x = (round(c.mean()) if len(c) else mask.shape[0] // 2 for c in np.nonzero(mask))
    return np.roll(mask, (mask.shape[0] // 2 - y, mask.shape[1] // 2 - x), (0, 1))


def silhouette_overlap(masks: np.ndarray, scenes: list[Scene], rng: np.random.Generator) -> float:
    """Mean overlap of each mask (N, 128, 128) with the nearest of `POSES` renders of the scene's object, centred."""
    poses = {}
    for word in OBJECTS:
        scene = [random_scene(rng, held_out=True).edit(object=word) for _ in range(POSES)]
        drawn = [object_mask(s, float(rng.uniform(0, 400)), POSE_SIZE) for s in scene]
        poses[word] = np.stack([_centred(m) for m in drawn])
    best = []
    for mask, scene in zip(masks, scenes, strict=True):
        small = cv2.resize(mask.astype(np.float32), (POSE_SIZE, POSE_SIZE), interpolation=cv2.INTER_AREA)
        best.append(overlap(poses[scene.object], _centred(small > 0.5)[None]).max())
    return float(np.mean(best))


def judge_pictures(
    model,
    classifier: Classifier,
    segmenter: Segmenter,
    *,
    prompts: int,
    steps: int,
    guidance: float,
    seed: int,
) -> dict[str, float]:
    """Sample one picture for each of `prompts` held-out scenes. Shares and ratios, by name."""
    rng = np.random.default_rng([seed, 9])
    scenes = [random_scene(rng, held_out=True) for _ in range(prompts)]
    moments = rng.uniform(0, 400, size=(2, prompts))
    # Renders of the same scenes at two moments: what samples could at best look like, and how alike renders are.
    drawn = [
        np.stack([render_frame(s, t).picture() for s, t in zip(scenes, at, strict=True)]) for at in moments
    ]
    frames = sampled(model, [caption(s) for s in scenes], steps=steps, guidance=guidance, seed=seed)

    kinds = [features(classifier, some) for some in (*drawn, frames)]
    mean, spread = kinds[0].mean(0), kinds[0].std(0)
    spread = spread.clamp(min=0.1 * float(spread.mean()))  # features that hardly vary say little
    first, second, ours = ((kind - mean) / spread for kind in kinds)
    found = accuracy(classifier, frames, torch.tensor([labels(s) for s in scenes]))
    return {
        **{f"pictures_{word}": round(share, 3) for word, share in found.items()},
        "pictures_kernel_distance_ratio": round(
            kernel_distance(ours, first) / kernel_distance(second, first), 2
        ),
        "pictures_high_frequency_ratio": round(
            high_frequency_energy(frames) / high_frequency_energy(drawn[0]), 3
        ),
        "pictures_silhouette_iou": round(silhouette_overlap(find_object(segmenter, frames), scenes, rng), 3),
        "renders_silhouette_iou": round(silhouette_overlap(find_object(segmenter, drawn[0]), scenes, rng), 3),
    }
