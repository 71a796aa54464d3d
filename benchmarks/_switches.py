"""The exact savings of sampling, each as something that can be left out, so that its share of the time shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from vidsmooth_fast import ops
from vidsmooth_fast.models import VideoUNet, blocks, convolution, feed_forward, linear, unet
from vidsmooth_fast.ops import _dispatch
from vidsmooth_fast.sampling import job
from vidsmooth_fast.sampling.denoiser import UNetDenoiser


class _Text:
    """Prompts as they come from the text encoder: every call of the network projects them anew."""

    def __init__(self, value: Tensor):
        self.value = value

    def select(self, rows: Tensor) -> _Text:
        return _Text(self.value[rows])


def _predict(
    denoiser, latents, timestep, text, controls=None, frame_offsets=None, branches=1, *, leave_out, **keywords
):
    """UNetDenoiser.predict without one of its savings."""
    if leave_out == "text":
        text = text.value
    if leave_out == "branches":
        latents, branches = latents.repeat_interleave(branches, 0), 1
    if denoiser._time[0] != timestep:
        denoiser._time = (timestep, denoiser.unet.embed_time(timestep))
    time = timestep if leave_out == "time" else denoiser._time[1]
    return denoiser.unet(
        latents.to(denoiser.dtype), time, text, windows=denoiser.windows, branches=branches, **keywords
    )


def _without(leave_out: str) -> Callable[[VideoUNet], contextmanager]:
    @contextmanager
    def switch(_unet: VideoUNet) -> Iterator[None]:
        with ExitStack() as stack:

            def predict(self, *args, **keywords):
                return _predict(self, *args, leave_out=leave_out, **keywords)

            stack.enter_context(mock.patch.object(UNetDenoiser, "predict", predict))
            if leave_out == "text":
                stack.enter_context(
                    mock.patch.object(
                        UNetDenoiser, "prepare_text", lambda self, text: _Text(text.to(self.dtype))
                    )
                )
            yield

    return switch


def _in_pytorch(module: object, name: str) -> Callable[[VideoUNet], contextmanager]:
    """The operator that `module` calls `name`, by its plain PyTorch reference."""
    return lambda _unet: mock.patch.object(module, name, partial(getattr(module, name), backend="torch"))


@contextmanager
def _single_products(_unet: VideoUNet) -> Iterator[None]:
    """Attention's products in fp32 in every dtype, where the processor would multiply pairs of bf16."""
    module = _dispatch.extension()
    before = module.isa() if module else ""
    if before == "avx512_bf16":
        module.set_isa("avx512")
    yield
    if before == "avx512_bf16":
        module.set_isa(before)


def _text_in_pytorch(_unet: VideoUNet) -> contextmanager:
    """Attention to text by PyTorch's fused attention."""
    plain = blocks.sparse_causal_attention

    def attention(q: Tensor, k: Tensor, v: Tensor, **keywords) -> Tensor:
        return plain(q, k, v, **keywords, backend="torch" if k.shape != q.shape else None)

    return mock.patch.object(blocks, "sparse_causal_attention", attention)


@contextmanager
def _contiguous(network: VideoUNet) -> Iterator[None]:
    """Feature maps and weights in PyTorch's own layout."""
    with mock.patch.object(unet, "LAYOUT", torch.contiguous_format):
        network.to(memory_format=torch.contiguous_format)
        yield
    network.to(memory_format=torch.channels_last)


@contextmanager
def _compiled(network: VideoUNet) -> Iterator[None]:
    """Blocks through torch.compile: not a saving that is left out, but one that might be added."""
    network.compile_blocks()
    yield
    network.compiled = ""


SWITCHES = {
    "without channels_last": _contiguous,
    "without the GroupNorm + SiLU kernel": _in_pytorch(blocks, "group_norm_silu"),
    "without the temporal attention kernel": _in_pytorch(blocks, "temporal_attention"),
    "without the sparse-causal attention kernel": _in_pytorch(blocks, "sparse_causal_attention"),
    "text through PyTorch's attention": _text_in_pytorch,
    "attention's products in fp32": _single_products,
    "without the one-pass step": _in_pytorch(ops, "denoise_step"),
    "feed-forward by oneDNN, in pieces": lambda _: mock.patch.object(feed_forward, "_pays", lambda _: False),
    "convolutions by oneDNN": lambda _: mock.patch.object(convolution, "_pays", lambda *_: False),
    "without oneDNN's linear layers": lambda _: mock.patch.object(linear, "AVAILABLE", False),
    "text projected in every call": _without("text"),
    "time embedded in every call": _without("time"),
    "nothing shared by the guidance branches": _without("branches"),
    "one window and branch in a call": lambda _: mock.patch.object(job, "CPU_PAIRS", 1),
    "blocks compiled (model.compile)": _compiled,
}
"""What is left out -> a context, given the network, in which it is."""
