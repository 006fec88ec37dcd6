"""An objective of one's own: the number of parameters.

What to write, in the task's file: an ``Objective`` with a name and ``value``, which says a number above 0 of
a network that is cut already, its policy and its cost; ``values`` says the same of many policies at once,
(n,), for the sampler cascade. ``register_objective`` makes it known, and ``objectives = ["accuracy",
"parameters"]`` asks for it.
"""

import json
import math
from pathlib import Path

import onnx
import pytest

from tests.extending.walk import command, walked

ADDED = """
from leanfront.search.objectives import Objective, register_objective

register_objective(
    Objective(
        name="parameters",
        value=lambda network, policy, cost: network.weight_count,
        values=lambda batch, costs: batch.weight_counts.sum(axis=0),
    )
)
"""


def weights_in(path: Path) -> int:
    """Numbers in the initializers of a file that have more than one dimension."""
    graph = onnx.load(path).graph
    return sum(math.prod(stored.dims) for stored in graph.initializer if len(stored.dims) > 1)


@pytest.mark.slow  # for every change test_together.py
def test_it_is_searched_for_shown_and_picked_by(tmp_path: Path) -> None:
    setting = 'search.objectives=["accuracy", "parameters"]'
    walk = walked(tmp_path, ADDED, setting, wish=("--prefer", "parameters"))
    whole = 8 * 9 + 8 * 8 * 9 + 2 * 8
    assert walk.front["baseline"]["parameters"] == whole
    counts = {row.trial: row.more["parameters"] for row in walk.trials if row.state == "complete"}
    assert {point["parameters"] for point in walk.front["front"]} <= set(counts.values())
    fewest = min(point["parameters"] for point in walk.front["front"])
    assert fewest == min(counts.values()) < whole
    assert "parameters" in walk.table
    status = json.loads(command("status", str(walk.run), "--format", "json"))
    assert status["hypervolume"] is not None
    assert "<th>parameters" in walk.page
    found = walk.verification["search"]["objectives"]["parameters"]
    assert found == {"picked": fewest, "uncompressed": whole}
    assert weights_in(walk.exported / "model.onnx") == fewest
    assert f"| parameters | {whole} | {fewest:.0f} ({fewest / whole:.3f}x) |" in walk.card
    assert "parameters" in walk.picked
