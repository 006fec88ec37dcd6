"""Operators in place become operators out of place, by rewriting alone.

torch's own way is to run the whole network once more through its dispatcher, which takes two to three times
as long as capturing it. Most networks write in place only what an operation has just made (a ReLU behind a
convolution, a sum into a branch), and there it is enough to name the operator without its underscore and to
let what comes behind read what it puts out. Where it is not that plain, the slow way is taken.
"""

import operator
from collections.abc import Iterator, Mapping
from itertools import pairwise
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

_FRESH = {
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding,
    aten.conv3d.padding, aten.conv_transpose1d.default, aten.conv_transpose2d.input,
    aten.conv_transpose3d.input, aten.linear.default, aten.matmul.default, aten.batch_norm.default,
    aten.layer_norm.default, aten.group_norm.default, aten.rms_norm.default, aten.softmax.int,
    aten.log_softmax.int, aten.scaled_dot_product_attention.default, aten.max_pool1d.default,
    aten.max_pool2d.default, aten.max_pool3d.default, aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default, aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec, aten.silu.default, aten.relu6.default,
}  # fmt: skip
"""Operators that torch puts together from others, and that never put out what they read or a view of it. Of
all others that it puts together this is not known."""
_VIEWS = {aten.view.default, aten._unsafe_view.default, aten.reshape.default}
_SIZES = _VIEWS | {
    aten.flatten.using_ints, aten.unflatten.int, aten.view_as.default, aten.reshape_as.default,
}  # fmt: skip
_EXPANDS = {aten.expand_as.default}
_CASTS = {
    aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten.type_as.default,
}  # fmt: skip
_SCATTERED: Mapping[Any, Any] = {
    aten.slice.Tensor: aten.slice_scatter.default, aten.select.int: aten.select_scatter.default,
}  # fmt: skip
"""A part of a tensor -> what puts another in its place."""


def made_functional(graph: fx.GraphModule) -> bool:
    """Take the operators in place out of a captured graph, which is changed; whether that could be done. If
    not, what is left of the graph must not be used.

    Reshapes say all their sizes then, and batch norms are those of evaluation, as torch's own way has them.
    """
    _constants_computed(graph)
    known = _known_sizes(graph)
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _CASTS:
            _cast(node)
            continue
        if _in_place(node) and not _out_of_place(node):
            return False
        if (node.target in _SIZES or node.target in _EXPANDS) and not _sized(graph, node, known):
            return False
    norms = list(graph.graph.find_nodes(op="call_function", target=aten.batch_norm.default))
    return all(_of_evaluation(graph, node) for node in norms)


@torch.no_grad()
def _constants_computed(graph: fx.GraphModule) -> None:
    """Where a constant is written in place (the mask of shifted windows, say) all constants are computed now,
    in order; whoever reads one gets what it held at that moment."""
    values: dict[fx.Node, Any] = {}
    taken: dict[tuple[fx.Node, int], fx.Node] = {}
    writes, writing = 0, [node for node in graph.graph.nodes if _in_place(node)]
    if not any(_is_constant(graph, node) for node in writing):
        return
    for node in list(graph.graph.nodes):
        sources = node.all_input_nodes
        if node.op == "get_attr" and not isinstance(_held(graph, node), torch.nn.Parameter):
            values[node] = _held(graph, node).clone()
        elif node.op == "call_function" and not _random(node) and all(source in values for source in sources):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: values[source])
            values[node] = node.target(*args, **kwargs)
            writes += _in_place(node)
        else:
            for source in sources:
                if isinstance(values.get(source), Tensor) and source.op != "get_attr":
                    if (source, writes) not in taken:
                        taken[source, writes] = _as_buffer(graph, node, source, values[source])
                    node.replace_input_with(source, taken[source, writes])
    for node in reversed(list(graph.graph.nodes)):
        if node in values and not node.users:
            graph.graph.erase_node(node)


def _random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _held(graph: fx.GraphModule, node: fx.Node) -> Any:
    return attrgetter(str(node.target))(graph)


def _is_constant(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node depends on no input and no parameter."""
    waiting, seen = [node], set()
    while waiting:
        one = waiting.pop()
        if one.op == "placeholder" or _random(one):
            return False
        if one.op == "get_attr" and isinstance(_held(graph, one), torch.nn.Parameter):
            return False
        waiting += [source for source in one.all_input_nodes if source not in seen]
        seen.update(one.all_input_nodes)
    return True


def _as_buffer(graph: fx.GraphModule, before: fx.Node, node: fx.Node, value: Tensor) -> fx.Node:
    name = f"_written_{len([None for key in graph._buffers if key.startswith('_written_')])}"
    graph.register_buffer(name, value.clone().contiguous())
    with graph.graph.inserting_before(before):
        held = graph.graph.get_attr(name)
    held.meta = dict(node.meta)
    return held


def _in_place(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _out_of_place(node: fx.Node) -> bool:
    """Whether an operator in place could be replaced by the one that leaves what it reads alone. Where it
    writes into a slice, what was sliced is put together again behind it."""
    packet, _, overload = str(node.target).removeprefix("aten.").rpartition(".")
    twin = getattr(getattr(aten, packet.removesuffix("_"), None), overload, None)
    written = node.args[0] if node.args else None
    if twin is None or not packet.endswith("_") or not isinstance(written, fx.Node):
        return False
    if not isinstance(written.meta.get("val"), Tensor) or not _same_kind(written, node):
        return False
    views = [written]
    while views[-1].target in _SCATTERED:
        views.append(views[-1].args[0])  # type: ignore[arg-type]
    behind = list(_from(node))[1:]
    if not _fresh(views[-1]) or any(_seen_elsewhere(view, [*views, node], set(behind)) for view in views):
        return False
    node.target = twin
    made = [node]
    for view, whole in pairwise(views):
        with node.graph.inserting_after(made[-1]):
            scatter = node.graph.call_function(_SCATTERED[view.target], (whole, made[-1], *view.args[1:]))
        scatter.kwargs, scatter.meta = dict(view.kwargs), dict(whole.meta)
        made.append(scatter)
    for one in behind:  # who reads the tensor from here on reads what was written into it
        for old, new in zip(views, made, strict=True):
            one.replace_input_with(old, new)
    return True


def _same_kind(one: fx.Node, other: fx.Node) -> bool:
    first, second = one.meta["val"], other.meta.get("val")
    return isinstance(second, Tensor) and first.dtype == second.dtype and first.shape == second.shape


def _seen_elsewhere(view: fx.Node, own: list[fx.Node], behind: set[fx.Node]) -> bool:
    """Whether somebody reads a tensor later through another view of it, made before, than ``own``."""
    for user in view.users:
        if user in own or (user.op == "call_function" and (_makes_its_own(user) or _in_place(user))):
            continue
        if user in behind or user.op == "output":
            continue  # reads what was written, see below
        if any(later in behind for later in user.users) or _seen_elsewhere(user, own, behind):
            return True
    return False


def _fresh(node: fx.Node) -> bool:
    """Whether nothing else holds the tensor that a node puts out."""
    return node.op == "call_function" and isinstance(node.meta.get("val"), Tensor) and _makes_its_own(node)


def _makes_its_own(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.is_mutable:
        # what was in place and is replaced makes its own by now; one that is not yet is not known
        return False
    if any(each.alias_info is not None for each in schema.returns):
        return False
    if node.target in _FRESH:
        return True
    name = schema.name if not schema.overload_name else f"{schema.name}.{schema.overload_name}"
    together = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")
    return str(node.target).startswith("aten.") and not together


def _known_sizes(graph: fx.GraphModule) -> dict[str, tuple[fx.Node, int]]:
    """Size that is not settled, as text -> an input and its dimension of that size."""
    found: dict[str, tuple[fx.Node, int]] = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor):
            for dim, size in enumerate(node.meta["val"].shape):
                if not isinstance(size, int):
                    found.setdefault(str(size), (node, dim))
    return found


def _sized(graph: fx.GraphModule, node: fx.Node, known: dict[str, tuple[fx.Node, int]]) -> bool:
    """Whether a reshape, or an expansion, could be said in sizes."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return False
    if node.target in _VIEWS:
        node.target = aten.view.default
        return True
    sizes: list[Any] = []
    for size in value.shape:
        if isinstance(size, int):
            sizes.append(size)
        elif str(size) in known:
            sizes.append(_size_node(graph, *known[str(size)]))
        else:
            sizes.append(-1)
    unknown = [
        place - value.dim() for place, size in enumerate(sizes) if isinstance(size, int) and size == -1
    ]
    if node.target in _SIZES and len(unknown) > 1:
        return False
    if node.target in _EXPANDS:  # -1 is the size that is there
        there = node.args[0].meta["val"].shape  # type: ignore[union-attr]
        if any(len(there) < -place or str(there[place]) != str(value.shape[place]) for place in unknown):
            return False
    node.target = aten.view.default if node.target in _SIZES else aten.expand.default
    node.args, node.kwargs = (node.args[0], sizes), {}
    return True


def _cast(node: fx.Node) -> None:
    """A change of type says nothing else, and what changes no type is what it reads."""
    read, value = node.args[0], node.meta["val"]
    assert isinstance(read, fx.Node)
    if read.meta["val"].dtype == value.dtype:
        node.replace_all_uses_with(read)
        node.graph.erase_node(node)
    else:
        node.target, node.args, node.kwargs = aten._to_copy.default, (read,), {"dtype": value.dtype}


def _size_node(graph: fx.GraphModule, given: fx.Node, dim: int) -> fx.Node:
    for user in given.users:
        if user.target is aten.sym_size.int and user.args == (given, dim):
            first = next(node for node in _from(given) if node.op != "placeholder")
            if user is not first:
                first.prepend(user)
            return user
    last = next(node for node in _from(given) if node.op != "placeholder")
    with graph.graph.inserting_before(last):
        made = graph.graph.call_function(aten.sym_size.int, (given, dim))
    made.meta["val"] = given.meta["val"].shape[dim]
    return made


def _from(node: fx.Node) -> Iterator[fx.Node]:
    """A node and those behind it."""
    while node.op != "root":
        yield node
        node = node.next


def _of_evaluation(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a batch norm could be said as that of evaluation: with statistics that it keeps."""
    x, weight, bias, mean, variance, training, momentum, eps, *_ = node.args
    if training or mean is None or variance is None:
        return False
    with graph.graph.inserting_before(node):
        made = graph.graph.call_function(
            aten._native_batch_norm_legit_no_training.default,
            (x, weight, bias, mean, variance, momentum, eps),
        )
        first = graph.graph.call_function(operator.getitem, (made, 0))
    first.meta, made.meta = dict(node.meta), {k: v for k, v in node.meta.items() if k != "val"}
    made.meta["val"] = (node.meta["val"],)
    node.replace_all_uses_with(first)
    graph.graph.erase_node(node)
    return True
