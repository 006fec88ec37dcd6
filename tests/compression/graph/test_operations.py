"""The table of operations: one row each, spelled as torch and ONNX spell them."""

import csv
from pathlib import Path

import onnx.defs
import pytest
import torch

from leanfront.compression.graph.kernels import kernels
from leanfront.compression.graph.network import Network
from leanfront.compression.graph.nodes import Layer, LayerShape, Node, Segment
from leanfront.compression.graph.operations import (
    OPAQUE,
    OPERATIONS,
    Operation,
    by_aten,
    by_onnx,
    named,
    operation,
)

SEEN = Path(__file__).parents[4] / "shared/cases/aten_operators.csv"


def test_what_has_no_row_is_opaque() -> None:
    assert operation("fft") is OPAQUE
    assert OPAQUE.name == "other"
    assert operation("relu").never_negative


def test_every_overload_is_one_of_torch_and_of_one_row() -> None:
    names = [name for row in OPERATIONS.values() for name in row.aten]
    assert len(names) == len(set(names))
    for name in names:
        space, _, rest = name.partition(".")
        if space == "aten":
            operator, overload = rest.split(".")
            assert overload in getattr(torch.ops.aten, operator).overloads(), name


def test_every_type_is_one_of_onnx_and_of_one_row() -> None:
    kinds = [kind for row in OPERATIONS.values() for kind in row.onnx]
    assert len(kinds) == len(set(kinds))
    assert set(kinds) <= {schema.name for schema in onnx.defs.get_all_schemas()}


@pytest.mark.skipif(not SEEN.exists(), reason="the operators of 87 networks are not there")
def test_operators_that_networks_are_made_of_have_a_row() -> None:
    with SEEN.open(encoding="utf-8") as file:
        seen = [line["operator"] for line in csv.DictReader(file)]
    assert len(seen) > 100
    assert [name for name in seen if name not in by_aten] == []


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("aten.relu.default", "relu"),
        ("aten.relu_.default", "relu"),
        ("aten.add_.Tensor", "add"),
        ("aten.mean.dim", "mean"),
        ("aten.sum.dim_IntList", "reduce"),
        ("aten.index_select.default", "gather"),
        ("aten.embedding.default", "embedding"),
        ("aten._native_batch_norm_legit_no_training.default", "batchnorm"),
    ],
)
def test_operators_by_name(name: str, op: str) -> None:
    assert by_aten[name] is operation(op)


def test_what_an_onnx_type_is_does_not_depend_on_its_setting() -> None:
    assert "MatMul" not in by_onnx  # a layer with weights, a product with two tensors
    assert by_onnx["Relu"].name == "relu"


@pytest.mark.parametrize("row", OPERATIONS.values(), ids=lambda row: row.name)
def test_what_a_row_says_holds_together(row: Operation) -> None:
    assert not row.same_range or (row.within_inputs and row.keeps_sign and row.integer)
    assert not row.same_tensor or (row.same_range and row.work == "free")
    assert not row.bounded or row.never_negative
    assert not row.joining or row.integer
    assert (row.work == "layer") == (row.stream == "layer") == row.layer
    assert not row.given or not row.written


def test_names_of_those_that_say_yes() -> None:
    assert named(lambda row: row.layer) == ("conv2d", "conv_transpose2d", "linear")


@pytest.mark.parametrize("op", [row.name for row in OPERATIONS.values() if row.fuses == "arithmetic"])
def test_only_activations_that_clamp_fuse_behind_a_layer(op: str) -> None:
    shape = LayerShape("linear", 3, 4)
    nodes = (
        Node("x", "input", (), (Segment(None, 3),)),
        Node("a", "linear", ("x",), (Segment(None, 4),), layer="a"),
        Node("act", op, ("a",), (Segment(None, 4),)),
        Node("end", "softmax", ("act",), (Segment(None, 4),)),
    )
    found = kernels(Network(nodes, (Layer("a", shape),), ("end",)))
    assert [(kernel.name, kernel.activation) for kernel in found] == [("x", ""), ("act", op), ("end", "")]
