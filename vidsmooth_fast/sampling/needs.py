"""What one run needs of memory: on the host the latents of the whole video, on the device one segment of it."""

from __future__ import annotations

import math

from vidsmooth_fast.models.latent_model import LatentModel
from vidsmooth_fast.sampling import budget
from vidsmooth_fast.sampling.controlled import ControlNets
from vidsmooth_fast.sampling.latents import Store
from vidsmooth_fast.sampling.options import Options
from vidsmooth_fast.sampling.segments import plan_segments
from vidsmooth_fast.sampling.windowed import Windows, windows_in_segment

SEGMENT_VIDEOS = 6
"""Float32 copies of a segment's frames: before, after, clean estimate, history, reference, noise."""


class Needs:
    """Bytes of the parts of a run.

    options: complete. shape: of the latents, (1, C, F, h, w). history: the sampler keeps the last clean estimate.
    keeps_frames: the result is kept as bytes in memory instead of being written to a file. controls: those of the run,
    or None.
    mapped: latents do not fit in memory and are memory-mapped files (`latents.Store`).
    """

    def __init__(
        self,
        model: LatentModel,
        options: Options,
        shape: tuple[int, int, int, int, int],
        *,
        history: bool,
        keeps_frames: bool,
        controls: ControlNets | None = None,
    ):
        self._model, self._options, self._shape = model, options, shape
        self._history, self._keeps_frames, self._controls = history, keeps_frames, controls
        self.mapped = Store(shape, model.device).mapped

    @property
    def latents(self) -> int:
        """On the host: the initial latents, those before, after and, on a GPU, at a step that is not checked yet;
        the same of the history; the source's; the maps of controls. Of what is in mapped files, the initial latents
        alone."""
        on_gpu = self._model.device.type == "cuda"
        moving = 2 + on_gpu
        videos = 1 + moving + moving * self._history + self._options.needs_source
        maps = self._controls.map_bytes if self._controls else 0
        return 4 * (1 if self.mapped else videos) * math.prod(self._shape) + maps

    @property
    def pictures(self) -> int:
        """On the host: the decoded frames, where they are kept."""
        options = self._options
        return self._keeps_frames * 3 * options.frames * options.height * options.width

    def network(self, pairs: int, length: int) -> int:
        """On the device: one call of the network for some windows x branches of `length` frames."""
        model, on_cpu = self._model, self._model.device.type == "cpu"
        activations = budget.network_bytes(
            model.network_config, model.dtype, pairs, length, *self._shape[-2:], on_cpu=on_cpu
        )
        if self._controls:  # of these windows and of the one before
            activations += budget.residual_bytes(
                model.network_config, model.dtype, (pairs + 2) * length, *self._shape[-2:], on_cpu=on_cpu
            )
        return activations + pairs * model.score_bytes(length, *self._shape[-2:])

    def autoencoder(self, frames: int) -> int:
        """On the device: decoding or encoding some frames at a time."""
        model, size = self._model, (self._options.height, self._options.width)
        on_cpu = model.device.type == "cpu"
        return budget.autoencoder_bytes(model.autoencoder_config, model.dtype, frames, *size, on_cpu=on_cpu)

    def segment(self, windows: Windows, branches: int, pairs: int) -> int:
        """On the device: the frames of one segment, and the predictions of its windows."""
        count = windows_in_segment(windows.length, branches, pairs)
        segments = plan_segments(windows.starts, windows.length, windows.frames, count, loop=windows.loop)
        one_frame = math.prod(self._shape) // self._shape[2]
        frames = max(segment.end - segment.begin for segment in segments)
        predicted = max(len(segment.starts) for segment in segments) * windows.length * branches
        return one_frame * (4 * SEGMENT_VIDEOS * frames + self._model.dtype.itemsize * predicted)

    def deep(self, windows: Windows, branches: int) -> int:
        """Deep features of every window and branch, where they are reused: on the device, or on the host."""
        model, reuse = self._model, self._options.reuse
        if reuse.period == 1:
            return 0
        images = branches * len(windows.starts) * windows.length
        return budget.deep_bytes(model.network_config, model.dtype, images, *self._shape[-2:], reuse.layers)
