"""Which implementation of an operator runs: an ordered list per operator that can be printed.

Every operator is registered once with PyTorch (namespace `vidsmooth`) under a key that serves all devices; at each
call the first backend of its list that supports the arguments runs. `VIDSMOOTH_BACKEND` or :func:`backend` name
the backends that may be used instead, best first, separated by commas; if none of them can run, that is an error.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

_log = logging.getLogger("vidsmooth_fast")

ORDER = ("cuda", "triton", "cpu", "torch")  # best first; "cpu" is the C++ extension
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/cpu/kernels.h, DType

_requested: ContextVar[str | None] = ContextVar("vidsmooth_backend", default=None)


class Backend(NamedTuple):
    """One implementation of an operator.

    run: takes the schema's arguments, with the schema's defaults (PyTorch leaves out arguments equal to them).
    supports: takes the same and returns (bool, reason); it must also answer for one CPU tensor alone (`report`).
    """

    supports: Callable[..., tuple[bool, str]]
    run: Callable[..., Any]


_operators: dict[str, dict[str, Backend]] = {}


class Row(NamedTuple):
    """A line of :func:`report`."""

    operator: str
    available: tuple[str, ...]  # backends that would run on this machine, best first
    used: str  # the one that CPU tensors of the default dtype get now
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


def _always(*_args: Any, **_keywords: Any) -> tuple[bool, str]:
    return True, ""


def _wanted() -> tuple[tuple[str, ...], bool]:
    """The backends to try, and whether somebody asked for them."""
    request = _requested.get() or os.environ.get("VIDSMOOTH_BACKEND") or ""
    if request in ("", "auto"):
        return ORDER, False
    names = tuple(name.strip() for name in request.split(","))
    for name in names:
        if name not in ORDER:
            raise ValueError(f"backend: expected some of {', '.join(ORDER)} or auto, got {name!r}")
    return names, True


@contextlib.contextmanager
def backend(names: str) -> Iterator[None]:
    """Use only these backends inside the block, e.g. `with ops.backend("torch"):` or `"cpu,torch"`.

    Raises ValueError for an unknown name; an operator that has none of them raises RuntimeError when called.
    """
    token = _requested.set(names)
    try:
        _wanted()
        yield
    finally:
        _requested.reset(token)


def select(operator: str, *args: Any, **keywords: Any) -> str:
    """The name of the backend that a call with these arguments runs on."""
    names, explicit = _wanted()
    backends = _operators[operator]
    reasons = []
    for name in names:
        if name not in backends:
            if explicit:
                reasons.append(f"{name}: there is no such kernel for this operator")
            continue
        fits, reason = backends[name].supports(*args, **keywords)
        if fits:
            if reasons and not explicit:
                _say_once(logging.INFO, f"{operator} runs on {name}; {'; '.join(reasons)}")
            return name
        reasons.append(f"{name}: {reason}")
    raise RuntimeError(f"{operator}: no requested backend can run ({'; '.join(reasons)})")


def register(
    schema: str, *, torch_backend: Callable[..., Any], fake: Callable[..., Any], **kernels: Backend
) -> Callable[..., Any]:
    """Define operator `vidsmooth::<schema>` and return it.

    torch_backend: the plain PyTorch reference. fake: shapes and dtypes of the result. kernels: cuda=, triton=,
    cpu=, each a :class:`Backend`.
    """
    name = schema.split("(")[0]
    kernels["torch"] = Backend(_always, torch_backend)
    backends = _operators[name] = {key: kernels[key] for key in ORDER if key in kernels}
    torch.library.define(f"vidsmooth::{name}", schema[len(name) :])

    def run(*args: Any, **keywords: Any) -> Any:
        return backends[select(name, *args, **keywords)].run(*args, **keywords)

    torch.library.impl(f"vidsmooth::{name}", "default", run)
    torch.library.register_fake(f"vidsmooth::{name}", fake)
    return getattr(torch.ops.vidsmooth, name).default


def report() -> list[Row]:
    """Per operator: the backends that exist here, the one in use on the CPU, and why the others are not."""
    probe = torch.empty(0)
    rows = []
    for name, backends in sorted(_operators.items()):
        unavailable = {}
        for key in ORDER:
            if key not in backends:
                unavailable[key] = "no such kernel for this operator in this version"
            elif not (verdict := backends[key].supports(probe))[0]:
                unavailable[key] = verdict[1]
        available = tuple(key for key in ORDER if key not in unavailable)
        try:
            used = select(name, probe)
        except RuntimeError as error:
            used = f"none: {error}"
        rows.append(Row(name, available, used, unavailable))
    return rows
