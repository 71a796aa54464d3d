"""Which pixels of a clip are its foreground: Segment Anything, or GrabCut seeded by motion."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

SURE = 0.12
"""Greatest share of the frame that is taken for the object at first, by strength of motion."""
ROUNDS = 3
"""Iterations of GrabCut per frame."""
DRIFT = 0.6
"""A frame's mask must overlap the one before it, moved with the picture, by this much (IoU) to replace it."""


def foreground_masks(
    video: Iterable[np.ndarray],
    *,
    checkpoint: str | os.PathLike | None = None,
    predictor=None,
    point: tuple[float, float] | None = None,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """The foreground of every frame, (F, H, W) bool; the background is its complement.

    video: (H, W, 3) uint8 frames. checkpoint: a file of Segment Anything's weights (extra `sam`), or predictor: its
    `SamPredictor`; without either, GrabCut (OpenCV), seeded by what moves against the background.
    point: (x, y) on the object in the first frame, box: (left, top, right, bottom) around it, in pixels; without
    either, the largest moving object. Later frames are prompted by the mask before them, moved with the picture.

    Raises: ValueError, one line: no frames, a prompt outside the frame, or no foreground (or nothing else) to be found.
    Source: [000] eq. 9.
    """
    frames = [np.asarray(f) for f in video]
    if not frames:
        raise ValueError("video: expected at least one frame, got none")
    check_prompts(point, box, frames[0].shape[:2])
    if predictor is None and checkpoint is not None:
        from vidsmooth_fast.conditioning.segment_anything import load_predictor

        predictor = load_predictor(checkpoint)
    flows = [_flow(a, b) for a, b in zip(frames, frames[1:], strict=False)]
    seed = _seed(frames[0], flows, point, box)
    masks, before = [], None
    for number, frame in enumerate(frames):
        if before is not None:
            seed = _moved(before, flows[number - 1])
        if predictor is None:
            mask = _grabcut(frame, seed, box if number == 0 else None)
        else:
            mask = _sam(predictor, frame, seed, point if number == 0 else None, box if number == 0 else None)
        if number and _overlap(mask, seed) < DRIFT:
            mask = seed  # lost, or leaked into the background: carry the last one on
        masks.append(mask)
        before = mask
    result = np.stack(masks)
    share = float(result.mean())
    if share in (0.0, 1.0):
        what = "nothing" if share == 0 else "everything"
        raise ValueError(f"video: {what} was found to be foreground; give a point or a box on the object")
    return result


def check_prompts(
    point: tuple[float, float] | None,
    box: tuple[float, float, float, float] | None,
    size: tuple[int, int],
) -> None:
    """Raises: ValueError for a point or a box outside frames of this size (height, width), or a box turned over."""
    height, width = size
    for name, value, limits in (
        ("point", point, (width, height)),
        ("box", box, (width, height, width, height)),
    ):
        inside = value is None or (
            len(value) == len(limits) and all(0 <= v <= m for v, m in zip(value, limits, strict=True))
        )
        if not inside:
            raise ValueError(f"{name}: expected coordinates inside {width}x{height}, got {value!r}")
    if box is not None and (box[0] >= box[2] or box[1] >= box[3]):
        raise ValueError(f"box: expected (left, top, right, bottom), got {box!r}")


def _grey(frame: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def _flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where the pixels of a go in b: (H, W, 2) in pixels."""
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(_grey(a), _grey(b), None)


def _moved(mask: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """A mask of one frame, in the next: every pixel looks where it came from, by the flow at its own place."""
    height, width = mask.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    moved = cv2.remap(mask.astype(np.uint8), x - flow[..., 0], y - flow[..., 1], cv2.INTER_NEAREST)
    return moved.astype(bool)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask, its holes filled."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2:
        return mask
    part = (labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())).astype(np.uint8)
    outlines, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(part, outlines, -1, 1, cv2.FILLED).astype(bool)


def _motion(flows: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """How much each pixel moves against the background beside it, mean over a few frames: (H, W), pixels a frame.

    The background of a row is what its two margins show: near ground moves faster past a camera than far hills.
    """
    height, width = shape
    total, margin = np.zeros(shape, np.float32), max(width // 10, 1)
    for flow in flows[:8]:
        sides = np.concatenate([flow[:, :margin], flow[:, -margin:]], axis=1)
        behind = cv2.blur(np.median(sides, axis=1, keepdims=True), (1, max(height // 16, 1)))
        total += np.linalg.norm(flow - behind.reshape(height, 1, 2), axis=-1)
    return cv2.GaussianBlur(total, (0, 0), max(shape) / 64) / max(len(flows[:8]), 1)


def _seed(frame: np.ndarray, flows: Sequence[np.ndarray], point, box) -> np.ndarray:
    """A first guess at the object, (H, W) bool: the box, a disc at the point, or what moves most."""
    height, width = frame.shape[:2]
    if box is not None:
        seed = np.zeros((height, width), bool)
        left, top, right, bottom = (round(v) for v in box)
        seed[top:bottom, left:right] = True
        return seed
    if point is not None:
        disc = np.zeros((height, width), np.uint8)
        cv2.circle(disc, (round(point[0]), round(point[1])), max(height, width) // 8, 1, cv2.FILLED)
        return disc.astype(bool)
    motion = _motion(flows, (height, width))
    if float(motion.max()) < 0.25:  # nothing moves: the middle is the likeliest place
        return _seed(frame, flows, None, (width / 4, height / 4, 3 * width / 4, 3 * height / 4))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    likely = motion * np.exp(-(x**2 + y**2))  # people film what they mean in the middle
    level = max(float(np.quantile(likely, 1 - SURE)), float(likely.max()) / 5)
    return _largest(likely >= level)


def _grabcut(frame: np.ndarray, seed: np.ndarray, box) -> np.ndarray:
    """The seed's object: probably foreground inside, surely background far away."""
    height, width = seed.shape
    reach = max(height, width) // 32 | 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    near = cv2.dilate(seed.astype(np.uint8), kernel, iterations=2).astype(bool)
    core = cv2.erode(seed.astype(np.uint8), kernel).astype(bool)
    labels = np.where(near, cv2.GC_PR_BGD, cv2.GC_BGD).astype(np.uint8)
    labels[seed] = cv2.GC_PR_FGD
    if box is None:
        labels[core] = cv2.GC_FGD
    if not (labels == cv2.GC_BGD).any() or not np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).any():
        return seed
    cv2.setRNGSeed(0)
    cv2.grabCut(
        cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), labels, None, np.zeros((1, 65)), np.zeros((1, 65)), ROUNDS,
        cv2.GC_INIT_WITH_MASK,
    )  # fmt: skip
    return _largest(np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)))


def _sam(predictor, frame: np.ndarray, seed: np.ndarray, point, box) -> np.ndarray:
    """The mask that the predictor trusts most, prompted by a point, a box, or the seed's box and middle."""
    predictor.set_image(frame)
    points = labels = None
    if point is not None:
        points, labels = np.array([point], np.float32), np.ones(1, int)
    if box is None and point is None:
        rows, columns = np.nonzero(seed)
        if not len(rows):
            return seed
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    prompt = None if box is None else np.array(box, np.float32)
    masks, scores, _ = predictor.predict(points, labels, prompt, multimask_output=True)
    return masks[int(scores.argmax())].astype(bool)
