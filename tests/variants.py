"""Variants of one test: some of them for every change, all to soak."""

from collections.abc import Iterable
from typing import Any

import pytest


def some(variants: Iterable[Any], count: int) -> list[Any]:
    """Parameters: so many of the variants, evenly spaced over all, are tested with every change, the rest is
    slow."""
    every = list(variants)
    quick = {round(place * (len(every) - 1) / max(1, count - 1)) for place in range(count)}
    return [
        pytest.param(one, marks=() if place in quick else pytest.mark.slow) for place, one in enumerate(every)
    ]
