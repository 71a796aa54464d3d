"""Which implementation of an operator runs: an ordered list per operator that can be printed.

Every operator is registered once with PyTorch (namespace `vidsmooth`) under a key that serves all devices; at each
call the first backend of its list that supports the arguments runs. For CUDA tensors the list begins with what was
measured to be the fastest for that operator, dtype and size (`gpu_choice.json`). An operator's argument `backend=`,
:func:`backend` or `VIDSMOOTH_BACKEND`, in this order, name the backends that may be used instead, best first,
separated by commas; if none of them can run, that is an error.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

_log = logging.getLogger("vidsmooth_fast")

ORDER = (
    "triton",
    "cuda",
    "cpu",
    "torch",
)  # best first where nothing was measured; "cpu" is the C++ extension
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/cpu/kernels.h, DType

CHANNELS = 16
"""The C++ kernels of layers, `convolution` and `feed_forward`, take multiples of so many channels, in and out."""

_requested: ContextVar[str | None] = ContextVar("vidsmooth_backend", default=None)


class Backend(NamedTuple):
    """One implementation of an operator.

    run: takes the schema's arguments, with the schema's defaults (PyTorch leaves out arguments equal to them).
    supports: takes the same and returns (bool, reason); it must also answer for one tensor alone (`report`).
    """

    supports: Callable[..., tuple[bool, str]]
    run: Callable[..., Any]


_operators: dict[str, dict[str, Backend]] = {}
_gradients: set[str] = set()  # operators that compute the gradients of others


class Row(NamedTuple):
    """A line of :func:`report`."""

    operator: str
    available: tuple[str, ...]  # backends that would run on this machine, best first
    used: str  # the one that tensors of the default dtype get now, on the GPU where there is one
    unavailable: dict[str, str]  # backend -> why not


@functools.cache
def _load_extension() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("vidsmooth_fast._C"), ""
    except ImportError as error:
        return None, f"the compiled extension vidsmooth_fast._C cannot be imported ({error})"


def extension() -> ModuleType | None:
    """The compiled kernels, or None where the package was installed without them."""
    return _load_extension()[0]


@functools.cache
def _say_once(level: int, message: str) -> None:
    _log.log(level, message)


def cpu_supports(*args: Any, **keywords: Any) -> tuple[bool, str]:
    """Whether the C++ kernels take all tensors among these arguments: on the CPU, in fp32, bf16 or fp16."""
    for t in (*args, *keywords.values()):
        if not isinstance(t, Tensor):
            continue
        if t.device.type != "cpu":
            return False, f"the C++ kernels need CPU tensors, got {t.device}"
        if t.dtype not in DTYPE_CODES:
            return False, f"the C++ kernels take float32, bfloat16 and float16, got {t.dtype}"
    module, why = _load_extension()
    if module is None:
        _say_once(
            logging.WARNING,
            f"{why}: the operators run on plain PyTorch, correct but several times slower. To get the kernels, "
            "install a C++17 compiler (Debian, Ubuntu: apt install g++) and reinstall vidsmooth-fast "
            "(`make install` in a checkout).",
        )
        return False, why
    return True, ""


@functools.cache
def _load_triton() -> str:
    """Why the Triton kernels cannot be used; empty where they can."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    return ""


def triton_kernel(operator: str) -> Callable[..., Any]:
    """The launcher of an operator's Triton kernels. Triton is imported here, at the first use."""
    return getattr(_import_kernels(operator), operator)


@functools.cache
def _import_kernels(operator: str) -> ModuleType:
    return importlib.import_module(f"vidsmooth_fast.triton_kernels.{operator}")


def triton_supports(*args: Any, **keywords: Any) -> tuple[bool, str]:
    """Whether the Triton kernels take all tensors among these arguments: on a GPU, in fp32, bf16 or fp16.

    With TRITON_INTERPRET=1 Triton's interpreter runs them on CPU tensors, for tests: on request only.
    """
    for t in (*args, *keywords.values()):
        if not isinstance(t, Tensor):
            continue
        if t.device.type == "cuda":
            if torch.cuda.get_device_capability(t.device) < (8, 0) and torch.version.hip is None:
                return False, f"the Triton kernels need compute capability 8.0, {t.device} has less"
        elif t.device.type != "cpu" or os.environ.get("TRITON_INTERPRET") != "1":
            return False, f"the Triton kernels need CUDA tensors, got {t.device}"
        if t.dtype not in DTYPE_CODES:
            return False, f"the Triton kernels take float32, bfloat16 and float16, got {t.dtype}"
    why = _load_triton()
    return not why, why


def _always(*_args: Any, **_keywords: Any) -> tuple[bool, str]:
    return True, ""


def wanted(request: str | None = None) -> tuple[str, ...]:
    """The backends somebody asked for, best first; empty when nobody did."""
    request = request or _requested.get() or os.environ.get("VIDSMOOTH_BACKEND") or ""
    if request in ("", "auto"):
        return ()
    names = tuple(name.strip() for name in request.split(","))
    for name in names:
        if name not in ORDER:
            raise ValueError(f"backend: expected some of {', '.join(ORDER)} or auto, got {name!r}")
    return names


@functools.cache
def _measured() -> dict[tuple[str, str], list[tuple[float, str]]]:
    """(operator, dtype) -> the faster of Triton and CUDA as (up to how many bytes, which), smallest first.

    Written by the benchmarks: {"device": name, "rows": [{"operator", "dtype", "bytes_up_to", "backend"}, ...]}, the
    bytes of the operator's first tensor, null for any size. Empty where nothing was measured.
    """
    path = Path(__file__).with_name("gpu_choice.json")
    choices: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for row in json.loads(path.read_text())["rows"] if path.is_file() else []:
        limit = float("inf") if row["bytes_up_to"] is None else row["bytes_up_to"]
        choices.setdefault((row["operator"], row["dtype"]), []).append((limit, row["backend"]))
    return {key: sorted(rows) for key, rows in choices.items()}


def _automatic(operator: str, tensor: Tensor) -> tuple[str, ...]:
    """The backends for this first tensor of a call, best first."""
    if tensor.device.type != "cuda":
        return ("cpu", "torch")
    for limit, name in _measured().get((operator, str(tensor.dtype).removeprefix("torch.")), ()):
        if tensor.nbytes <= limit:
            return (name, *(other for other in ORDER if other != name))
    return ORDER


@contextlib.contextmanager
def backend(names: str) -> Iterator[None]:
    """Use only these backends inside the block, e.g. `with ops.backend("torch"):` or `"cpu,torch"`.

    Raises ValueError for an unknown name; an operator that has none of them raises one too when called.
    """
    token = _requested.set(names)
    try:
        wanted()
        yield
    finally:
        _requested.reset(token)


def kept_request(settings: dict[str, Any]) -> dict[str, str | None]:
    """The request that a call's gradient has to follow, as an argument for its operator.

    settings: the call's keyword arguments. A GPU's gradients are computed in a thread of their own, which does not see
    the block of :func:`backend` around the call.
    """
    return {"backend": settings.get("backend") or _requested.get()}


def select(operator: str, tensor: Tensor, *args: Any, backend: str | None = None, **keywords: Any) -> str:
    """The name of the backend that a call with these arguments runs on."""
    explicit = wanted(backend)
    backends = _operators[operator]
    if explicit and operator in _gradients and not set(explicit) & set(backends):
        return "torch"  # a request is for the operator; its gradient need not have the same kernels
    reasons = []
    for name in explicit or _automatic(operator, tensor):
        if name not in backends:
            if explicit:
                reasons.append(f"{name}: there is no such kernel for this operator")
            continue
        fits, reason = backends[name].supports(tensor, *args, **keywords)
        if fits:
            if reasons and not explicit:
                _say_once(logging.INFO, f"{operator} runs on {name}; {'; '.join(reasons)}")
            return name
        reasons.append(f"{name}: {reason}")
    raise ValueError(f"{operator}: no requested backend can run ({'; '.join(reasons)})")


def register(
    schema: str,
    *,
    torch_backend: Callable[..., Any],
    fake: Callable[..., Any],
    gradient: bool = False,
    **kernels: Backend,
) -> Callable[..., Any]:
    """Define operator `vidsmooth::<schema>` with one more keyword argument, `str? backend=None`, and return it.

    torch_backend: the plain PyTorch reference. fake: shapes and dtypes of the result. gradient: whether it computes
    the gradients of another operator, and may have fewer kernels. kernels: cuda=, triton=, cpu=, each a
    :class:`Backend`. Neither they nor the fake see the argument `backend`.
    """
    name = schema.split("(")[0]
    kernels["torch"] = Backend(_always, torch_backend)
    backends = _operators[name] = {key: kernels[key] for key in ORDER if key in kernels}
    if gradient:
        _gradients.add(name)
    torch.library.define(f"vidsmooth::{name}", schema[len(name) :].replace(") ->", ", str? backend=None) ->"))

    def run(*args: Any, backend: str | None = None, **keywords: Any) -> Any:
        chosen = backends[select(name, *args, backend=backend, **keywords)].run
        device = args[0].device
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return chosen(*args, **keywords)
        with torch.cuda.device(device):
            return chosen(*args, **keywords)

    def described(*args: Any, backend: str | None = None, **keywords: Any) -> Any:
        return fake(*args, **keywords)

    torch.library.impl(f"vidsmooth::{name}", "default", run)
    torch.library.register_fake(f"vidsmooth::{name}", described)
    return getattr(torch.ops.vidsmooth, name).default


def report() -> list[Row]:
    """Per operator: the backends that exist here, the one in use, and why the others are not."""
    probes = [torch.empty(0)]
    if torch.cuda.is_available():
        probes.insert(0, torch.empty(0, device="cuda"))
    rows = []
    for name, backends in sorted(_operators.items()):
        unavailable = {}
        for key in ORDER:
            if key not in backends:
                unavailable[key] = "no such kernel for this operator in this version"
                continue
            verdicts = [backends[key].supports(probe) for probe in probes]
            if not any(fits for fits, _ in verdicts):
                unavailable[key] = verdicts[0][1]
        available = tuple(key for key in ORDER if key not in unavailable)
        try:
            used = select(name, probes[0])
        except RuntimeError as error:
            used = f"none: {error}"
        rows.append(Row(name, available, used, unavailable))
    return rows
