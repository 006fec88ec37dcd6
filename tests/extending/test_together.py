"""All that a task may add but a sampler, at once, under the default one, cascade: for every change. What each
is shown and picked by, in the files beside, is for soak."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from tests.extending import test_cost_model, test_dialect, test_objective, test_technique
from tests.extending.walk import walked


def test_cascade_takes_what_a_task_adds(tmp_path: Path) -> None:
    (tmp_path / "my-npu.toml").write_text(test_cost_model.PROFILE)
    added = (test_objective, test_technique, test_cost_model, test_dialect)
    settings = ["search.sampler=cascade", "search.trials=2", 'search.objectives=["accuracy", "parameters"]']
    settings += ["space.sparsity=[0.0, 0.5]", "space.weight_bits=[8]", "space.activation_bits=[8]"]
    settings += ["hardware.profile=my-npu.toml", "export.to=half"]
    walk = walked(tmp_path, "".join(one.ADDED for one in added), *settings, wish=("--prefer", "parameters"))
    sensitivities = (walk.run / "sensitivities.csv").read_text()
    assert "zeros/0,2,0.9," in sensitivities
    whole = walk.front["baseline"]["parameters"]
    fewest = min(point["parameters"] for point in walk.front["front"])
    picked = walk.verification["search"]["objectives"]["parameters"]["picked"]
    assert fewest <= picked < whole
    assert "parameters" in walk.table
    assert f"| parameters | {whole:.0f} | {picked:.0f} " in walk.card
    assert walk.front["baseline"]["latency_ms"] == pytest.approx(0.5 + test_cost_model.MACS / 10_000)
    assert test_objective.weights_in(walk.exported / "model.onnx") == picked
    graph = onnx.load(walk.exported / "model.onnx").graph
    assert [tensor.data_type for tensor in graph.initializer].count(TensorProto.FLOAT16) == 3
    assert walk.verification["failures"] == []
