"""Looking things up for many places at once says the same as one by one."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from leanfront.latency_models.measured.lookup import encoded, gathered


def looked_up(table: NDArray[Any]) -> NDArray[Any]:
    """What ``gathered`` says of a table (places, columns) where each value stands for itself."""
    return gathered([encoded(column) for column in table.T], lambda values: tuple(map(float, values)))


@given(st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=40))
def test_each_place_gets_what_its_values_say(places: list[tuple[int, ...]]) -> None:
    table = np.array(places)
    assert (table == looked_up(table).T).all()


def test_more_columns_than_an_integer_can_number() -> None:
    """A concat of thirty tensors with ten widths each: 10 ** 30 codes, 2 ** 63 fit."""
    table = np.random.default_rng(0).integers(0, 10, (500, 30))
    assert (table == looked_up(table).T).all()


def test_equal_places_are_looked_up_once() -> None:
    asked = []

    def look_up(values: tuple[int, ...]) -> tuple[float, ...]:
        asked.append(values)
        return (1.0,)

    gathered([encoded(np.array([7, 7, 3, 7]))], look_up)
    assert sorted(asked) == [(3,), (7,)]
