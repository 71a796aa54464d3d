"""Graphs as ONNX files made of standard nodes, so that any runtime can load them.

The package's own operators enter through their plain references (`vidsmooth_fast/ops`). In float16, norms and softmax
take their sums in float32, as the references and PyTorch do.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from vidsmooth_fast.export.graphs import Ranges, Traceable
from vidsmooth_fast.ops.sparse_causal_attention import reference as sparse_causal_attention
from vidsmooth_fast.ops.temporal_attention import reference as temporal_attention

OPSETS = (21, 23)
EXTERNAL_ABOVE = 2**31 - 2**24
"""Bytes of weights from which they get a file of their own: one protocol buffer holds less than 2 GiB."""

_FLOAT = 1  # TensorProto.FLOAT
_SYMBOL = re.compile(r"\bs\d+\b")  # PyTorch's names of sizes
_SDPA = torch.ops.aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class Writer:
    """opset: 23 has a node for attention; 21 spells it out, for runtimes that do not know that node."""

    opset: int = 23

    dtypes: ClassVar = ("float32", "float16")
    device: ClassVar = "cpu"
    packages: ClassVar = ("onnx", "onnxscript")

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise ValueError(f"opset: expected {' or '.join(map(str, OPSETS))}, got {self.opset!r}")
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise ValueError(
                f"format: 'onnx' needs pip install 'vidsmooth-fast[onnx]', {error.name} is missing"
            ) from error

    def notes(self) -> tuple[str, ...]:
        return ()

    def write(self, name: str, graph: Traceable, ranges: Ranges, folder: Path) -> str:
        import onnx

        half = any(port.dtype == "float16" for port in graph.outputs.values())
        with _quiet(), _operators_as_references():
            exported = torch.onnx.export(
                graph.program(ranges),
                opset_version=self.opset,
                output_names=list(graph.outputs),
                custom_translation_table={_SDPA: _half_attention(self.opset)} if half else None,
                verbose=False,
            )
        _tidy(exported.model, graph)
        file = folder / f"{name}.onnx"
        weights = sum(value.const_value.nbytes for value in exported.model.graph.initializers.values())
        exported.save(file, external_data=weights > EXTERNAL_ABOVE)
        onnx.checker.check_model(file, full_check=True)
        return file.name


@contextlib.contextmanager
def _operators_as_references() -> Iterator[None]:
    """In the block, what PyTorch decomposes programs by knows the package's operators too, as their references."""

    def plain(reference):
        return lambda *args, backend=None, **settings: reference(*args, **settings)

    operators = torch.ops.vidsmooth
    known = {
        operators.group_norm_silu.default: plain(_group_norm_silu),
        operators.sparse_causal_attention.default: plain(sparse_causal_attention),
        operators.temporal_attention.default: plain(temporal_attention),
    }
    torch._decomp.decomposition_table.update(known)
    try:
        yield
    finally:
        for operator in known:
            del torch._decomp.decomposition_table[operator]


def _group_norm_silu(x, weight, bias, *, groups, frames=1, eps=1e-5, silu=True):
    """`ops.group_norm_silu` for runtimes that keep channels before pixels: two transposes less than its reference."""
    wide, weight, bias = x.float(), weight.float(), bias.float()
    if frames == 1:
        y = torch.group_norm(wide, groups, weight, bias, eps)
    else:
        video = wide.unflatten(0, (-1, frames)).transpose(1, 2)
        y = torch.group_norm(video, groups, weight, bias, eps).transpose(1, 2).flatten(0, 1)
    return (torch.nn.functional.silu(y) if silu else y).to(x.dtype)


def _half_attention(opset: int):
    """Attention in float16 with its softmax in float32: (N, h, L, d), (N, h, T, d), (N, h, T, d) -> (N, h, L, d)."""
    import onnxscript

    op = getattr(onnxscript, f"opset{opset}")

    def node(query, key, value, attn_mask=None, dropout_p: float = 0.0, is_causal: bool = False, scale=None):
        _plain(attn_mask, is_causal)
        return op.Attention(query, key, value, scale=scale, softmax_precision=_FLOAT)[0]

    def spelled_out(
        query, key, value, attn_mask=None, dropout_p: float = 0.0, is_causal: bool = False, scale=None
    ):
        _plain(attn_mask, is_causal)
        root = op.CastLike(op.Constant(value_float=(scale or query.shape[-1] ** -0.5) ** 0.5), query)
        scores = op.MatMul(op.Mul(query, root), op.Transpose(op.Mul(key, root), perm=[0, 1, 3, 2]))
        shares = op.Softmax(op.Cast(scores, to=_FLOAT), axis=-1)
        return op.MatMul(op.CastLike(shares, value), value)

    return node if opset >= 23 else spelled_out


def _plain(attn_mask, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise ValueError("attention with a mask is not expected in float16: only the text encoder has one")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about its own workings."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _tidy(model, graph: Traceable) -> None:
    """Sizes by the names that bundle.json uses, and no traces of the machine that exported."""
    names = {}
    for value in model.graph.inputs:
        for axis, size in zip(graph.inputs[value.name].shape, value.shape, strict=True):
            name, symbol = re.fullmatch(r"(?:\d+\*)?([a-z]+)", str(axis)), _SYMBOL.search(str(size))
            if name and symbol:
                names[symbol[0]] = name[1]

    def named(size):
        if isinstance(size, int) or size.value is None:
            return size
        return _SYMBOL.sub(lambda symbol: names.get(symbol[0], symbol[0]), size.value)

    for value in (*model.graph.inputs, *(out for node in model.graph.all_nodes() for out in node.outputs)):
        if value.shape is not None:
            value.shape = type(value.shape)([named(size) for size in value.shape])
    for values, ports in ((model.graph.inputs, graph.inputs), (model.graph.outputs, graph.outputs)):
        for value in values:
            value.shape = type(value.shape)(ports[value.name].shape)
    domains = {node.domain for node in model.graph.all_nodes()} - {""}
    if domains or model.functions:
        raise RuntimeError(f"the graph has nodes that are not standard ONNX: {sorted(domains)}")
    for item in (model, model.graph, *model.graph.all_nodes()):
        item.metadata_props.clear()
        item.doc_string = None
