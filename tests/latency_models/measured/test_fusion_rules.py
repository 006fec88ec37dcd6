"""What follows for policies that were never built from those that were."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from leanfront.latency_models.kernel_table.keys import numbers_of, with_numbers, without_sizes
from leanfront.latency_models.measured import lookup
from leanfront.latency_models.measured.fusion_rules import Rule, learn, tabulate
from leanfront.latency_models.measured.lookup import staged
from leanfront.latency_models.measured.nearest import between_widths
from leanfront.latency_models.measured.optimised_kernels import resized_part

KEY = (
    "com.microsoft.QLinearConv(u8[1x8x8x24], =f32[], =s8[40x24x3x3], =int32[40], =0|-1|3)"
    " channels_last=1 group=1"
)


def test_numbers_of_a_key_can_be_taken_out_and_put_back() -> None:
    assert numbers_of(KEY) == (1, 8, 8, 24, 40, 24, 3, 3, 40, 0, -1, 3, 1)
    assert with_numbers(KEY, numbers_of(KEY)) == KEY
    assert without_sizes(KEY) == without_sizes(with_numbers(KEY, range(13)))
    assert "channels_last=1" in with_numbers(KEY, range(13))


def test_widths_never_seen_follow_from_others() -> None:
    def part(out: int, read: int) -> tuple[str, ...]:
        padded = -(-out // 16) * 16
        return (f"Conv(f32[1x{read}x8x8], =f32[{padded}x{read}x3x3]) group=1", f"Reorder(f32[1x{2 * out}])")

    seen = {(out, read): part(out, read) for out, read in [(12, 16), (40, 16), (24, 20)]}
    assert resized_part(seen, (40, 20)) == part(40, 20)
    assert resized_part(seen, (56, 8)) == part(56, 8)


def test_widths_that_never_changed_say_nothing() -> None:
    seen = {(16, 16): ("Conv(f32[1x16x8x8])",), (32, 16): ("Conv(f32[1x16x8x8])",)}
    assert resized_part(seen, (24, 16)) == ("Conv(f32[1x16x8x8])",)
    assert resized_part(seen, (24, 8)) is None
    odd = {(16,): ("Pad(f32[1x5])",), (32,): ("Pad(f32[1x9])",), (48,): ("Pad(f32[1x11])",)}
    assert resized_part(odd, (64,)) is None


@given(st.integers(0, 2**32 - 1))
@example(426518343)  # neither of two neighbours that decide together lowers the errors by itself
def test_the_neighbours_that_decide_are_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    states = rng.integers(0, 2, (200, 12))
    forms = states[:, 7] * 2 + (states[:, 3] & states[:, 10])
    rule = learn(states, forms, own=[0, 1], near=range(2, 12), least=1)
    assert set(rule.columns) >= {0, 1, 3, 7, 10}
    for state, form in zip(states.tolist(), forms.tolist(), strict=True):
        assert rule.form(rule.pick(state)) == form


def test_an_unseen_state_leaves_out_the_least_telling_neighbour() -> None:
    states = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0]])
    forms = np.array([0, 1, 2])
    rule = learn(states, forms, own=[0], near=[1, 2], least=1)
    assert rule.form(rule.pick((0, 1, 1))) in (1, 2)
    assert rule.form((1, 0, 0)) is None


@given(st.floats(0.2, 1.5), st.floats(0.2, 1.5))
def test_between_widths_a_power_law_is_followed(first: float, second: float) -> None:
    seen = {
        (a, b): 0.01 * a**first * b**second
        for a in (8, 16, 32, 64)
        for b in (8, 24, 64)
        if (a, b) != (32, 24)
    }
    assert np.isclose(between_widths(seen, (32, 24)), 0.01 * 32**first * 24**second, rtol=0.02)


def test_between_widths_without_any_time_is_none() -> None:
    assert between_widths({(8,): 0.0, (16,): 0.0}, (12,)) == 0.0


@given(
    states=st.lists(st.tuples(*[st.integers(0, 2)] * 4), min_size=1, max_size=30),
    wanted=st.integers(0, 3**5),
    most_cells=st.sampled_from([1, 8, 1 << 14]),
)
def test_the_tables_of_a_rule_say_what_the_rule_says(
    states: list[tuple[int, ...]], wanted: int, most_cells: int
) -> None:
    """Also for combinations that were never seen, and with little or much in one table."""
    seen = np.array(states)
    forms = (seen @ np.array([1, 3, 9, 27]) * (wanted + 1)) % 7 % 3 + 5
    rule = Rule((0, 1, 2, 3), tabulate(seen, forms, (0, 1, 2, 3), 2))
    values = [sorted({state[column] for state in states}) for column in range(4)]
    numbers = [{value: number for number, value in enumerate(known)} for known in values]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "MOST_RULE_CELLS", most_cells)
        stages, found = staged(rule, numbers)
    for state in itertools.product(*values):
        left = 0
        for stage in stages:
            for column in stage.columns:
                left = left * len(values[column]) + numbers[column][state[column]]
            left = int(stage.table[left])
        assert found[left] == rule.form(state)
