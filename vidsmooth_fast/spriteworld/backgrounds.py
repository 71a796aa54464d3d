"""The six backgrounds of the sprite world. Each layer scrolls to the left at its own speed, for ever.

A layer repeats every PERIOD view units. `travel` is how far the ground has moved, in view units; a layer of
parallax p has moved p * travel. `variant` (0..3) changes the arrangement, not the kind, of what is drawn.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from .canvas import VIEW, Canvas, Part, Shape, affine, box, ellipse, spline

PERIOD = 192.0
REACH = 36.0  # half width of the widest repeated thing


def _scroll(
    canvas: Canvas, shapes: list[Shape], x: float, y: float, travel, parallax: float, scale=1.0
) -> None:
    """Draw shapes at (x, y), repeated every PERIOD; travel = (now, next)."""
    place = (x - parallax * travel[0] + REACH) % PERIOD - REACH
    step = parallax * (travel[1] - travel[0])
    if place < VIEW + REACH:
        canvas.draw(Part(shapes, affine(place, y, scale=scale), affine(place - step, y, scale=scale)))


def _ridge(
    canvas: Canvas, waves, base: float, colour, travel, parallax: float, *, shade="flat", foot=VIEW
) -> None:
    """A filled landscape whose edge is a sum of periodic waves (amplitude, whole cycles per PERIOD, phase)."""
    x = np.arange(-4.0, VIEW + 9.0, 2.0)
    shift = parallax * travel[0]
    y = base + sum(a * np.sin(2 * np.pi * k * (x + shift) / PERIOD + p) for a, k, p in waves)
    edge = np.vstack([np.stack([x, y], 1), [[VIEW + 8, foot], [-4, foot]]])
    after = affine(-parallax * (travel[1] - travel[0]), 0)
    canvas.draw(Part([Shape(edge, colour, shade, False)], affine(0, 0), after))


def _strip(canvas: Canvas, y0: float, y1: float, top, bottom, travel, parallax: float) -> None:
    """A plain horizontal band; it scrolls too, for the ground truth."""
    canvas.rows(y0, y1, top, bottom)
    if canvas.truth:
        move = affine(-parallax * (travel[1] - travel[0]), 0)
        canvas.drawn.append(Part([], affine(0, 0), move))
        a, b = int(round(y0 * canvas.unit)), int(round(y1 * canvas.unit))
        canvas.parts[a:b] = len(canvas.drawn)


@lru_cache(maxsize=16)
def _tile(pixels: int, variant: int) -> np.ndarray:
    """Periodic zero-mean ground texture, stretched along x, about +-1; (pixels, 1.5 * pixels) float32."""
    rng = np.random.default_rng(variant)
    wide = pixels * 3 // 2
    coarse = rng.standard_normal((48, 24)).astype(np.float32)
    fine = np.tile(coarse, (1, 3))
    tile = cv2.resize(fine, (wide * 3, pixels), interpolation=cv2.INTER_CUBIC)[:, wide : 2 * wide]
    return tile / np.abs(tile).max()


def _ground_texture(canvas: Canvas, y0: float, travel, variant: int, amount: float) -> None:
    if canvas.style == "realistic":
        canvas.texture(y0, _tile(canvas.pixels, variant), travel[0], amount)


def _cloud(canvas: Canvas, x: float, y: float, travel, scale: float, colour=(252, 252, 255)) -> None:
    puff = spline([(-15, 4), (-14, -1), (-8, -3), (-4, -8), (4, -8), (8, -3), (14, -1), (15, 4)], 4)
    _scroll(canvas, [Shape(puff, colour, outline=False)], x, y, travel, 0.15, scale)


def _sun(canvas: Canvas, x: float, y: float) -> None:
    glow = Shape(ellipse(x, y, 13), (255, 246, 200), "flat", False, 0.35)
    canvas.draw(
        Part([glow, Shape(ellipse(x, y, 8.5), (255, 236, 130), "flat", False)], affine(0, 0), affine(0, 0))
    )


def _tree(scale: float = 1.0) -> list[Shape]:
    crown = spline([(-11, -16), (-10, -26), (-2, -33), (7, -30), (12, -21), (9, -12), (0, -11)], 4)
    return [Shape(box(-2, -14, 2, 0), (120, 84, 54)), Shape(crown, (74, 142, 70))]


def _road(canvas, travel, v):
    canvas.rows(0, 80, (118, 190, 240), (214, 236, 250))
    _sun(canvas, 108, 16)
    for x, y, s in ((20, 20, 0.9), (88, 30, 0.7), (150, 16, 1.0)):
        _cloud(canvas, x + 17 * v, y, travel, s)
    _ridge(canvas, ((7, 2, v), (4, 3, 1 + v)), 66, (128, 186, 120), travel, 0.3)
    _strip(canvas, 80, 87, (116, 182, 88), (104, 168, 80), travel, 0.7)
    for k, x in enumerate((10, 70, 128)):
        _scroll(canvas, _tree(), x + 9 * v, 84, travel, 0.7, 0.9 + 0.15 * ((k + v) % 3))
    _strip(canvas, 87, 120, (112, 112, 122), (92, 92, 102), travel, 1.0)
    _ground_texture(canvas, 80, travel, v, 0.10)
    _strip(canvas, 87, 89, (226, 224, 214), (226, 224, 214), travel, 1.0)
    for k in range(6):
        _scroll(
            canvas, [Shape(box(-9, -1.6, 9, 1.6), (246, 240, 214), "flat", False)], 32 * k, 112, travel, 1.0
        )
    _strip(canvas, 120, 128, (104, 170, 80), (88, 150, 70), travel, 1.0)


def _beach(canvas, travel, v):
    canvas.rows(0, 62, (96, 186, 240), (206, 238, 250))
    _sun(canvas, 22, 18)
    for x, y, s in ((64, 18, 0.9), (130, 28, 0.8)):
        _cloud(canvas, x + 17 * v, y, travel, s)
    _strip(canvas, 62, 82, (38, 132, 196), (92, 200, 214), travel, 0.4)
    for k in range(6):
        crest = [Shape(box(-7, -0.7, 7, 0.7), (214, 242, 248), "flat", False)]
        _scroll(canvas, crest, 33 * k + 11 * (k % 2) + 7 * v, 67 + 5 * (k % 3), travel, 0.4)
    _strip(canvas, 82, 128, (250, 224, 160), (232, 196, 124), travel, 1.0)
    _ridge(canvas, ((1.3, 6, v), (0.8, 9, 1)), 82.5, (246, 250, 250), travel, 0.6, foot=85.5)
    _ridge(canvas, ((1.0, 6, v), (0.6, 9, 1)), 85, (242, 212, 148), travel, 0.6, foot=92)
    _ground_texture(canvas, 88, travel, v, 0.07)
    frond = (60, 150, 78)
    leaves = [
        Shape(
            spline(
                [(0, -34), (d * 8, -40), (d * 18, -37), (d * 22, -28 + e), (d * 13, -33), (d * 5, -33)], 4
            ),
            frond,
        )
        for d, e in ((1, 0), (-1, 0), (0.75, -12), (-0.75, -12))
    ]
    trunk = Shape(
        np.array([(-2.4, 2), (2.4, 2), (1.2, -18), (1.6, -35), (-1.2, -35), (-1.6, -18)]), (150, 106, 64)
    )
    for x in (30, 126):
        _scroll(canvas, [trunk, *leaves], x + 21 * v, 94, travel, 0.85)
    for k, x in enumerate((12, 58, 96, 150)):
        shell = spline([(-3, 1.5), (-2, -2), (2, -2), (3, 1.5)], 4)
        _scroll(
            canvas, [Shape(shell, (240, 128, 110) if k % 2 else (250, 244, 236))], x + 9 * v, 119, travel, 1.0
        )


def _snow(canvas, travel, v):
    canvas.rows(0, 84, (168, 202, 232), (232, 240, 248))
    cap = np.array([(-12.5, -31), (-3, -44), (2, -44), (12.5, -31), (6, -27), (1, -32), (-5, -26)])
    peak = [
        Shape(np.array([(-34, 0), (-3, -44), (2, -44), (34, 0)]), (128, 152, 190)),
        Shape(cap, (248, 251, 255), outline=False),
    ]
    for x, s in ((30, 1.0), (84, 0.75), (142, 0.95)):
        _scroll(canvas, peak, x + 19 * v, 80, travel, 0.2, s)
    _ridge(canvas, ((3, 2, v), (2, 3, 2)), 79, (216, 228, 244), travel, 0.5)
    pine = []
    for w, y0, y1 in ((11, -4, -17), (9, -12, -25), (6.5, -21, -34)):
        pine.append(Shape(np.array([(-w, y0), (w, y0), (0, y1)]), (52, 106, 88)))
        x, y = 0.45 * w, 0.55 * y1 + 0.45 * y0
        pine.append(Shape(np.array([(-x, y), (x, y), (0, y1)]), (246, 250, 255), outline=False))
    pine.insert(0, Shape(box(-1.8, -5, 1.8, 1), (104, 78, 60)))
    for k, x in enumerate((16, 52, 104, 160)):
        _scroll(canvas, pine, x + 13 * v, 88, travel, 0.7, 0.8 + 0.2 * ((k + v) % 3))
    _ridge(canvas, ((1.6, 3, v), (1.0, 5, 1)), 88, (240, 246, 253), travel, 1.0)
    _ground_texture(canvas, 90, travel, v, 0.035)
    for k, x in enumerate((8, 48, 88, 136, 170)):
        drift = spline([(-13, 1), (-6, -1.6), (6, -1.6), (13, 1), (0, 1.8)], 4)
        _scroll(canvas, [Shape(drift, (204, 220, 240), "flat", False)], x, 106 + 13 * (k % 2), travel, 1.0)


def _sea(canvas, travel, v):
    canvas.rows(0, 74, (104, 186, 238), (236, 240, 236))
    _sun(canvas, 98, 20)
    for x, y, s in ((26, 22, 1.0), (80, 38, 0.7), (146, 18, 0.9)):
        _cloud(canvas, x + 17 * v, y, travel, s)
    island = Shape(spline([(-26, 2), (-14, -7), (-2, -10), (8, -5), (26, 2)], 4), (122, 158, 146))
    _scroll(canvas, [island], 70 + 40 * v, 74, travel, 0.2)
    _strip(canvas, 74, 128, (44, 128, 190), (22, 92, 160), travel, 0.4)
    bands = ((80, (52, 142, 204), 0.5), (92, (38, 120, 188), 0.75), (106, (26, 98, 166), 1.0))
    for k, (y, colour, parallax) in enumerate(bands):
        _ridge(canvas, ((1.9, 8 - k, v + k), (0.8, 12, 2 * k)), y, (222, 242, 250), travel, parallax)
        _ridge(canvas, ((1.9, 8 - k, v + k), (0.8, 12, 2 * k)), y + 2.2, colour, travel, parallax)
    _ground_texture(canvas, 78, travel, v, 0.06)


def _meadow(canvas, travel, v):
    canvas.rows(0, 80, (112, 190, 244), (218, 240, 250))
    _sun(canvas, 24, 18)
    for x, y, s in ((70, 20, 1.0), (120, 32, 0.8), (176, 16, 0.9)):
        _cloud(canvas, x + 17 * v, y, travel, s)
    _ridge(canvas, ((8, 2, v), (3, 5, 1)), 66, (150, 206, 120), travel, 0.3)
    _ridge(canvas, ((5, 3, 2 + v), (2, 4, v)), 80, (118, 190, 88), travel, 0.6)
    for x in (40, 140):
        _scroll(canvas, _tree(), x + 23 * v, 84, travel, 0.6, 0.8)
    _ridge(canvas, ((1.4, 3, v), (0.8, 5, 1)), 92, (92, 170, 66), travel, 1.0)
    _ground_texture(canvas, 84, travel, v, 0.10)
    petals = ((236, 84, 100), (252, 250, 250), (250, 214, 70), (186, 112, 220))
    for k in range(11):
        colour = petals[(k + v) % 4]
        bloom = [Shape(ellipse(2.1 * np.cos(a), 2.1 * np.sin(a), 1.7, n=10), colour, "flat", False)
                 for a in np.arange(5) * 2 * np.pi / 5]  # fmt: skip
        bloom.append(Shape(ellipse(0, 0, 1.3, n=10), (246, 190, 50), "flat", False))
        stem = Shape(box(-0.5, 0, 0.5, 6), (56, 124, 48), "flat", False)
        _scroll(canvas, [stem, *bloom], 17.4 * k, 106 + 12 * ((k * 7 + v) % 3) / 2, travel, 1.0)


def _city(canvas, travel, v):
    canvas.rows(0, 88, (14, 18, 52), (66, 62, 120))
    fixed = affine(0, 0)
    stars = [Shape(ellipse((37 * k + 11) % 126, (23 * k + 5) % 44 + 3, 0.9, n=8), (250, 246, 214), "flat", False)
             for k in range(14)]  # fmt: skip
    moon = [
        Shape(ellipse(24, 19, 13), (200, 204, 250), "flat", False, 0.22),
        Shape(ellipse(24, 19, 8.5), (250, 246, 220), "flat", False),
    ]
    moon += [
        Shape(ellipse(21, 17, 1.8), (222, 216, 190), "flat", False),
        Shape(ellipse(27, 22, 1.3), (222, 216, 190), "flat", False),
    ]
    canvas.draw(Part(stars + moon, fixed, fixed))
    for k in range(8):
        h = 24 + 9 * ((k * 5 + v) % 4)
        _scroll(
            canvas, [Shape(box(-11, -h, 11, 0), (44, 46, 92), outline=False)], 24 * k + 8, 90, travel, 0.25
        )
    for k in range(6):
        h = 26 + 10 * ((k * 3 + v) % 4)
        tower = [Shape(box(-12, -h, 12, 0), ((34, 34, 66), (46, 38, 70), (30, 42, 72))[k % 3])]
        for i in range(3):
            for j in range(int(h - 8) // 9):
                lit = (i * 3 + j * 5 + k + v) % 4
                glow = (255, 216, 112) if lit else (60, 62, 98)
                tower.append(
                    Shape(box(-9 + 7 * i, -h + 4 + 9 * j, -5 + 7 * i, -h + 9 + 9 * j), glow, "flat", False)
                )
        _scroll(canvas, tower, 32 * k + 5, 92, travel, 0.55)
    _strip(canvas, 90, 128, (58, 56, 78), (38, 38, 56), travel, 1.0)
    _ground_texture(canvas, 92, travel, v, 0.12)
    _strip(canvas, 90, 93, (112, 108, 128), (92, 90, 110), travel, 1.0)
    for k in range(6):
        _scroll(
            canvas, [Shape(box(-8, -1.3, 8, 1.3), (214, 204, 150), "flat", False)], 32 * k, 115, travel, 1.0
        )
    lamp = [
        Shape(box(-1.1, -44, 1.1, 2), (22, 22, 34), "flat", False),
        Shape(ellipse(0, -46, 11), (255, 220, 140), "flat", False, 0.22),
        Shape(ellipse(0, -46, 3.6), (255, 238, 180), "flat", False),
    ]
    for x in (26, 122):
        _scroll(canvas, lamp, x + 11 * v, 91, travel, 1.0)


BACKGROUNDS = {
    "road": _road, "beach": _beach, "snow": _snow, "sea": _sea, "meadow": _meadow, "city": _city,
}  # fmt: skip
