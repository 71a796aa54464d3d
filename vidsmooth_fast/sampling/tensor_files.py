"""Tensors on disk: safetensors files that appear complete or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def check_folder(name: str, path: Path, *, made: bool = False) -> None:
    """Raises ValueError, naming the argument `name`, where no file can be written beside `path`.

    made: missing folders will be made, so that only the nearest one that exists counts.
    """
    folder = path.absolute().parent
    while made and not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{name}: cannot write in {folder} ({error.strerror})") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, written under a temporary name and renamed. Raises OSError naming the path."""
    partial = path.with_name(path.name + ".part")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # by the user's umask; safetensors would write for the owner alone
        save_file({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, partial, metadata)
        partial.chmod(mode)
        os.replace(partial, path)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file ({error})") from None


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file alone. Raises ValueError naming a path that is not one."""
    with _opened(path) as file:
        return file.metadata() or {}


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a safetensors file. Raises ValueError naming a path that is not one."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
