"""Write a policy's network as ONNX: batch norms folded, QDQ around integer layers, weights packed.

Integer layers become DequantizeLinear -> Conv or Gemm -> (Relu) -> QuantizeLinear with unsigned 8-bit
activations, signed weights and int32 biases, the one form that onnxruntime's CPU kernels fuse and run fast.
Weights of 2 to 4 bits are stored packed (INT2, INT4) and cast to int8, which onnxruntime folds away when
the file is loaded: the file is small, the kernel is the int8 one.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from leanfront.compression.export.onnx_writer import Writer, nodes_read
from leanfront.compression.export.template import IR_VERSION, OPSET, TENSOR, Template
from leanfront.compression.export.weights import (
    LayerWeights,
    activation_grids,
    bias_codes,
    finer_steps,
    layer_weights,
    random_weights,
)
from leanfront.compression.graph import Kernel, Network, kernels
from leanfront.compression.graph.branches import ALIAS
from leanfront.compression.policy import LayerPolicy, Policy, tensor_bits
from leanfront.compression.policy.file_size import storage_bits
from leanfront.compression.policy.grids import ActivationGrid, stand_in_grids, with_moved
from leanfront.compression.policy.precision import computes_in_integers
from leanfront.compression.techniques.compress import Compressed


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
    return _written(
        template,
        network,
        policy,
        random_weights(network, policy, seed),
        stand_in_grids(kernels(network), policy),
        {},
    )


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
    grids = with_moved(grids, fused, bits)
    layer_of = {TENSOR + k.nodes[0].name: k for k in fused if k.layer is not None}
    graph_input = source.graph.input[0].name
    # a folded batch norm, an identity and the join of a branch that is left out put out what goes in
    alias = {
        TENSOR + node.name: TENSOR + node.inputs[0]
        for kernel in fused
        for node in kernel.nodes[kernel.op != ALIAS :]
        if node.op in ("identity", ALIAS) or (node.op == "batchnorm" and kernel.layer is not None)
    }
    alias |= {TENSOR + k.name: graph_input for k in fused if k.op == "input"}
    pooled = {TENSOR + k.nodes[0].name: k for k in fused if k.op == "global_avgpool"}
    tensor_of = {_resolved(TENSOR + k.name, alias): k for k in fused if k.op != ALIAS}
    constants = {tensor.name: tensor for tensor in source.graph.initializer}
    producer = {output: node for node in source.graph.node for output in node.output}
    needed = _needed(network, producer, layer_of, alias)

    out = Writer()
    value: dict[str, str] = {}  # value of the template -> value of the file
    integer_value: set[str] = set()  # values of the file that come out of a DequantizeLinear

    def produced(original: str, name: str) -> None:
        """Note where a tensor is, and put a quantizer behind it where the policy wants one."""
        value[original] = name
        kernel = tensor_of.get(original)
        if kernel is not None and bits[kernel.name] <= 8:
            value[original] = _quantized(out, name, grids[kernel.name])
            integer_value.add(value[original])

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
            read = value[_resolved(TENSOR + kernel.inputs[0], alias)]
            layer_policy = policy[kernel.layer.name]
            integer = computes_in_integers(kernel.layer, layer_policy)
            if not integer and read in integer_value and bits[kernel.name] <= 8:
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
                inputs.append(out.constant(_cut_constant(template, network, node, original, array)))
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
        made = tensor_of.get(target)
        if node.op_type == "Clip" and made is not None and made.output.op == "relu6" and bits[made.name] < 8:
            copied.op_type, inputs = (
                "Relu",
                inputs[:1],
            )  # the highest level is 6 or less: codes are clipped there
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


def _resolved(name: str, alias: Mapping[str, str]) -> str:
    while name in alias:
        name = alias[name]
    return name


def _cut_constant(
    template: Template, network: Network, node: onnx.NodeProto, name: str, array: NDArray[np.generic]
) -> NDArray[np.generic]:
    """A constant of the template as the cut network needs it.

    Sizes that count channels are corrected; parameters that are not the cut network's own (those of a model
    with random weights) lose what is too much.
    """
    own = next((n for n in network.nodes if n.op == "constant" and n.detail == name), None)
    if own is not None:
        return array.take(range(own.width), axis=template.axes[own.name])
    made = network.node.get(node.output[0].removeprefix(TENSOR))
    if made is None:
        return array
    if made.op in ("batchnorm", "layernorm") and array.ndim == 1 and array.dtype == np.float32:
        return array[: made.width]
    axis, uncut = template.axes[made.name], template.network.node[made.name].width
    if array.dtype != np.int64 or array.ndim != 1 or made.width == uncut:
        return array
    if node.op_type in ("Reshape", "Expand", "Resize") and len(array) > axis and array[axis] == uncut:
        array = array.copy()
        array[axis] = made.width
    return array


def _needed(
    network: Network,
    producer: Mapping[str, onnx.NodeProto],
    layer_of: Mapping[str, Kernel],
    alias: Mapping[str, str],
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
            waiting.append(_resolved(TENSOR + layer_of[name].inputs[0], alias))
        else:
            waiting.extend(_resolved(source, alias) for source in producer[name].input)
    return needed


def _global_average(out: Writer, kernel: Kernel, read: str, grids: Mapping[str, ActivationGrid]) -> str:
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


def _padded(out: Writer, read: str, pads: str, grid: ActivationGrid) -> str:
    """Zeros around the codes themselves: onnxruntime would dequantize, pad and quantize again."""
    scale, zero = out.constant(np.float32(grid.scale)), out.constant(np.uint8(grid.zero_point))
    codes = out.add("Pad", [out.codes[read], pads, zero])
    return out.dequantized(codes, scale, zero)


def _quantized(out: Writer, name: str, grid: ActivationGrid) -> str:
    """QuantizeLinear and DequantizeLinear behind a tensor; the name of the dequantized one."""
    scale = out.constant(np.float32(grid.scale))
    zero = out.constant(np.uint8(grid.zero_point))
    codes = out.add("QuantizeLinear", [name, scale, zero])
    if grid.bits < 8:  # fewer levels than the storage type has; in floats it would keep kernels from fusing
        top = out.constant(np.uint8(2**grid.bits - 1))
        codes = out.add("Clip", [codes, out.constant(np.uint8(0)), top])
    return out.dequantized(codes, scale, zero)


def _layer(
    out: Writer,
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
    integer = computes_in_integers(layer, layer_policy)
    weight = _weight(out, held, layer_policy, axis, integer, zero_points=linear)
    if integer and held.scales is not None and grid is not None:
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


def _weight(
    out: Writer, held: LayerWeights, layer_policy: LayerPolicy, axis: int, integer: bool, zero_points: bool
) -> str:
    if held.codes is None or held.scales is None:
        assert held.weight is not None
        return out.constant(held.weight)
    packed = storage_bits(layer_policy.weight_bits) < 8
    if integer:
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


def _model(out: Writer, template: Template, network: Network, outputs: list[str]) -> onnx.ModelProto:
    shapes = {name: network.node[name] for name in network.outputs}
    infos = []
    for index, (value, node) in enumerate(zip(outputs, shapes.values(), strict=True)):
        name = "output" if index == 0 else f"output{index}"
        out.add("Identity", [value], output=name)
        size = list(node.spatial)
        size.insert(template.axes[node.name] - 1, node.width)
        infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, *size]))
    nodes = nodes_read(out.nodes, {info.name for info in infos})
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "leanfront",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, template.input_shape)],
        infos,
        [tensor for tensor in out.initializers if tensor.name in read],
    )
    ir_version = IR_VERSION if out.opset == OPSET else 13
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", out.opset)],
        ir_version=ir_version,
        producer_name="leanfront",
    )
