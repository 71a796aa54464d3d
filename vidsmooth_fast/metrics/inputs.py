"""What to judge: files, folders, globs and LOVEU-TGVE style tables, as videos with their prompts and sources."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from vidsmooth_fast._video_images import PICTURES, natural_key

VIDEOS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".webp", ".mpg", ".mpeg"}


@dataclass(frozen=True)
class Item:
    """A video to judge. name: of its row. group: what belongs together (edits of one clip), "" for nothing."""

    video: Path
    name: str
    prompt: str | None = None
    source: Path | None = None
    group: str = ""


class Inputs:
    """items: to judge, in order. problems: (name, what is wrong) of each input that leads to no video."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.problems: list[tuple[str, str]] = []


def collect(
    inputs: Iterable[str | os.PathLike],
    *,
    prompt: str | None = None,
    source: str | os.PathLike | None = None,
    videos: str | os.PathLike | None = None,
) -> Inputs:
    """Every video that `inputs` name.

    inputs: video files; folders of videos, or folders of pictures, each one video; globs; tables (.csv).
    prompt: of every video that no table gives one. source: a clip for all of them, or a folder with a clip of each
    video's (in a table: each row's) name. videos: the folder of a table's edited videos; by default the table's own.

    A table is as LOVEU-TGVE's: a header, then a clip's name, its caption, and one column for each edit prompt, named
    by its first word ("Style Change Caption": style). Rows without a caption are headings. The edited video of clip
    `hike`, edit `style` is hike_style.* or hike/style.* in that folder or below.

    Raises: ValueError for a table that cannot be read, FileNotFoundError for a source or folder that is not there.
    """
    found = Inputs()
    source = None if source is None else _existing(source, "source")
    for given in inputs:
        text = os.path.expanduser(os.fspath(given))
        path = Path(text)
        if path.suffix.lower() == ".csv":
            folder = path.parent if videos is None else _existing(videos, "videos")
            _table(found, path, folder, source)
            continue
        if path.exists():
            paths = [path] if path.is_file() else _inside(path)
            if not paths:
                found.problems.append((text, "a folder without videos"))
        elif glob.has_magic(text):
            paths = [p for name in sorted(glob.glob(text, recursive=True)) for p in _unfolded(Path(name))]
            if not paths:
                found.problems.append((text, "no file matches"))
        else:
            paths = []
            found.problems.append((text, "no such file"))
        for video in paths:
            clip = source
            if source is not None and _is_many(source):
                name = video.name if video.is_dir() else video.stem
                clip = _by_name(source, name)
                if clip is None:
                    found.problems.append(
                        (str(video), f"no source called {name} in {source}; judged without")
                    )
            found.items.append(Item(video, str(video), prompt, clip))
    found.items = _short_names(found.items)
    return found


def _short_names(items: list[Item]) -> list[Item]:
    """Videos named by their paths lose the folders that all of those share."""
    paths = [item.video.absolute() for item in items if not item.group]
    if not paths:
        return items
    shared = os.path.commonpath([path.parent for path in paths])
    return [i if i.group else replace(i, name=os.path.relpath(i.video.absolute(), shared)) for i in items]


def _existing(path: str | os.PathLike, name: str) -> Path:
    path = Path(os.path.expanduser(os.fspath(path)))
    if not path.exists():
        raise FileNotFoundError(f"{name}: no such file or folder: {path}")
    return path


def _unfolded(path: Path) -> list[Path]:
    if path.is_dir():
        return _inside(path)
    return [path] if path.suffix.lower() in VIDEOS else []


def _inside(folder: Path) -> list[Path]:
    """The videos in a folder and below, or the folder itself where it holds pictures: one video."""
    if not _is_many(folder):
        return [folder]
    found = []
    for path in sorted(folder.iterdir(), key=lambda p: natural_key(p.name)):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            found += _inside(path)
        elif path.suffix.lower() in VIDEOS:
            found.append(path)
    return found


def _is_many(path: Path) -> bool:
    """Whether a path is a folder of videos rather than one video or the pictures of one."""
    if not path.is_dir():
        return False
    suffixes = {p.suffix.lower() for p in path.iterdir() if p.is_file()}
    return bool(suffixes & (VIDEOS - PICTURES)) or not suffixes & PICTURES


def _by_name(folder: Path, *names: str) -> Path | None:
    """The first video in a folder or below whose path without suffix ends with one of `names`."""
    known = _inside(folder)
    for name in names:
        parts = tuple(name.lower().split("/"))
        for path in known:
            bare = path if path.is_dir() else path.with_suffix("")
            if tuple(part.lower() for part in bare.parts[-len(parts) :]) == parts:
                return path
    return None


def _table(found: Inputs, path: Path, folder: Path, source: Path | None) -> None:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file)]
    except FileNotFoundError:
        raise FileNotFoundError(f"no such table: {path}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a table of comma-separated values ({error})") from error
    header = rows[0] if rows else []
    edits = {i: title.split()[0].lower() for i, title in enumerate(header) if i > 1 and _is_prompt(title)}
    if len(header) < 3 or not edits:
        raise ValueError(
            f"{path}: expected the columns of a LOVEU-TGVE table (video name, caption, edit captions), "
            f"got {', '.join(header) or 'nothing'}"
        )
    clips = [row for row in rows[1:] if len(row) > 1 and row[0] and row[1]]
    if not clips:
        found.problems.append((str(path), "a table without clips"))
    for row in clips:
        clip = row[0]
        original = source if source is None or not _is_many(source) else _by_name(source, clip)
        if source is not None and original is None:
            found.problems.append((clip, f"no source called {clip} in {source}; judged without"))
        for column, edit in edits.items():
            prompt = row[column] if column < len(row) else ""
            video = _by_name(folder, f"{clip}_{edit}", f"{clip}/{edit}")
            if not prompt:
                found.problems.append((f"{clip} {edit}", f"{path} has no prompt for it"))
            if video is None:
                wanted = f"{clip}_{edit}.* or {clip}/{edit}.*"
                found.problems.append((f"{clip} {edit}", f"no video {wanted} in {folder}"))
            else:
                found.items.append(Item(video, f"{clip} {edit}", prompt or None, original, group=clip))


def _is_prompt(title: str) -> bool:
    return title.lower().endswith(("caption", "prompt"))
