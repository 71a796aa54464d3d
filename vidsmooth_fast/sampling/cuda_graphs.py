"""The network's calls recorded as CUDA graphs and replayed: no time passes on the host between two kernels."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidsmooth_fast.models.unet import AttentionWindows, DeepFeatures, TextKV, TimeEmbedding, VideoUNet

Outputs = tuple[Tensor, ...]
Capture = Callable[[Callable[[], Outputs]], tuple[Callable[[], Any], Outputs]]

LIMIT = 6
"""Graphs that are kept: of full and last calls, guided and not, whole and with deep features. Others run as usual."""


def capture_cuda(run: Callable[[], Outputs]) -> tuple[Callable[[], Any], Outputs]:
    """(replay, outputs) of `run` recorded on the current device; the outputs are where every replay leaves its own."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, pool=_pool()):
        outputs = run()
    return graph.replay, outputs


def _pool() -> Any:
    """One pool of memory for all graphs: their outputs are copied out before another is replayed."""
    if not hasattr(_pool, "handle"):
        _pool.handle = torch.cuda.graph_pool_handle()
    return _pool.handle


@dataclass
class _Recorded:
    """A graph, the addresses it reads, and those it writes. last: the text and time that were copied there."""

    replay: Callable[[], Any]
    inputs: dict[str, tuple[Tensor, ...]]
    outputs: Outputs
    last: dict[str, object]


class GraphedNetwork:
    """A VideoUNet called like one, whose calls are replayed from the third of a shape on.

    The first call of a shape runs as usual, so that libraries choose their algorithms and kernels are compiled; the
    second is recorded. Inputs are copied to the addresses that were recorded: latents in every call, text and time when
    they are other objects than in the call before.

    unet: the network. capture: records a function without arguments; `capture_cuda` but in tests.
    """

    def __init__(self, unet: VideoUNet, capture: Capture = capture_cuda):
        self._unet, self._capture = unet, capture
        self._met: set[Hashable] = set()
        self._recorded: dict[Hashable, _Recorded] = {}

    def __call__(
        self,
        latents: Tensor,
        time: TimeEmbedding,
        text: TextKV,
        *,
        windows: AttentionWindows | None = None,
        branches: int = 1,
        deep: DeepFeatures | None = None,
    ) -> Tensor:
        """As VideoUNet.forward."""
        inputs = {
            "latents": (latents,),
            "time": time.projections,
            "text": tuple(tensor for pair in text.pairs for tensor in pair),
        }
        value = None if deep is None else deep.value
        if value is not None:
            inputs["deep"] = (value,)
        shapes = tuple((name, tuple(t.shape for t in tensors)) for name, tensors in inputs.items())
        key = (shapes, branches, id(windows), None if deep is None else deep.layers)
        if key not in self._recorded and (key not in self._met or len(self._recorded) == LIMIT):
            self._met.add(key)
            return self._unet(latents, time, text, windows=windows, branches=branches, deep=deep)
        if key not in self._recorded:
            self._recorded[key] = self._record(inputs, windows, branches, deep)
        graph = self._recorded[key]
        now = {"time": time, "text": text}
        for name, tensors in inputs.items():
            if name not in now or graph.last.get(name) is not now[name]:
                torch._foreach_copy_(list(graph.inputs[name]), list(tensors))
        graph.last = now
        graph.replay()
        predicted, *filled = (output.clone() for output in graph.outputs)
        if filled:
            deep.value = filled[0]
        return predicted

    def _record(
        self,
        inputs: dict[str, tuple[Tensor, ...]],
        windows: AttentionWindows | None,
        branches: int,
        deep: DeepFeatures | None,
    ) -> _Recorded:
        fixed = {name: tuple(tensor.clone() for tensor in tensors) for name, tensors in inputs.items()}
        text = fixed["text"]
        pairs = tuple(zip(text[::2], text[1::2], strict=True))

        def run() -> Outputs:
            features = None if deep is None else DeepFeatures(deep.layers, *fixed.get("deep", ()))
            predicted = self._unet(
                fixed["latents"][0],
                TimeEmbedding(fixed["time"]),
                TextKV(pairs),
                windows=windows,
                branches=branches,
                deep=features,
            )
            filled = deep is not None and "deep" not in fixed
            return (predicted, features.value) if filled else (predicted,)

        replay, outputs = self._capture(run)
        return _Recorded(replay, fixed, outputs, last={})
