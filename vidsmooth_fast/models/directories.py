"""Writing a directory so that it appears complete or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_directory(target: Path, marker: str, kind: str) -> Iterator[Path]:
    """An empty directory to fill in the block; it is given its name `target` where the block succeeds.

    It lies beside the target until then, so that an interrupted run leaves nothing under the final name. An earlier
    directory there that has the file `marker` is replaced, and put back where the replacing is interrupted. kind: what
    such a directory holds, for the message. Raises: ValueError for any other non-empty target.
    """
    earlier = target.is_dir() and ((target / marker).is_file() or not any(target.iterdir()))
    if target.exists() and not earlier:
        raise ValueError(f"directory: expected a new, empty or earlier {kind} directory, got {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        (staging / "new").mkdir()
        yield staging / "new"
        _permit(staging)
        if target.exists():
            target.rename(staging / "old")
        os.rename(staging / "new", target)
    finally:
        if not target.exists() and (staging / "old").exists():
            os.rename(staging / "old", target)
        shutil.rmtree(staging, ignore_errors=True)


def _permit(staging: Path) -> None:
    """Give its files the permissions of the user's umask: safetensors writes them for their owner alone."""
    (staging / "usual").touch()
    usual = (staging / "usual").stat().st_mode
    for path in (staging / "new").rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | usual)
