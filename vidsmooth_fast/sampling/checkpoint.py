"""Where a run stands, on disk, so that a killed run goes on from its last step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidsmooth_fast.sampling.engine import State
from vidsmooth_fast.sampling.tensor_files import check_folder, read_tensors, write_tensors


class Checkpoint:
    """The state of one run in one file, replaced after every step.

    path: the file. fingerprint: of everything the result depends on; a file of another run is refused.
    Raises ValueError for a folder that cannot be written.
    """

    def __init__(self, path: Path, fingerprint: str):
        self.path = path
        self.fingerprint = fingerprint
        check_folder("resume", path)

    def load(self) -> tuple[str, State] | None:
        """(phase, state) of the last finished step, or None when there is no file."""
        if not self.path.exists():
            return None
        tensors, meta = read_tensors(self.path)
        if meta.get("fingerprint") != self.fingerprint:
            raise ValueError(
                f"resume: {self.path} belongs to a run with another model, prompt, source or settings; "
                "delete it, or resume with the same ones"
            )
        return meta["phase"], State(tensors["latents"], tensors.get("history"), int(meta["done"]))

    def save(self, phase: str, state: State) -> None:
        tensors = {"latents": state.latents}
        if state.history is not None:
            tensors["history"] = state.history
        meta = {"fingerprint": self.fingerprint, "phase": phase, "done": str(state.done)}
        write_tensors(self.path, tensors, meta)

    def remove(self) -> None:
        """The run is finished; nothing is left to resume."""
        self.path.unlink(missing_ok=True)


def fingerprint(settings: Mapping, tensors: Iterable[Tensor], frames: Iterable[np.ndarray] = ()) -> str:
    """A hash of `settings` (anything JSON can hold), of tensors and of pictures.

    Of a large tensor 1,024 evenly spaced values are taken: enough to tell one tuned network from another, and as
    quick for gigabytes as for megabytes.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for tensor in tensors:
        flat = tensor.detach().flatten()
        few = flat[:: max(1, flat.numel() // 1024)].cpu().contiguous()
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(few.view(torch.uint8).numpy().tobytes())
    for frame in frames:
        digest.update(np.ascontiguousarray(frame))
    return digest.hexdigest()
