"""The networks of a model as modules to be traced: named inputs, one output, sizes that stay free."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidsmooth_fast.models.bundle import Port
from vidsmooth_fast.models.unet import VideoUNet
from vidsmooth_fast.models.video_model import VideoModel

Ranges = dict[str, tuple[int, int]]

_TRACED_AT = {"videos": 2, "frames": 5, "tokens": 11, "images": 3, "prompts": 2}
"""Sizes while tracing; any others would give the same graph."""

LARGEST = 2048
"""Pixels along a side that a graph takes at most."""


@dataclass(frozen=True)
class Traceable:
    """A network to be exported.

    module: its forward takes the inputs by name. inputs, outputs: their ports, as bundle.json describes them.
    """

    module: nn.Module
    inputs: dict[str, Port]
    outputs: dict[str, Port]

    def program(self, ranges: Ranges) -> torch.export.ExportedProgram:
        """The network as an exported program in which every named size is free within its range.

        Where a range begins at 1 the program's begins at 2, because PyTorch fixes sizes of 1; the networks compute the
        same there. A range of one size is that number in the program.
        """
        dims = {
            name: torch.export.Dim(name, min=max(low, 2), max=max(high, 3))
            for name, (low, high) in ranges.items()
            if low < high
        }
        small = {name: min(max(_TRACED_AT.get(name, 0), low), high) for name, (low, high) in ranges.items()}
        device = next(self.module.parameters()).device
        shapes, example = {}, {}
        for name, port in self.inputs.items():
            example[name] = torch.zeros(port.size(small), dtype=getattr(torch, port.dtype), device=device)
            shapes[name] = {
                i: _dimension(axis, dims) for i, axis in enumerate(port.shape) if isinstance(axis, str)
            }
        with torch.no_grad():
            return torch.export.export(
                self.module,
                (),
                example,
                dynamic_shapes=shapes,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,  # about strides, which do not matter here
            )


def _dimension(axis: str, dims: dict):
    """The free size of an axis: one of its own, a multiple of one, or what the tracer finds it to be."""
    factor, _, name = axis.rpartition("*")
    if not name.isalpha() or (factor and not factor.isdigit()):
        return torch.export.Dim.AUTO
    if name not in dims:
        return torch.export.Dim.STATIC
    return int(factor) * dims[name] if factor else dims[name]


def ranges_of(
    model: VideoModel,
    frames: tuple[int, int],
    height: tuple[int, int] | None,
    width: tuple[int, int] | None,
    batch: tuple[int, int],
) -> Ranges:
    """(least, most) of every named size.

    height, width: in pixels; None for everything between 2 elements on the network's deepest level and LARGEST.
    batch: windows x guidance branches. Raises: ValueError for a range that is none, or sizes the model cannot have.
    """
    down, least = model.downsampling, 2 ** len(model.network_config["block_out_channels"])
    ranges = {"videos": batch, "frames": frames}
    for name, asked in (("height", height), ("width", width)):
        low, high = asked or (least * down, LARGEST)
        if low % down or high % down or low < least * down:
            raise ValueError(
                f"{name}: expected a range of multiples of {down} from {least * down}, got {low} to {high}"
            )
        ranges[name] = (low // down, high // down)
    if batch[0] != 1:
        raise ValueError(
            f"batch: expected a range from 1, got one from {batch[0]}: the last windows of a step may be a single one"
        )
    for name, (low, high) in ranges.items():
        if not 1 <= low <= high or high < 2:
            raise ValueError(f"{name}: expected a range of whole numbers from 1, got {low} to {high}")
    return {**ranges, "tokens": (1, 1024), "images": (1, 32), "prompts": (1, 1024)}


def graphs_of(model: VideoModel, *, controls: bool = False) -> dict[str, Traceable]:
    """The networks of a model by the names of `bundle.GRAPHS`.

    controls: the denoising network also takes a ControlNet's residuals.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    channels, down = model.latent_channels, model.downsampling
    pixels = Port(dtype, ("images", 3, f"{down}*height", f"{down}*width"))
    latents = Port(dtype, ("images", channels, "height", "width"))
    width = model.text_encoder.config.hidden_size
    ids = {"input_ids": Port("int64", ("prompts", model.text_length))}
    if model.uses_attention_mask:
        ids["attention_mask"] = ids["input_ids"]
    embeddings = Port("float32", ("prompts", model.text_length, width))
    return {
        "unet": unet_graph(model.unet, dtype, controls),
        "vae_encoder": Traceable(_Encoder(model.vae), {"sample": pixels}, {"latent_sample": latents}),
        "vae_decoder": Traceable(_Decoder(model.vae), {"latent_sample": latents}, {"sample": pixels}),
        "text_encoder": Traceable(_Text(model.text_encoder), ids, {"last_hidden_state": embeddings}),
    }


def unet_graph(unet: VideoUNet, dtype: str, controls: bool = False) -> Traceable:
    """The denoising network alone; see `graphs_of`."""
    inputs = {
        "sample": Port(dtype, ("videos", unet.in_channels, "frames", "height", "width")),
        "timestep": Port("float32", ("videos",)),
        "encoder_hidden_states": Port(dtype, ("videos", "tokens", unet.config["cross_attention_dim"])),
    }
    out = Port(dtype, ("videos", unet.out_channels, "frames", "height", "width"))
    if controls:
        inputs |= _control_ports(unet.config, dtype)
    return Traceable(_Denoiser(unet, inputs), inputs, {"out_sample": out})


def _control_ports(config: dict, dtype: str) -> dict[str, Port]:
    """A ControlNet's residuals: one per skip connection, and the middle's; each (videos*frames, C, h, w)."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    skips = [(widths[0], 0)]  # channels, level
    for level, channels in enumerate(widths):
        skips += [(channels, level)] * layers
        if level < len(widths) - 1:
            skips.append((channels, level + 1))

    def port(channels: int, level: int) -> Port:
        height, width = (f"{name}/{2**level}" if level else name for name in ("height", "width"))
        return Port(dtype, ("videos*frames", channels, height, width))

    ports = {f"down_block_additional_residual_{i}": port(*skip) for i, skip in enumerate(skips)}
    return {**ports, "mid_block_additional_residual": port(widths[-1], len(widths) - 1)}


class _Denoiser(nn.Module):
    """VideoUNet; a timestep and a text for each video of the batch, and residuals where `inputs` has them.

    inputs: names of the arguments. How many residuals there are depends on the network, and an exported program names
    its inputs after the arguments: so forward's signature is made here.
    """

    def __init__(self, unet: VideoUNet, inputs: Iterable[str]) -> None:
        super().__init__()
        self.unet = unet
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(name, kind) for name in inputs])

        def forward(*args: Tensor, **keywords: Tensor) -> Tensor:
            sample, timestep, text, *residuals = signature.bind(*args, **keywords).args
            if not residuals:
                return unet(sample, timestep, text)
            *down, middle = residuals
            return unet(sample, timestep, text, down_residuals=tuple(down), mid_residual=middle)

        forward.__signature__ = signature
        self.forward = forward


class _Encoder(nn.Module):
    """Pixels in -1..1 to the posterior mean."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, sample: Tensor) -> Tensor:
        return self.vae.encode(sample).latent_dist.mean


class _Decoder(nn.Module):
    """The autoencoder's own latents to pixels."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: Tensor) -> Tensor:
        return self.vae.decode(latent_sample, return_dict=False)[0]


class _Text(nn.Module):
    """Token ids to embeddings."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.encoder(input_ids, attention_mask=attention_mask)[0]
