"""The default sampler, cascade, with an objective and a technique of a task's own at once."""

from pathlib import Path

import pytest

from tests.extending import test_objective, test_technique
from tests.extending.walk import walked


@pytest.mark.slow
def test_cascade_takes_what_a_task_adds(tmp_path: Path) -> None:
    settings = ["search.sampler=cascade", "search.trials=2", 'search.objectives=["accuracy", "parameters"]']
    settings += ["space.sparsity=[0.0, 0.5]", "space.weight_bits=[8]", "space.activation_bits=[8]"]
    walk = walked(tmp_path, test_objective.ADDED + test_technique.ADDED, *settings)
    sensitivities = (walk.run / "sensitivities.csv").read_text()
    assert "zeros/0,2,0.9," in sensitivities
    whole = walk.front["baseline"]["parameters"]
    assert min(row.more["parameters"] for row in walk.trials if row.state == "complete") < whole
    assert "parameters" in walk.table
