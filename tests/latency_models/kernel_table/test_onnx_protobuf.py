"""Our reading and writing of ONNX's bytes against the onnx package, and the table keys that come of it."""

import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from leanfront.compression.capture.trace import trace
from leanfront.compression.export.walk import random_builder
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.latency_models.benchmark.micro_benchmark import benchmark_model
from leanfront.latency_models.benchmark.optimised_graph import FusedNode, Operand, fused_nodes
from leanfront.latency_models.benchmark.timing import _reference_model, session
from leanfront.latency_models.kernel_table import onnx_protobuf
from tests import networks

KEYS_OF_CACHES = {
    "Chain": (32, {
        "com.microsoft.nchwc.Conv(f32[1x3x8x8], =f32[16x3x3x3], =f32[16]) auto_pad=NOTSET dilations=1|1 "
        "group=1 kernel_shape=3|3 pads=1|1|1|1 strides=1|1",
        "com.microsoft.nchwc.ReorderOutput(f32[1x16x8x8]) channels=8 channels_last=0",
        "Reshape(f32[1x16x2x2], =1|64) allowzero=1",
        "Gemm(f32[1x64], =f32[10x64], =f32[10]) alpha=1 beta=1 transA=0 transB=1",
    }),
    "Residual": (8, {
        "QuantizeLinear(f32[1x3x8x8], =f32[], =u8[]) axis=1 block_size=0 output_dtype=0 saturate=1",
        "Transpose(u8[1x3x8x8]) perm=0|2|3|1",
        "com.microsoft.QLinearConv(u8[1x8x8x3], =f32[], =u8[], =s8[8x3x3x3], =f32[8], =s8[], =f32[], =u8[],"
        " =int32[8]) auto_pad=NOTSET channels_last=1 dilations=1|1 group=1 kernel_shape=3|3 pads=1|1|1|1"
        " strides=1|1",
        "com.microsoft.QLinearAdd(u8[1x8x8x8], =f32[], =u8[], u8[1x8x8x8], =f32[], =u8[], =f32[], =u8[])",
    }),
    "OptionA": (32, {
        "Slice(f32[1x8x8x8], =0, =9223372036854775807, =2, =2)",
        "Pad(f32[1x8x4x4], =0|4|0|0|0|4|0|0) mode=constant",
    }),
}  # fmt: skip
"""Network -> bits of all layers, and keys that onnxruntime 1.31 on AVX-512 gave before this reader existed:
tables that are kept in caches must stay valid."""


@pytest.mark.parametrize("name", KEYS_OF_CACHES)
def test_keys_of_kept_tables_stay(name: str) -> None:
    bits, expected = KEYS_OF_CACHES[name]
    if not has_avx512() and bits == 32:
        pytest.skip("the layouts of another CPU have other keys")
    traced = trace(getattr(networks, name)().eval(), torch.zeros(1, 3, 8, 8))
    policy = Policy.uniform(traced.network, LayerPolicy(0.0, bits, bits))
    found = {node.key for node in fused_nodes(random_builder(traced)(traced.network, policy), {})}
    assert expected <= found, expected - found


def has_avx512() -> bool:
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and "avx512f" in cpu.read_text()


ATTRIBUTES = [
    helper.make_attribute("f", 0.1),
    helper.make_attribute("i", -3),
    helper.make_attribute("s", "NOTSET"),
    helper.make_attribute("floats", [1.0, 2.5]),
    helper.make_attribute("ints", [1, -1, 300]),
    helper.make_attribute("one", [7]),
    helper.make_attribute("none", [], attr_type=AttributeProto.INTS),
    helper.make_attribute("strings", ["a", "b"]),
]


def test_attributes_are_read_as_onnx_reads_them() -> None:
    for attribute in ATTRIBUTES:
        read = onnx_protobuf.Attribute.read(attribute.SerializeToString())
        assert read.name == attribute.name
        assert read.value == helper.get_attribute_value(attribute), attribute.name


def test_a_node_survives_reading_and_writing() -> None:
    made = helper.make_node("Conv", ["x", "", "b"], ["y", "z"], name="n", domain="com.microsoft")
    made.attribute.extend(ATTRIBUTES)
    read = onnx_protobuf.Node.read(made.SerializeToString())
    assert (read.op_type, read.domain, read.input) == ("Conv", "com.microsoft", ("x", "", "b"))
    again = onnx.NodeProto.FromString(read.written())
    assert again == made


@pytest.mark.parametrize("kind", ["float32", "float16", "float64", "uint8", "int8", "int32", "int64", "bool"])
def test_tensors_are_those_of_onnx(kind: str) -> None:
    values = np.arange(6).reshape(2, 3).astype(kind)
    assert TensorProto.FromString(onnx_protobuf.tensor(values, "t")) == numpy_helper.from_array(values, "t")
    listed = helper.make_tensor(
        "t", helper.np_dtype_to_tensor_dtype(values.dtype), (2, 3), values.reshape(-1).tolist()
    )
    for message in (listed.SerializeToString(), onnx_protobuf.tensor(values, "t")):
        read = onnx_protobuf.Tensor.read(message)
        assert (read.name, read.shape, read.size) == ("t", (2, 3), 6)
        assert read.values.dtype == values.dtype
        np.testing.assert_array_equal(read.values, values)
    assert TensorProto.FromString(read.renamed("other")).name == "other"


@given(st.integers(-(2**63), 2**63 - 1))
def test_integers_survive(value: int) -> None:
    (read,) = onnx_protobuf.fields(onnx_protobuf.field(3, value))
    assert isinstance(read.value, int)
    assert onnx_protobuf.signed(read.value) == value
    assert AttributeProto.FromString(onnx_protobuf.field(3, value)).i == value


@given(st.binary(max_size=40))
def test_bytes_that_are_no_message_are_an_error_and_nothing_else(message: bytes) -> None:
    try:
        found = list(onnx_protobuf.fields(message))
    except onnx_protobuf.WireError:
        return
    assert b"".join(one.raw for one in found) == message


def test_a_model_cut_short_is_an_error() -> None:
    whole = _reference_model()
    with pytest.raises(onnx_protobuf.WireError, match="cut short"):
        onnx_protobuf.graph_of(whole[:-10])
    with pytest.raises(onnx_protobuf.WireError, match="no graph"):
        onnx_protobuf.graph_of(b"")


def test_the_reference_model_is_the_convolution_that_it_always_was() -> None:
    weight = np.random.default_rng(0).standard_normal((32, 32, 3, 3)).astype(np.float32)
    shape = [1, 32, 16, 16]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "weight"], ["y"], pads=[1, 1, 1, 1], name="")],
        "reference",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "weight")],
    )
    expected = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made = onnx.load_model_from_string(_reference_model())
    made.graph.node[0].ClearField("name")
    expected.graph.node[0].ClearField("name")
    assert made == expected
    onnx.checker.check_model(made)


def test_a_micro_benchmark_is_a_valid_model() -> None:
    pads = onnx_protobuf.Attribute.read(helper.make_attribute("pads", [1, 1, 1, 1]).SerializeToString())
    conv = FusedNode(
        "key",
        "",
        onnx_protobuf.Node("Conv", ("x", "w", "b"), ("y",), attribute=(pads,)),
        (
            Operand(onnx_protobuf.FLOAT, (1, 3, 8, 8), constant=False),
            Operand(onnx_protobuf.FLOAT, (4, 3, 3, 3), constant=True),
            Operand(onnx_protobuf.FLOAT, (4,), constant=True),
        ),
    )
    made = onnx.load_model_from_string(benchmark_model(conv, 3))
    onnx.checker.check_model(made, full_check=True)
    assert [node.op_type for node in made.graph.node] == ["Conv"] * 3 + ["Identity"]
    assert len({name for node in made.graph.node[:3] for name in node.input[1:]}) == 6  # constants of its own
    assert all(numpy_helper.to_array(c).min() > 0 for c in made.graph.initializer if len(c.dims) == 1)


def test_constants_that_numpy_has_no_type_for() -> None:
    packed = FusedNode(
        "key",
        "",
        onnx_protobuf.Node("DequantizeLinear", ("w", "s"), ("y",)),
        (Operand(22, (3, 3), constant=True), Operand(onnx_protobuf.FLOAT, (), constant=True)),
    )
    model = benchmark_model(packed, 1)
    constant = onnx.load_model_from_string(model).graph.initializer[0]
    assert (constant.data_type, len(constant.raw_data)) == (TensorProto.INT4, 5)
    session(model, optimise=False)


def test_floats_of_attributes_are_floats_of_32_bits() -> None:
    attribute = onnx_protobuf.Attribute.read(helper.make_attribute("epsilon", 1e-5).SerializeToString())
    assert attribute.value == struct.unpack("<f", struct.pack("<f", 1e-5))[0]
