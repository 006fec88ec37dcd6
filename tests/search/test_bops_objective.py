"""A search for few bit operations: they are shown and picked by like every other cost."""

import json
from pathlib import Path

import pytest

from tests.extending.walk import command, walked


@pytest.mark.slow
def test_it_is_searched_for_shown_and_picked_by(tmp_path: Path) -> None:
    setting = 'search.objectives=["accuracy", "bops"]'
    walk = walked(tmp_path, "", setting, wish=("--prefer", "bops"))
    whole = 36 * (8 * 9 + 8 * 8 * 9) * 1024 + 2 * 8 * 1024  # two convolutions at 6 x 6, a linear layer
    assert walk.front["baseline"]["bops"] == whole
    assert "registered_objectives" not in walk.environment
    fewest = min(point["bops"] for point in walk.front["front"])
    assert fewest == min(row.more["bops"] for row in walk.trials if row.state == "complete") < whole
    assert "bit operations" in walk.table
    assert json.loads(command("status", str(walk.run), "--format", "json"))["hypervolume"] is not None
    assert walk.verification["search"]["objectives"]["bops"] == {"picked": fewest, "uncompressed": whole}
    assert "| bit operations |" in walk.card
