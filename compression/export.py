"""Write a policy's network as ONNX: batch norms folded, QDQ around integer layers, weights packed.

Integer layers become DequantizeLinear -> Conv or Gemm -> (Relu) -> QuantizeLinear with unsigned 8-bit
activations, signed weights and int32 biases, the one form that onnxruntime's CPU kernels fuse and run fast.
Weights of 2 to 4 bits are stored packed (INT2, INT4) and cast to int8, which onnxruntime folds away when
the file is loaded: the file is small, the kernel is the int8 one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compression.compress import Compressed
from compression.policy import Kernel, LayerPolicy, Network, Policy, kernels, tensor_bits
from compression.policy.precision import SAME_RANGE_OPS
from compression.policy.size import storage_bits
from compression.quantize import ActivationGrid
from compression.template import IR_VERSION, OPSET, TENSOR, Template
from compression.weights import (
    LayerWeights,
    activation_grids,
    bias_codes,
    finer_steps,
    layer_weights,
    random_weights,
)


def exported(template: Template, compressed: Compressed) -> onnx.ModelProto:
    """The compressed network, as trained, in ONNX."""
    parameters = {
        name: tensor.detach().cpu().numpy() for name, tensor in compressed.module.state_dict().items()
    }
    return _written(
        template,
        compressed.network,
        compressed.policy,
        layer_weights(compressed),
        activation_grids(compressed),
        parameters,
    )


def random_model(template: Template, network: Network, policy: Policy, seed: int = 0) -> onnx.ModelProto:
    """The graph that an export of ``policy`` has, with random weights: to be timed, not to be used.

    ``network`` is the one after the cut.
    """
    fused = kernels(network)
    bits = tensor_bits(fused, policy)
    signed = {kernel.name for kernel in fused if kernel.activation not in ("relu", "relu6")}
    grids = {
        name: ActivationGrid(0.05, 2 ** (b - 1) if name in signed else 0, b)
        for name, b in bits.items()
        if b <= 8
    }
    return _written(template, network, policy, random_weights(network, policy, seed), grids, {})


@dataclass
class _Writer:
    """The file under construction. Value names are short numbers: names are a fifth of a small file."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    opset: int = OPSET
    count: int = 0
    shared: dict[tuple[str, bytes], str] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)  # dequantized tensor -> its integer codes

    def name(self) -> str:
        self.count += 1
        return f".{self.count:x}"  # no layer is named so

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """A constant; equal ones are stored once."""
        array = np.asarray(value)
        key = (f"{array.dtype}{array.shape}", array.tobytes())
        if key not in self.shared:
            self.shared[key] = self.name()
            self.initializers.append(numpy_helper.from_array(array, self.shared[key]))
        return self.shared[key]

    def packed(self, codes: NDArray[np.int8], bits: int) -> str:
        """Weight codes in the smallest integers that hold them; the name of the stored tensor."""
        stored = storage_bits(bits)
        name = self.name()
        if stored == 8:
            self.initializers.append(numpy_helper.from_array(codes, name))
            return name
        if stored == 2:
            self.opset = 25  # the first with 2-bit integers
        lanes = 8 // stored
        flat = np.zeros(-(-codes.size // lanes) * lanes, dtype=np.uint8)
        flat[: codes.size] = codes.reshape(-1).astype(np.uint8) & (2**stored - 1)
        packed = np.zeros(flat.size // lanes, dtype=np.uint8)
        for lane in range(lanes):
            packed |= flat[lane::lanes] << np.uint8(lane * stored)
        kind = TensorProto.INT4 if stored == 4 else TensorProto.INT2
        self.initializers.append(
            TensorProto(name=name, data_type=kind, dims=codes.shape, raw_data=packed.tobytes())
        )
        return name

    def dequantized(self, codes: str, scale: str, zero: str) -> str:
        """DequantizeLinear behind the codes of a tensor, which are remembered."""
        name = self.add("DequantizeLinear", [codes, scale, zero])
        self.codes[name] = codes
        return name

    def add(self, op: str, inputs: list[str], name: str = "", output: str = "", **attributes: Any) -> str:
        output = output or self.name()
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output


def _written(
    template: Template,
    network: Network,
    policy: Policy,
    weights: Mapping[str, LayerWeights],
    grids: Mapping[str, ActivationGrid],
    parameters: Mapping[str, NDArray[np.generic]],
) -> onnx.ModelProto:
    source = template.model()
    fused = kernels(network)
    bits = tensor_bits(fused, policy)
    grids = dict(grids)
    for kernel in fused:  # operations that only move values keep the grid of what they move
        if kernel.op in SAME_RANGE_OPS and bits[kernel.name] <= 8:
            grids[kernel.name] = grids[kernel.inputs[0]]
    layer_of = {TENSOR + k.nodes[0].name: k for k in fused if k.layer is not None}
    # a folded batch norm and an identity put out what goes in
    alias = {
        TENSOR + node.name: TENSOR + node.inputs[0]
        for kernel in fused
        for node in kernel.nodes[1:]
        if node.op == "identity" or (node.op == "batchnorm" and kernel.layer is not None)
    }
    pooled = {TENSOR + k.nodes[0].name: k for k in fused if k.op == "global_avgpool"}
    tensor_of = {_resolved(TENSOR + k.name, alias): k for k in fused}
    constants = {tensor.name: tensor for tensor in source.graph.initializer}
    producer = {output: node for node in source.graph.node for output in node.output}
    needed = _needed(network, producer, layer_of, alias, source.graph.input[0].name)

    out = _Writer()
    value: dict[str, str] = {}  # value of the template -> value of the file
    integer_value: set[str] = set()  # values of the file that come out of a DequantizeLinear

    def produced(original: str, name: str) -> None:
        """Note where a tensor is, and put a quantizer behind it where the policy wants one."""
        value[original] = name
        kernel = tensor_of.get(original)
        if kernel is not None and bits[kernel.name] <= 8:
            value[original] = _quantized(out, name, grids[kernel.name])
            integer_value.add(value[original])

    graph_input = source.graph.input[0].name
    value[graph_input] = "input"
    input_kernel = next(k for k in fused if k.op == "input")
    if bits[input_kernel.name] <= 8:
        value[graph_input] = _quantized(out, "input", grids[input_kernel.name])
        integer_value.add(value[graph_input])

    for node in source.graph.node:
        if not any(output in needed for output in node.output):
            continue
        target = node.output[0]
        if target in alias:
            continue
        if target in layer_of:
            kernel = layer_of[target]
            assert kernel.layer is not None
            read = value[_resolved(TENSOR + kernel.inputs[0], alias, network, graph_input)]
            layer_policy = policy[kernel.layer.name]
            if not layer_policy.integer and read in integer_value and bits[kernel.name] <= 8:
                # onnxruntime would silently turn a float layer between integer tensors into an integer one;
                # an operation that it does not see through keeps the layer in floats, as the policy says
                read = out.add("Max", [read, out.constant(np.float32(-3e38))])
            grid = grids.get(kernel.inputs[0])
            produced(target, _layer(out, kernel, node, read, layer_policy, weights, grid))
            continue
        inputs = []
        for name in node.input:
            original = _resolved(name, alias)
            if original in constants:
                array = parameters.get(original)
                array = numpy_helper.to_array(constants[original]) if array is None else array
                inputs.append(out.constant(_cut_sizes(node, array, network)))
            else:
                inputs.append(value.get(original, ""))
        if node.op_type == "ReduceMean" and target in pooled:
            produced(target, _global_average(out, pooled[target], inputs[0], grids))
            continue
        if node.op_type == "Pad" and inputs[0] in out.codes and _pads_zeros(node):
            grid = grids[tensor_of[target].name]
            value[target] = _padded(out, inputs[0], inputs[1], grid)
            integer_value.add(value[target])
            continue
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        outputs = [out.name() for _ in node.output]
        copied.ClearField("metadata_props")
        copied.ClearField("doc_string")
        name = target.removeprefix(TENSOR)
        copied.name = "" if name in network.layer else name
        del copied.input[:], copied.output[:]
        copied.input.extend(inputs)
        copied.output.extend(outputs)
        out.nodes.append(copied)
        for original, name in zip(node.output, outputs, strict=True):
            produced(original, name)

    return _model(out, template, network, [value[_resolved(TENSOR + o, alias)] for o in network.outputs])


def _resolved(
    name: str, alias: Mapping[str, str], network: Network | None = None, graph_input: str = ""
) -> str:
    while name in alias:
        name = alias[name]
    if network is not None and name.startswith(TENSOR):
        node = network.node.get(name.removeprefix(TENSOR))
        if node is not None and node.op == "input":
            return graph_input
    return name


def _cut_sizes(node: onnx.NodeProto, array: NDArray[np.generic], network: Network) -> NDArray[np.generic]:
    """A constant of the template; sizes in it that count the channels of the uncut network are corrected."""
    made = network.node.get(node.output[0].removeprefix(TENSOR))
    if made is None or array.dtype != np.int64:
        return array
    if node.op_type == "Reshape" and made.op == "flatten":
        return np.array([1, made.width], dtype=np.int64)
    if node.op_type == "Resize" and array.shape == (4,):
        return np.array([1, made.width, *made.spatial], dtype=np.int64)
    return array


def _needed(
    network: Network,
    producer: Mapping[str, onnx.NodeProto],
    layer_of: Mapping[str, Kernel],
    alias: Mapping[str, str],
    graph_input: str,
) -> set[str]:
    """Values that the outputs depend on; a layer depends on the one tensor that it reads."""
    needed: set[str] = set()
    waiting = [_resolved(TENSOR + name, alias) for name in network.outputs]
    while waiting:
        name = waiting.pop()
        if name in needed or name not in producer:
            continue
        needed.add(name)
        if name in layer_of:
            waiting.append(_resolved(TENSOR + layer_of[name].inputs[0], alias, network, graph_input))
        else:
            waiting.extend(_resolved(source, alias) for source in producer[name].input)
    return needed


def _global_average(out: _Writer, kernel: Kernel, read: str, grids: Mapping[str, ActivationGrid]) -> str:
    """A mean over height and width as GlobalAveragePool: onnxruntime has no integer kernel for ReduceMean."""
    pooled = out.add("GlobalAveragePool", [read], name=kernel.nodes[0].name)
    if kernel.output.spatial:
        return pooled
    if kernel.name in grids:  # the pooling is fused only when its own output is quantized
        pooled = _quantized(out, pooled, grids[kernel.name])
    return out.add("Reshape", [pooled, out.constant(np.array([1, -1], dtype=np.int64))])


def _pads_zeros(node: onnx.NodeProto) -> bool:
    modes = [attribute.s for attribute in node.attribute if attribute.name == "mode"]
    return len(node.input) == 2 and modes in ([], [b"constant"])


def _padded(out: _Writer, read: str, pads: str, grid: ActivationGrid) -> str:
    """Zeros around the codes themselves: onnxruntime would dequantize, pad and quantize again."""
    scale, zero = out.constant(np.float32(grid.scale)), out.constant(np.uint8(grid.zero_point))
    codes = out.add("Pad", [out.codes[read], pads, zero])
    return out.dequantized(codes, scale, zero)


def _quantized(out: _Writer, name: str, grid: ActivationGrid) -> str:
    """QuantizeLinear and DequantizeLinear behind a tensor; the name of the dequantized one."""
    scale = out.constant(np.float32(grid.scale))
    zero = out.constant(np.uint8(grid.zero_point))
    if grid.bits < 8:  # fewer levels than the storage type has: saturate before it does
        low = np.float32(-grid.zero_point * grid.scale)
        high = np.float32((2**grid.bits - 1 - grid.zero_point) * grid.scale)
        name = out.add("Clip", [name, out.constant(low), out.constant(high)])
    return out.dequantized(out.add("QuantizeLinear", [name, scale, zero]), scale, zero)


def _layer(
    out: _Writer,
    kernel: Kernel,
    node: onnx.NodeProto,
    read: str,
    layer_policy: LayerPolicy,
    weights: Mapping[str, LayerWeights],
    grid: ActivationGrid | None,
) -> str:
    assert kernel.layer is not None
    layer = kernel.layer
    held = weights[layer.name]
    named = "" if layer.name.startswith(("input", "output")) else layer.name  # the file's own are called so
    linear = layer.shape.op == "linear"
    per_position = linear and bool(kernel.output.spatial)
    axis = 1 if layer.shape.op == "conv_transpose2d" or per_position else 0
    if per_position:
        held = _transposed(held)
    weight = _weight(out, held, layer_policy, axis, zero_points=linear)
    if layer_policy.integer and held.scales is not None and grid is not None:
        codes, scales = bias_codes(held, layer_policy.weight_bits, grid.scale)
        stored = [out.constant(codes), out.constant(scales)]
        if linear:
            stored.append(out.constant(np.zeros_like(codes)))
        bias = out.add("DequantizeLinear", stored, axis=0)
    else:
        bias = out.constant(held.bias)
    if per_position:
        return out.add("Add", [out.add("MatMul", [read, weight], name=layer.name), bias])
    if linear:
        return out.add("Gemm", [read, weight, bias], name=layer.name, output=named, transB=1)
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    attributes = {name: attribute for name, attribute in attributes.items() if name != "auto_pad"}
    if attributes.get("group") == 1:
        del attributes["group"]
    elif layer.shape.groups > 1:
        attributes["group"] = layer.shape.groups  # a depthwise layer has as many as it has channels left
    return out.add(node.op_type, [read, weight, bias], name=layer.name, output=named, **attributes)


def _transposed(held: LayerWeights) -> LayerWeights:
    """A linear layer's weight as MatMul wants it, (in, out)."""
    if held.codes is not None:
        return replace(held, codes=np.ascontiguousarray(held.codes.T))
    assert held.weight is not None
    return replace(held, weight=np.ascontiguousarray(held.weight.T))


def _weight(out: _Writer, held: LayerWeights, layer_policy: LayerPolicy, axis: int, zero_points: bool) -> str:
    if held.codes is None or held.scales is None:
        assert held.weight is not None
        return out.constant(held.weight)
    packed = storage_bits(layer_policy.weight_bits) < 8
    if layer_policy.integer:
        finer = finer_steps(layer_policy.weight_bits)
        if packed:  # decoded once, when the file is loaded
            name = out.packed(held.codes, layer_policy.weight_bits)
            name = out.add("Cast", [name], to=TensorProto.FLOAT)
            name = out.add("Mul", [name, out.constant(np.float32(finer))])
            name = out.add("Cast", [name], to=TensorProto.INT8)
        else:
            name = out.packed(held.codes * np.int8(finer), 8)
        stored = [name, out.constant(held.scales / np.float32(finer))]
        if zero_points:  # onnxruntime fuses an integer Gemm only when they are there, a Conv without, too
            stored.append(out.constant(np.zeros(held.scales.shape, dtype=np.int8)))
        return out.add("DequantizeLinear", stored, axis=axis)
    name = out.packed(held.codes, layer_policy.weight_bits)
    # float kernel, small file: decoded once, when the file is loaded
    decoded = out.add("Cast", [name], to=TensorProto.FLOAT)
    shape = [1] * held.codes.ndim
    shape[axis] = -1
    return out.add("Mul", [decoded, out.constant(held.scales.reshape(shape))])


def _read(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """The nodes that something reads: a tensor that is only moved as codes needs no float form."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def _model(out: _Writer, template: Template, network: Network, outputs: list[str]) -> onnx.ModelProto:
    shapes = {name: network.node[name] for name in network.outputs}
    infos = []
    for index, (value, node) in enumerate(zip(outputs, shapes.values(), strict=True)):
        name = "output" if index == 0 else f"output{index}"
        out.add("Identity", [value], output=name)
        channels = [node.width]
        spatial = list(node.spatial)
        size = [*spatial, *channels] if len(spatial) == 1 else [*channels, *spatial]
        infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, *size]))
    graph = helper.make_graph(
        _read(out.nodes, {info.name for info in infos}),
        "leanfront",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, template.input_shape)],
        infos,
        out.initializers,
    )
    ir_version = IR_VERSION if out.opset == OPSET else 13
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", out.opset)],
        ir_version=ir_version,
        producer_name="leanfront",
    )
