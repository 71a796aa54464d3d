"""An anti-aliased drawing surface for the sprite world: polygons placed by affine maps, flat or shaded.

World units: the view is 128 x 128 units, x to the right, y down, whatever the size in pixels. Every shape belongs
to a `Part`, and a part moves by an affine map, so the displacement of each pixel is known exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

VIEW = 128.0
SHIFT = 4  # fractional bits of the coordinates handed to OpenCV
OUTLINE = (38, 34, 48)


@dataclass(frozen=True)
class Shape:
    """A filled polygon. points: (n, 2) in the part's own units; colour: RGB 0..255.

    shade: "flat" (never shaded), "top" (lit from above left) or "round" (a lit sphere), used by the realistic style.
    outline: drawn with a dark line in the cartoon style. alpha: opacity 0..1. truth: covers what lies below it in
    the mask and the flow (shadows and gloss do not). only: draw in that style alone.
    """

    points: np.ndarray
    colour: tuple[float, float, float]
    shade: str = "top"
    outline: bool = True
    alpha: float = 1.0
    truth: bool = True
    only: str | None = None


@dataclass
class Part:
    """Shapes that move together. now, after: 2x3 affine maps from the part's units to the view, at t and t + 1."""

    shapes: list[Shape]
    now: np.ndarray
    after: np.ndarray
    is_object: bool = False


def affine(x: float, y: float, *, scale=1.0, stretch: float = 1.0, angle: float = 0.0) -> np.ndarray:
    """2x3 map: stretch y, then scale, rotate by angle (radians, clockwise on screen) and move to (x, y)."""
    c, s = np.cos(angle) * scale, np.sin(angle) * scale
    return np.array([[c, -s * stretch, x], [s, c * stretch, y]])


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The 2x3 map that applies `inner`, then `outer`."""
    return np.hstack([outer[:, :2] @ inner[:, :2], outer[:, :2] @ inner[:, 2:] + outer[:, 2:]])


def ellipse(x: float, y: float, rx: float, ry: float | None = None, n: int = 28) -> np.ndarray:
    a = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return np.stack([x + rx * np.cos(a), y + (rx if ry is None else ry) * np.sin(a)], 1)


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)


def spline(points, per: int = 6) -> np.ndarray:
    """Closed Catmull-Rom curve through the points, `per` samples a span."""
    p = np.asarray(points, float)
    t = (np.arange(per) / per)[None, :, None]
    a, b, c, d = (np.roll(p, k, 0)[:, None] for k in (1, 0, -1, -2))
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return curve.reshape(-1, 2)


@dataclass
class Canvas:
    """A square picture of `size` pixels, drawn `supersample` times larger. `truth` also records which part is where."""

    size: int
    style: str
    truth: bool = False
    supersample: int = 3
    image: np.ndarray = field(init=False)
    parts: np.ndarray | None = field(init=False, default=None)
    drawn: list[Part] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.pixels = self.size * self.supersample
        self.unit = self.pixels / VIEW
        self.image = np.zeros((self.pixels, self.pixels, 3), np.uint8)
        if self.truth:
            self.parts = np.zeros((self.pixels, self.pixels), np.uint8)

    def rows(self, y0: float, y1: float, top, bottom) -> None:
        """Fill rows y0..y1 with a vertical gradient from `top` to `bottom`."""
        a, b = (int(round(np.clip(y, 0, VIEW) * self.unit)) for y in (y0, y1))
        if b > a:
            t = np.linspace(0, 1, b - a)[:, None]
            self.image[a:b] = (np.asarray(top) * (1 - t) + np.asarray(bottom) * t)[:, None].astype(np.uint8)

    def texture(self, y0: float, tile: np.ndarray, offset: float, amount: float) -> None:
        """Multiply everything below row y0 by 1 + amount * tile (zero mean), the tile moved left by offset units."""
        a = int(round(y0 * self.unit))
        shift = int(round(offset * self.unit)) % tile.shape[1]
        cut = np.take(tile[: self.pixels - a], np.arange(shift, shift + self.pixels), axis=1, mode="wrap")
        factor = cv2.merge([(1 + amount * cut).astype(np.float32)] * 3)
        self.image[a:] = cv2.multiply(self.image[a:], factor, dtype=cv2.CV_8U)

    def draw(self, part: Part) -> None:
        """Draw every shape of the part in order, and note the part for the ground truth."""
        self.drawn.append(part)
        for shape in part.shapes:
            if shape.only is None or shape.only == self.style:
                points = shape.points @ part.now[:, :2].T + part.now[:, 2]
                self._polygon(points * self.unit - 0.5, shape, len(self.drawn))

    def _polygon(self, points: np.ndarray, shape: Shape, number: int) -> None:
        low = np.maximum(np.floor(points.min(0)).astype(int) - 2, 0)
        high = np.minimum(np.ceil(points.max(0)).astype(int) + 3, self.pixels)
        if (high <= low).any():
            return
        view = self.image[low[1] : high[1], low[0] : high[0]]
        fixed = np.round((points - low) * (1 << SHIFT)).astype(np.int32)[None]
        shaded = self.style == "realistic" and shape.shade != "flat"
        if shaded or shape.alpha < 1:
            mask = np.zeros(view.shape[:2], np.uint8)
            cv2.fillPoly(mask, fixed, 255, cv2.LINE_AA, SHIFT)
            cover = mask.astype(np.float32)[..., None] * (shape.alpha / 255)
            fill = np.asarray(shape.colour, np.float32)
            if shaded:
                fill = self._lit(fill, points, low, view.shape, shape.shade)
            view[:] = np.clip(view + cover * (fill - view), 0, 255).astype(np.uint8)
        else:
            cv2.fillPoly(view, fixed, shape.colour, cv2.LINE_AA, SHIFT)
        if self.style == "cartoon" and shape.outline:
            width = max(1, int(round(1.15 * self.unit)))
            cv2.polylines(view, fixed, True, OUTLINE, width, cv2.LINE_AA, SHIFT)
        if self.parts is not None and shape.truth:
            ids = self.parts[low[1] : high[1], low[0] : high[0]]
            cv2.fillPoly(ids, fixed, number, cv2.LINE_8, SHIFT)

    @staticmethod
    def _lit(colour: np.ndarray, points: np.ndarray, low: np.ndarray, shape, kind: str) -> np.ndarray:
        """The colour under a light from above left; u, v run from -1 to 1 over the polygon's bounding box."""
        a, b = points.min(0) - low, points.max(0) - low
        u = ((np.arange(shape[1], dtype=np.float32) - a[0]) / max(b[0] - a[0], 1) * 2 - 1)[None, :, None]
        v = ((np.arange(shape[0], dtype=np.float32) - a[1]) / max(b[1] - a[1], 1) * 2 - 1)[:, None, None]
        if kind == "round":
            light = 1.0 - 0.42 * ((u + 0.45) ** 2 + (v + 0.5) ** 2) ** 0.5 + 0.2
            gloss = np.clip(1 - 9 * ((u + 0.4) ** 2 + (v + 0.45) ** 2), 0, 1) * 0.65
        else:
            light = 1.08 - 0.30 * v - 0.06 * u
            gloss = np.clip(1 - 12 * (v + 0.55) ** 2, 0, 1) * 0.16
        return np.clip(colour * light, 0, 255) * (1 - gloss) + 255 * gloss

    def picture(self) -> np.ndarray:
        """(size, size, 3) uint8."""
        return cv2.resize(self.image, (self.size, self.size), interpolation=cv2.INTER_AREA)

    def mask(self) -> np.ndarray:
        """(size, size) bool: the object's parts, sampled at pixel centres."""
        objects = np.array([False] + [p.is_object for p in self.drawn])
        return objects[self._at_centres()]

    def flow(self) -> np.ndarray:
        """(size, size, 2) float32: displacement (dx, dy) in pixels from this frame to the next."""
        ids = self._at_centres()
        pixel = VIEW / self.size
        grid = (np.arange(self.size) + 0.5) * pixel
        where = np.stack(np.meshgrid(grid, grid), -1)
        out = np.zeros((self.size, self.size, 2), np.float32)
        for number in np.unique(ids[ids > 0]):
            part, here = self.drawn[number - 1], ids == number
            back = np.linalg.inv(np.vstack([part.now, [0, 0, 1]]))[:2]
            move = compose(part.after, back)
            points = where[here]
            out[here] = (points @ move[:, :2].T + move[:, 2] - points) / pixel
        return out

    def _at_centres(self) -> np.ndarray:
        if self.parts is None:
            raise ValueError("truth: expected a canvas made with truth=True, got truth=False")
        half = self.supersample // 2
        return self.parts[half :: self.supersample, half :: self.supersample]
