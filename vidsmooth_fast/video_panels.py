"""Videos beside each other with captions, and sheets of stills: for looking at results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vidsmooth_fast._video_encode import write_picture
from vidsmooth_fast._video_read import fit
from vidsmooth_fast._video_write import check_frame, check_size

__all__ = ["contact_sheet", "evenly_spaced", "side_by_side", "write_picture"]

PANEL_HEIGHT = 384
"""Small frames are enlarged a whole number of times to about this height, so that captions are legible."""
PAPER, INK = 18, 235
"""Grey levels of the ground and of the letters."""
GAP = 8


def side_by_side(
    videos: Sequence[Iterable[np.ndarray]], labels: Sequence[str], *, size: tuple[int, int] | None = None
) -> Iterator[np.ndarray]:
    """Frames of several videos next to each other, each under its caption; ends with the shortest.

    videos: iterables of (H, W, 3) uint8, read as they are needed. labels: one caption each; cut when too long.
    size: (height, width) of every panel; by default the first video's, enlarged a whole number of times (cubic) to
    about 384 pixels. Other sizes are scaled to cover and cut to the centre. Yields (H', W', 3) uint8, all of one even
    size.

    Raises: ValueError when there is no video or the labels are not as many.
    """
    if not videos or len(videos) != len(labels):
        raise ValueError(
            f"labels must name each of the {len(videos)} videos, at least one, got {len(labels)}"
        )
    size = None if size is None else check_size(size)
    return _panels(videos, labels, size)


def _panels(videos, labels, size) -> Iterator[np.ndarray]:
    canvas, bar = None, 0
    for frames in zip(*videos, strict=False):
        if canvas is None:
            size = size or _enlarged(frames[0])
            height, width = size
            bar = caption_height(height)
            total_h = height + bar + GAP
            total_w = len(frames) * (width + GAP) + GAP
            canvas = np.full((total_h + total_h % 2, total_w + total_w % 2, 3), PAPER, np.uint8)
            for number, label in enumerate(labels):
                left = GAP + number * (width + GAP)
                canvas[:bar, left : left + width] = _caption(label, bar, width)
        picture = canvas.copy()
        for number, frame in enumerate(frames):
            check_frame(frame, None)
            left = GAP + number * (width + GAP)
            picture[bar : bar + height, left : left + width] = fit(frame, size)
        yield picture


def contact_sheet(
    frames: Iterable[np.ndarray],
    *,
    columns: int,
    labels: Sequence[str] = (),
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Stills in rows from left to right, each under its caption when there are labels.

    frames: (H, W, 3) uint8 each, at least one. columns: stills per row. labels: captions of the first so many.
    size: (height, width) of every still; by default the first frame's, enlarged as in `side_by_side`.
    Returns (H', W', 3) uint8.

    Raises: ValueError when there is no frame or columns is below 1.
    """
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    cells = []
    for number, frame in enumerate(frames):
        check_frame(frame, None)
        size = _enlarged(frame) if size is None else check_size(size)
        cell = fit(frame, size)
        if labels:
            label = labels[number] if number < len(labels) else ""
            cell = np.concatenate([_caption(label, caption_height(size[0]), size[1]), cell])
        cells.append(cell)
    if not cells:
        raise ValueError("frames must hold at least one frame, got none")
    height, width = cells[0].shape[:2]
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    sheet = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), PAPER, np.uint8)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
        sheet[top : top + height, left : left + width] = cell
    return sheet


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """`wanted` of the frame numbers 0 ... count - 1, first and last included; all when there are fewer."""
    wanted = min(count, wanted)
    return [0] if wanted == 1 else [round(n * (count - 1) / (wanted - 1)) for n in range(wanted)]


def caption_height(height: int) -> int:
    """Pixels of the caption above a panel of this height."""
    return max(20, round(height / 12))


def _enlarged(frame: np.ndarray) -> tuple[int, int]:
    height, width = frame.shape[:2]
    times = max(1, round(PANEL_HEIGHT / height))
    return height * times, width * times


def _caption(text: str, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 with one line of text, made smaller and then cut to fit."""
    image = Image.new("L", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    for letters in range(round(height * 0.62), 9, -1):
        font = ImageFont.load_default(size=letters)
        if draw.textlength(text, font=font) <= width - 4:
            break
    while len(text) > 1 and draw.textlength(text, font=font) > width - 4:
        text = text[:-2].rstrip() + "…"
    draw.text((2, height / 2), text, fill=INK, font=font, anchor="lm")
    return np.repeat(np.asarray(image)[..., None], 3, axis=2)
