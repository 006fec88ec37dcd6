"""A captured program that is being rewritten: what it holds, what is constant, and how nodes are replaced."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from leanfront.compression.capture.program import DROPOUT, NOTES
from leanfront.compression.layers.kinds import Weights

aten = torch.ops.aten
RANDOM = {aten.rand.default, aten.randn.default, aten.bernoulli.p, DROPOUT}
"""What puts out something else each time."""


class EditedGraph:
    """A program; ``graph`` is changed in place. ``notes``: what stays, why. norms, behind, layers: what was
    made of its operators so far (``layer_modules``)."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.notes: list[str] = list(graph.meta.get(NOTES, ()))
        self.norms: dict[tuple[str, fx.Node], fx.Node] = {}
        self.behind: dict[tuple[Any, ...] | None, str] = {}
        self.layers: dict[tuple[Any, ...], str] = {}
        self._names: set[str] = set()
        self._values: dict[fx.Node, Tensor | None] = {}
        self._computed_once: dict[frozenset[str], list[tuple[fx.Node, Tensor]]] = {}

    def held(self, target: str) -> Tensor:
        """A parameter or buffer by name."""
        owner, _, name = target.rpartition(".")
        value = getattr(self.graph.get_submodule(owner), name)
        assert isinstance(value, Tensor)
        return value

    def constant(self, node: Any) -> Tensor | None:
        """The value of a node that depends on no input, else None."""
        if not isinstance(node, fx.Node):
            return node if isinstance(node, Tensor) else None
        if node not in self._values:
            self._values[node] = self._computed(node)
        return self._values[node]

    def _computed(self, node: fx.Node) -> Tensor | None:
        if node.op == "get_attr":
            return self.held(str(node.target)).detach()
        if node.op != "call_function" or node.target in RANDOM or not callable(node.target):
            return None
        sources = {source: self.constant(source) for source in node.all_input_nodes}
        if any(value is None for value in sources.values()):
            return None
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: sources[source])
        with torch.no_grad():
            value = node.target(*args, **kwargs)
        return value if isinstance(value, Tensor | tuple | list) else None  # type: ignore[return-value]

    def roots(self, node: Any) -> frozenset[str]:
        """Names of the parameters and buffers that a constant is computed from."""
        found, waiting = set(), [node] if isinstance(node, fx.Node) else []
        while waiting:
            one = waiting.pop()
            if one.op == "get_attr":
                found.add(str(one.target))
            waiting.extend(one.all_input_nodes)
        return frozenset(found)

    def first(self, node: Any) -> Any:
        """Of a value that is computed from weights anew for each use the first node that has it; of anything
        else itself."""
        value = self.constant(node) if isinstance(node, fx.Node) and node.op == "call_function" else None
        if not isinstance(value, Tensor):
            return node
        before = self._computed_once.setdefault(self.roots(node), [])
        for other, known in before:
            if other is node or (value.shape == known.shape and bool(torch.equal(value, known))):
                return other
        before.append((node, value))
        return node

    def name(self, wanted: str) -> str:
        """A name for a module that nothing has yet."""
        name, count = wanted, 0
        while name in self._names or not name:
            count += 1
            name = f"{wanted or 'layer'}_{count}"
        self._names.add(name)
        return name

    def put(self, node: fx.Node, name: str, module: nn.Module, read: fx.Node) -> fx.Node:
        """Call a module in place of an operator; the call."""
        owner = ""
        for part in name.split(".")[:-1]:  # a name may lead through what is no module yet
            inner = f"{owner}.{part}".lstrip(".")
            if not _has_module(self.graph, inner):
                self.graph.add_submodule(inner, nn.Module())
            owner = inner
        own = self.graph.get_submodule(name) if _has_module(self.graph, name) else None
        if own is not None:  # the place of the user's module, with what is still read of it
            for key, value in (*own._parameters.items(), *own._buffers.items()):
                if key not in module._parameters and key not in module._buffers and value is not None:
                    _set(module, key, value)
            for key, child in own._modules.items():
                module.add_module(key, child)
        self.graph.set_submodule(name, module)
        return self.call(node, name, read)

    def call(self, node: fx.Node, name: str, read: fx.Node) -> fx.Node:
        """Call a module that is there already in place of an operator; the call."""
        with self.graph.graph.inserting_before(node):
            called = self.graph.graph.call_module(name, (read,))
        called.meta = dict(node.meta)
        node.replace_all_uses_with(called)
        self.graph.graph.erase_node(node)
        return called

    def function(self, node: fx.Node, target: Any, args: tuple[Any, ...], shape: Any = None) -> fx.Node:
        """An operator before ``node``; ``shape``: of what it puts out, as a node with that shape."""
        with self.graph.graph.inserting_before(node):
            made = self.graph.graph.call_function(target, args)
        made.meta = {key: node.meta[key] for key in ("nn_module_stack",) if key in node.meta}
        if shape is not None:
            made.meta["val"] = shape
        return made

    def replace(self, node: fx.Node, other: Any) -> None:
        """Let everything that reads a node read another, and take the node out."""
        node.replace_all_uses_with(other)
        self.graph.graph.erase_node(node)

    def alone(self, source: fx.Node) -> fx.Node:
        """A matrix that is a parameter as a module of its own, which is called in its place; the call.
        Anything else is as it is."""
        held = self.held(str(source.target)) if source.op == "get_attr" else None
        if not isinstance(held, nn.Parameter) or held.dim() != 2:
            return source
        name = str(source.target)
        owner, _, key = name.rpartition(".")
        delattr(self.graph.get_submodule(owner), key)
        self.graph.add_submodule(name, Weights(held))
        with self.graph.graph.inserting_before(source):
            called = self.graph.graph.call_module(name)
        called.meta = dict(source.meta)
        self.replace(source, called)
        return called

    def functions(self, *targets: Any) -> Iterator[fx.Node]:
        """The nodes that call one of these operators, in order; the graph may be changed meanwhile."""
        wanted = set(targets)
        for node in list(self.graph.graph.nodes):
            if node.op == "call_function" and node.target in wanted:
                yield node


def _has_module(graph: nn.Module, name: str) -> bool:
    try:
        graph.get_submodule(name)
    except AttributeError:
        return False
    return True


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
    else:
        module.register_buffer(name, value)


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one type and one shape, sizes that are left open among it."""
    shapes = ([str(size) for size in value.shape] for value in (one, other))
    return one.dtype == other.dtype and next(shapes) == next(shapes)


def argument(node: fx.Node, name: str, place: int, default: Any) -> Any:
    """An argument of an operator, by name or by place."""
    return node.kwargs.get(name, node.args[place] if len(node.args) > place else default)


def module_path(node: fx.Node) -> str:
    """The user's name of the module that calls an operator; "" where it is none."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    return str(paths[-1]).split("@")[0] if paths else ""


def same_size(one: Any, other: Any) -> bool:
    """Whether two sizes are one, also where they are left open."""
    return str(one) == str(other)
