"""Where a run stands, on disk: written after every step, so that a killed run goes on from its last one."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vidsmooth_fast.sampling.engine import State


class Checkpoint:
    """The state of one run in one safetensors file, replaced atomically.

    path: the file. fingerprint: of everything the result depends on; a file of another run is refused.
    """

    def __init__(self, path: str | os.PathLike, fingerprint: str):
        self.path = Path(path)
        self.fingerprint = fingerprint
        if not self.path.absolute().parent.is_dir():
            raise ValueError(f"resume: the folder {self.path.absolute().parent} does not exist")

    def load(self) -> tuple[str, State] | None:
        """(phase, state) of the last finished step, or None when there is no file."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                meta = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"resume: {self.path} is not a checkpoint of fast_sample ({error})") from None
        if meta.get("fingerprint") != self.fingerprint:
            raise ValueError(
                f"resume: {self.path} belongs to a run with another model, prompt, source or settings; "
                "delete it, or resume with the same ones"
            )
        return meta["phase"], State(tensors["latents"], tensors.get("history"), int(meta["done"]))

    def save(self, phase: str, state: State) -> None:
        """Write the state to a temporary name, then rename it over the file."""
        tensors = {"latents": state.latents.contiguous().cpu()}
        if state.history is not None:
            tensors["history"] = state.history.contiguous().cpu()
        meta = {"fingerprint": self.fingerprint, "phase": phase, "done": str(state.done)}
        partial = self.path.with_name(self.path.name + ".part")
        save_file(tensors, partial, metadata=meta)
        os.replace(partial, self.path)

    def remove(self) -> None:
        """The run is finished; nothing is left to resume."""
        self.path.unlink(missing_ok=True)


def fingerprint(settings: dict, *tensors: Tensor | None) -> str:
    """A hash of `settings` (anything JSON can hold) and of the bytes of `tensors`."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for tensor in tensors:
        if tensor is not None:
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
