"""Files for TensorRT: ONNX with explicit quantization as its builder reads it.

TensorRT is not on this machine: what it asks of a file is checked as rules, each with its source, and the
file's values are run in onnxruntime, on the grids that TensorRT has, with sums of integers.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from leanfront.compression.export.dialects import Arithmetic, LayerCall, Opened, Qdq, Rule, register
from leanfront.compression.export.in_halves import nodes_in_halves, with_halves
from leanfront.compression.export.integer_sums import OUT_AXIS, Summed, with_integer_sums
from leanfront.compression.export.onnx_writer import Writer
from leanfront.compression.graph import Layer, Network, Spelling
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.grids import ActivationGrid

OPSET = 20
"""What TensorRT 10 reads (onnx-tensorrt, release/10.3-GA, docs/operators.md: opset 9 to 20)."""
_DOCS = "docs.nvidia.com/deeplearning/tensorrt, Working with Quantized Types"
_PARSER = "onnx-tensorrt, docs/operators.md"

_LACKING = {
    "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Compress", "ConcatFromSequence",
    "ConvInteger", "Det", "DynamicQuantizeLinear", "HammingWindow", "HannWindow", "Hardmax",
    "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial",
    "NegativeLogLikelihoodLoss", "QLinearConv", "QLinearMatMul", "SequenceAt", "SequenceConstruct",
    "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SoftmaxCrossEntropyLoss",
    "SplitToSequence", "StringNormalizer", "TfIdfVectorizer", "Unique", "Bernoulli", "ImageDecoder",
    "AffineGrid", "DFT", "STFT",
}  # fmt: skip
"""Operations of ONNX that its parser has not."""
_PAIRS = frozenset({(8, 8), (16, 16), (32, 32)})


def _values(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _made_by(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def _off_centre(model: onnx.ModelProto) -> list[str]:
    """Integers other than signed ones of 8 bits, and zero points other than 0."""
    values, found = _values(model), []
    for node in _quantizing(model):
        zero = values.get(node.input[2]) if len(node.input) > 2 else None
        if zero is None or zero.dtype != np.int8 or bool(zero.any()):
            held = "none" if zero is None else f"{zero.dtype} {zero.reshape(-1)[0]}"
            found.append(f"the zero point of {node.output[0]!r} is {held}, not a signed 0 of 8 bits")
    return found


def _quantizing(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from (node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear"))


def _weight_axes(model: onnx.ModelProto) -> list[str]:
    """Integer weights that have not one scale for each output channel."""
    made, values, found = _made_by(model), _values(model), []
    for node in model.graph.node:
        if node.op_type not in OUT_AXIS:
            continue
        decoded = made.get(node.input[1])
        if decoded is None or decoded.op_type != "DequantizeLinear" or decoded.input[0] not in values:
            continue
        weight, scales = values[decoded.input[0]], values[decoded.input[1]]
        axis = next((int(a.i) for a in decoded.attribute if a.name == "axis"), 1)
        wanted = OUT_AXIS[node.op_type]
        if axis != wanted or scales.shape != (weight.shape[wanted],):
            found.append(
                f"the weight of {node.name!r} has {scales.size} scales along dimension {axis}, not one for"
                f" each of its {weight.shape[wanted]} output channels"
            )
    return found


def _integer_biases(model: onnx.ModelProto) -> list[str]:
    made = _made_by(model)
    return [
        f"the bias of {node.name!r} is held in integers"
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose", "Gemm")
        and len(node.input) > 2
        and node.input[2] in made
        and made[node.input[2]].op_type == "DequantizeLinear"
    ]


def _half_quantized(model: onnx.ModelProto) -> list[str]:
    """Additions whose sum is held in integers, of which one operand is."""
    made, values, found = _made_by(model), _values(model), []
    read = {name: node for node in model.graph.node for name in node.input}
    for node in model.graph.node:
        if node.op_type != "Add" or any(name in values for name in node.input):
            continue
        held = [made[name].op_type == "DequantizeLinear" for name in node.input if name in made]
        reader = read.get(node.output[0])
        while reader is not None and reader.op_type == "Relu":
            reader = read.get(reader.output[0])
        if reader is not None and reader.op_type == "QuantizeLinear" and any(held) and not all(held):
            found.append(f"of the operands of addition {node.name!r} one is quantized and one is not")
    return found


def _newer(model: onnx.ModelProto) -> list[str]:
    opset = max(one.version for one in model.opset_import if not one.domain)
    return [f"it is written in opset {opset}"] if opset > OPSET else []


class TensorRT(Qdq):
    """Signed symmetric tensors, weights in 8 bits with a scale for each output channel, biases in floats.

    Layers of 16 bits are written in float16, and what lies between two of them, too; all else that is no
    integer layer stays in float32, which a builder with ``--fp16`` may still narrow.
    """

    name = "tensorrt"
    engine = "tensorrt"
    grids = "signed"
    rounds_biases = False
    arithmetic = Arithmetic()
    spelling = Spelling(centred=True, guards=False, clips=False)
    fused = False
    priced = False
    limited = True
    halves = True
    dynamic = False
    rules = (
        Rule("signed tensors whose zero is 0", _DOCS, _off_centre),
        Rule("one scale for each output channel of a weight", _DOCS, _weight_axes),
        Rule("biases in floats", _DOCS, _integer_biases),
        Rule(
            "both operands of a quantized addition quantized",
            f"{_DOCS}, Q/DQ Layer-Placement Recommendations",
            _half_quantized,
        ),
        Rule(f"opset {OPSET} at most", _PARSER, _newer),
    )

    @property
    def not_run(self) -> str:
        """It needs NVIDIA's own hardware."""
        return "TensorRT is not on this machine"

    @property
    def ran(self) -> str:
        """onnxruntime, which is made to add integers."""
        return f"{super().ran}, with sums of integers"

    def opened(self, content: bytes, threads: int = 1) -> Opened | None:
        """In onnxruntime, with sums of integers as TensorRT's kernels have them."""
        return Summed(with_integer_sums(onnx.load_from_string(content)), threads)

    def cannot(self, node: onnx.NodeProto) -> str:
        """What its parser's table says."""
        return f"its parser has no {node.op_type}" if node.op_type in _LACKING else ""

    def takes(self, layer: Layer, weight_bits: int, activation_bits: int) -> bool:
        """Both of 8, 16 or 32 bits; tables and recurrent weights in 8 bits or floats."""
        if layer.weight_only:
            return weight_bits in (8, 16, 32)
        return (weight_bits, activation_bits) in _PAIRS

    def clips(self, bits: int) -> bool:
        """Never: there are no narrower tensors, and the grid's zero does not lie at its end."""
        return False

    def quantized(self, out: Writer, tensor: str, grid: ActivationGrid) -> str:
        """QuantizeLinear and DequantizeLinear with a signed zero."""
        scale, zero = out.grid(grid, signed=True)
        return out.dequantized(out.add("QuantizeLinear", [tensor, scale, zero]), scale, zero)

    def padded(self, out: Writer, tensor: str, pads: str, grid: ActivationGrid) -> str:
        """Floats, which are quantized again: 0 is 0 on every grid of this kind."""
        return self.quantized(out, out.add("Pad", [tensor, pads]), grid)

    def reads(self, out: Writer, call: LayerCall) -> str:
        """What there is: its builder quantizes nothing that the file does not."""
        return call.read

    def weight(self, out: Writer, call: LayerCall) -> str:
        """Codes of 8 bits, decoded; of transposed convolutions in groups floats, for their scales have no
        dimension of their own."""
        held = call.weights
        if held.codes is None or held.scales is None or call.layer.groups_apart:
            return out.own(held.floats(call.axis).astype(np.float32))
        zeros = out.own(np.zeros(held.scales.shape, dtype=np.int8))
        return out.add(
            "DequantizeLinear", [out.packed(held.codes, 8), out.own(held.scales), zeros], axis=call.axis
        )

    def looked_up(self, out: Writer, call: LayerCall, output: str) -> str:
        """Rows of floats, decoded first."""
        return out.add(call.op, [self.weight(out, call), call.read], name=call.layer.name, output=output)

    def bias(self, out: Writer, call: LayerCall) -> str:
        """In floats."""
        return out.own(call.weights.bias)

    def promises_integers(self, layer: Layer, policy: LayerPolicy) -> bool:
        """Nothing of onnxruntime's kernels."""
        return policy.weight_bits == 8 and policy.activation_bits == 8

    def finished(self, model: onnx.ModelProto, network: Network, policy: Policy) -> bytes:
        """With float16 where the policy wants it, in an opset that TensorRT reads."""
        wanted = nodes_in_halves(network, policy)
        if wanted:
            model = with_halves(model, wanted)
        for opset in model.opset_import:
            if not opset.domain:
                opset.version = min(opset.version, OPSET)
        model.ir_version = min(model.ir_version, 9)
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())


register(TensorRT())
