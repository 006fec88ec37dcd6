"""Files for FINN and hls4ml: QONNX, ONNX with ``Quant`` nodes, which both build FPGA designs from.

The package qonnx executes such a file, node by node and one example at a time. It runs the first examples;
all of them are run in onnxruntime, with each Quant node in the operations that it stands for, and sums of
integers, as the designs have them.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference

from leanfront.compression.export.dialects import Dialect, DialectError, LayerCall, Opened, Rule, register
from leanfront.compression.export.integer_sums import MOVES, Summed, with_integer_sums
from leanfront.compression.export.onnx_writer import IR_VERSION, Writer
from leanfront.compression.export.weights import along, bias_codes
from leanfront.compression.graph import Layer, Network
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.grids import ActivationGrid
from leanfront.compression.policy.precision import computes_in_integers

DOMAIN = "qonnx.custom_op.general"
SAMPLE = 8
"""Examples of a file that qonnx itself executes."""
_WRONG = 0.1
"""Share of the range by which answers of qonnx and of onnxruntime may differ on average. Both round values
between two steps as their sums come out, which in a network of few bits moves single answers by a step."""

_HANDLERS = "Xilinx/finn, src/finn/transformation/qonnx/qonnx_activation_handlers.py"
_WEIGHTS = "Xilinx/finn, src/finn/transformation/qonnx/fold_quant_weights.py"
_STEPS = "Xilinx/finn, step_convert_to_hw of src/finn/builder/build_dataflow_steps.py"
_HLS4ML = "hls4ml 1.3, hls4ml/converters/onnx"

FINN = frozenset({
    "Add", "AveragePool", "BatchNormalization", "BipolarQuant", "Concat", "Conv", "ConvTranspose", "Div",
    "Flatten", "Gather", "GlobalAveragePool", "Identity", "LayerNormalization", "MatMul", "MaxPool", "Mul",
    "Pad", "Quant", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Resize", "Softmax", "Split",
    "Squeeze", "Sub", "Transpose", "Unsqueeze", "Upsample",
})  # fmt: skip
"""Operations that FINN has an engine for, or takes out of the graph."""
HLS4ML = frozenset({
    "Add", "AveragePool", "BatchNormalization", "Concat", "Conv", "Div", "Elu", "Flatten",
    "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu", "MatMul", "Max", "MaxPool", "Min", "Mul",
    "PRelu", "Pad", "Quant", "Relu", "Reshape", "Resize", "Selu", "Sigmoid", "Softmax", "Softplus",
    "Softsign", "Sub", "Sum", "Tanh", "ThresholdedRelu", "Transpose",
})  # fmt: skip
"""Operations that hls4ml reads."""
_WRITTEN_OTHERWISE = frozenset({"Clip", "Constant", "Gemm"})
"""Operations of the float graph that are others in the file: a ReLU6 a Relu, a product with a sum two."""
_QUANTIZES = ("Quant", "BipolarQuant")
_PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_MOVES = MOVES | {"Concat", "Expand", "Resize", "Split", "Upsample"}
"""Operations that put out the integers that they read."""


def _made_by(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def _in_integers(model: onnx.ModelProto) -> Callable[[str], bool]:
    """Whether a tensor holds integers times a scale: it is put out by Quant, or moved from there."""
    made, constants = _made_by(model), {tensor.name for tensor in model.graph.initializer}

    def holds(name: str) -> bool:
        node = made.get(name)
        if node is None or node.op_type in _QUANTIZES:
            return node is not None
        read = [source for source in node.input if source and source not in constants]
        return node.op_type in _MOVES and bool(read) and all(map(holds, read))

    return holds


def _float_layers(model: onnx.ModelProto) -> list[str]:
    """Products of which an operand is held in floats."""
    holds, found = _in_integers(model), []
    for node in model.graph.node:
        if node.op_type in _PRODUCTS:
            floats = [name for name in node.input[:2] if not holds(name)]
            found += [f"{node.name or node.op_type!r} computes in floats"] if floats else []
    return found


def _unconverted(model: onnx.ModelProto) -> list[str]:
    """Quant nodes that FINN refuses."""
    made, values = _made_by(model), {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type not in _QUANTIZES or node.input[0] in values:
            continue
        before = made.get(node.input[0])
        signed = {a.name: a.i for a in node.attribute}["signed"]
        relu = before is not None and before.op_type == "Relu"
        if bool(signed) == relu:
            which = "signed behind a Relu" if relu else "unsigned and not behind a Relu"
            found.append(f"the Quant node of {node.output[0]!r} is {which}")
        if values[node.input[2]].any() or not 1 <= values[node.input[3]] <= 8:
            found.append(f"the Quant node of {node.output[0]!r} has a zero point or more than 8 bits")
    return found


def _shared_weights(model: onnx.ModelProto) -> list[str]:
    """Weights that FINN cannot fold: its scales move behind the one node that reads them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    return [
        f"weight {node.output[0]!r} is read by {readers.get(node.output[0], 0)} nodes"
        for node in model.graph.node
        if node.op_type in _QUANTIZES and node.input[0] in constants and readers.get(node.output[0], 0) != 1
    ]


def _without_shape(model: onnx.ModelProto) -> list[str]:
    graph = model.graph
    known = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output, *graph.value_info)
        if value.type.tensor_type.HasField("shape")
    }
    tensors = [*(value.name for value in graph.input), *(name for n in graph.node for name in n.output)]
    return [f"tensor {name!r} has no fixed shape" for name in tensors if 0 in known.get(name, [0])]


def _unknown_nodes(model: onnx.ModelProto) -> list[str]:
    """What keeps both FINN and hls4ml from a file; nothing where one of them has every node."""
    ops = dict.fromkeys(node.op_type for node in model.graph.node)
    lacking = {
        name: [op for op in ops if op not in has] for name, has in (("FINN", FINN), ("hls4ml", HLS4ML))
    }
    if not all(lacking.values()):
        return []
    return [f"{name} has no {', '.join(without)}" for name, without in lacking.items()]


class Qonnx(Dialect):
    """Quant nodes behind every tensor on a grid and every weight in integers, BipolarQuant behind those of 1
    bit; all else is ONNX of floats.

    Scales of weights are one for each output channel, scales of tensors one for all, zero points 0. Biases
    are floats, rounded as integer kernels hold them: FINN and hls4ml both add them before they round. A
    tensor that is only moved has no further node.

    Sources: github.com/fastmachinelearning/qonnx, docs/qonnx-custom-ops; the rules name theirs.
    """

    name = "qonnx"
    engine = "qonnx"
    modules = ("qonnx",)
    extra = "qonnx"
    fused = False
    limited = True
    exact = True
    grids = "symmetric"
    restates = False
    rules = (
        Rule("no layer in floats", f"{_WEIGHTS}; hls4ml 1.3 takes floats as fixed point", _float_layers),
        Rule("Quant nodes of FINN: signed, or unsigned behind a Relu", _HANDLERS, _unconverted),
        Rule("weights that one node reads", _WEIGHTS, _shared_weights),
        Rule("a fixed shape for every tensor", f"{_HLS4ML}_to_hls.py: get_input_shape", _without_shape),
        Rule("nodes that FINN, or hls4ml, has all of", f"{_STEPS}; {_HLS4ML}", _unknown_nodes),
    )

    @property
    def not_run(self) -> str:
        """Both make designs for hardware."""
        return "FINN and hls4ml build designs from the file, which was not done here"

    @property
    def ran(self) -> str:
        """qonnx, and what runs all examples."""
        return (
            f"qonnx {version('qonnx')} (the first {SAMPLE} examples) and, with Quant nodes as the operations"
            f" that they stand for and sums of integers, {super().ran} (all of them)"
        )

    def cannot(self, node: onnx.NodeProto) -> str:
        """What neither FINN nor hls4ml has."""
        if node.domain or node.op_type in FINN | HLS4ML | _WRITTEN_OTHERWISE:
            return ""
        return f"neither FINN nor hls4ml has {node.op_type}"

    def promises_integers(self, layer: Layer, policy: LayerPolicy) -> bool:
        """Whatever the policy says: engines are built for it."""
        return computes_in_integers(layer, policy)

    def clips(self, bits: int) -> bool:
        """Always: Quant clips to its range."""
        return bits <= 8

    def quantized(self, out: Writer, tensor: str, grid: ActivationGrid) -> str:
        """A Quant node behind the tensor; behind a Relu where it is unsigned, since FINN takes no other."""
        signed = bool(grid.zero_point)
        relus = {node.output[0] for node in out.nodes if node.op_type == "Relu"}
        if not signed and tensor not in relus:
            tensor = out.add("Relu", [tensor])
        return _quant(out, tensor, out.constant(np.float32(grid.scale)), grid.bits, signed, narrow=False)

    def weight(self, out: Writer, call: LayerCall) -> str:
        """Floats that a Quant node rounds to the codes that they are; of 1 bit a BipolarQuant."""
        held, stored = call.weights, super().weight(out, call)
        if held.codes is None or held.scales is None:
            return stored
        scales = out.own(along(held.scales, held.codes.shape, call.axis))
        if call.policy.weight_bits == 1:
            return out.add("BipolarQuant", [stored, scales], domain=DOMAIN)
        return _quant(out, stored, scales, call.policy.weight_bits, signed=True, narrow=True)

    def bias(self, out: Writer, call: LayerCall) -> str:
        """In floats, of an integer layer rounded as its accumulator holds it."""
        held = call.weights
        if not call.integer or held.scales is None or call.grid is None:
            return super().bias(out, call)
        codes, steps = bias_codes(held, self.finer(call.layer, call.policy), call.grid.scale)
        return out.own((codes.astype(np.float64) * steps.astype(np.float64)).astype(np.float32))

    def layer(self, out: Writer, call: LayerCall) -> str:
        """A Gemm as MatMul and Add, which is what FINN and hls4ml read; the groups of a convolution, for
        which hls4ml has no default."""
        if call.op == "Gemm":
            call = replace(call, op="MatMul", weights=call.weights.transposed())
        elif call.op == "Conv":
            call = replace(call, attributes={"group": 1, **call.attributes})
        return super().layer(out, call)

    def plain(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Each Quant node as Div, Clip, Round and Mul, in the order in which qonnx computes it."""
        return _in_operations(model)

    def finished(self, model: onnx.ModelProto, network: Network, policy: Policy) -> bytes:
        """With the domain of its nodes, the shapes of all tensors, and outputs that nodes put out which
        compute something: hls4ml skips an Identity, and then has no output."""
        _name_outputs(model)
        inferred = shape_inference.infer_shapes(self.plain(model))
        named = {name for node in model.graph.node for name in node.output}
        there = {value.name for value in model.graph.output}
        values = [v for v in inferred.graph.value_info if v.name in named and v.name not in there]
        model.graph.value_info.extend(values)
        if any(node.domain == DOMAIN for node in model.graph.node):
            model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        return bytes(model.SerializeToString())

    def opened(self, content: bytes, threads: int = 1) -> Opened | None:
        """qonnx for the first examples, onnxruntime for all."""
        return _Executed(content, threads)


def _quant(out: Writer, tensor: str, scale: str, bits: int, signed: bool, narrow: bool) -> str:
    read = [tensor, scale, out.constant(np.float32(0)), out.constant(np.float32(bits))]
    settings: dict[str, Any] = {"signed": int(signed), "narrow": int(narrow), "rounding_mode": "ROUND"}
    return out.add("Quant", read, domain=DOMAIN, **settings)


def _name_outputs(model: onnx.ModelProto) -> None:
    """Take the Identity in front of each output away, in place; where a tensor is put out twice, or is an
    input, it stays."""
    graph, made = model.graph, _made_by(model)
    for value in graph.output:
        last = made[value.name]
        inner = last.input[0] if last.op_type == "Identity" else ""
        if inner not in made or inner in {other.name for other in graph.output}:
            continue
        graph.node.remove(last)
        for node in graph.node:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    names[place] = value.name if name == inner else name
        made = _made_by(model)


def _in_operations(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same without Quant nodes. Values keep their names."""
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    found = onnx.ModelProto()
    found.CopyFrom(model)
    found.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), _ZERO))
    del found.graph.node[:]
    for node in model.graph.node:
        if node.domain != DOMAIN:
            found.graph.node.append(node)
            continue
        if node.op_type == "BipolarQuant":
            found.graph.node.extend(_signs(node))
            continue
        tensor, scale, _, bits = node.input
        given = {attribute.name: attribute.i for attribute in node.attribute}
        half = 2 ** (int(numpy_helper.to_array(values[bits])) - 1)
        ends = (given["narrow"] - half, half - 1) if given["signed"] else (0, 2 * half - 1)
        made = node.output[0]
        for name, end in zip(("lowest", "highest"), ends, strict=True):
            stored = numpy_helper.from_array(np.asarray(end, dtype=np.float32), f"{made}/{name}")
            found.graph.initializer.append(stored)
        found.graph.node.extend(
            [
                helper.make_node("Div", [tensor, scale], [f"{made}/divided"]),
                helper.make_node(
                    "Clip", [f"{made}/divided", f"{made}/lowest", f"{made}/highest"], [f"{made}/clipped"]
                ),
                helper.make_node("Round", [f"{made}/clipped"], [f"{made}/rounded"]),
                helper.make_node("Mul", [f"{made}/rounded", scale], [made]),
            ]
        )
    read = {name for node in found.graph.node for name in node.input}
    kept = [tensor for tensor in found.graph.initializer if tensor.name in read]
    del found.graph.initializer[:]
    found.graph.initializer.extend(kept)
    return found


_ZERO = "BipolarQuant/zero"


def _signs(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A BipolarQuant: the scale where a number is not below 0, else less it."""
    (tensor, scale), (made,) = node.input, node.output
    return [
        helper.make_node("Less", [tensor, _ZERO], [f"{made}/below"]),
        helper.make_node("Neg", [scale], [f"{made}/less"]),
        helper.make_node("Where", [f"{made}/below", f"{made}/less", scale], [made]),
    ]


class _Executed:
    """A file in onnxruntime, whose first answers are those of qonnx."""

    def __init__(self, content: bytes, threads: int) -> None:
        self._model, self._left = onnx.load_from_string(content), SAMPLE
        self._summed = Summed(_in_operations(with_integer_sums(self._model)), threads)
        self.inputs: Iterable[str] = self._summed.inputs
        self.outputs: Sequence[str] = self._summed.outputs

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Inputs by name -> outputs, in their order.

        Raises:
            DialectError: qonnx puts out something else than onnxruntime.
        """
        found = self._summed.run(feed)
        if not self._left:
            return found
        self._left -= 1
        sampled = _executed(self._model, feed, self.outputs)
        for name, one, other in zip(self.outputs, sampled, found, strict=True):
            reach = max(float(np.ptp(one)), float(np.abs(one).max(initial=0.0)), 1e-12)
            if one.shape != other.shape or not np.abs(one - other).mean() <= _WRONG * reach:
                raise DialectError(f"qonnx puts out another {name!r} for the file than onnxruntime does")
        return sampled


def _executed(
    model: onnx.ModelProto, feed: Mapping[str, NDArray[Any]], outputs: Sequence[str]
) -> list[NDArray[Any]]:
    """What qonnx puts out for an example."""
    from qonnx.core import onnx_exec
    from qonnx.core.modelwrapper import ModelWrapper

    with warnings.catch_warnings(), _older_files(onnx_exec):
        warnings.simplefilter("ignore")
        found = onnx_exec.execute_onnx(ModelWrapper(model), dict(feed))
    return [np.asarray(found[name]) for name in outputs]


@contextmanager
def _older_files(onnx_exec: Any) -> Iterator[None]:
    """Within, qonnx gives each node to onnxruntime in a file that this onnxruntime reads: it writes them in
    the version of the installed onnx, which is newer."""
    made = onnx_exec.qonnx_make_model
    onnx_exec.qonnx_make_model = partial(made, ir_version=IR_VERSION)
    try:
        yield
    finally:
        onnx_exec.qonnx_make_model = made


register(Qonnx())
