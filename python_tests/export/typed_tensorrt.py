"""TensorRT without its libraries: NVIDIA's own Python bindings say which calls exist and what they take.

The package `tensorrt-cu13-bindings` is the compiled Python module alone; the libraries that it needs define a handful
of functions, which are replaced by empty ones. Its classes then tell their methods' signatures, enumerations are the
real ones, and a :class:`StandIn` takes the place of every object that only the libraries could make: it refuses
methods that the class lacks, and arguments that none of a method's signatures takes.
"""

from __future__ import annotations

import ctypes
import importlib
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace

_FUNCTIONS = """
createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL createNvOnnxParser_INTERNAL
createNvOnnxParserRefitter_INTERNAL getBuilderPluginRegistry getNvOnnxParserVersion getPluginRegistry
initLibNvInferPlugins
""".split()


def bindings(folder: Path) -> ModuleType:
    """The real module `tensorrt`, over empty libraries that are compiled into the folder."""
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _FUNCTIONS))
    major = version("tensorrt-cu13-bindings").split(".")[0]
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        file = folder / f"lib{name}.so.{major}"
        compiler = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{file.name}", "-o", str(file), str(source)]
        subprocess.run(compiler, check=True)
        ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    return importlib.import_module("tensorrt_bindings")


class Library:
    """The module as our code sees it: real enumerations and loggers, stand-ins for what the libraries make.

    answers: {(class, method or property): value, or a function of the arguments}. calls: every call, in order, as
    (class, method, arguments).
    """

    def __init__(self, real: ModuleType, answers: dict[tuple[str, str], object]):
        self._real, self._answers = real, answers
        self.calls: list[tuple[str, str, tuple]] = []

    def __getattr__(self, name: str):
        real = getattr(self._real, name)
        if name not in ("Builder", "OnnxParser", "Runtime"):
            return real

        def make(*args):
            made = StandIn(self, real)
            made._call("__init__", args)
            return made

        return make

    def method(self, kind: str, name: str) -> list[tuple]:
        """The arguments of every call of a method."""
        return [args for owner, method, args in self.calls if (owner, method) == (kind, name)]


class StandIn:
    """An object of a class of TensorRT's; what its methods answer is the library's business."""

    def __init__(self, library: Library, real: type):
        self._library, self._class = library, real

    def __getattr__(self, name: str):
        attribute = getattr(self._class, name)  # AttributeError: TensorRT has no such thing
        key = self._class.__name__, name
        if isinstance(attribute, property):
            return self._library._answers[key]
        return lambda *args: self._call(name, args)

    def __setattr__(self, name: str, value) -> None:
        if not name.startswith("_"):
            assert isinstance(getattr(self._class, name), property), name
        object.__setattr__(self, name, value)

    def __buffer__(self, flags: int) -> memoryview:  # Python 3.12; earlier ones ask for __bytes__
        return memoryview(bytes(self))

    def __bytes__(self) -> bytes:
        assert "__buffer__" in dir(self._class) or self._class.__name__ == "IHostMemory"
        return self._library._answers["IHostMemory", "bytes"]

    def _call(self, name: str, args: tuple):
        owner = self._class.__name__
        signatures = _signatures(getattr(self._class, name))
        fitting = [result for wanted, result in signatures if _fits(args, wanted)]
        assert fitting, f"{owner}.{name}{args} fits none of {signatures}"
        self._library.calls.append((owner, name, args))
        if (owner, name) in self._library._answers:
            answer = self._library._answers[owner, name]
            return answer(*args) if callable(answer) else answer
        result = fitting[0].rpartition(".")[2]
        kind = getattr(self._library._real, result, None)
        if isinstance(kind, type):
            return StandIn(self._library, kind)
        return {"bool": True, "int": 0, "None": None}[result]


def _signatures(function) -> list[tuple[list[SimpleNamespace], str]]:
    """What the documentation of a compiled function says: (parameters without self, result) per overload."""
    pattern = rf"^(?:\d+\. )?{re.escape(function.__name__)}\((.*)\) -> (.+)$"
    found = []
    for parameters, result in re.findall(pattern, function.__doc__, re.MULTILINE):
        if parameters != "*args, **kwargs":
            wanted = [_parameter(text) for text in re.split(r", (?=\w+: )", parameters)]
            found.append((wanted[1:], result))
    return found


def _parameter(text: str) -> SimpleNamespace:
    name, _, rest = text.partition(": ")
    kind, default, _ = rest.partition(" = ")
    return SimpleNamespace(name=name, kind=kind.rpartition(".")[2], optional=bool(default))


def _fits(args: tuple, wanted: list[SimpleNamespace]) -> bool:
    if len(args) > len(wanted) or not all(p.optional for p in wanted[len(args) :]):
        return False
    return all(_is(value, parameter.kind) for value, parameter in zip(args, wanted, strict=False))


def _is(value, kind: str) -> bool:
    if kind in ("int", "SupportsInt"):
        return hasattr(value, "__int__") and not isinstance(value, bool)
    if kind == "Dims":
        return isinstance(value, tuple | list) and all(isinstance(size, int) for size in value)
    if kind == "Buffer":
        return isinstance(value, bytes | bytearray | memoryview | StandIn)
    plain = {"str": str, "bool": bool, "tuple": tuple, "list": list}
    if kind in plain:
        return isinstance(value, plain[kind])
    kinds = value._class if isinstance(value, StandIn) else type(value)
    return kind in (base.__name__ for base in kinds.__mro__)
