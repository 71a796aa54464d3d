"""An exported bundle on disk: a directory of compiled graphs, and `bundle.json`, which describes them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

MANIFEST = "bundle.json"
VERSION = 1
"""Of bundle.json. It rises when a reader of the version before would misunderstand a bundle."""

GRAPHS = ("unet", "vae_encoder", "vae_decoder", "text_encoder")


@dataclass(frozen=True)
class Port:
    """An input or output of a graph.

    dtype: torch's name of it, "float32", "float16", "int64". shape: of each axis a number, the name of a size, or what
    follows from sizes: a product ("8*height", "videos*frames") or a part, rounded up ("height/4"). Graphs name the
    sizes alike: videos, frames, images, tokens, prompts, and height and width in latent elements.
    """

    dtype: str
    shape: tuple[int | str, ...]

    def size(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape where the named sizes are known."""
        return tuple(axis if isinstance(axis, int) else _value(axis, sizes) for axis in self.shape)


@dataclass(frozen=True)
class GraphFile:
    """A graph of a bundle: its file, relative to the bundle, and what goes in and out by name (outputs: one)."""

    file: str
    inputs: dict[str, Port]
    outputs: dict[str, Port]

    def sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """The named sizes that inputs of these shapes have.

        Raises: ValueError naming an input that is missing or unknown, or whose shape does not fit.
        """
        if shapes.keys() != self.inputs.keys():
            raise ValueError(
                f"{self.file}: expected the inputs {', '.join(self.inputs)}, got {', '.join(shapes)}"
            )
        sizes: dict[str, int] = {}
        for name, port in self.inputs.items():
            shape = tuple(shapes[name])
            if len(shape) == len(port.shape):
                for axis, size in zip(port.shape, shape, strict=True):
                    factor, _, name_of_size = str(axis).rpartition("*")
                    if name_of_size.isalpha() and (not factor or factor.isdigit()):
                        sizes.setdefault(name_of_size, size // int(factor or 1))
            if len(shape) != len(port.shape) or port.size(sizes) != shape:
                wanted = ", ".join(map(str, port.shape))
                raise ValueError(f"{name}: expected shape ({wanted}), got {shape}")
        return sizes


@dataclass(frozen=True)
class Bundle:
    """What bundle.json says. The fields are its keys; `path` is the directory.

    format: "onnx", "aoti" or "tensorrt". dtype: in which the denoising network and the autoencoder compute.
    name: of the model. ranges: (least, most) of every named size. graphs: GRAPHS by name. files: every file by its
    size in bytes. network, autoencoder, scheduler: configurations under diffusers' key names. text: `length`, tokens
    that the text encoder reads, and `mask`, whether it is given an attention mask. tuning: prompt, clip and settings of
    a tuned model, or None. source: `sha256` of the weights and configurations. versions: of what made it.
    settings: the format's own ("opset", ...). notes: what a user should know, one sentence each.
    """

    path: Path
    format: str
    name: str
    dtype: str
    ranges: dict[str, tuple[int, int]]
    graphs: dict[str, GraphFile]
    files: dict[str, int]
    network: dict
    autoencoder: dict
    text: dict
    scheduler: dict
    tuning: dict | None
    source: dict
    versions: dict[str, str]
    settings: dict
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        record = {"format_version": VERSION, **asdict(self)}
        del record["path"]
        return json.dumps(record, indent=2) + "\n"


def is_bundle(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def read_bundle(path: Path) -> Bundle:
    """Read and check bundle.json.

    Raises: ValueError, one line: not there, not JSON, of a newer version, an entry or a file missing, a file of another
    size.
    """
    where = path / MANIFEST
    if not is_bundle(path):
        raise ValueError(f"bundle: expected a directory with {MANIFEST}, got {path}")
    try:
        record = json.loads(where.read_text())
        version = record.pop("format_version")
        if not isinstance(version, int):
            raise TypeError
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"bundle: {where} is not a bundle's description") from error
    if version > VERSION:
        maker = record.get("versions", {}).get("vidsmooth_fast", "a newer version")
        raise ValueError(
            f"bundle: {path} has format {version}, made by vidsmooth_fast {maker}; this version reads up to {VERSION}: "
            "upgrade vidsmooth_fast, or export the model again"
        )
    wanted = {field.name for field in fields(Bundle)} - {"path"}
    if absent := sorted(wanted - record.keys()):
        raise ValueError(f"bundle: {where} lacks {', '.join(absent)}")
    try:
        record["graphs"] = {name: _graph(graph) for name, graph in record["graphs"].items()}
        record["ranges"] = {name: (int(low), int(high)) for name, (low, high) in record["ranges"].items()}
        record["notes"] = tuple(record["notes"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"bundle: graphs or ranges in {where} cannot be understood") from error
    if absent := [name for name in GRAPHS if name not in record["graphs"]]:
        raise ValueError(f"bundle: {where} lacks the graphs {', '.join(absent)}")
    bundle = Bundle(path, **{name: record[name] for name in wanted})
    for name, size in bundle.files.items():
        file = path / name
        if not file.is_file():
            raise ValueError(
                f"bundle: {path} lacks {name}; copy the whole directory, or export the model again"
            )
        if file.stat().st_size != size:
            raise ValueError(
                f"bundle: {file} expected {size} bytes, got {file.stat().st_size}: the copy is damaged"
            )
    return bundle


def _graph(record: dict) -> GraphFile:
    inputs, outputs = (
        {name: Port(port["dtype"], tuple(port["shape"])) for name, port in record[side].items()}
        for side in ("inputs", "outputs")
    )
    return GraphFile(record["file"], inputs, outputs)


def _value(axis: str, sizes: Mapping[str, int]) -> int:
    product, _, parts = axis.partition("/")
    factors = (int(factor) if factor.isdigit() else sizes[factor] for factor in product.split("*"))
    return -(-math.prod(factors) // int(parts or 1))
