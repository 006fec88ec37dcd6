"""A network that is only an .onnx file, as a module that is trained and exported like any other."""

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, inliner, numpy_helper, version_converter
from torch import Tensor, fx, nn

from leanfront.compression.capture.onnx_graph import (
    SMALL,
    Graph,
    OnnxError,
    fixed_shapes,
    graph_of,
    read_model,
)
from leanfront.compression.capture.program import tensors_in

LARGEST_SHARE = 1e-3
"""How far a network may answer from its file, as a share of the largest answer."""
OLDER_OPSET = 17
"""The last in which onnx2torch 1.5 knows reductions, reshapes and resizing."""


def module_of(path: Path) -> nn.Module:
    """The network in an .onnx file, through onnx2torch, in evaluation mode and for any batch. It answers as
    onnxruntime does with the file, which is tried.

    Raises:
        OnnxError: the file is not there, is not ONNX or leaves more than the batch open; onnx2torch is not
            installed, does not know an operation, which is named, or reads one otherwise than it is meant.
    """
    graph = graph_of(read_model(path), str(path))  # refuses data that lies outside of the file's folder
    try:
        model = _folded(onnx.load(path), graph.model)
    except Exception as error:  # what onnx raises for data that does not fit
        raise OnnxError(f"{path}: its weights cannot be read ({_said(error)}); export it again") from error
    with _importable():
        from onnx2torch import convert

        model = _readable(model, path)
        try:
            module = _trainable(_any_batch(convert(model))).eval()
            _check_same(module, graph, path)
        except OnnxError:
            raise
        except Exception as error:
            raise OnnxError(
                f"{path}: onnx2torch cannot make a network of it ({_said(error)}); give it in PyTorch"
            ) from error
    return module


def example_of(path: Path) -> Tensor | tuple[Tensor, ...]:
    """What the network in an .onnx file takes, with a batch of one: zeros, a tuple if there are several.

    Raises:
        OnnxError: the file is not there, is not ONNX, or leaves more than the batch open.
    """
    found = _zeros(graph_of(read_model(path), str(path)))
    return found[0] if len(found) == 1 else tuple(found)


def _zeros(graph: Graph) -> list[Tensor]:
    types = {value.name: value.type.tensor_type.elem_type for value in graph.model.graph.input}
    shapes = fixed_shapes(graph.model.graph)
    kinds = {TensorProto.INT64: torch.int64, TensorProto.INT32: torch.int32}
    return [torch.zeros(shapes[name], dtype=kinds.get(types[name], torch.float32)) for name in graph.inputs]


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _folded(model: ModelProto, inferred: ModelProto) -> ModelProto:
    """With a batch of one, and sizes that are computed in the graph as constants."""
    from onnxscript import ir, optimizer

    for value, known in zip(model.graph.input, inferred.graph.input, strict=True):
        value.CopyFrom(known)
    if model.functions:
        model = inliner.inline_local_functions(model)
    held = ir.serde.deserialize_model(model)
    optimizer.fold_constants(held, onnx_shape_inference=True, input_size_limit=SMALL, output_size_limit=SMALL)
    optimizer.remove_unused_nodes(held)
    folded = ir.serde.serialize_model(held)
    sizes = {tensor.name: numpy_helper.to_array(tensor) for tensor in folded.graph.initializer}
    for node in folded.graph.node:  # what says how a size of 0 is meant means nothing where there is none
        if node.op_type == "Reshape" and node.input[1] in sizes and sizes[node.input[1]].all():
            del node.attribute[:]
    return onnx.shape_inference.infer_shapes(folded, data_prop=True)


@contextmanager
def _importable() -> Iterator[None]:
    """onnx2torch imports torchvision, which NonMaxSuppression and RoiAlign alone need, and which fits one
    torch only: where it cannot be imported, an empty stand-in is.

    Raises:
        OnnxError: onnx2torch is not installed.
    """
    try:
        import torchvision  # type: ignore[import-not-found,unused-ignore]  # noqa: F401

        stand_in = None
    except Exception:  # not installed, or of another torch
        stand_in, ops = ModuleType("torchvision"), ModuleType("torchvision.ops")
        ops.roi_align = None  # type: ignore[attr-defined]  # imported by name
        stand_in.ops = ops  # type: ignore[attr-defined]
        sys.modules |= {"torchvision": stand_in, "torchvision.ops": ops}
    try:
        import onnx2torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise OnnxError(
            "a network in an .onnx file is read by onnx2torch, which is not installed; pip install --no-deps"
            " onnx2torch"
        ) from error
    finally:
        if stand_in is not None:
            del sys.modules["torchvision"], sys.modules["torchvision.ops"]
    with warnings.catch_warnings():  # it warns of what may be read otherwise than meant: that is tried
        warnings.simplefilter("ignore")
        yield


def _readable(model: ModelProto, path: Path) -> ModelProto:
    """In a version of ONNX in which onnx2torch knows all operations. Raises OnnxError: there is none."""
    if not (unknown := _unknown(model)):
        return model
    with suppress(Exception):  # onnx has no way down for some operations, and raises what it likes
        older = version_converter.convert_version(model, OLDER_OPSET)
        if not _unknown(older):
            return older
    kinds = ", ".join(dict.fromkeys(node.op_type for node in unknown))
    raise OnnxError(
        f"{path}: onnx2torch cannot read {kinds} (the first is node {unknown[0].name!r}) of opset"
        f" {_versions(model).get(unknown[0].domain, 1)}; export it in opset {OLDER_OPSET} or without, or give"
        " the network in PyTorch"
    )


def _unknown(model: ModelProto) -> list[NodeProto]:
    """Nodes that onnx2torch does not know."""
    from onnx2torch.node_converters import get_converter

    versions, found = _versions(model), []
    for node in model.graph.node:
        try:
            get_converter(node.op_type, versions.get(node.domain, 1), node.domain)
        except NotImplementedError:
            found.append(node)
    return found


def _versions(model: ModelProto) -> dict[str, int]:
    return {each.domain: each.version for each in model.opset_import}


def _any_batch(module: fx.GraphModule) -> fx.GraphModule:
    """With sizes that the file has as constants as numbers, and with the batch of the input in the place of
    its own, a batch of one."""
    constants = dict(module.named_buffers())
    for node in module.graph.nodes:
        if node.op != "call_module":
            continue
        part: Any = module.get_submodule(node.target)
        sizes = [each for each in node.all_input_nodes if each.op == "get_attr" and each.target in constants]
        if hasattr(part, "ignore_bs_ch_size"):  # of a Resize: whether the first two sizes are the input's own
            part.ignore_bs_ch_size = True
        if not hasattr(part, "_do_reshape") or not sizes:  # a Reshape
            continue
        values, wanted = node.args[0], constants[str(sizes[0].target)].tolist()
        with module.graph.inserting_before(node):
            kept = [
                module.graph.call_method("size", (values, place)) if size == 0 or (place == 0 and size == 1)
                else size
                for place, size in enumerate(wanted)
            ]  # fmt: skip
            made = module.graph.call_method("reshape", (values, *kept))
        node.replace_all_uses_with(made)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _trainable(module: nn.Module) -> nn.Module:
    """Matrices that the file has as constants are weights; what has one size other than 1 (a mean, a
    factor) stays a constant."""
    held: Mapping[str, Tensor] = dict(module.named_buffers())
    for name, value in held.items():
        owner, _, own = name.rpartition(".")
        part = module.get_submodule(owner)
        norm = getattr(part, "track_running_stats", False)
        if value.is_floating_point() and sum(size > 1 for size in value.shape) > 1 and not norm:
            delattr(part, own)
            part.register_parameter(own, nn.Parameter(value))
    return module


def _check_same(module: nn.Module, graph: Graph, path: Path) -> None:
    """Raise OnnxError where the network answers otherwise than onnxruntime with the file."""
    import onnxruntime

    generator = torch.Generator().manual_seed(0)
    zeros = _zeros(graph)
    inputs = [torch.randn(x.shape, generator=generator) if x.is_floating_point() else x for x in zeros]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    fed = {name: x.numpy() for name, x in zip(graph.inputs, inputs, strict=True)}
    wanted = [torch.as_tensor(each) for each in session.run(None, fed)]
    with torch.no_grad():
        found = tensors_in(module(*inputs))
    if [each.shape for each in found] != [each.shape for each in wanted]:
        off = float("inf")
    else:
        off = max(
            float((ours - theirs).abs().max()) / max(float(theirs.abs().max()), 1e-12)
            for ours, theirs in zip(found, wanted, strict=True)
        )
    if not off <= LARGEST_SHARE:
        raise OnnxError(
            f"{path}: what onnx2torch makes of it answers otherwise than the file in onnxruntime, by"
            f" {off:.2g} of the largest answer; give the network in PyTorch"
        )
