"""The sprite world: a procedural renderer of short captioned clips, any length, seeded, with exact ground truth.

A `Scene` is five words and a seed. The seed fixes the motion, the placement and the arrangement; the words fix what
is seen. Two scenes that share a seed and differ in one word are therefore an ideal edit of one another.

    scene = Scene("car", "red", "snow", "cartoon", seed=3)
    clip = render_clip(scene, 24)                      # clip.frames (24, 128, 128, 3) uint8, clip.mask, clip.flow
    ideal = render_clip(scene.edit(colour="blue"), 24)

Training draws seeds below HELD_OUT_SEED and never the (object, colour, background) triples for which
`held_out_triple` is true; tests and metrics use the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .backgrounds import BACKGROUNDS
from .canvas import Canvas, Part, Shape, affine, ellipse
from .objects import OBJECTS

COLOURS = {
    "red": (226, 48, 48),
    "blue": (48, 98, 224),
    "green": (48, 176, 80),
    "yellow": (250, 206, 40),
    "purple": (150, 70, 200),
    "orange": (250, 136, 28),
}
STYLES = ("cartoon", "realistic")
HELD_OUT_SEED = 1_000_000_000
GROUND = 111.0  # where the lowest point of a standing object rests, in view units


@dataclass(frozen=True)
class Scene:
    """object: a key of OBJECTS; colour: of COLOURS; background: of BACKGROUNDS; style: of STYLES; seed: int >= 0."""

    object: str
    colour: str
    background: str
    style: str
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("object", OBJECTS),
            ("colour", COLOURS),
            ("background", BACKGROUNDS),
            ("style", STYLES),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.seed < 0:
            raise ValueError(f"seed: expected an integer >= 0, got {self.seed}")

    def edit(self, **words: str) -> Scene:
        """The same motion with other words: scene.edit(colour="blue")."""
        return replace(self, **words)


@dataclass(frozen=True)
class Clip:
    """frames (F, H, W, 3) uint8; mask (F, H, W) bool, the object; flow (F, H, W, 2) float32, pixels to frame f + 1."""

    scene: Scene
    frames: np.ndarray
    mask: np.ndarray | None
    flow: np.ndarray | None


@dataclass(frozen=True)
class Motion:
    """The seeded numbers of a scene, the same whatever its words. Lengths in view units, angles in radians."""

    x: float
    y: float
    scale: float
    variant: int
    start: float
    speed: float  # of the ground, view units a frame
    sway: tuple[float, float, float]  # amplitude, frames per cycle, phase
    bob: tuple[float, float, float]
    beat: tuple[float, float]  # frames per wing or tail beat, phase

    @classmethod
    def of(cls, seed: int) -> Motion:
        rng = np.random.default_rng([seed, 0x5C4E])
        u = rng.uniform
        return cls(
            x=64 + u(-5, 5), y=u(-4, 4), scale=u(0.94, 1.08), variant=int(rng.integers(4)), start=u(0, 1920),
            speed=u(1.6, 2.6), sway=(u(2, 5), u(36, 60), u(0, 2 * np.pi)),
            bob=(u(1.8, 3.2), u(20, 32), u(0, 2 * np.pi)), beat=(u(11, 17), u(0, 2 * np.pi)),
        )  # fmt: skip


def _pose(scene: Scene, motion: Motion, t: float) -> tuple[np.ndarray, float]:
    """The object's place (2x3) at frame t, and the angle of its moving part."""
    _, width, height, below = OBJECTS[scene.object]
    width *= motion.scale
    sway, bob = (a * np.sin(2 * np.pi * t / n + p) for a, n, p in (motion.sway, motion.bob))
    lean = np.cos(2 * np.pi * t / motion.bob[1] + motion.bob[2])
    beat = 2 * np.pi * t / motion.beat[0] + motion.beat[1]
    rolled = motion.start + motion.speed * t + sway
    x = motion.x + sway
    if scene.object == "car":
        return affine(x, GROUND - below * width + 0.2 * bob, scale=width, angle=0.006 * lean), rolled / (
            0.12 * width
        )
    if scene.object == "ball":
        return affine(x, GROUND + 2 - below * width, scale=width), rolled / (below * width)
    if scene.object == "boat":
        y = GROUND - 3 - below * width + motion.y * 0.4 + 0.6 * bob
        return affine(x, y, scale=width, angle=0.07 * lean), beat
    tilt = {"fish": 0.05, "bird": 0.05, "rocket": 0.08}[scene.object]
    return affine(x, height + motion.y + 1.4 * bob, scale=width, angle=tilt * lean), beat


def _shadow(scene: Scene, place: np.ndarray, after: np.ndarray) -> Part:
    """A soft shadow on the ground below the object."""
    width = np.hypot(place[0, 0], place[1, 0])
    on_ground = OBJECTS[scene.object][3] is not None
    flat = (0, 0, 30)
    shapes = [
        Shape(
            ellipse(0, 0, (0.46 if on_ground else 0.30) * width * k, 3.6 * k),
            flat,
            "flat",
            False,
            0.13,
            False,
        )
        for k in (1.0, 0.8, 0.6)
    ]
    y = GROUND if on_ground else GROUND + 6
    return Part(shapes, affine(place[0, 2], y), affine(after[0, 2], y))


def render_frame(scene: Scene, t: float, size: int = 128, *, truth: bool = False) -> Canvas:
    """Draw frame t (any real number). The canvas gives picture(), and with truth=True also mask() and flow()."""
    motion = Motion.of(scene.seed)
    canvas = Canvas(size, scene.style, truth)
    travel = tuple(motion.start + motion.speed * s for s in (t, t + 1))
    BACKGROUNDS[scene.background](canvas, travel, motion.variant)
    (place, turn), (after, turn_after) = (_pose(scene, motion, s) for s in (t, t + 1))
    if scene.background != "sea":
        canvas.draw(_shadow(scene, place, after))
    for part in OBJECTS[scene.object][0](COLOURS[scene.colour], place, after, (turn, turn_after)):
        canvas.draw(part)
    return canvas


def object_mask(scene: Scene, t: float, size: int) -> np.ndarray:
    """(size, size) bool: where the object is at frame t, without drawing the rest."""
    canvas = Canvas(size, "cartoon", truth=True)
    place, turn = _pose(scene, Motion.of(scene.seed), t)
    for part in OBJECTS[scene.object][0](COLOURS[scene.colour], place, place, (turn, turn)):
        canvas.draw(part)
    return canvas.mask()


def render_clip(
    scene: Scene, frames: int, size: int = 128, *, start: float = 0, stride: float = 1, truth: bool = True
) -> Clip:
    """Render frames start, start + stride, … Flow is to the moment one unit of time later, whatever the stride.

    frames: >= 1; size: pixels a side, >= 16. Raises ValueError for anything smaller.
    """
    if frames < 1:
        raise ValueError(f"frames: expected at least 1, got {frames}")
    if size < 16:
        raise ValueError(f"size: expected at least 16 pixels, got {size}")
    drawn = [render_frame(scene, start + stride * f, size, truth=truth) for f in range(frames)]
    pictures = np.stack([c.picture() for c in drawn])
    if not truth:
        return Clip(scene, pictures, None, None)
    return Clip(scene, pictures, np.stack([c.mask() for c in drawn]), np.stack([c.flow() for c in drawn]))


def held_out_triple(scene: Scene) -> bool:
    """True for the 1 in 12 (object, colour, background) triples that training never sees."""
    o, c, b = (list(d).index(w) for d, w in (
        (OBJECTS, scene.object), (COLOURS, scene.colour), (BACKGROUNDS, scene.background)))  # fmt: skip
    return (5 * o + 7 * c + 11 * b + o * c) % 12 == 3


def random_scene(rng: np.random.Generator, *, held_out: bool = False) -> Scene:
    """A scene for training, or with held_out=True one whose seed is never trained on (any triple)."""
    while True:
        words = [list(d)[rng.integers(len(d))] for d in (OBJECTS, COLOURS, BACKGROUNDS, STYLES)]
        seed = int(rng.integers(HELD_OUT_SEED)) + (HELD_OUT_SEED if held_out else 0)
        scene = Scene(*words, seed=seed)
        if held_out or not held_out_triple(scene):
            return scene
