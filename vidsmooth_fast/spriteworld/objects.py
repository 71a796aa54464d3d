"""The six objects of the sprite world, side view, facing right, one unit wide, origin at the centre."""

from __future__ import annotations

import numpy as np

from .canvas import Part, Shape, affine, box, compose, ellipse, spline

WHITE, GLASS, DARK, GREY, GOLD = (
    (250, 250, 246),
    (176, 222, 244),
    (46, 44, 54),
    (186, 190, 198),
    (255, 214, 92),
)


def mix(colour, other, amount: float) -> tuple[float, float, float]:
    """colour moved by `amount` (0..1) towards `other`."""
    return tuple(float(a + (b - a) * amount) for a, b in zip(colour, other, strict=True))


def _inner(place: np.ndarray, after: np.ndarray, inner: np.ndarray, inner_after: np.ndarray, shapes) -> Part:
    return Part(shapes, compose(place, inner), compose(after, inner_after), is_object=True)


def car(colour, place, after, turn):
    """A small saloon; `turn` = (now, next) angle of the wheels in radians."""
    dark = mix(colour, (0, 0, 0), 0.28)
    body = [
        Shape(spline([(-0.27, -0.06), (-0.20, -0.25), (0.04, -0.27), (0.21, -0.06), (0.0, 0.0)], 5), colour),
        Shape(np.array([(-0.215, -0.06), (-0.165, -0.205), (-0.06, -0.215), (-0.06, -0.06)]), GLASS),
        Shape(np.array([(-0.015, -0.06), (-0.015, -0.215), (0.04, -0.21), (0.155, -0.06)]), GLASS),
        Shape(
            spline([(-0.49, -0.03), (-0.42, -0.085), (0.0, -0.085), (0.34, -0.06), (0.48, 0.0), (0.49, 0.11),
                    (0.40, 0.14), (0.0, 0.14), (-0.42, 0.14), (-0.50, 0.09)], 4), colour),
        Shape(box(-0.46, 0.075, 0.46, 0.115), dark, outline=False),
        Shape(ellipse(0.43, 0.015, 0.04, 0.03), GOLD),
        Shape(ellipse(-0.47, 0.01, 0.025, 0.03), (214, 40, 40), outline=False),
        Shape(box(-0.03, -0.02, 0.03, 0.0), dark, outline=False),
    ]  # fmt: skip
    spokes = [
        Shape(np.array([(-0.015, 0), (0.015, 0), (0.015, -0.065), (-0.015, -0.065)])
              @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]), DARK, outline=False, shade="flat")
        for a in np.arange(4) * np.pi / 2
    ]  # fmt: skip
    wheel = [Shape(ellipse(0, 0, 0.12), DARK), Shape(ellipse(0, 0, 0.072), GREY, outline=False), *spokes]
    return [Part(body, place, after, True)] + [
        _inner(place, after, affine(x, 0.15, angle=turn[0]), affine(x, 0.15, angle=turn[1]), wheel)
        for x in (-0.27, 0.27)
    ]


def boat(colour, place, after, turn):
    """A sailing boat: coloured hull, jib and flag, white mainsail."""
    dark = mix(colour, (0, 0, 0), 0.25)
    return [
        Part(
            [
                Shape(box(-0.03, -0.46, 0.0, 0.12), (140, 94, 58)),
                Shape(np.array([(0.0, -0.46), (0.0, -0.37), (-0.14, -0.415)]), colour),
                Shape(spline([(0.02, -0.38), (0.13, -0.18), (0.30, 0.04), (0.02, 0.05), (0.02, -0.1)], 5), WHITE),
                Shape(np.array([(-0.05, -0.32), (-0.05, 0.05), (-0.33, 0.05)]), mix(colour, WHITE, 0.12)),
                Shape(np.array([(-0.48, 0.09), (0.50, 0.09), (0.34, 0.30), (-0.34, 0.30)]), colour),
                Shape(np.array([(-0.43, 0.145), (0.462, 0.145), (0.438, 0.175), (-0.408, 0.175)]), WHITE,
                      outline=False),
                Shape(np.array([(-0.37, 0.265), (0.368, 0.265), (0.34, 0.30), (-0.34, 0.30)]), dark, outline=False),
            ],
            place, after, True,
        )
    ]  # fmt: skip


def ball(colour, place, after, turn):
    """A beach ball of three coloured and three white sectors, rolling."""
    sectors = []
    for k in range(6):
        a = np.linspace(k * np.pi / 3, (k + 1) * np.pi / 3, 8)
        arc = np.vstack([[0, 0], 0.36 * np.stack([np.cos(a), np.sin(a)], 1)])
        sectors.append(Shape(arc, colour if k % 2 == 0 else WHITE, shade="flat", outline=False))
    hub = [Shape(ellipse(0, 0, 0.085), mix(colour, (0, 0, 0), 0.2), shade="flat", outline=False)]
    ring = [Shape(ellipse(0, 0, 0.36, n=40), colour)]
    light = [
        Shape(ellipse(0.04, 0.05, 0.33), (20, 16, 40), "flat", False, 0.10, False, "realistic"),
        Shape(spline([(0.33, -0.12), (0.33, 0.1), (0.2, 0.29), (-0.02, 0.355), (-0.2, 0.29), (0.05, 0.22),
                      (0.22, 0.06)], 5), (20, 16, 40), "flat", False, 0.28, False, "realistic"),
        Shape(ellipse(-0.13, -0.16, 0.09, 0.065), WHITE, "flat", False, 0.75, False),
    ]  # fmt: skip
    return [
        Part(ring, place, after, True),
        _inner(place, after, affine(0, 0, angle=turn[0]), affine(0, 0, angle=turn[1]), sectors + hub),
        Part(light, place, after, True),
    ]


def fish(colour, place, after, turn):
    """A tropical fish with light bands; the tail beats."""
    light, dark = mix(colour, WHITE, 0.55), mix(colour, (0, 0, 0), 0.22)
    beat = [affine(-0.24, 0, stretch=0.82 + 0.22 * np.sin(a), angle=0.16 * np.sin(a)) for a in turn]
    tail = [
        Shape(
            spline([(0.06, 0), (-0.10, -0.12), (-0.25, -0.20), (-0.17, 0), (-0.25, 0.20), (-0.10, 0.12)], 5),
            dark,
        )
    ]
    body = [
        Shape(spline([(-0.16, -0.17), (0.0, -0.34), (0.20, -0.24), (0.22, -0.14)], 5), dark),
        Shape(spline([(-0.08, 0.16), (0.0, 0.30), (0.14, 0.24), (0.12, 0.15)], 5), dark),
        Shape(spline([(-0.30, 0), (-0.15, -0.15), (0.12, -0.22), (0.36, -0.13), (0.48, 0.01), (0.36, 0.13),
                      (0.12, 0.21), (-0.15, 0.14)], 5), colour),
        Shape(spline([(-0.09, -0.155), (-0.02, -0.175), (0.0, 0.0), (-0.02, 0.165), (-0.09, 0.145), (-0.075, 0)], 4),
              light, outline=False),
        Shape(spline([(0.12, -0.205), (0.19, -0.19), (0.215, 0.0), (0.19, 0.18), (0.12, 0.195), (0.145, 0)], 4),
              light, outline=False),
        Shape(spline([(0.13, 0.02), (-0.03, 0.11), (0.03, 0.0)], 5), dark),
        Shape(ellipse(0.335, -0.035, 0.055), WHITE),
        Shape(ellipse(0.35, -0.035, 0.028), DARK, "flat", False),
    ]  # fmt: skip
    return [_inner(place, after, beat[0], beat[1], tail), Part(body, place, after, True)]


def bird(colour, place, after, turn):
    """A bird in flight; the wing flaps."""
    dark, light = mix(colour, (0, 0, 0), 0.25), mix(colour, WHITE, 0.5)
    flap = [affine(-0.02, -0.05, stretch=0.15 + 0.85 * np.sin(a), angle=-0.05) for a in turn]
    body = [
        Shape(spline([(-0.24, 0.0), (-0.48, -0.12), (-0.50, 0.0), (-0.46, 0.09), (-0.24, 0.09)], 5), dark),
        Shape(np.array([(0.40, -0.145), (0.52, -0.09), (0.39, -0.06)]), (255, 160, 40)),
        Shape(spline([(-0.34, 0.03), (-0.12, -0.10), (0.12, -0.13), (0.22, -0.215), (0.34, -0.23), (0.43, -0.12),
                      (0.36, 0.01), (0.18, 0.14), (-0.06, 0.17)], 5), colour),
        Shape(spline([(0.30, 0.03), (0.16, 0.125), (-0.05, 0.152), (-0.13, 0.11), (0.08, 0.07)], 5), light,
              outline=False),
        Shape(ellipse(0.315, -0.125, 0.042), WHITE, outline=False),
        Shape(ellipse(0.325, -0.125, 0.024), DARK, "flat", False),
    ]  # fmt: skip
    wing = [
        Shape(spline([(0.12, 0.03), (0.03, -0.16), (-0.16, -0.36), (-0.27, -0.38), (-0.24, -0.20), (-0.17, 0.02)], 5),
              dark)
    ]  # fmt: skip
    return [Part(body, place, after, True), _inner(place, after, flap[0], flap[1], wing)]


def rocket(colour, place, after, turn):
    """A rocket flying to the right, with a flickering flame."""
    dark = mix(colour, (0, 0, 0), 0.28)
    burn = []
    for a in turn:
        stretch = 1 + 0.18 * np.sin(a)
        burn.append(np.array([[stretch, 0, -0.30], [0, 1 + 0.08 * np.sin(2 * a + 1), 0]]))
    flame = [
        Shape(spline([(0.02, -0.09), (-0.09, -0.085), (-0.20, 0.0), (-0.09, 0.085), (0.02, 0.09)], 5), (255, 130, 30),
              "flat"),
        Shape(spline([(0.02, -0.05), (-0.05, -0.045), (-0.12, 0.0), (-0.05, 0.045), (0.02, 0.05)], 5), (255, 232, 110),
              "flat", False),
    ]  # fmt: skip
    body = [
        Shape(np.array([(-0.02, -0.12), (-0.24, -0.29), (-0.36, -0.27), (-0.28, -0.08)]), dark),
        Shape(np.array([(-0.02, 0.12), (-0.24, 0.29), (-0.36, 0.27), (-0.28, 0.08)]), dark),
        Shape(spline([(-0.30, -0.11), (-0.05, -0.16), (0.20, -0.14), (0.38, -0.07), (0.50, 0.0), (0.38, 0.07),
                      (0.20, 0.14), (-0.05, 0.16), (-0.30, 0.11)], 5), colour),
        Shape(spline([(0.27, -0.118), (0.38, -0.07), (0.50, 0.0), (0.38, 0.07), (0.27, 0.118), (0.30, 0.0)], 5), WHITE),
        Shape(box(-0.25, -0.112, -0.19, 0.112), WHITE, outline=False),
        Shape(ellipse(0.10, -0.01, 0.075), WHITE),
        Shape(ellipse(0.10, -0.01, 0.048), (92, 170, 222), outline=False),
    ]  # fmt: skip
    return [_inner(place, after, burn[0], burn[1], flame), Part(body, place, after, True)]


# name: (drawing, width in view units at scale 1, rest height of the centre, rests on the ground)
OBJECTS = {
    "car": (car, 66, None, 0.27),
    "boat": (boat, 62, None, 0.30),
    "ball": (ball, 66, None, 0.36),
    "fish": (fish, 62, 62.0, None),
    "bird": (bird, 66, 58.0, None),
    "rocket": (rocket, 68, 60.0, None),
}
