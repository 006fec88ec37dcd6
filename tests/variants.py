"""Variants of one test: some of them for every change, all to soak."""

from collections.abc import Iterable
from typing import Any

import pytest


def some(variants: Iterable[Any], count: int) -> list[Any]:
    """Parameters: so many of the variants, evenly spaced over all, are tested with every change, the rest is
    slow. A variant of several arguments is a tuple."""
    every = list(variants)
    quick = {round(place * (len(every) - 1) / max(1, count - 1)) for place in range(count)}
    return [one if place in quick else _slow(one) for place, one in enumerate(every)]


def _slow(one: Any) -> Any:
    values = one if isinstance(one, tuple) else (one,)
    marked = one if hasattr(one, "marks") else pytest.param(*values)
    return pytest.param(*marked.values, marks=[*marked.marks, pytest.mark.slow], id=marked.id)
