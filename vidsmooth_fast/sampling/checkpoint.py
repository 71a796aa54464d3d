"""Where a run stands, on disk, so that a killed run goes on from its last step."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidsmooth_fast.sampling.engine import State
from vidsmooth_fast.sampling.tensor_files import (
    check_folder,
    read_metadata,
    read_tensors,
    write_tensors,
)


class Checkpoint:
    """The state of one run in one file, replaced after every step.

    path: the file. fingerprint: of everything the result depends on; a file of another run is refused. super_window:
    of the run's Job.
    """

    def __init__(self, path: Path, fingerprint: str, super_window: int | None = None):
        self.path = path
        self.fingerprint = fingerprint
        self.super_window = super_window

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
        meta["super_window"] = str(self.super_window or 0)
        write_tensors(self.path, tensors, meta)

    def remove(self) -> None:
        """The run is finished; nothing is left to resume."""
        self.path.unlink(missing_ok=True)


def check_resume(resume: str | os.PathLike, output: Path | None) -> Path:
    """Where a run's state is kept. Raises ValueError for what is no place for a file, and for one in the output."""
    try:
        path = Path(resume).expanduser()
    except TypeError:
        raise ValueError(f"resume: expected the path of a file, got {type(resume).__name__}") from None
    if path.is_dir():
        raise ValueError(f"resume: expected the path of a file, and {path} is a folder")
    check_folder("resume", path)
    there = path.resolve()
    if output is not None and output.resolve() in (there, *there.parents):
        raise ValueError(f"resume: {path} is the output, or in it; keep the state elsewhere")
    return path


def kept_super_window(path: Path) -> int | None:
    """Frames of a super-window of the run that a file keeps, 0 without any; None where there is no file."""
    return int(read_metadata(path).get("super_window", 0)) if path.exists() else None


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
