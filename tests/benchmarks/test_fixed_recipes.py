"""When a recipe counts as outside a searched front."""

import numpy as np

from benchmarks.fixed_recipes import Tried, cheapest, outside


def tried(right: int, latency_ms: float, size_bytes: float) -> Tried:
    """Right on the first so many of 1,000 images."""
    scores = (np.arange(1000) < right).astype(np.float32)
    return Tried("", right / 1000, {"latency_ms": latency_ms, "size_bytes": size_bytes}, scores)


def test_a_recipe_is_outside_where_nothing_as_cheap_is_as_accurate() -> None:
    front = [tried(900, 1.0, 100.0), tried(800, 0.5, 40.0)]
    assert not outside(tried(850, 1.0, 100.0), front)
    assert outside(tried(850, 0.9, 100.0), front)  # the accurate one takes longer
    assert outside(tried(950, 1.5, 200.0), front)
    assert not outside(tried(901, 1.5, 200.0), front)  # one image in a thousand is noise
    assert outside(tried(100, 0.4, 30.0), front)


def test_the_cheapest_that_is_at_least_as_accurate() -> None:
    front = [tried(900, 1.0, 100.0), tried(800, 0.5, 40.0)]
    found = cheapest(tried(790, 2.0, 400.0), front, "latency_ms")
    assert found is not None
    assert found.costs["latency_ms"] == 0.5
    found = cheapest(tried(801, 2.0, 400.0), front, "size_bytes")
    assert found is not None
    assert found.accuracy == 0.9
    assert cheapest(tried(950, 2.0, 400.0), front, "latency_ms") is None
