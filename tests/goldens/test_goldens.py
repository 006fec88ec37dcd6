"""What version 0.1.0 (fafcb01) answered, and what is answered now. README.md says when a golden may change."""

from typing import Any

import pytest

from tests.goldens import costs, files, networks, subjects


@pytest.fixture(scope="module")
def kept_costs() -> costs.Kept:
    return costs.Kept()


def test_prices_are_kept_of_every_profile(kept_costs: costs.Kept) -> None:
    assert list(subjects.profiles()) == kept_costs.profiles


@pytest.mark.parametrize("profile", subjects.profiles())
def test_prices(profile: str, kept_costs: costs.Kept) -> None:
    assert not [*kept_costs.differences(profile)]


@pytest.fixture(scope="module")
def kept_files() -> dict[str, Any]:
    return files.read()


def test_thirty_files_are_kept_and_six_to_be_timed(kept_files: dict[str, Any]) -> None:
    timed = [key for key in kept_files if key.endswith(files.TIMED)]
    assert (len(kept_files) - 1 - len(timed), len(timed)) == (30, 6)


@pytest.mark.parametrize("network", networks.KINDS)
def test_exported_files(network: str, kept_files: dict[str, Any]) -> None:
    assert not [*files.differences(kept_files, network)]
