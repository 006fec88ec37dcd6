"""A user's module as a graph of ATen operators, all of them out of place: ``torch.export``, for any batch."""

import copy
import inspect
import io
import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ShapesCollection
from torch.utils import _pytree as pytree

from leanfront.compression.capture.functional import made_functional
from leanfront.compression.capture.open_sizes import sizes_open
from leanfront.compression.capture.recurrent_shapes import shapes_alone

# torch's own, about the pytrees of graphs that are copied: nobody here can do anything about it
warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors in containers of any kind, in order."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


class TraceError(ValueError):
    """A model that cannot be followed from its inputs to its outputs."""


@dataclass(frozen=True, eq=False)
class Arguments:
    """What a module is called with. Tensors lie anywhere in them, in tuples, lists and dictionaries."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(inputs: Any) -> "Arguments":
        """From what a user gives: a dictionary is keywords, a tuple several arguments, else it is one."""
        if isinstance(inputs, Arguments):
            return inputs
        if isinstance(inputs, Mapping):
            return Arguments((), dict(inputs))
        return Arguments(tuple(inputs)) if isinstance(inputs, tuple) else Arguments((inputs,))

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in order."""
        return tensors_in(self)

    def changed(self, change: Any) -> "Arguments":
        """The same with ``change`` made to each tensor."""
        changed: Arguments = pytree.tree_map_only(Tensor, change, self)
        return changed

    def like(self, example: "Arguments") -> "Arguments":
        """The same with the keywords, and the keys of dictionaries, in the order of an example: files know
        their inputs by their place."""
        args = [_ordered(one, other) for one, other in zip(self.args, example.args, strict=False)]
        return Arguments((*args, *self.args[len(args) :]), _ordered(self.kwargs, example.kwargs))

    def batch(self, count: int) -> "Arguments":
        """A batch of so many copies of the example; what has no batch stays."""
        return self.changed(lambda t: torch.cat([t] * count) if _batched(t) else t)

    def call(self, module: nn.Module) -> Any:
        """What a module makes of them."""
        return module(*self.args, **self.kwargs)


def _ordered(given: Any, example: Any) -> Any:
    if isinstance(given, dict) and isinstance(example, Mapping) and given.keys() == example.keys():
        return {key: _ordered(given[key], example[key]) for key in example}
    if type(given) in (list, tuple) and type(example) is type(given) and len(given) == len(example):
        return type(given)(_ordered(one, other) for one, other in zip(given, example, strict=True))
    return given


# torch's tree_map, tree_leaves and the like go into them as into tuples and dictionaries
pytree.register_pytree_node(
    Arguments, lambda given: ([given.args, dict(given.kwargs)], None), lambda parts, _: Arguments(*parts)
)


def called(module: nn.Module, inputs: Any) -> Any:
    """A module called with a batch of inputs as ``Arguments.of`` takes them."""
    return Arguments.of(inputs).call(module)


def _batched(tensor: Tensor) -> bool:
    return tensor.dim() > 0 and tensor.shape[0] == 1


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients within; the modes of all parts are put back behind it."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@torch.library.custom_op("leanfront::dropout", mutates_args=())
def _dropout(x: Tensor, p: float) -> Tensor:
    """Marks a dropout: the decomposition would take it away, which training needs."""
    return x.clone()


@_dropout.register_fake
def _(x: Tensor, p: float) -> Tensor:
    return torch.empty_like(x)


DROPOUT = torch.ops.leanfront.dropout.default
NOTES = "notes"
DROPOUTS = ("aten.dropout.default", "aten.dropout_.default", "aten.feature_dropout.default")


def program(model: nn.Module, example: Arguments) -> fx.GraphModule:
    """A module as ATen operators that take any batch, with its own parameters, called as itself.

    Args:
        model: in any mode; captured in evaluation mode, and left as it is.
        example: with a batch of one.

    What it puts out beside tensors is None, which ``meta`` says under NOTES.

    Raises:
        TraceError: it does not run on the example, decides on values of tensors, fits one batch only, has
            weights that are no numbers, or puts out no tensor; one sentence says which line.
    """
    tensors = example.tensors
    if not tensors:
        raise TraceError("the example inputs hold no tensor; give what the module takes, with a batch of one")
    if tensors[0].dim() and tensors[0].shape[0] != 1:
        raise TraceError(
            f"the example input must have a batch of one, not {tensors[0].shape[0]}; of a network that takes"
            ' lists of images compress a part: part="backbone", say'
        )
    copied = _copied(model)
    _check_numbers(copied)
    notes = _tensors_alone(copied, outputs_of(copied, example))
    exported = _exported(copied, example, type(model).__name__)
    _regions_in(exported.graph_module)
    for node in exported.graph.nodes:
        if node.op == "call_function" and str(node.target) in DROPOUTS and node.args[1]:
            node.target, node.args = DROPOUT, node.args[:2]
    with _quiet():
        graph = exported.module(check_guards=False)
        assert isinstance(graph, fx.GraphModule)
        if not made_functional(graph):
            graph = exported.run_decompositions({}).module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    _check_batch(graph)
    plain = fx.GraphModule(graph, graph.graph, type(model).__name__)  # without checks of sizes before a call
    plain.meta[NOTES] = notes
    return plain.eval()


_REGIONS = {
    torch.ops.higher_order.wrap_with_autocast: 4,
    torch.ops.higher_order.wrap_with_set_grad_enabled: 1,
}
"""What torch.export makes of a `with` block -> the place of the graph within it among the arguments."""


def _regions_in(graph: fx.GraphModule) -> None:
    """Put what a `with` block of autocast or of gradients computes into the graph around it, in place: values
    are followed in the precision that they have."""
    for node in list(graph.graph.nodes):
        place = _REGIONS.get(node.target) if node.op == "call_function" else None
        if place is None:
            continue
        held, given = node.args[place], node.args[place + 1 :]
        inner = graph.get_submodule(str(held.target))
        assert isinstance(inner, fx.GraphModule)
        _regions_in(inner)
        known = dict(zip(inner.graph.find_nodes(op="placeholder"), given, strict=True))
        with graph.graph.inserting_before(node):
            made = graph.graph.graph_copy(inner.graph, known)
        assert isinstance(made, tuple | list)
        for user in list(node.users):
            user.replace_all_uses_with(made[user.args[1]])
            graph.graph.erase_node(user)
        graph.graph.erase_node(node)
        if not held.users:
            graph.graph.erase_node(held)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings, log lines and printed graphs of torch.export: what matters is in the error."""
    nothing = io.StringIO()
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(nothing), redirect_stderr(nothing):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _copied(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode. Weights that a hook computes (of weight_norm, say) are copied as values."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo).eval()


def _check_numbers(model: nn.Module) -> None:
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_floating_point() and bool(value.isnan().any()):
            raise TraceError(f"{name!r} has values that are no numbers (NaN); load weights that are whole")


def outputs_of(model: nn.Module, example: Arguments) -> Any:
    """What a module puts out for an example, in evaluation mode.

    Raises:
        TraceError: it does not take these inputs, or does not run on them.
    """
    name = type(model).__name__
    try:
        inspect.signature(model.forward).bind(*example.args, **example.kwargs)
    except TypeError as error:
        raise TraceError(f"{name} does not take these inputs: {error}") from error
    try:
        with evaluating(model), _quiet():
            return example.call(model)
    except Exception as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in example.tensors)
        raise TraceError(
            f"the model does not run on its example input of shape {shapes}: {_said(error)}"
        ) from error


def _tensors_alone(model: nn.Module, outputs: Any) -> tuple[str, ...]:
    """Have a module put out None for what is no tensor beside tensors (caches of keys, numbers, names); notes
    of what that is.

    Raises:
        TraceError: it puts out no tensor (in tuples, lists, dictionaries).
    """
    leaves = pytree.tree_leaves(outputs)
    others = list(
        dict.fromkeys(type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor | None))
    )
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        found = f", but {' and '.join(others)}; wrap it in a module that returns tensors" if others else ""
        raise TraceError(f"{type(model).__name__} puts out no tensor{found}")
    if others:
        model.register_forward_hook(lambda module, given, made: _without_others(made))
    return tuple(f"{name} that is put out beside tensors is left out: None stands there" for name in others)


def _without_others(outputs: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf if isinstance(leaf, Tensor) else None, outputs)


def _exported(model: nn.Module, example: Arguments, name: str) -> torch.export.ExportedProgram:
    doubled = example.batch(2)
    shapes: Any = ShapesCollection()  # type: ignore[no-untyped-call]
    for own, tensor in zip(example.tensors, doubled.tensors, strict=True):
        if _batched(own):
            shapes[tensor] = {0: Dim.AUTO}
    try:
        with _quiet(), shapes_alone(), sizes_open(model):
            return torch.export.export(
                model, doubled.args, dict(doubled.kwargs), dynamic_shapes=shapes, strict=False
            )
    except Exception as error:  # torch.export raises many kinds
        try:
            with torch.no_grad(), _quiet():
                doubled.call(model)
        except Exception as second:
            raise TraceError(
                f"{name} runs with one batch size only: with a batch of two, {_said(second)}{_where(second)};"
                " let sizes follow from the input (x.shape[0], -1)"
            ) from second
        decides = "data-dependent" in str(error)
        helps = (
            "rewrite that line without decisions on values of tensors"
            if decides
            else "by itself it runs, so it does something else while it is captured: give it among the"
            " example inputs what it makes by itself otherwise (a mask of ones, positions)"
        )
        raise TraceError(
            f"torch.export cannot capture {name}: {_said(error)}{_where(error)}; {helps}, or compress a part"
            ' of the network without that: part="backbone", say'
        ) from error


def _check_batch(graph: fx.GraphModule) -> None:
    """Raise TraceError where the batch was settled by what the code does with it."""
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        given = node.op == "placeholder" and isinstance(value, Tensor) and value.dim() > 0
        if given and isinstance(value.shape[0], int) and value.shape[0] == 2:
            raise TraceError(
                f"the network fits one batch size only: its code settles the first size of {node.name!r};"
                " let sizes follow from the input (x.shape[0], -1)"
            )


def _said(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _where(error: BaseException) -> str:
    """The last line of the user's code that an error came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _own(f.filename)]
    if not frames:
        return ""
    return f" (in {frames[-1].name}, line {frames[-1].lineno} of {frames[-1].filename})"


_HERE = Path(__file__).resolve().parent


def _own(filename: str) -> bool:
    """Whether a file is the user's: neither torch's nor Python's nor ours."""
    if filename.startswith("<") or Path(filename).resolve().parent == _HERE:
        return False
    return not any(part in filename for part in ("/torch/", "/contextlib.py", "/inspect.py", "/copy.py"))
