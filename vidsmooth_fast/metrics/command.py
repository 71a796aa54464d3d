"""What `vidsmooth-fast evaluate` does: inputs to a table for the terminal and files for everything else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vidsmooth_fast.metrics.batch import Batch, evaluate_many
from vidsmooth_fast.metrics.html import html
from vidsmooth_fast.metrics.inputs import collect
from vidsmooth_fast.metrics.registry import choose

WRITERS = {"json": Batch.to_json, "csv": Batch.to_csv, "html": html}


def evaluate_files(
    inputs: Iterable[str],
    *,
    outputs: Mapping[str, Path | None],
    metrics: Iterable[str] | None = None,
    prompt: str | None = None,
    source: Path | None = None,
    videos: Path | None = None,
    **options,
) -> tuple[str, list[tuple[str, str]]]:
    """Judge every video that `inputs` name (see `inputs.collect`), and write "json", "csv" and "html" where asked.

    Returns the table for the terminal, and (name, reason) of everything that could not be judged or written.
    Raises: ValueError, OSError before any video is judged for what no video could meet.
    """
    inputs = list(inputs)
    if not inputs:
        raise ValueError("inputs: expected videos, folders, globs or a table, got none")
    choose(metrics or None)
    targets = {kind: _place(kind, path) for kind, path in outputs.items() if path is not None}
    found = collect(inputs, prompt=prompt, source=source, videos=videos)
    read = [Path(given).expanduser() for given in inputs]
    read += [path for item in found.items for path in (item.video, item.source) if path is not None]
    _spare(targets, read)
    batch = evaluate_many(found, metrics=metrics or None, **options)
    failures = batch.failures
    for kind, path in targets.items():
        try:
            with _renamed(path) as temporary:
                temporary.write_text(WRITERS[kind](batch), encoding="utf-8")
        except (OSError, ValueError) as error:  # the numbers are still shown, and the other files written
            failures.append((str(path), f"not written: {' '.join(str(error).split())}"))
    return batch.table(), failures


def _place(kind: str, path: Path) -> Path:
    path = path.expanduser()
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"{kind}: expected the name of a file in a folder that exists, got {path}")
    return path


def _spare(targets: Mapping[str, Path], read: Iterable[Path]) -> None:
    """Raises: ValueError where a file to be written is one of those that are read, which would be lost."""
    there = {kind: path for kind, path in targets.items() if path.exists()}
    for path in read:
        for kind, target in there.items():
            if path.exists() and target.samefile(path):
                raise ValueError(f"{kind}: {target} is one of the files to be read; name another")


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name at the end; nothing is left when something fails."""
    temporary = path.with_name(f".{path.name[:60]}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
