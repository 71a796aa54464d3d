"""How a long video goes through the device piece by piece: runs of frames whose windows are all predicted.

What the device holds at once then depends on the number of windows in a piece and not on the length of the video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HALO = 1
"""Neighbours on each side that the noise constraint and the inversion blend read."""


@dataclass(frozen=True)
class Segment:
    """One piece: some windows are predicted, and the frames that are now complete are stepped.

    Frames are numbered along the video; in a loop they may run over its end (take them modulo its length).

    first, last: frames first ... last-1 are stepped. Every frame of the video is in one segment.
    begin, end: frames begin ... end-1 are read: all those that the windows cover. At least HALO neighbours of the
        frames that are stepped are complete among them, except at the ends of an open video.
    predicted: numbers of the windows that the network sees for this segment.
    starts: first frames, counted from `begin`, of the windows that are merged, in this order: of a looped video's last
        segment the `head` of the first one; the `carried` last ones of the segment before; those that are predicted.
    closed: the segment is a whole looped video, whose last frame is followed by its first.
    """

    first: int
    last: int
    begin: int
    end: int
    predicted: range
    starts: tuple[int, ...]
    carried: int = 0
    head: int = 0
    closed: bool = False


def plan_segments(
    starts: Sequence[int], length: int, frames: int, count: int, *, loop: bool = False
) -> tuple[Segment, ...]:
    """Cut the windows of a video into segments of `count` windows, or a multiple where that completes no frame.

    starts: first frames of the windows, ascending, as `windows.plan` gives them. length: of every window, in frames.
    count: windows in one segment, at least 1; a video of no more is one segment.

    A window that covers frames of two segments is predicted once and carried over. A looped video begins where no
    window runs over its end, so that only the last segment waits for windows at both ends. The windows that cover a
    frame stay in the order of `starts`: sums over them are rounded alike whatever the segments.
    """
    windows = len(starts)
    whole = (Segment(0, frames, 0, frames, range(windows), tuple(starts), closed=loop),)
    if windows <= count:
        return whole
    # Frames at the beginning that the last windows cover, in a loop.
    over = max(starts[-1] + length - frames, 0)
    origin = over + HALO if loop else 0
    head = sum(start < origin + HALO for start in starts) if loop else 0
    segments, first, kept, at = [], origin, 0, 0
    while at < windows:
        stop = min(at + count, windows)
        while stop < windows and starts[stop] - HALO <= first:
            stop = min(stop + count, windows)
        final = stop == windows
        if final and not segments:
            return whole
        last = origin + frames if final and loop else frames if final else starts[stop] - HALO
        ahead = tuple(start + frames for start in starts[:head]) if final else ()
        merged = (*ahead, *starts[kept:stop])
        begin, end = starts[kept], max(merged) + length
        segments.append(
            Segment(
                first,
                last,
                begin,
                end,
                range(at, stop),
                tuple(start - begin for start in merged),
                at - kept,
                len(ahead),
            )
        )
        kept = next((i for i in range(stop) if starts[i] + length > last - HALO), stop)
        first, at = last, stop
    return tuple(segments)
