"""Settings kept inside a video file: a JSON comment in containers, an extension block in GIF, XMP in WebP."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape, unescape

_XMP_HEAD = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
)
_XMP_ITEM = (
    '<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:description><rdf:Alt>'
    '<rdf:li xml:lang="x-default">'
)
_XMP_TAIL = "</rdf:li></rdf:Alt></dc:description></rdf:Description></rdf:RDF></x:xmpmeta>"


def as_comment(metadata: Mapping | None) -> str:
    """One line of JSON, "" for nothing. Values JSON has no word for are written by `str`.

    Raises: ValueError when `metadata` is not a mapping.
    """
    if not metadata:
        return ""
    if not isinstance(metadata, Mapping):
        raise ValueError(f"metadata must be a dict, got {type(metadata).__name__}")
    return json.dumps({str(key): value for key, value in metadata.items()}, default=str)


def parse_metadata(tags: Mapping[str, str]) -> dict:
    """What `as_comment` wrote, if the comment is that; else the tags, with their names in lower case."""
    tags = {key.lower(): value for key, value in tags.items()}
    return parse_comment(tags.get("comment")) or tags


def parse_comment(comment: str | bytes | None) -> dict:
    """The JSON object in `comment`, or {}."""
    try:
        found = json.loads(comment or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def add_gif_comment(path: Path, comment: str) -> None:
    """Put a comment extension into a finished GIF file, before its first picture (FFmpeg takes one at the end
    for another frame)."""
    data = comment.encode()
    parts = (data[i : i + 255] for i in range(0, len(data), 255))
    block = b"\x21\xfe" + b"".join(bytes([len(part)]) + part for part in parts) + b"\x00"
    changed = path.with_name(path.name + ".comment")
    with open(path, "rb") as old, open(changed, "wb") as new:
        head = old.read(13)
        if head[:3] != b"GIF":
            raise ValueError(f"{path} is not a GIF file")
        head += old.read(3 << ((head[10] & 7) + 1) if head[10] & 0x80 else 0)  # global colours
        loop = old.read(19)
        looping = loop[:2] == b"\x21\xff" and loop[3:14] == b"NETSCAPE2.0"
        new.write(head + (loop + block if looping else block + loop))
        shutil.copyfileobj(old, new)
    os.replace(changed, path)


def add_webp_comment(path: Path, comment: str, size: tuple[int, int]) -> None:
    """Append an XMP chunk to a finished WebP file and say so in its header, which a still picture gets for it.

    size: (height, width), pixels.
    """
    data = f"{_XMP_HEAD}{_XMP_ITEM}{escape(comment)}{_XMP_TAIL}".encode()
    with open(path, "r+b") as file:
        head = file.read(21)
        if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
            raise ValueError(f"{path} is not a WebP file")
        flags = head[20]
        if head[12:16] != b"VP8X":  # libwebp's way of one frame, and of frames that are all equal
            file.seek(12)
            picture, flags = file.read(), 0
            canvas = b"".join((side - 1).to_bytes(3, "little") for side in size[::-1])
            file.seek(12)
            file.write(b"VP8X" + struct.pack("<II", 10, flags) + canvas + picture)
        file.seek(0, 2)
        file.write(b"XMP " + struct.pack("<I", len(data)) + data + b"\x00" * (len(data) % 2))
        end = file.tell()
        file.seek(4)
        file.write(struct.pack("<I", end - 8))
        file.seek(20)
        file.write(bytes([flags | 0x04]))


def parse_xmp(xmp: str | bytes | None) -> dict:
    """The JSON object that `add_webp_comment` wrote, or {}."""
    text = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else xmp or ""
    start, end = text.find(_XMP_ITEM), text.rfind(_XMP_TAIL)
    return parse_comment(unescape(text[start + len(_XMP_ITEM) : end])) if 0 <= start < end else {}
