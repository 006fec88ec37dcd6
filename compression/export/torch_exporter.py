"""torch.onnx as it is used here: a graph of floats, without what it would take long over, and without the
values that parameters have now.

What is private of torch is touched here alone, and only where it is as it was.
"""

import io
import logging
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, fx

from leanfront.compression.capture.recurrent_shapes import shapes_alone
from leanfront.compression.export.onnx_writer import OPSET

aten = torch.ops.aten


class ExportError(RuntimeError):
    """torch could not write the model as ONNX."""


def float_graph(
    module: fx.GraphModule, inputs: Sequence[Tensor], input_names: list[str], output_names: list[str]
) -> onnx.ModelProto:
    """A module as ONNX, with constants folded and no-ops taken out.

    Raises:
        ExportError: the exporter does not know an operation; its message is passed on.
    """
    for chatty in ("torch.onnx", "onnx_ir", "onnxscript"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = _exported(module, inputs, {"input_names": input_names, "output_names": output_names})
    graph = program.model.graph
    own_inputs = len(graph.inputs)
    # an optimiser would compute with the weights of what is copied as it is, or take out a bias of zeros, and
    # so freeze them at the values they have now: it sees inputs, and no values
    held = {value: value.const_value for value in graph.initializers.values()}
    graph.inputs.extend(held)
    for value in held:
        value.const_value = None
    _simplify(program.model)
    for value, const in held.items():
        value.const_value = const
    del graph.inputs[own_inputs:]
    model: onnx.ModelProto = program.model_proto
    _stored_vectors(model.graph)
    return model


def _stored_vectors(graph: onnx.GraphProto) -> None:
    """Store vectors that a node makes of a constant length, in place, as other constants: gains and shifts of
    norms that have none, whose lengths count channels. The optimiser leaves these alone."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "ConstantOfShape"]:
        length = constants.get(node.input[0])
        if length is None or list(length.dims) != [1]:
            continue
        value = numpy_helper.to_array(node.attribute[0].t) if node.attribute else np.zeros(1, np.float32)
        made = np.full(numpy_helper.to_array(length), value.reshape(-1)[0], dtype=value.dtype)
        graph.initializer.append(numpy_helper.from_array(made, node.output[0]))
        graph.node.remove(node)


def _exported(module: fx.GraphModule, inputs: Sequence[Tensor], names: Mapping[str, list[str]]) -> Any:
    """What torch.onnx makes of a module. It would follow the network once more, to express operations that it
    does not know by those that it knows: half of the time, so that is only done where there are any."""
    options: dict[str, Any] = {
        "dynamo": True, "opset_version": OPSET, "verbose": False, "optimize": False, **names,
    }  # fmt: skip
    try:
        with suppress(Exception), _known_once(as_it_is=True), shapes_alone():
            program = torch.export.export(module, tuple(inputs), strict=False)
            return torch.onnx.export(_as_it_is(program), **options)
        with _known_once(as_it_is=False):
            return torch.onnx.export(module, tuple(inputs), **options)
    except Exception as error:
        raise ExportError(f"torch.onnx cannot export the model: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """What lies at the bottom of torch's explanation, in a line, and the operation that it is about."""
    about, lowest = re.search(r"translating node %(\w+)", str(error)), error
    while lowest.__cause__ is not None:
        lowest = lowest.__cause__
    lines = re.sub(r"\x1b\[\d*m", "", str(lowest)).strip().splitlines() or [type(lowest).__name__]
    return lines[0] + (f" (operation {about[1]!r})" if about and about[1] not in lines[0] else "")


def _as_it_is(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """A program that is not decomposed when it is asked to, with what it would have become where files show
    it: batch norms, which torch.onnx knows under another name, and reshapes."""
    graph = program.graph
    for node in graph.nodes:
        if node.target is aten.batch_norm.default and not node.args[5]:
            x, weight, bias, mean, variance, _, momentum, eps = node.args[:8]
            with graph.inserting_before(node):
                normed = graph.call_function(
                    aten._native_batch_norm_legit_no_training.default,
                    (x, weight, bias, mean, variance, momentum, eps),
                )
            nothing = node.meta["val"].new_empty(0)
            normed.meta = node.meta | {"val": (node.meta["val"], nothing, nothing)}
            node.target, node.args = operator.getitem, (normed, 0)
        elif node.target is aten.reshape.default:
            node.target, (read, sizes) = aten.view.default, node.args
            try:
                read.meta["val"].view(sizes)
            except (RuntimeError, ValueError):  # in another order than it is stored in
                with graph.inserting_before(node):
                    copied = graph.call_function(
                        aten.clone.default, (read,), {"memory_format": torch.contiguous_format}
                    )
                copied.meta = node.meta | {"val": read.meta["val"].contiguous()}
                node.args = (copied, list(node.meta["val"].shape))
    return program


def _simplify(model: Any) -> None:
    """Fold constants and take out no-ops, in place: torch's own optimiser without its other rules, one of
    which tries each slice with each other one."""
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules import common as rules

    no_ops = [
        *rules.mul_by_1_rule.commute(), *rules.add_0_rule.commute(), rules.sub_0_rule, rules.div_by_1_rule,
        rules.dropout_zero_rule, rules.dropout_inference_rule, rules.cast_cast_rule, rules.no_op_cast_rule,
        rules.no_op_expand_rule, rules.flatten_to_reshape_rule, rules.reshape_reshape_rule,
        rules.no_op_transpose_rule, rules.transpose_transpose_rule, rules.unsqueeze_unsqueeze_rule,
        rules.squeeze_reshape_1d_rule,
    ]  # fmt: skip
    passes.InlinePass()(model)
    for _ in range(2):
        optimizer.fold_constants_ir(model, onnx_shape_inference=True)
        rewriter.rewrite(model, no_ops)
    for last in (
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(), passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(), passes.OutputFixPass(), passes.NameFixPass(),
    ):  # fmt: skip
        last(model)


@contextmanager
def _known_once(as_it_is: bool) -> Iterator[None]:
    """Within, torch.onnx has the table of its operators from the first file, which takes half as long as a
    small one; and, ``as_it_is``, no table of what they could be expressed by, for nothing is. What does that
    is private, and changed only where it is as it was."""
    from torch.onnx._internal.exporter import _fx_passes, _registration

    registry: Any = getattr(_registration, "ONNXRegistry", None)
    with ExitStack() as stack:
        if hasattr(registry, "from_torchlib"):
            table = staticmethod(_remembered(registry.from_torchlib))
            stack.enter_context(patch.object(registry, "from_torchlib", table))
        if as_it_is and hasattr(_fx_passes, "decompose_with_registry"):
            stack.enter_context(
                patch.object(_fx_passes, "decompose_with_registry", lambda program, registry: program)
            )
        yield


@cache
def _remembered(make: Callable[..., Any]) -> Callable[..., Any]:
    """The same, made once for each of its arguments."""
    return cache(make)
