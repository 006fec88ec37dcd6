"""What version 0.1.0 (fafcb01) answered, and what is answered now. README.md says when a golden may change."""

import pytest

from tests.goldens import costs, subjects


@pytest.fixture(scope="module")
def kept_costs() -> costs.Kept:
    return costs.Kept()


def test_prices_are_kept_of_every_profile(kept_costs: costs.Kept) -> None:
    assert list(subjects.profiles()) == kept_costs.profiles


@pytest.mark.parametrize("profile", subjects.profiles())
def test_prices(profile: str, kept_costs: costs.Kept) -> None:
    assert not [*kept_costs.differences(profile)]
