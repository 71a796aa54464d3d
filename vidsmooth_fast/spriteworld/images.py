"""Pictures to train the autoencoder on: frames of the world, and synthetic pictures with natural statistics.

No photograph is used. Dead leaves (occluding shapes with sizes drawn from a power law) have the edges and scales of
natural pictures; textures of 1/f noise, gradients and strokes fill them.
"""

from __future__ import annotations

import cv2
import numpy as np

from .render import random_scene, render_frame


def world_frames(count: int, seed: int, *, size: int = 128, held_out: bool = False) -> np.ndarray:
    """(count, size, size, 3) uint8: random frames of random scenes."""
    rng = np.random.default_rng([seed, 1])
    out = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        scene = random_scene(rng, held_out=held_out)
        out[i] = render_frame(scene, float(rng.uniform(0, 400)), size).picture()
    return out


def noise_texture(rng: np.random.Generator, size: int, slope: float) -> np.ndarray:
    """(size, size) float32 of zero mean and unit deviation, amplitude spectrum 1 / f**slope."""
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    f[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / f**slope
    spectrum[0, 0] = 0
    out = np.fft.irfft2(spectrum, s=(size, size)).astype(np.float32)
    return out / (out.std() + 1e-6)


def dead_leaves(rng: np.random.Generator, size: int = 192) -> np.ndarray:
    """(size, size, 3) uint8."""
    textures = [noise_texture(rng, size, rng.uniform(0.5, 1.8)) for _ in range(3)]
    base = rng.uniform(0, 255, 3)
    spread = rng.uniform(10, 90)
    image = np.clip(base + 25 * textures[0][..., None], 0, 255).astype(np.float32)
    for _ in range(int(rng.integers(30, 220))):
        r = min(4.0 / rng.uniform(0.03, 1) ** 0.9, size / 2)
        x, y = rng.uniform(-10, size + 10, 2)
        n = int(rng.choice([3, 4, 5, 24]))
        a = np.sort(rng.uniform(0, 2 * np.pi, n)) if n < 24 else np.linspace(0, 2 * np.pi, n, endpoint=False)
        stretch = rng.uniform(0.2, 1)
        turn = rng.uniform(0, np.pi)
        p = np.stack([np.cos(a), stretch * np.sin(a)], 1) * r
        p = p @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + (x, y)
        low = np.maximum(np.floor(p.min(0)).astype(int) - 1, 0)
        high = np.minimum(np.ceil(p.max(0)).astype(int) + 2, size)
        if (high <= low).any():
            continue
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        cv2.fillPoly(mask, np.round((p - low) * 16).astype(np.int32)[None], 255, cv2.LINE_AA, 4)
        view = image[low[1] : high[1], low[0] : high[0]]
        fill = np.clip(base + spread * rng.standard_normal(3), 0, 255).astype(np.float32)
        kind = rng.random()
        if kind < 0.5:
            part = textures[int(rng.integers(3))][low[1] : high[1], low[0] : high[0]]
            fill = fill + rng.uniform(4, 40) * part[..., None]
        elif kind < 0.8:
            u = np.linspace(-1, 1, mask.shape[1])[None, :, None] * rng.uniform(-50, 50)
            v = np.linspace(-1, 1, mask.shape[0])[:, None, None] * rng.uniform(-50, 50)
            fill = fill + u + v
        cover = mask[..., None] / np.float32(255)
        view[:] = view * (1 - cover) + cover * fill
    for _ in range(int(rng.integers(0, 12))):
        a, b = rng.integers(0, size, (2, 2)).tolist()
        cv2.line(image, a, b, rng.uniform(0, 255, 3).tolist(), int(rng.integers(1, 3)), cv2.LINE_AA)
    image = np.clip(image, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        for _ in range(int(rng.integers(1, 5))):
            text = "".join(chr(int(c)) for c in rng.integers(48, 122, 6))
            where = (int(rng.integers(0, size // 2)), int(rng.integers(20, size)))
            cv2.putText(
                image, text, where, 0, rng.uniform(0.3, 1.2), rng.uniform(0, 255, 3).tolist(), 1, cv2.LINE_AA
            )
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.5))
    if rng.random() < 0.3:
        image = (image.mean(-1, keepdims=True) * 0.8 + image * 0.2).astype(np.uint8)
    return image


def synthetic(count: int, seed: int, *, size: int = 192) -> np.ndarray:
    """(count, size, size, 3) uint8 dead leaves."""
    rng = np.random.default_rng([seed, 2])
    return np.stack([dead_leaves(rng, size) for _ in range(count)])


def crops(pool: np.ndarray, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """(count, size, size, 3) uint8: random windows of random pictures of the pool, mirrored half the time."""
    out = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        picture = pool[rng.integers(len(pool))]
        y, x = (int(rng.integers(0, picture.shape[k] - size + 1)) for k in (0, 1))
        cut = picture[y : y + size, x : x + size]
        out[i] = cut[:, ::-1] if rng.random() < 0.5 else cut
    return out
