"""What strangers send: JSON of every kind, most of it small, some of it at an edge."""

from __future__ import annotations

import copy
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("HGUARD_FUZZ_EXAMPLES", "0"))  # of each test; 0: as many as a quick run affords

EDGES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 2**64, 10**30, 0.0, -0.0, 0.5, 1e-300, 1e300),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "0", "null", "\x00", "\ud800", "\n\ndata: {}\n\n", "é日🇯🇵"),
    *([], {}, [[]], [{}], [None], {"": None}, {"type": "object"}),
)


def texts(**size: int) -> st.SearchStrategy[str]:
    """Any text that UTF-8 can carry."""
    return st.text(st.characters(codec="utf-8"), **size)


SCALARS = st.sampled_from(EDGES).map(copy.deepcopy) | st.integers() | st.floats() | texts(max_size=12)


def any_json(leaves: int = 6) -> st.SearchStrategy[Any]:
    """Any JSON, and what only Python takes for JSON."""
    return st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts(max_size=8), inner, max_size=4),
        max_leaves=leaves,
    )


def deep(depth: int, wrap: str = "list") -> Any:
    """Something nested so deeply that recursion fails on it."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if wrap == "list" else {"a": value}
    return value


def many(quick: int) -> settings:
    """The same examples in every run: ``quick`` of them, or as many as the environment says."""
    return settings(
        max_examples=EXAMPLES or quick,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
