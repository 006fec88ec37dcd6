"""Costs: sums, and the one rule of what fits."""

import numpy as np
import pytest

from leanfront.latency_models.cost import Cost, CostArrays, within


def arrays(size_bytes: float, peak_bytes: float, memory_bytes: int | None, placed: bool = True) -> CostArrays:
    one = np.ones(1)
    return CostArrays(
        one, one, size_bytes * one, np.zeros(1, bool), peak_bytes * one, memory_bytes, np.array([placed])
    )


@pytest.mark.parametrize(
    ("memory_bytes", "fits"), [(103, True), (102, False), (100, False), (3, False), (None, True)]
)
def test_weights_and_tensors_fit_together(memory_bytes: int | None, fits: bool) -> None:
    assert bool(within(3, 100, memory_bytes)) is fits
    assert arrays(3, 100, memory_bytes).fits.tolist() == [fits]
    assert not arrays(3, 100, memory_bytes, placed=False).fits.any()


def test_costs_of_parts_are_put_where_they_belong() -> None:
    parts = [arrays(1, 10, 100), arrays(2, 20, 100, placed=False), arrays(3, 30, 100)]
    joined = CostArrays.joined(parts, [np.array([2]), np.array([0]), np.array([1])])
    assert joined.size_bytes.tolist() == [2, 3, 1]
    assert joined.peak_memory_bytes.tolist() == [20, 30, 10]
    assert joined.fits.tolist() == [False, True, True]


def test_costs_add_and_are_as_sure_as_the_less_sure() -> None:
    one = Cost(1.0, 2.0, 3, 100, kind="measured")
    other = Cost(1.0, 2.0, 3, 150, kind="calibrated", estimated=True)
    assert one + other == Cost(2.0, 4.0, 6, 150, kind="calibrated", estimated=True)
