"""Segment Anything's predictor (the extra `sam`), also where torchvision's compiled operators do not load.

`segment-anything` imports four functions of torchvision: `resize` and `to_pil_image`, which its predictor uses, and
`batched_nms` and `box_area`, which only its automatic mask generator does. torchvision's wheels fit one build of torch;
beside another (a CPU-only torch, say) its import fails with "operator torchvision::nms does not exist". Then the two
picture functions are provided here, through Pillow, as torchvision does them for 8-bit pictures; the other two raise
when called. What stands in for torchvision is removed again after the import.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image

MODELS = ("vit_h", "vit_l", "vit_b")


def _to_pil_image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture)


def _resize(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bilinear with antialiasing, torchvision's default. size: (height, width)."""
    return picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def _boxes_only(*arguments, **options):
    raise RuntimeError("the automatic mask generator needs a torchvision that loads beside this torch")


@contextmanager
def _torchvision() -> Iterator[None]:
    """The real torchvision, or while this lasts, one with what the predictor calls."""
    try:
        import torchvision.ops.boxes  # noqa: F401
        import torchvision.transforms.functional  # noqa: F401

        yield
        return
    except (ImportError, RuntimeError):  # absent; or built for another torch
        pass
    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torchvision"}
    for name in kept:
        del sys.modules[name]
    functions = {
        "torchvision.transforms.functional": {"resize": _resize, "to_pil_image": _to_pil_image},
        "torchvision.ops.boxes": {"batched_nms": _boxes_only, "box_area": _boxes_only},
    }
    try:
        for path, provided in functions.items():
            parts = path.split(".")
            for end in range(1, len(parts) + 1):
                name = ".".join(parts[:end])
                module = sys.modules.setdefault(name, ModuleType(name))
                if end > 1:
                    setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], module)
            vars(sys.modules[path]).update(provided)
        yield
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules.update(kept)


def make_predictor(sam):
    """The real `SamPredictor` around a SAM. Raises ValueError naming the extra where the package is missing."""
    with _torchvision():
        try:
            from segment_anything import SamPredictor
        except ImportError as error:
            raise ValueError(
                "checkpoint: Segment Anything is not installed; pip install 'vidsmooth-fast[sam]'"
            ) from error
    return SamPredictor(sam)


def load_predictor(
    checkpoint: str | os.PathLike, *, model: str | None = None, device: str | torch.device = "cpu"
):
    """A predictor with the weights of a checkpoint file; the pickle is read as plain tensors only.

    model: "vit_h", "vit_l" or "vit_b"; by default what the file's name says.
    Raises: ValueError, one line, for a file that is not there, not one of these, or not readable.
    """
    from vidsmooth_fast.models.weights import read_weights

    path = Path(checkpoint)
    if not path.is_file():
        raise ValueError(f"checkpoint: expected Segment Anything's weights, found no file {path}")
    kind = model or next((name for name in MODELS if name in path.name), None)
    if kind not in MODELS:
        raise ValueError(
            f"checkpoint: expected one of {', '.join(MODELS)} in the file's name, got {path.name}"
        )
    with _torchvision():
        try:
            from segment_anything import sam_model_registry
        except ImportError as error:
            raise ValueError(
                "checkpoint: Segment Anything is not installed; pip install 'vidsmooth-fast[sam]'"
            ) from error
    sam = sam_model_registry[kind]()
    try:
        sam.load_state_dict(read_weights(path))
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"checkpoint: {path} does not fit {kind} ({first})") from error
    return make_predictor(sam.eval().to(device))
