"""A pick for an FPGA: its engine's file, what ran of it here, and the folding of its cost."""

import json
from pathlib import Path

import onnx
import pytest

from leanfront.compression.policy import Policy
from tests.extending.walk import walked

pytest.importorskip("qonnx")


def test_it_is_a_file_for_finn_with_the_folding_of_its_cost(tmp_path: Path) -> None:
    settings = ('hardware.profile="zynq-7020"', "space.weight_bits=[2, 4, 8]", "space.activation_bits=[4, 8]")
    walk = walked(tmp_path, "", *settings)
    graph = onnx.load(walk.exported / "model.onnx").graph
    assert {node.op_type for node in graph.node} >= {"Quant", "Conv", "MatMul", "Add", "Relu"}
    engine, test = walk.verification["engine"], walk.verification["test"]
    assert engine["name"] == "qonnx"
    assert "qonnx" in engine["ran"]
    assert engine["broken"] == []
    assert engine["not_run"].startswith("FINN and hls4ml build designs")
    assert any("no layer in floats" in rule for rule in engine["rules"])
    assert test["agreement"] == 1.0
    assert test["largest_steps"] < 0.1
    assert "Not verified: FINN and hls4ml build designs" in walk.card
    policy = Policy.from_json((walk.exported / "policy.json").read_text())
    folding = json.loads((walk.exported / "folding.json").read_text())
    engines = [name for name in folding if name.startswith("MVAU")]
    assert folding["Defaults"] == {}
    assert len(engines) == len(policy.there()) == 3
    for name in engines:
        assert name in walk.card
        assert set(folding[name]) == {"PE", "SIMD"}
