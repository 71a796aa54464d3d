"""Where a tuning run stands, on disk: complete, written beside its final name and renamed, no pickles.

A checkpoint is a folder `step-000120` with `weights.safetensors` (the trained parameters), `optimizer.safetensors` (its
tensors) and `state.json` (everything else). Random numbers are a function of (seed, step, process), so the step is
their whole state.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from vidsmooth_fast.sampling.tensor_files import check_folder, read_tensors, write_tensors

_NAME = re.compile(r"step-(\d{6,})")
_FILES = ("weights.safetensors", "optimizer.safetensors", "state.json")


@dataclass
class State:
    """One moment of a run.

    step: how many were taken. weights: trained parameters by name. optimizer, scheduler, scaler: their state_dict()s;
    scaler is {} without fp16.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict
    scheduler: dict
    scaler: dict


class Checkpoints:
    """The checkpoints of one run in one folder.

    folder: made when the first is written. fingerprint: of all that the result depends on. architecture: the network's
    configuration. Raises ValueError where the folder cannot be written.
    """

    def __init__(self, folder: Path, fingerprint: str, architecture: dict) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.architecture = json.loads(json.dumps(architecture))
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"resume: expected a folder, got the file {folder}")
        check_folder("resume", folder / "x", made=True)

    def _found(self) -> list[tuple[int, Path]]:
        """(step, folder) of every finished checkpoint, oldest first. Unfinished ones have another name."""
        if not self.folder.is_dir():
            return []
        named = ((_NAME.fullmatch(p.name), p) for p in self.folder.iterdir() if p.is_dir())
        return sorted((int(match[1]), path) for match, path in named if match)

    @property
    def last(self) -> Path | None:
        found = self._found()
        return found[-1][1] if found else None

    def load(self) -> State | None:
        """The last finished checkpoint, on the CPU; None when there is none.

        Raises: ValueError, one line, for a checkpoint of another run or network, or a damaged one.
        """
        found = self._found()
        if not found:
            return None
        step, path = found[-1]
        data = self._read_json(path, found)
        if data["architecture"] != self.architecture:
            ours, theirs = self.architecture, data["architecture"]
            key = next(k for k in [*ours, *theirs] if ours.get(k) != theirs.get(k))
            raise ValueError(
                f"resume: {path} belongs to another network: its {key} is {theirs.get(key)}, here it is {ours.get(key)}"
            )
        if data["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"resume: {path} belongs to a run with another model, clip, prompt or settings; "
                "delete the folder, or go on with the same ones"
            )
        try:
            weights, tensors = (read_tensors(path / name)[0] for name in _FILES[:2])
        except ValueError as error:
            raise self._damaged(path, found, str(error)) from error
        optimizer = {"state": {}, "param_groups": data["optimizer"]}
        for key, tensor in tensors.items():
            index, name = key.split(".", 1)
            optimizer["state"].setdefault(int(index), {})[name] = tensor
        return State(step, weights, optimizer, data["scheduler"], data["scaler"])

    def _read_json(self, path: Path, found: list) -> dict:
        try:
            data = json.loads((path / "state.json").read_text())
            return {
                key: data[key] for key in ("architecture", "fingerprint", "optimizer", "scheduler", "scaler")
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(path, found, f"state.json: {type(error).__name__}") from error

    @staticmethod
    def _damaged(path: Path, found: list, why: str) -> ValueError:
        before = f"go on from {found[-2][1].name}" if len(found) > 1 else "begin anew"
        return ValueError(f"resume: the checkpoint {path} is damaged ({why}); delete it to {before}")

    def save(self, state: State) -> Path:
        """Write a checkpoint; the one before it stays, older ones are removed. Returns its folder.

        Raises: OSError, one line, naming what is still there when it cannot be written (no space left).
        """
        final = self.folder / f"step-{state.step:06d}"
        partial = self.folder / f".{final.name}.part"
        moments = {
            f"{index}.{name}": value
            for index, values in state.optimizer["state"].items()
            for name, value in values.items()
        }
        data = {
            "step": state.step,
            "fingerprint": self.fingerprint,
            "architecture": self.architecture,
            "optimizer": state.optimizer["param_groups"],
            "scheduler": state.scheduler,
            "scaler": state.scaler,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".step-*.part"):  # of an interrupted run
                shutil.rmtree(left, ignore_errors=True)
            partial.mkdir()
            _write(partial / _FILES[0], state.weights)
            _write(partial / _FILES[1], moments)
            (partial / _FILES[2]).write_text(json.dumps(data) + "\n")
            for name in (*_FILES, "."):
                _flush(partial / name)
            if final.exists():
                shutil.rmtree(final)
            os.rename(partial, final)
            _flush(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            kept = f"the last checkpoint is {self.last}" if self.last else "there is no earlier checkpoint"
            reason = getattr(error, "strerror", None) or str(error)
            raise OSError(f"cannot write the checkpoint {final}: {reason}; {kept}") from error
        for _, old in self._found()[:-2]:
            shutil.rmtree(old, ignore_errors=True)
        return final


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    write_tensors(path, {name: torch.as_tensor(t) for name, t in tensors.items()})


def _flush(path: Path) -> None:
    """Have the file or folder on the disk before the rename that says it is there."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
