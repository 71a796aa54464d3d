"""Writing models as bundles of compiled graphs, which `load` and `fast_sample` take like any other model.

`vidsmooth_fast.export(model, path, format="onnx")` calls this package; `vidsmooth_fast.export.export` is the function.
"""

from __future__ import annotations

import sys
from types import ModuleType

from .bundle import export

__all__ = ["export"]


class _Verb(ModuleType):
    """A package that carries the name of its one verb, and can be called by it."""

    def __call__(self, *args, **keywords):
        return export(*args, **keywords)

    __call__.__doc__ = export.__doc__
    __call__.__wrapped__ = export


sys.modules[__name__].__class__ = _Verb
