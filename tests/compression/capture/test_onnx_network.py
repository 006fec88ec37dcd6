from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

import leanfront as lf
from leanfront.compression.capture.onnx_network import OnnxError, network_of, read_onnx
from leanfront.compression.graph import kernels
from leanfront.compression.policy import LayerPolicy, tensor_bits

Arrays = dict[str, np.ndarray]


def model(text: str, weights: Arrays, shape: str = "N, 3, 8, 8") -> ModelProto:
    """A model from the lines of its graph; the input is ``x``, the output ``y``."""
    head = f'<ir_version: 10, opset_import: ["" : 21]> g (float[{shape}] x) => (float y)'
    made = onnx.parser.parse_model(f"{head} {{ {text.replace('.', '__')} }}")  # names there have no dots
    for node in made.graph.node:
        node.input[:] = [name.replace("__", ".") for name in node.input]
    made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return made


def f32(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


CONV = {"a.weight": f32(4, 3, 3, 3), "a.bias": f32(4)}


def test_a_small_residual_network() -> None:
    read = network_of(
        model(
            """
            c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x, a.weight)
            n = BatchNormalization (c, s, s, s, s)
            r = Relu (n)
            d = Conv <group = 4, pads = [1, 1, 1, 1]> (r, b.weight, a.bias)
            e = Add (d, r)
            six = Clip (e, zero, top)
            p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (six)
            f = Flatten (p)
            y = Gemm <transB = 1> (f, fc.weight, fc.bias)
            """,
            CONV | {"s": f32(4), "b.weight": f32(4, 1, 3, 3), "fc.weight": f32(10, 16), "fc.bias": f32(10),
                    "zero": np.float32(0), "top": np.float32(6)},
        )
    )  # fmt: skip
    network = read.network
    assert [n.op for n in network.nodes] == [
        "input", "conv2d", "batchnorm", "relu", "conv2d", "add", "relu6", "maxpool", "flatten", "linear",
    ]  # fmt: skip
    assert [(layer.name, str(layer.shape), layer.bias) for layer in network.layers] == [
        ("a", "conv2d 3x3/2 3->4 @4x4", False),
        ("b", "depthwise 3x3 4->4 @4x4", True),
        ("fc", "linear 16->10 @1x1", True),
    ]
    assert network.macs == 3 * 4 * 9 * 16 + 4 * 9 * 16 + 160
    assert network.outputs == ("y",)
    assert not network.groups
    assert network.node["p"].kernel == network.node["p"].stride == (2, 2)
    assert network.node["p"].elements == 16
    assert [k.name for k in kernels(network)] == ["x", "r", "d", "six", "p", "f", "y"]
    assert set(read.policy.values()) == {LayerPolicy()}
    assert network.resized({}).layers == network.layers


def quantized(weight: np.ndarray, decode: str = "w = DequantizeLinear (a.weight, ws)") -> ModelProto:
    return model(
        f"""
        q = QuantizeLinear (x, xs, xz)
        t = DequantizeLinear (q, xs, xz)
        {decode}
        c = Conv (t, w, a.bias)
        q2 = QuantizeLinear (c, xs, xz)
        y = DequantizeLinear (q2, xs, xz)
        """,
        {
            "a.weight": weight,
            "a.bias": f32(4),
            "xs": np.float32(0.1),
            "xz": np.uint8(0),
            "ws": np.float32(0.1),
        },
    )


def test_quantizers_vanish_and_are_the_policy() -> None:
    read = network_of(quantized(np.ones((4, 3, 3, 3), np.int8)))
    assert [n.op for n in read.network.nodes] == ["input", "conv2d"]
    assert read.network.outputs == ("c",)
    assert dict(read.policy) == {"a": LayerPolicy(0.0, 8, 8)}
    assert tensor_bits(kernels(read.network), read.policy) == {"x": 8, "c": 8}


@pytest.mark.parametrize(("kind", "bits"), [("INT4", 4), ("UINT4", 4), ("INT2", 2)])
def test_packed_weights_behind_a_cast(kind: str, bits: int) -> None:
    if not hasattr(TensorProto, kind):
        pytest.skip(f"this onnx has no {kind}")
    opset = 21 if bits == 4 else 25
    decode = "i = Cast <to = 3> (a.weight)  w = DequantizeLinear (i, ws)"
    made = quantized(np.ones((4, 3, 3, 3), np.int8), decode)
    made.opset_import[0].version = opset
    made.ir_version = 10 if bits == 4 else 13
    stored = next(t for t in made.graph.initializer if t.name == "a.weight")
    stored.CopyFrom(helper.make_tensor("a.weight", getattr(TensorProto, kind), (4, 3, 3, 3), [1] * 108))
    assert network_of(made).policy["a"] == LayerPolicy(0.0, bits, 8)


def test_a_clip_to_sixteen_levels_is_a_quantizer_of_four_bits() -> None:
    text = """
        n = Clip (x, low, high)  q = QuantizeLinear (n, s, z)  t = DequantizeLinear (q, s, z)
        w = DequantizeLinear (a.weight, s)  y = Conv (t, w)
    """
    weights = {"a.weight": np.ones((4, 3, 3, 3), np.int8), "s": np.float32(0.1), "z": np.uint8(3)}
    limits = {"low": np.float32(-0.3), "high": np.float32(1.2)}
    read = network_of(model(text, weights | limits))
    assert read.policy["a"] == LayerPolicy(0.0, 8, 4)
    assert [n.op for n in read.network.nodes] == ["input", "conv2d"]
    full = network_of(model(text, weights | {"low": np.float32(0), "high": np.float32(6)}))  # a ReLU6
    assert full.policy["a"] == LayerPolicy(0.0, 8, 8)
    assert [n.op for n in full.network.nodes] == ["input", "relu6", "conv2d"]


def test_weights_decoded_by_a_product() -> None:
    text = "f = Cast <to = 1> (a.weight)  w = Mul (f, s)  y = Conv (x, w)"
    weights = {"a.weight": np.ones((4, 3, 3, 3), np.int8), "s": f32(4, 1, 1, 1)}
    assert network_of(model(text, weights)).policy["a"] == LayerPolicy(0.0, 8, 32)


def test_float_weights_quantized_in_the_graph() -> None:
    decode = "wq = QuantizeLinear (a.weight, ws, wz)  w = DequantizeLinear (wq, ws, wz)"
    made = quantized(f32(4, 3, 3, 3), decode)
    made.graph.initializer.append(numpy_helper.from_array(np.int8(0), "wz"))
    assert network_of(made).policy["a"] == LayerPolicy(0.0, 8, 8)


def test_weights_only_and_half_precision() -> None:
    text = "w = DequantizeLinear (a.weight, ws)  y = Conv (x, w)"
    weights = {"a.weight": np.ones((4, 3, 3, 3), np.int8), "ws": np.float32(0.1)}
    assert network_of(model(text, weights)).policy["a"] == LayerPolicy(0.0, 8, 32)
    text = "h = Cast <to = 10> (x)  c = Conv (h, a.weight)  y = Cast <to = 1> (c)"
    made = model(text, {"a.weight": np.ones((4, 3, 3, 3), np.float16)})
    assert network_of(made).policy["a"] == LayerPolicy(0.0, 16, 16)


def test_a_float_layer_after_a_quantizer_stays_float() -> None:
    text = "q = QuantizeLinear (x, s, z)  t = DequantizeLinear (q, s, z)  y = Conv (t, a.weight)"
    weights = {"a.weight": f32(4, 3, 3, 3), "s": np.float32(0.1), "z": np.uint8(0)}
    assert network_of(model(text, weights)).policy["a"] == LayerPolicy()


def test_matrix_products_of_sequences_and_their_biases() -> None:
    read = network_of(
        model(
            "m = MatMul (x, fc.weight)  b = Add (m, fc.bias)  g = Gelu (b)  y = MatMul (g, out.weight)",
            {"fc.weight": f32(16, 32), "fc.bias": f32(32), "out.weight": f32(32, 16)},
            shape="N, 5, 16",
        )
    )
    assert [n.op for n in read.network.nodes] == ["input", "linear", "gelu", "linear"]
    fc, out = read.network.layers
    assert (fc.bias, out.bias) == (True, False)
    assert fc.shape.macs == 5 * 16 * 32
    assert read.network.node["x"].width == 16
    assert read.network.node["g"].elements == 5 * 32


@pytest.mark.parametrize(
    ("line", "op"),
    [
        ("y = ReduceMean <keepdims = 1> (c, hw)", "global_avgpool"),
        ("y = ReduceMean (c, last)", "mean"),
        ("y = GlobalAveragePool (c)", "global_avgpool"),
        ("y = AveragePool <kernel_shape = [2, 2]> (c)", "avgpool"),
        ("y = Clip (c, zero, six)", "relu6"),
        ("y = Clip (c, zero)", "relu"),
        ("y = Clip (c, six)", "clip"),
        ("y = Max (c, lowest)", "identity"),
        ("y = Max (c, zero)", "elementwise"),
        ("y = Concat <axis = 1> (c, c)", "concat"),
        ("y = Reshape (c, flat)", "reshape"),
        ("s = Shape (c)  y = Reshape (c, s)", "reshape"),
        ("y = Transpose <perm = [0, 2, 3, 1]> (c)", "transpose"),
        ("y = Pad (c, pads)", "pad"),
        ("y = Slice (c, last, six_i, last)", "slice"),
        ("y = Softmax (c)", "softmax"),
        ("y = Mul (c, zero)", "mul"),
        ('y = Resize <mode = "nearest"> (c, , scales)', "upsample_nearest"),
        ('y = Resize <mode = "linear"> (c, , scales)', "upsample"),
        ('y = Einsum <equation = "abcd->abdc"> (c)', "other"),
        ("y = MatMul (c, c)", "matmul"),
    ],
)
def test_operations(line: str, op: str) -> None:
    constants = {
        "hw": np.array([2, 3]), "last": np.array([3]), "zero": np.float32(0), "six": np.float32(6),
        "lowest": np.float32(-3e38), "six_i": np.array([6]),
        "flat": np.array([1, -1]), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }  # fmt: skip
    read = network_of(model(f"c = Conv (x, a.weight)  {line}", CONV | constants))
    assert read.network.nodes[-1].op == op
    assert read.network.nodes[-1].detail or op == "other"
    assert read.network.outputs == ("y",)


def test_split_gives_a_tensor_each() -> None:
    text = "c = Conv (x, a.weight)  l, r = Split <axis = 1, num_outputs = 2> (c)  y = Add (l, r)"
    network = network_of(model(text, CONV)).network
    assert [(n.op, n.width) for n in network.nodes[2:]] == [("slice", 2), ("slice", 2), ("add", 2)]


def test_layers_without_module_names_and_shared_weights() -> None:
    made = model(
        "c = Conv (x, onnx_Conv_7)  y = Conv (c, shared)",
        {"onnx_Conv_7": f32(3, 3, 1, 1), "shared": f32(3, 3, 1, 1)},
    )
    made.graph.node[0].name = "/stem/Conv"
    assert [layer.name for layer in network_of(made).network.layers] == ["/stem/Conv", "y"]
    made = model("c = Conv (x, s.weight)  y = Conv (c, s.weight)", {"s.weight": f32(3, 3, 1, 1)})
    assert [layer.name for layer in network_of(made).network.layers] == ["s", "s#2"]


def _fixed_batch(made: ModelProto) -> None:
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8


def _open_height(made: ModelProto) -> None:
    made.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"


def _wrong_width(made: ModelProto) -> None:
    made.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5


def _foreign(made: ModelProto) -> None:
    made.graph.node[0].domain = "com.example"
    made.graph.node[0].op_type = "Fancy"
    made.opset_import.append(helper.make_opsetid("com.example", 1))


def _no_layers(made: ModelProto) -> None:
    made.graph.node[0].CopyFrom(helper.make_node("Relu", ["x"], ["y"]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_fixed_batch, "input 'x' has a fixed batch of 8"),
        (_open_height, "leaves its size 'height' open"),
        (_wrong_width, "layer 'a' has weights for 3 input channels, but reads tensor 'x' with 5"),
        (_foreign, "shape of tensor 'y' that Fancy makes cannot be inferred|no Conv, Gemm or MatMul"),
        (_no_layers, "no Conv, Gemm or MatMul"),
    ],
)
def test_models_that_cannot_be_followed(change: Callable[[ModelProto], None], sentence: str) -> None:
    made = model("y = Conv (x, a.weight)", CONV)
    change(made)
    with pytest.raises(OnnxError, match=sentence) as caught:
        network_of(made)
    assert "\n" not in str(caught.value)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(model("y = Conv (x, a.weight)", CONV), path)
    assert read_onnx(path).network.macs == 3 * 4 * 9 * 36
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(OnnxError, match="not an ONNX file"):
        read_onnx(path)
    with pytest.raises(OnnxError, match=r"cannot read the network .*: No such file"):
        read_onnx(tmp_path / "gone.onnx")
    with pytest.raises(OnnxError, match=r"cannot read the network .*: Is a directory"):
        read_onnx(tmp_path)


@given(st.binary(max_size=300))
def test_rubbish_is_refused_by_sentence_only(
    tmp_path_factory: pytest.TempPathFactory, rubbish: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "rubbish.onnx"
    path.write_bytes(rubbish)
    with pytest.raises(OnnxError):
        read_onnx(path)


def _external(tmp_path: Path, location: str) -> Path:
    made = model("y = Conv (x, a.weight)", CONV)
    stored = made.graph.initializer[0]
    stored.ClearField("raw_data")
    stored.data_location = TensorProto.EXTERNAL
    stored.external_data.add(key="location", value=location)
    path = tmp_path / "inner" / "net.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "link.bin", ""])
def test_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    path = _external(tmp_path, location)
    (tmp_path / "secret.bin").write_bytes(bytes(4000))
    (path.parent / "link.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(OnnxError, match="outside its own folder"):
        read_onnx(path)


def test_data_beside_the_file_is_read_or_missed(tmp_path: Path) -> None:
    path = _external(tmp_path, "net.bin")
    with pytest.raises(OnnxError, match=r"'net.bin', which is not there"):
        read_onnx(path)
    (path.parent / "net.bin").write_bytes(b"short")
    with pytest.raises(OnnxError, match=r"cannot be read from 'net.bin'"):
        read_onnx(path)
    (path.parent / "net.bin").write_bytes(f32(4, 3, 3, 3).tobytes())
    assert read_onnx(path).network.layer["a"].shape.weight_count == 108


def test_sizes_that_the_graph_calculates_are_folded() -> None:
    text = """
        c = Conv (x, a.weight)
        s = Shape (c)
        h = Gather (s, three)
        zeros = ConstantOfShape (h)
        cells = Size (zeros)
        rows = Reshape (cells, one)
        t = Concat <axis = 0> (minus, rows)
        y = Reshape (c, t)
    """
    constants = {"three": np.array([3]), "minus": np.array([-1]), "one": np.array([1])}
    read = network_of(model(text, CONV | constants))
    assert read.network.node["y"].elements == 4 * 6 * 6
    assert read.network.node["y"].width == 6**1  # (-1, 6)
    assert [n.op for n in read.network.nodes] == ["input", "conv2d", "reshape"]


def test_a_linear_layer_with_a_renamed_weight_has_its_biases_name() -> None:
    text = "m = MatMul (x, val_7)  y = Add (m, head.bias)"
    made = model(text, {"val_7": f32(16, 4), "head.bias": f32(4)}, shape="N, 16")
    assert [layer.name for layer in network_of(made).network.layers] == ["head"]


def test_bits_of_small_weights_survive_where_sizes_are_calculated() -> None:
    """Folding the sizes must not decode the weights: a file of int8 would count as one of floats."""
    text = """
        d = Cast <to = 1> (a.weight)  w = Mul (d, s)
        c = Conv (x, w)  h = Shape (c)  i = Slice (h, zero, one)  u = Mul (i, one)
        k = NonZero (u)  m = Reshape (k, rest)  n = Add (m, one)  v = Concat <axis = 0> (n, rest)
        p = Reshape (c, v)  y = Add (p, f)
    """
    weights = {"a.weight": np.ones((4, 3, 3, 3), np.int8), "s": np.float32(0.1)}
    sizes = {"zero": np.array([0]), "one": np.array([1]), "rest": np.array([-1]), "f": f32(1)}
    read = network_of(model(text, weights | sizes))
    assert dict(read.policy) == {"a": LayerPolicy(0.0, 8, 32)}
    assert read.network.node["y"].elements == 4 * 6 * 6


@pytest.mark.parametrize("apart", [True, False])
def test_a_file_of_ours_has_the_policy_that_it_was_made_with(apart: bool, tmp_path: Path) -> None:
    """Transposed convolutions are computed in floats: kept apart from integer tensors around them, or reading
    what another left in floats."""
    more = () if apart else (nn.ConvTranspose2d(8, 8, 2, stride=2), nn.ReLU())
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.ConvTranspose2d(4, 8, 1), nn.ReLU(), *more, nn.Conv2d(8, 1, 3, padding=1)
    )
    captured = lf.capture(model.eval(), torch.randn(1, 1, 8, 8))
    policy = lf.uniform(captured, weight_bits=8, activation_bits=8)
    made = lf.compress(captured, policy, [torch.randn(4, 1, 8, 8)])
    file = lf.export(made, tmp_path / "model.onnx").path
    assert ("Max" in [node.op_type for node in onnx.load_model(file).graph.node]) is apart
    assert set(read_onnx(file).policy.values()) == {LayerPolicy(0.0, 8, 8)}
