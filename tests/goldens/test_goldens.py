"""What version 0.1.0 (fafcb01) answered is answered now. README.md says when a golden may change."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.goldens import costs, files, networks, proposing, run, subjects
from tests.variants import some


def none(differences: Iterator[str]) -> None:
    """Fails with a line for each."""
    if found := list(differences):
        pytest.fail("not as the golden has it:\n" + "\n".join(found), pytrace=False)


@pytest.fixture(scope="module")
def kept_costs() -> costs.Kept:
    return costs.Kept()


def test_prices_are_kept_of_every_profile(kept_costs: costs.Kept) -> None:
    assert list(subjects.profiles()) == kept_costs.profiles


@pytest.mark.parametrize("profile", some(subjects.profiles(), 10))
def test_prices(profile: str, kept_costs: costs.Kept) -> None:
    none(kept_costs.differences(profile))


@pytest.fixture(scope="module")
def kept_files() -> dict[str, Any]:
    return files.read()


def test_thirty_files_are_kept_and_twelve_to_be_timed(kept_files: dict[str, Any]) -> None:
    timed = [key for key in kept_files if key.endswith(files.TIMED)]
    assert (len(kept_files) - 1 - len(timed), len(timed)) == (30, 12)


@pytest.mark.parametrize("network", networks.KINDS)
def test_exported_files(network: str, kept_files: dict[str, Any]) -> None:
    none(files.differences(kept_files, network))


def test_proposals() -> None:
    none(proposing.differences())


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run.unpacked(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("part", run.PARTS)
def test_a_run_of_version_0_1_is_read_as_it_was_then(part: str, run_folder: Path) -> None:
    none(run.differences(part, run_folder))


@pytest.mark.slow
def test_a_run_of_version_0_1_can_be_picked_from(run_folder: Path) -> None:
    """With weights that version 0.1.0 kept; its short fine-tune is not done again."""
    found = json.loads(subjects.command("pick", str(run_folder), "--epochs", "0", "--format", "json"))
    assert (run_folder / "exported" / str(found["trial"]) / "model.onnx").is_file()
