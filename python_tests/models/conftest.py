from __future__ import annotations

import pytest

from vidsmooth_fast import ops


@pytest.fixture
def calls_of(monkeypatch):
    """`calls_of(name)`: a list that grows by the shape of what that operator is given, at every call."""

    def watch(name: str) -> list[tuple[int, ...]]:
        seen, operator = [], getattr(ops, name)

        def counted(x, *rest):
            seen.append(tuple(x.shape))
            return operator(x, *rest)

        monkeypatch.setattr(ops, name, counted)
        return seen

    return watch
