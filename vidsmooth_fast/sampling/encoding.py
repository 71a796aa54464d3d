"""Encoding a video in a thread of its own while its next frames are decoded from latents."""

from __future__ import annotations

import queue
import threading

import numpy as np

from vidsmooth_fast.video import VideoWriter

DEPTH = 16
"""Frames that may wait for the encoder; then decoding waits."""


class EncodingThread:
    """Hands frames to a `VideoWriter` in another thread.

        with VideoWriter("out.mp4", 24, (256, 256)) as writer, EncodingThread(writer) as encoder:
            encoder.write(frame)

    The network that decodes and the encoder both release the interpreter lock, so they overlap: on a GPU almost
    wholly, on a CPU as far as the encoder finds a core. Decoding needs no stream of its own: nothing else is on the
    device by then, because every frame's latents come out of the last step.

    Leaving the block normally waits until every frame is encoded; leaving it by an exception drops those that wait, so
    that the writer can discard its file. What fails in the thread is raised by the next `write`, or on leaving.
    """

    def __init__(self, writer: VideoWriter):
        self._writer = writer
        self._frames: queue.Queue[np.ndarray | None] = queue.Queue(DEPTH)
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="video encoder", daemon=True)

    def _run(self) -> None:
        while not self._stopped.is_set() and (frame := self._frames.get()) is not None:
            try:
                self._writer.write(frame)
            except BaseException as error:
                self._error = error
                return

    def write(self, frame: np.ndarray) -> None:
        """Append one frame, (H, W, 3) uint8; waits while DEPTH others do."""
        self._put(frame)

    def _put(self, item: np.ndarray | None) -> None:
        while True:
            if self._error is not None:
                raise self._error
            try:
                return self._frames.put(item, timeout=0.05)  # the thread may have failed meanwhile
            except queue.Full:
                pass

    def __enter__(self) -> EncodingThread:
        self._thread.start()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                self._put(None)
                self._thread.join()
        finally:
            self._stop()
        if kind is None and self._error is not None:
            raise self._error

    def _stop(self) -> None:
        """End the thread after the frame that it is at."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._frames.get_nowait()
            except queue.Empty:
                pass
            try:
                self._frames.put_nowait(None)  # where it waits for a frame
            except queue.Full:
                pass
            self._thread.join(0.05)
