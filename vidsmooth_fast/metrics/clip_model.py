"""CLIP for the metrics that need one: the embedded model of sprite-world, any transformers CLIP directory, a Hub id."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vidsmooth_fast.models.loading import EMBEDDED, choose_device
from vidsmooth_fast.models.pretrained import first_line, read_pretrained, read_tokenizer
from vidsmooth_fast.models.video_model import quiet_transformers

EMBEDDED_CLIP = "sprite-world-clip"


def image_processor():
    """transformers' CLIP image processor that works on arrays and PIL, the same on every machine."""
    try:
        from transformers import CLIPImageProcessorPil as Processor
    except ImportError:  # transformers 4, whose default it is
        from transformers import CLIPImageProcessor as Processor
    return Processor


class Clip:
    """name: what was loaded. images, text: unit embeddings.

    name_or_path: "sprite-world-clip" (embedded), a directory that transformers wrote, or a Hub id.
    Raises: ValueError, one line, when it cannot be read.
    """

    def __init__(self, name_or_path: str | os.PathLike = EMBEDDED_CLIP, *, device: str = "auto") -> None:
        from transformers import CLIPModel

        self.name = os.fspath(name_or_path)
        place, options = find_place(self.name, "clip", "config.json")
        self._device = choose_device(device)
        try:
            with quiet_transformers():
                model = read_pretrained(CLIPModel, place, dtype=torch.float32, **options)
                self._pixels = image_processor().from_pretrained(place, **options)
                self._tokenizer = read_tokenizer(place, model.config.text_config.vocab_size, **options)
        except Exception as error:  # a missing repository, file, key and network are all different classes
            raise ValueError(f"clip: cannot read {self.name!r}: {first_line(error)}") from error
        self._model = model.eval().to(self._device)

    def images(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """(n, D) float64, each row of length 1, of (H, W, 3) uint8 frames."""
        pixels = self._pixels(list(frames), return_tensors="pt")["pixel_values"].to(self._device)
        with torch.inference_mode():
            seen = self._model.vision_model(pixel_values=pixels).pooler_output
            return _unit(self._model.visual_projection(seen))

    def text(self, prompt: str) -> tuple[np.ndarray, str]:
        """(D,) float64 of length 1, and the end of the prompt that the encoder could not read ("" for none)."""
        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer([prompt], truncation=True, max_length=length, return_tensors="pt")
        every = self._tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        cut = self._tokenizer.decode(every[length - 2 :]) if len(every) > length - 2 else ""
        with torch.inference_mode():
            read = self._model.text_model(
                input_ids=tokens.input_ids.to(self._device),
                attention_mask=tokens.attention_mask.to(self._device),
            ).pooler_output
            return _unit(self._model.text_projection(read))[0], cut


def _unit(features: torch.Tensor) -> np.ndarray:
    features = features.double()
    return (features / features.norm(dim=-1, keepdim=True)).cpu().numpy()


def find_place(name: str, argument: str, note: str, inside: str = "") -> tuple[str, dict]:
    """What from_pretrained takes for a name, a directory or a Hub id, and its options."""
    if (EMBEDDED / name / inside / note).is_file():
        return str(EMBEDDED / name / inside), {"local_files_only": True}
    folder = Path(name).expanduser()
    if folder.is_dir():
        for place in (folder, folder / inside):
            if (place / note).is_file():
                return str(place), {"local_files_only": True}
        raise ValueError(f"{argument}: expected {note} in {folder}, found none")
    if name.count("/") == 1 and not name.startswith((".", "~", "/")):
        return name, {}
    raise ValueError(
        f"{argument}: {name!r} is neither an embedded model, a directory, nor a Hub id like owner/name"
    )
