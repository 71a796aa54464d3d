"""`export`: a model to a bundle, whatever the format of its graphs."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import torch

import vidsmooth_fast
from vidsmooth_fast.export.graphs import Ranges, Traceable, graphs_of, ranges_of
from vidsmooth_fast.models.bundle import MANIFEST, Bundle, GraphFile
from vidsmooth_fast.models.directories import new_directory
from vidsmooth_fast.models.loading import choose_dtype, load_networks
from vidsmooth_fast.models.video_model import VideoModel

FORMATS = ("onnx", "aoti", "tensorrt")


class Writer(Protocol):
    """What a format's module in this package provides under the name `Writer`, a frozen dataclass.

    Its fields are the format's own options of `export`, checked in `__post_init__`; bundle.json records them.
    dtypes: in which a network can be exported. device: where it has to be. packages: whose versions are recorded.
    """

    dtypes: tuple[str, ...]
    device: str
    packages: tuple[str, ...]

    def write(self, name: str, graph: Traceable, ranges: Ranges, folder: Path) -> str:
        """Write one graph into the folder; returns its file's name. It may write further files there."""

    def notes(self) -> Iterable[str]:
        """What a user of the bundle should know, one sentence each."""


def export(
    model: VideoModel | str | os.PathLike,
    path: str | os.PathLike,
    *,
    format: str = "onnx",
    dtype: str | torch.dtype = "float32",
    frames: tuple[int, int] = (1, 64),
    height: tuple[int, int] | None = None,
    width: tuple[int, int] | None = None,
    batch: tuple[int, int] = (1, 64),
    controls: bool = False,
    **options,
) -> Path:
    """Write a model as a bundle: graphs that run without this package's networks, sampled by the same loop.

    model: a VideoModel, or what `load` takes. path: the bundle's directory; an earlier bundle there is replaced.
    format: "onnx", "aoti" or "tensorrt". dtype: in which the denoising network and the autoencoder compute, "float32",
        "float16" or (aoti) "bfloat16"; sums of norms and softmax stay in float32, and so does the text encoder.
    frames: (least, most) frames in a window. height, width: (least, most) pixels, by default whatever the network can
        take. batch: (least, most) windows x guidance branches in one call.
    controls: the denoising network also takes a ControlNet's residuals.
    options: the format's own. onnx: opset (23, or 21 for older runtimes). aoti: device ("cpu" or "cuda", for which it
        is compiled). tensorrt: timing_cache (a file; by default one in the user's cache folder).

    Returns the path. Raises: ValueError, one line, for anything that cannot be met.
    """
    writer = _writer(format, options)
    chosen = str(choose_dtype(dtype, torch.device(writer.device))).removeprefix("torch.")
    if chosen not in writer.dtypes:
        raise ValueError(f"dtype: format {format!r} takes {' or '.join(writer.dtypes)}, got {chosen}")
    target = Path(path).absolute()
    with new_directory(target, MANIFEST, "bundle") as folder:
        model = load_networks(model, device=writer.device, dtype="float32")
        ranges = ranges_of(model, frames, height, width, batch)
        source = {"name": model.name, "sha256": _hash(model)}
        wanted = torch.device(writer.device), getattr(torch, chosen)
        if (model.device, model.dtype) != wanted:
            model = model.placed(*wanted)
        graphs = {}
        for name, graph in graphs_of(model, controls=controls).items():
            file = writer.write(name, graph, ranges, folder)
            graphs[name] = GraphFile(file, graph.inputs, graph.outputs)
        model.tokenizer.save_pretrained(folder / "tokenizer")
        written = (file for file in sorted(folder.rglob("*")) if file.is_file())
        files = {file.relative_to(folder).as_posix(): file.stat().st_size for file in written}
        packages = ("torch", "diffusers", "transformers", *writer.packages)
        bundle = Bundle(
            path=target,
            format=format,
            name=model.name,
            dtype=chosen,
            ranges=ranges,
            graphs=graphs,
            files=files,
            network=model.network_config,
            autoencoder={
                key: value for key, value in model.autoencoder_config.items() if not key.startswith("_")
            },
            text={"length": model.text_length, "mask": model.uses_attention_mask},
            scheduler=model.scheduler_config,
            tuning=model.tuning,
            source=source,
            versions={
                "vidsmooth_fast": vidsmooth_fast.__version__,
                **{name: version(name) for name in packages},
            },
            settings=asdict(writer),
            notes=tuple(writer.notes()),
        )
        (folder / MANIFEST).write_text(bundle.to_json())
    return target


def _writer(format: str, options: dict) -> Writer:
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}; got {format!r}")
    kind = importlib.import_module(f"vidsmooth_fast.export.{format}").Writer
    known = list(inspect.signature(kind).parameters)
    for name in options:
        if name not in known:
            raise ValueError(f"{name}: format {format!r} has no such option, only {', '.join(known)}")
    return kind(**options)


def _hash(model: VideoModel) -> str:
    """SHA-256 of configurations and weights: what the bundle was made from."""
    description, _ = model.identity()
    digest = hashlib.sha256(repr(sorted(description.items())).encode())
    for part in (model.unet, model.vae, model.text_encoder):
        for name, tensor in part.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
