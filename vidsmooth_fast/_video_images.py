"""Frames from a folder of pictures, and from animated WebP, which FFmpeg does not read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from vidsmooth_fast._video_metadata import parse_xmp
from vidsmooth_fast._video_read import fit, on_white
from vidsmooth_fast._video_timeline import Timeline, as_rate, make_timeline

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
FOLDER_RATE = Fraction(25)
"""Frames per second of a folder that does not say (FFmpeg's own choice for image sequences)."""
FOLDER_NOTE = "video.json"
"""File in a folder of frames that keeps what pictures cannot: {"fps": "30000/1001", "metadata": {...}}."""
TURNS = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image[::-1].swapaxes(0, 1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: image[:, ::-1].swapaxes(0, 1),
}
"""(H, W, 3) as stored to upright, by EXIF's orientation."""
SIDEWAYS = (5, 6, 7, 8)
"""Orientations that exchange height and width."""


def natural_key(name: str) -> list:
    """Sorting key under which frame2 comes before frame10."""
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in re.split(r"(\d+)", name)]


class FolderFrames:
    """The pictures of a folder in natural order of their names, one frame each.

    size: (height, width) of the first picture; the others must have the same unless the video is resized,
    in which case each is scaled to cover. fps: from video.json when there is one, else 25.

    Raises: ValueError when the folder holds no picture, or one that cannot be read, naming it.
    """

    has_sound = False
    first_time = Fraction(0)

    def __init__(self, path: Path):
        self.path = path
        self.files = sorted(
            (f for f in path.iterdir() if f.suffix.lower() in PICTURES and not f.name.startswith(".")),
            key=lambda f: natural_key(f.name),
        )
        if not self.files:
            raise ValueError(f"{path} holds no pictures ({', '.join(sorted(PICTURES))})")
        self.sizes = [_picture_size(file) for file in self.files]
        self.size = self.sizes[0]
        note = path / FOLDER_NOTE
        try:
            found = json.loads(note.read_text()) if note.is_file() else {}
            self.fps = as_rate(found.get("fps", FOLDER_RATE))
            self.metadata = dict(found.get("metadata") or {})
        except (ValueError, TypeError, AttributeError):
            raise ValueError(f'{note} must hold {{"fps": ..., "metadata": {{...}}}}') from None

    @property
    def count(self) -> int:
        return len(self.files)

    def check_sizes(self) -> None:
        """Raises: ValueError naming the first picture whose size differs from the first one's."""
        for file, size in zip(self.files, self.sizes, strict=True):
            if size != self.size:
                raise ValueError(
                    f"all pictures must have the same size unless size= is given: {self.files[0].name} is "
                    f"{self.size[1]}x{self.size[0]}, {file} is {size[1]}x{size[0]}"
                )

    def read(self, frames: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield (H, W, 3) uint8 of the pictures with these numbers, each at its own size."""
        for frame in frames:
            yield read_picture(self.files[frame])


class WebPFrames:
    """The frames of an animated WebP file. Attributes as in `ContainerFrames`."""

    has_sound = False
    first_time = Fraction(0)

    def __init__(self, path: Path):
        self.path = path
        with _open_picture(path) as image:
            self._orientation = _orientation(image)
            size = (image.height, image.width)
            self.size = size[::-1] if self._orientation in SIDEWAYS else size
            self.metadata = parse_xmp(image.info.get("xmp"))
            starts, at = [], 0
            for frame in range(getattr(image, "n_frames", 1)):
                image.seek(frame)
                image.load()
                starts.append(at)
                stays = int(image.info.get("duration", 40)) or 40
                at += stays
        self.timeline: Timeline = make_timeline(
            starts, Fraction(1, 1000), last_duration=stays, hints=(Fraction(1000 * len(starts), at),)
        )
        self.fps = self.timeline.fps
        self.count = self.timeline.count

    def read(self, frames: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield (H, W, 3) uint8 for each frame number."""
        with _open_picture(self.path) as image:
            for frame in frames:
                image.seek(self.timeline.picture(frame))
                shown = on_white(np.asarray(image.convert("RGBA")))
                yield fit(_turned(shown, self._orientation), self.size)


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of one picture, upright by its EXIF note, 16-bit reduced to 8, transparency on white.

    Raises: ValueError naming the file when it cannot be decoded.
    """
    data = np.fromfile(path, np.uint8)
    image = None
    if path.suffix.lower() in {".png", ".webp", ".tif", ".tiff"} and data.size:
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if image is not None and image.ndim == 3 and image.shape[2] == 4:
            image = image if image.dtype == np.uint8 else (image // 257).astype(np.uint8)
            image = cv2.cvtColor(on_white(cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)), cv2.COLOR_RGB2BGR)
    if data.size and (image is None or image.ndim != 3 or image.dtype != np.uint8):
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError(f"{path} is not a picture that can be read")
    with _open_picture(path) as opened:
        orientation = 1 if opened.format == "TIFF" else _orientation(opened)  # OpenCV turns TIFF itself
    return _turned(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), orientation)


def _picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture once it is upright, without decoding it."""
    with _open_picture(path) as image:
        size = (image.height, image.width)
        if image.format == "TIFF":  # whose size newer versions of Pillow have turned already
            size = (image.tag_v2[257], image.tag_v2[256])
        return size[::-1] if _orientation(image) in SIDEWAYS else size


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 (upright) where there is none. Pillow's own PNG class would decode the picture for it."""
    try:
        return Image.Image.getexif(image).get(0x0112, 1)
    except Exception:  # a damaged note is no reason not to show the picture
        return 1


def _turned(image: np.ndarray, orientation: int) -> np.ndarray:
    return np.ascontiguousarray(TURNS[orientation](image)) if orientation in TURNS else image


def _open_picture(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (UnidentifiedImageError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"no such picture: {path}") from None
        raise ValueError(f"{path} is not a picture that can be read") from None
