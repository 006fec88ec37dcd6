"""The normal form of a captured program: layers, norms and dropouts are modules of torch under the user's own
names, everything else an ATen operator; what computes nothing is gone, and sizes can be changed.

Nothing behind this room knows how the user wrote it: a function, a subclass, weight_norm, a hook, a mask:
what is computed counts.
"""

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanfront.compression.capture.program import DROPOUT, TraceError
from leanfront.compression.graph.operations import OPAQUE, by_aten
from leanfront.compression.layers.kinds import Weights

aten = torch.ops.aten


class NormalForm:
    """A program on its way to the normal form; ``graph`` is changed in place. ``notes``: what stays, why."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.notes: list[str] = []
        self.norms: dict[tuple[str, fx.Node], fx.Node] = {}
        self.behind: dict[tuple[Any, ...] | None, str] = {}
        self.layers: dict[tuple[Any, ...], str] = {}
        self._names: set[str] = set()
        self._values: dict[fx.Node, Tensor | None] = {}
        self._computed_once: dict[frozenset[str], list[tuple[fx.Node, Tensor]]] = {}

    def made(self) -> fx.GraphModule:
        """Bring it into the normal form."""
        steps = (
            self._assertions_out, self._precision_single, self._no_ops_out, self._written_out,
            self._modules_in, self._constants_folded, self._shuffles_mapped, self._no_ops_out,
        )  # fmt: skip
        for step in steps:
            step()
            self.graph.graph.eliminate_dead_code()
        self._named()
        self.graph.delete_all_unused_submodules()
        _drop_unused(self.graph)
        self.graph.recompile()
        return self.graph.eval()

    # --- what the program holds

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
        if node.op != "call_function" or node.target in _RANDOM or not callable(node.target):
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

    def functions(self, *targets: Any) -> Iterator[fx.Node]:
        """The nodes that call one of these operators, in order; the graph may be changed meanwhile."""
        wanted = set(targets)
        for node in list(self.graph.graph.nodes):
            if node.op == "call_function" and node.target in wanted:
                yield node

    # --- steps

    def _assertions_out(self) -> None:
        for node in reversed(list(self.graph.graph.nodes)):
            name = str(node.target)
            if not node.users and ("assert" in name or "sym_constrain" in name or name == "_guards_fn"):
                self.graph.graph.erase_node(node)

    def _precision_single(self) -> None:
        """Half-precision networks are followed in single precision: a policy says what has few bits."""
        halves = (torch.float16, torch.bfloat16)
        floats = [*self.graph.named_parameters(), *self.graph.named_buffers()]
        if not any(value.dtype in halves for _, value in floats):
            return
        for name, value in floats:
            if value.dtype in halves:
                owner, _, key = name.rpartition(".")
                held = value.detach().float()
                holder = self.graph.get_submodule(owner)
                if isinstance(value, nn.Parameter):
                    setattr(holder, key, nn.Parameter(held, value.requires_grad))
                else:
                    setattr(holder, key, held)

        def single(value: Any) -> Any:
            return torch.float32 if value in halves else value

        for node in self.graph.graph.nodes:
            if node.op == "call_function":
                node.args = tuple(single(a) if isinstance(a, torch.dtype) else a for a in node.args)
                node.kwargs = {
                    k: single(v) if isinstance(v, torch.dtype) else v for k, v in node.kwargs.items()
                }
        self.notes.append("weights in half precision are followed in single precision")

    def _no_ops_out(self) -> None:
        for node in list(self.graph.graph.nodes):
            if node.op == "call_function" and _does_nothing(node):
                self.replace(node, node.args[0])

    def _written_out(self) -> None:
        """Several tensors at once become single ones, sizes are reshapes, attention is products."""
        for step in _STEPS:
            step(self)
            self.graph.graph.eliminate_dead_code()

    def _modules_in(self) -> None:
        self._names = {name for name, _ in self.graph.named_parameters()}
        for node in list(self.graph.graph.nodes):
            if node.op == "call_function" and (make := _MAKERS.get(node.target)) is not None:
                make(self, node)

    def _constants_folded(self) -> None:
        """What is computed from buffers alone is computed now; what parameters say is left to training."""
        parameters = {name for name, _ in self.graph.named_parameters()}
        count = 0
        for node in reversed(list(self.graph.graph.nodes)):
            value = self.constant(node) if node.op == "call_function" and node.users else None
            if not isinstance(value, Tensor):
                continue
            if self.roots(node) & parameters or _is_view(node):
                continue
            name = f"_constant_{count}"
            count += 1
            self.graph.register_buffer(name, value.detach().clone().contiguous())
            with self.graph.graph.inserting_before(node):
                folded = self.graph.graph.get_attr(name)
            folded.meta = dict(node.meta)
            self.replace(node, folded)
            self._values.clear()
            self.graph.graph.eliminate_dead_code()

    def _shuffles_mapped(self) -> None:
        """A reshape, a transpose and a reshape back that only change the order of channels carry it as an
        index: with some channels cut they could not run."""
        for last in self.functions(aten.reshape.default):
            turned = last.args[0]
            if not isinstance(turned, fx.Node) or turned.target not in _TURNS or len(turned.users) > 1:
                continue
            first = turned.args[0]
            if (
                not isinstance(first, fx.Node)
                or first.target is not aten.reshape.default
                or len(first.users) > 1
            ):
                continue
            read = first.args[0]
            assert isinstance(read, fx.Node)
            order = _order_of_channels(read, first, turned, last)
            if order is None:
                continue
            axis, index = order
            name = self.name(f"_order_{last.name}")
            self.graph.register_buffer(name, index)
            with self.graph.graph.inserting_before(last):
                held = self.graph.graph.get_attr(name)
                mapped = self.graph.graph.call_function(aten.index_select.default, (read, axis, held))
            mapped.meta = dict(last.meta)
            self.replace(last, mapped)

    def _named(self) -> None:
        """Nodes are named after the user's modules where one call is one node, else after the operator."""
        fresh = fx.Graph()
        fresh.set_codegen(self.graph.graph._codegen)
        made: dict[fx.Node, fx.Node] = {}
        for node in self.graph.graph.nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: made[source])
            name = node.name if node.op in ("placeholder", "output") else _wanted_name(node)
            made[node] = fresh.create_node(node.op, node.target, args, kwargs, name, node.type)
            made[node].meta = node.meta
        self.graph.graph = fresh


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


_OWN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
"""What layers and norms hold."""


def _drop_unused(graph: fx.GraphModule) -> None:
    """Take out parameters and buffers that nothing reads, those that a layer's weight was computed from among
    them."""
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    for name, _ in (*list(graph.named_parameters()), *list(graph.named_buffers())):
        owner, _, key = name.rpartition(".")
        if name not in read and not (owner in called and key in _OWN):
            delattr(graph.get_submodule(owner), key)


# --- what computes nothing

_NOTHING = {
    aten.clone.default, aten.alias.default, aten.contiguous.default, aten.detach.default,
    aten.lift_fresh_copy.default, aten.detach_.default, aten.dropout.default, aten.feature_dropout.default,
    aten.lift_fresh.default,
}  # fmt: skip
_SAME_SHAPE = {
    aten.expand.default, aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.squeeze.dim,
    aten.squeeze.dims, aten.squeeze.default, aten._unsafe_view.default, aten.expand_as.default,
    aten.reshape_as.default, aten.slice.Tensor, aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default,
    aten.constant_pad_nd.default, aten.pad.default,
}  # fmt: skip
_CASTS = {aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.type_as.default}


def _does_nothing(node: fx.Node) -> bool:
    read = node.args[0] if node.args else None
    if not isinstance(read, fx.Node):
        return False
    if node.target in _NOTHING:
        return True
    before, after = read.meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    if node.target in _CASTS:
        halves = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
        return halves.get(before.dtype, before.dtype) == halves.get(after.dtype, after.dtype)
    if node.target in (aten.add.Tensor, aten.sub.Tensor):
        nothing = isinstance(node.args[1], int | float) and node.args[1] == 0
        return nothing and before.shape == after.shape and before.dtype == after.dtype
    if node.target not in _SAME_SHAPE or len(before.shape) != len(after.shape):
        return False
    return all(_same(one, other) for one, other in zip(before.shape, after.shape, strict=True))


def _same(one: Any, other: Any) -> bool:
    return str(one) == str(other)


# --- several tensors, sizes


def _pieces(form: NormalForm) -> None:
    """Chunks, splits and unbinds become slices, each on its own."""
    targets = (
        aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int,
        aten.tensor_split.sections, aten.split.sizes,
    )  # fmt: skip
    for node in form.functions(*targets):
        read, values = node.args[0], list(node.meta["val"])
        assert isinstance(read, fx.Node)
        shape = read.meta["val"].shape
        dim = _argument(node, "dim", 1 if node.target is aten.unbind.int else 2, 0) % len(shape)
        if not isinstance(shape[dim], int) or not all(user.target is operator.getitem for user in node.users):
            continue
        starts = [0]
        for value in values:
            starts.append(starts[-1] + (1 if node.target is aten.unbind.int else int(value.shape[dim])))
        for user in list(node.users):
            place = int(str(user.args[1])) % len(values)
            if node.target is aten.unbind.int:
                made = form.function(user, aten.select.int, (read, dim, place))
            else:
                made = form.function(user, aten.slice.Tensor, (read, dim, starts[place], starts[place + 1]))
            made.meta = dict(user.meta)
            form.replace(user, made)


def _written_over(form: NormalForm) -> None:
    """A tensor of which a slice is written over is what stays on either side, with the new slice between:
    joined, each has a range and channels of its own."""
    for node in form.functions(aten.copy.default):
        over, new = node.args[:2]
        assert isinstance(over, fx.Node)
        if isinstance(new, fx.Node) and _alike(over.meta["val"], new.meta["val"]):
            form.replace(node, new)
    for node in form.functions(aten.slice_scatter.default, aten.select_scatter.default):
        over, new = node.args[:2]
        assert isinstance(over, fx.Node)
        assert isinstance(new, fx.Node)
        value, one = over.meta["val"], node.target is aten.select_scatter.default
        dim = int(_argument(node, "dim", 2, 0)) % value.dim()
        size, start = value.shape[dim], _argument(node, "index" if one else "start", 3, 0) or 0
        end = (start + 1 or None) if one else _argument(node, "end", 4, None)
        if not one and _alike(value, new.meta["val"]):  # all of it
            form.replace(node, new)
            continue
        known = all(isinstance(number, int) for number in (size, start, end or 0))
        if not known or _argument(node, "step", 5, 1) != 1 or value.dtype != new.meta["val"].dtype:
            continue
        start, stop, _ = slice(start, end).indices(size)
        if one:
            shaped = new.meta["val"].unsqueeze(dim)
            new = form.function(node, aten.unsqueeze.default, (new, dim), shaped)
        parts = []
        for first, last in ((0, start), (stop, size)):
            if first < last:
                left = value.narrow(dim, first, last - first)
                parts.append(form.function(node, aten.slice.Tensor, (over, dim, first, last), left))
        parts.insert(1 if start else 0, new)
        joined = form.function(node, aten.cat.default, (parts, dim))
        joined.meta = dict(node.meta)
        form.replace(node, joined)


def _alike(one: Tensor, other: Tensor) -> bool:
    shapes = ([str(size) for size in value.shape] for value in (one, other))
    return one.dtype == other.dtype and next(shapes) == next(shapes)


def _argument(node: fx.Node, name: str, place: int, default: Any) -> Any:
    return node.kwargs.get(name, node.args[place] if len(node.args) > place else default)


def _shapes(form: NormalForm) -> None:
    """Everything that is a reshape with sizes is one, and squeezes say which dimensions."""
    for node in form.functions(
        aten.view.default, aten._unsafe_view.default, aten.unflatten.int, aten.view_as.default,
        aten.reshape_as.default,
    ):  # fmt: skip
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
            _size_left_open(node)
            continue
        sizes = node.meta["val"].shape
        open_sizes = [place for place, size in enumerate(sizes) if not isinstance(size, int)]
        if len(open_sizes) > 1:
            continue
        written = [-1 if place in open_sizes else int(size) for place, size in enumerate(sizes)]
        node.target, node.args, node.kwargs = aten.reshape.default, (node.args[0], written), {}
    for node in form.functions(aten.reshape.default):
        _size_left_open(node)
    for node in form.functions(aten.squeeze.default):
        read = node.args[0]
        assert isinstance(read, fx.Node)
        ones = [d for d, size in enumerate(read.meta["val"].shape) if isinstance(size, int) and size == 1]
        node.target, node.args = aten.squeeze.dims, (read, ones)


def _shuffles(form: NormalForm) -> None:
    """Shuffles of pixels and channels that files write as reshapes are reshapes, whose sizes can change."""
    for node in form.functions(aten.pixel_unshuffle.default, aten.channel_shuffle.default):
        x, factor = node.args
        assert isinstance(x, fx.Node)
        batch, channels, *image = x.meta["val"].shape
        if len(image) != 2 or not all(isinstance(size, int) for size in (channels, *image)):
            continue
        height, width = image
        count = int(str(factor))
        if node.target is aten.channel_shuffle.default:
            apart, order = [-1, count, channels // count, height, width], [0, 2, 1, 3, 4]
            whole = [-1, channels, height, width]
        else:
            apart = [-1, channels, height // count, count, width // count, count]
            order = [0, 1, 3, 5, 2, 4]
            whole = [-1, channels * count * count, height // count, width // count]
        value = x.meta["val"]
        first = form.function(node, aten.reshape.default, (x, apart), value.new_empty((batch, *apart[1:])))
        turned = form.function(node, aten.permute.default, (first, order), first.meta["val"].permute(order))
        last = form.function(node, aten.reshape.default, (turned, whole))
        last.meta = dict(node.meta)
        form.replace(node, last)


def _size_left_open(node: fx.Node) -> None:
    """A reshape to (batch, everything else) says so, and not how much that is."""
    sizes, value = list(node.args[1]), node.meta.get("val")  # type: ignore[arg-type]
    if isinstance(value, Tensor) and len(sizes) == 2 and -1 not in sizes and isinstance(sizes[0], fx.Node):
        node.args = (node.args[0], [sizes[0], -1])
        node.meta["called"] = "flatten"


# --- attention and products


def _attention(form: NormalForm) -> None:
    """Attention as its products (Vaswani et al. 2017, equation 1)."""
    for node in form.functions(aten.scaled_dot_product_attention.default):
        query, key, value = node.args[:3]
        mask = _argument(node, "attn_mask", 3, None)
        causal, grouped = _argument(node, "is_causal", 5, False), _argument(node, "enable_gqa", 6, False)
        assert isinstance(query, fx.Node)
        assert isinstance(key, fx.Node)
        shape, keys = query.meta["val"].shape, key.meta["val"].shape
        if grouped or (causal and not (isinstance(shape[-2], int) and isinstance(keys[-2], int))):
            continue
        scale: Any = node.kwargs.get("scale")
        factor = float(scale) if scale is not None else float(shape[-1]) ** -0.5
        turned = form.function(node, aten.transpose.int, (key, -2, -1))
        scores = form.function(node, aten.matmul.default, (query, turned))
        scores = form.function(node, aten.mul.Tensor, (scores, factor))
        if causal:
            name = form.name("_causal")
            form.graph.register_buffer(name, torch.ones(shape[-2], keys[-2]).triu(1) > 0)
            with form.graph.graph.inserting_before(node):
                held = form.graph.graph.get_attr(name)
            scores = form.function(node, aten.masked_fill.Scalar, (scores, held, -math.inf))
        elif isinstance(mask, fx.Node):
            mask = _before_expansion(mask)  # scores and a mask meet value by value
            if mask.meta["val"].dtype is torch.bool:
                hidden = form.function(node, aten.logical_not.default, (mask,))
                scores = form.function(node, aten.masked_fill.Scalar, (scores, hidden, -math.inf))
            else:
                scores = form.function(node, aten.add.Tensor, (scores, mask))
        weights = form.function(node, aten.softmax.int, (scores, -1))
        mixed = form.function(node, aten.matmul.default, (weights, value))
        mixed.meta = dict(node.meta)
        form.replace(node, mixed)


def _before_expansion(node: fx.Node) -> fx.Node:
    """What an expansion was made of, also where it was reshaped and reshaped back: a mask that each head has
    a copy of, say, with the heads among the batch meanwhile. Else the node itself."""
    source: Any = node
    while isinstance(source, fx.Node) and source.target is aten.reshape.default:
        source = source.args[0]
    if not isinstance(source, fx.Node) or source.target is not aten.expand.default:
        return node
    read = source.args[0]
    assert isinstance(read, fx.Node)
    values = [one.meta.get("val") for one in (node, source, read)]
    if not all(isinstance(value, Tensor) for value in values):
        return node
    same_rank = values[1].dim() == values[2].dim()  # type: ignore[union-attr]
    return read if same_rank and _alike(values[0], values[1]) else node  # type: ignore[arg-type]


def _expansions(form: NormalForm) -> None:
    """Values are repeated as late as can be: what meets others value by value is repeated along them by the
    operator itself. A copy for each of their channels would have to be cut with these."""
    for node in list(form.graph.graph.nodes):
        row = by_aten.get(str(node.target), OPAQUE)
        if row.channels != "meet" or node.target in _NOT_ALIKE or "val" not in node.meta:
            continue
        before = {source: _before_expansion(source) for source in node.all_input_nodes}
        values: list[Any] = [read.meta.get("val") for read in before.values()]
        if all(source is read for source, read in before.items()):
            continue
        value = node.meta["val"]
        if not all(isinstance(each, Tensor) for each in values):
            continue
        met = _met_sizes(values)
        sizes = [-1 if _same(one, other) else other for one, other in zip(met, value.shape, strict=False)]
        if len(met) != value.dim() or not all(isinstance(size, int) for size in sizes):
            continue
        for source, read in before.items():
            node.replace_input_with(source, read)
        if all(size == -1 for size in sizes):
            continue
        with form.graph.graph.inserting_after(node):
            later = form.graph.graph.call_function(aten.expand.default, (node, sizes))
        later.meta, node.meta = dict(node.meta), {**node.meta, "val": value.new_empty(met)}
        node.replace_all_uses_with(later, delete_user_cb=lambda user, own=later: user is not own)


def _apart(form: NormalForm) -> None:
    """What met while the heads of an attention were among the batch, and is taken apart into both behind it,
    meets apart, where one of the operands is the same for each head: masks of torch's are put together so."""
    for node in form.functions(aten.reshape.default):
        read = node.args[0]
        assert isinstance(read, fx.Node)
        row, value, met = by_aten.get(str(read.target), OPAQUE), node.meta.get("val"), read.meta.get("val")
        if row.form != "binary" or not isinstance(value, Tensor) or not isinstance(met, Tensor):
            continue
        operands = read.all_input_nodes
        given = [operand.meta.get("val") for operand in operands]
        if value.dim() != met.dim() + 1 or not all(
            isinstance(each, Tensor) and each.dim() == met.dim() for each in given
        ):
            continue
        if [*map(str, value.shape[2:])] != [*map(str, met.shape[1:])] or len(read.users) > 1:
            continue
        apart = [_taken_apart(operand, value.shape[:2], met.shape[0]) for operand in operands]
        if None in apart or not any(isinstance(each, fx.Node) for each in apart):
            continue
        for operand, own in zip(operands, apart, strict=True):
            if not isinstance(own, fx.Node):
                held = operand.meta["val"].unsqueeze(1)
                own = form.function(read, aten.unsqueeze.default, (operand, 1), held)
            read.replace_input_with(operand, own)
        read.meta = {**read.meta, "val": value}
        form.replace(node, read)


def _taken_apart(operand: fx.Node, leading: Any, together: Any) -> fx.Node | bool | None:
    """An expansion of the two leading sizes that was reshaped to have them as one; True: what has neither;
    None: anything else."""
    value = operand.meta["val"]
    if _same(value.shape[0], 1):
        return True
    source = operand.args[0] if operand.target is aten.reshape.default else None
    if not isinstance(source, fx.Node) or source.target is not aten.expand.default:
        return None
    sizes = [*map(str, (*leading, *value.shape[1:]))]
    fits = [*map(str, source.meta["val"].shape)] == sizes and _same(value.shape[0], together)
    return source if fits else None


def _met_sizes(values: list[Tensor]) -> list[Any]:
    """Sizes of tensors that meet value by value, those of 1 repeated."""
    rank = max(value.dim() for value in values)
    aligned = [[1] * (rank - value.dim()) + list(value.shape) for value in values]
    return [next((size for size in sizes if not _same(size, 1)), 1) for sizes in zip(*aligned, strict=True)]


_NOT_ALIKE = {aten.prelu.default, aten._prelu_kernel.default, aten.copy.default}
"""What does not treat all of its operands value by value."""


def _products(form: NormalForm) -> None:
    """Products with a constant matrix are linear layers."""
    for node in form.functions(aten.addmm.default, aten.mm.default, aten.matmul.default):
        bias = node.args[0] if node.target is aten.addmm.default else None
        read, matrix = node.args[-2:]
        if node.kwargs or not isinstance(read, fx.Node) or form.constant(read) is not None:
            continue
        weight = form.constant(matrix)
        if weight is None or weight.dim() != 2 or (bias is not None and form.constant(bias) is None):
            continue
        if bias is not None and form.constant(bias).dim() != 1:  # type: ignore[union-attr]
            continue
        turned = form.function(node, aten.t.default, (matrix,))
        node.target, node.args = (
            aten.linear.default,
            (read, turned, bias) if bias is not None else (read, turned),
        )


# --- recurrent layers


def _projected(form: NormalForm) -> None:
    """An LSTM that hands on a projection of its state, r = P h (Sak et al. 2014), which files do not know, as
    one that hands on h, with the projection behind it: it reads W r = (W P) h."""
    for node in form.functions(aten.lstm.input):
        given: list[Any] = list(node.args)
        x, (first_state, first_cell), held, biases, layers, _, _, both, batch_first = given
        directions, each = 1 + both, 4 if biases else 2
        if len(held) != (each + 1) * layers * directions:
            continue
        if first_state.target not in _ZEROS:
            raise TraceError(
                f"{_module_path(node) or 'an LSTM'} has proj_size and starts from a state that is given, of"
                " which no file can be made: start it from zeros, or compress a part that it is not in"
            )
        parts = [list(held[i : i + each + 1]) for i in range(0, len(held), each + 1)]
        size = int(first_cell.meta["val"].shape[-1])
        states: list[fx.Node] = []
        cells: list[fx.Node] = []
        for layer in range(layers):
            own = parts[layer * directions : (layer + 1) * directions]
            cell = _piece(form, node, first_cell, 0, layer * directions, directions, len(parts))
            x, state, left = _projecting(form, node, (x, cell), own, size, (biases, batch_first))
            states.append(state)
            cells.append(left)
        made = x, _joined(form, node, states, 0), _joined(form, node, cells, 0)
        for user in list(node.users):
            put_out = made[int(str(user.args[1]))]
            put_out.meta = dict(user.meta)
            form.replace(user, put_out)
        form.graph.graph.erase_node(node)


def _projecting(
    form: NormalForm, node: fx.Node, reads: tuple[fx.Node, fx.Node], own: list[list[fx.Node]], size: int,
    said: tuple[bool, bool],
) -> tuple[fx.Node, fx.Node, fx.Node]:  # fmt: skip
    """One layer of an LSTM with a projection, both directions of it: what it puts out, and its last states.

    reads: what goes in, and the cells that it starts from. own: of each direction its weights. size: of the
    state. said: whether it has biases, and the batch comes first.
    """
    (x, cell), (biases, batch_first) = reads, said
    weights: list[fx.Node] = []
    turned: list[fx.Node] = []
    for inside, across, *rest, projection in own:
        across, projection = _alone(form, across), _alone(form, projection)
        weights += [inside, form.function(node, aten.mm.default, (across, projection)), *rest]
        turned.append(form.function(node, aten.t.default, (projection,)))
    state = form.function(node, aten.zeros_like.default, (cell,))
    given = (x, [state, cell], weights, biases, 1, 0.0, False, len(own) > 1, batch_first)
    made = form.function(node, aten.lstm.input, given)
    outputs, last, left = (form.function(node, operator.getitem, (made, place)) for place in range(3))

    def parted(read: fx.Node, dim: int, length: int) -> list[fx.Node]:
        whole = length * len(own)
        held = [_piece(form, node, read, dim, i * length, length, whole) for i in range(len(own))]
        return [form.function(node, aten.matmul.default, pair) for pair in zip(held, turned, strict=True)]

    projected = _joined(form, node, parted(outputs, 2, size), 2)
    return projected, _joined(form, node, parted(last, 0, 1), 0), left


def _piece(
    form: NormalForm, node: fx.Node, read: fx.Node, dim: int, start: int, length: int, whole: int
) -> fx.Node:
    """So much of a tensor along a dimension; itself where that is all."""
    if length == whole:
        return read
    return form.function(node, aten.slice.Tensor, (read, dim, start, start + length))


def _joined(form: NormalForm, node: fx.Node, parts: list[fx.Node], dim: int) -> fx.Node:
    return parts[0] if len(parts) == 1 else form.function(node, aten.cat.default, (parts, dim))


_ZEROS = (aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default)


# --- means


def _means(form: NormalForm) -> None:
    """Pools to one value for each channel are means."""
    for node in form.functions(
        aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default
    ):  # fmt: skip
        read, sizes = node.args
        assert isinstance(read, fx.Node)
        value = read.meta["val"]
        if value.dim() == len(sizes) + 2 and all(size == 1 for size in sizes):  # type: ignore[arg-type, union-attr]
            node.meta["called"] = str(node.target.__name__).split(".")[0]  # type: ignore[union-attr]
            node.target, node.args = aten.mean.dim, (read, list(range(2, value.dim())), True)


def _pools_of_volumes(form: NormalForm) -> None:
    """Pools of volumes to given sizes, which torch's exporter cannot write, are pools with windows along the
    dimensions whose sizes divide, and along others a mean for each place."""
    for node in form.functions(aten.adaptive_avg_pool3d.default, aten._adaptive_avg_pool3d.default):
        read = node.args[0]
        assert isinstance(read, fx.Node)
        made, value, pooled = read, read.meta["val"], node.meta["val"]
        sizes = list(zip(range(-3, 0), value.shape[-3:], pooled.shape[-3:], strict=True))
        if not all(isinstance(size, int) for _, *pair in sizes for size in pair):
            continue
        window = [before // after if before % after == 0 else 1 for _, before, after in sizes]
        if window != [1, 1, 1]:
            value = aten.avg_pool3d.default(value, window, window)
            made = form.function(node, aten.avg_pool3d.default, (made, window, window), value)
        for dim, before, after in sizes:
            if before % after:
                at = dim % value.dim()
                made = _means_along(form, node, made, at, before, after)
                value = torch.cat([value.narrow(at, 0, 1)] * after, at)
                made.meta["val"] = value
        if made is not read:
            made.meta = dict(node.meta)
        form.replace(node, made)


def _means_along(
    form: NormalForm, node: fx.Node, read: fx.Node, dim: int, before: int, after: int
) -> fx.Node:
    """A pool to so many places along one dimension, whose windows overlap or differ in size."""
    parts, value = [], read.meta["val"]
    for place in range(after):
        start, end = place * before // after, -(-(place + 1) * before // after)
        part = value.narrow(dim, start, end - start)
        piece = form.function(node, aten.slice.Tensor, (read, dim, start, end), part)
        parts.append(form.function(node, aten.mean.dim, (piece, [dim], True), part.narrow(dim, 0, 1)))
    return form.function(node, aten.cat.default, (parts, dim))


def _batch_statistics(form: NormalForm) -> None:
    """Norms with statistics of what they read, for each channel, are arithmetic: their number of channels is
    nowhere written then."""
    for node in form.functions(aten._native_batch_norm_legit.no_stats):
        given: list[Any] = list(node.args)
        items = list(node.users)
        if all(user.target is operator.getitem and user.args[1] == 0 for user in items):
            rank = given[0].meta["val"].dim()
            over = [d for d in range(rank) if d != 1]
            made = _normed(form, node, given[0], over, given[1], given[2], given[5])
            for item in items:
                made.meta = dict(item.meta)
                form.replace(item, made)
            form.graph.graph.erase_node(node)
    for node in form.functions(aten.instance_norm.default, aten.group_norm.default):
        given = list(node.args)
        value = given[0].meta["val"]
        over = list(range(2, value.dim()))
        if node.target is aten.instance_norm.default:
            weight, bias, own, eps = given[1], given[2], given[5], given[7]
        else:
            weight, bias = _argument(node, "weight", 2, None), _argument(node, "bias", 3, None)
            own, eps = given[1] == value.shape[1], _argument(node, "eps", 4, 1e-5)
        if own and over:
            made = _normed(form, node, given[0], over, weight, bias, eps)
            made.meta = dict(node.meta)
            form.replace(node, made)


def _normed(
    form: NormalForm, node: fx.Node, x: fx.Node, over: list[int], weight: Any, bias: Any, eps: float
) -> fx.Node:
    """(x - mean) / sqrt(variance + eps) * weight + bias, statistics over some dimensions."""
    each = [1, -1] + [1] * (x.meta["val"].dim() - 2)
    centred = form.function(node, aten.sub.Tensor, (x, form.function(node, aten.mean.dim, (x, over, True))))
    square = form.function(node, aten.mul.Tensor, (centred, centred))
    variance = form.function(node, aten.mean.dim, (square, over, True))
    variance = form.function(node, aten.add.Tensor, (variance, eps))
    made = form.function(
        node, aten.mul.Tensor, (centred, form.function(node, aten.rsqrt.default, (variance,)))
    )
    for target, value in ((aten.mul.Tensor, weight), (aten.add.Tensor, bias)):
        if value is not None:
            held = form.function(node, aten.reshape.default, (value, each))
            made = form.function(node, target, (made, held))
    return made


# --- modules


def _layer_name(form: NormalForm, node: fx.Node, weight: Any) -> str:
    """The user's name of a layer: of the owner of its weight, or of the module that calls it."""
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        owner, _, key = str(weight.target).rpartition(".")
        own = key.removesuffix("weight").rstrip("_")
        return ".".join(filter(None, (owner, own)))
    return _module_path(node)


def _module_path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    return str(paths[-1]).split("@")[0] if paths else ""


def _own_weight(form: NormalForm, weight: Any, same: set[fx.Node]) -> Tensor | None:
    """The weight of a layer as a parameter of its own; None where others read it than ``same``."""
    if isinstance(weight, fx.Node) and not same.issuperset(weight.users):
        return None
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        return form.held(str(weight.target))
    value = form.constant(weight)
    if value is None or form.first(weight) is not weight:
        return None  # computed anew for each use
    return value.clone()


def _parameter(value: Tensor) -> nn.Parameter:
    return (
        value
        if isinstance(value, nn.Parameter)
        else nn.Parameter(value.detach().clone(), value.is_floating_point())
    )


def _layer_made(
    form: NormalForm, node: fx.Node, cls: type[nn.Module], weight: Any, bias: Any, *args: Any, **options: Any
) -> None:
    """Call a layer's module in place of its operator, where its weight is its own; the same module for all
    that do the same with it."""
    if form.constant(weight) is None or (bias is not None and form.constant(bias) is None):
        return
    read = node.args[0]
    if not isinstance(read, fx.Node) or form.constant(read) is not None:
        return
    does = _does(form, node)
    if does in form.layers:
        _used_again(form, node, form.layers[does], read)
        return
    same = {user for user in weight.users if user.target is node.target and _does(form, user) == does}
    held = _own_weight(form, weight, {user for user in same if form.constant(user.args[0]) is None})
    if held is None:
        return
    module = cls(*args, **options, bias=bias is not None, device="meta")
    module.weight = _parameter(held)
    if bias is not None:
        own = (
            form.held(str(bias.target))
            if bias.op == "get_attr" and same.issuperset(bias.users)
            else form.constant(bias)
        )
        assert own is not None
        module.bias = _parameter(own)
    name = form.layers[does] = form.name(_layer_name(form, node, weight))
    form.put(node, name, module, read)


def _does(form: NormalForm, node: fx.Node) -> tuple[Any, ...]:
    """What a layer's operator computes with what it reads: the same for all uses of one layer."""
    given = [(str(place), value) for place, value in enumerate(node.args[1:])]
    listed = [
        (name, tuple(value) if isinstance(value, list | tuple) else form.first(value))
        for name, value in (*given, *node.kwargs.items())
    ]
    return str(node.target), *listed


def _used_again(form: NormalForm, node: fx.Node, name: str, read: fx.Node) -> None:
    """Use a layer once more; what it makes of the same values is there already."""
    uses = [one for one in form.graph.graph.nodes if one.op == "call_module" and one.target == name]
    same: dict[tuple[fx.Node, fx.Node], bool] = {}
    before = next((use for use in uses if _same_values(use.all_input_nodes[0], read, same)), None)
    if before is None:
        form.call(node, name, read)
    else:
        form.replace(node, before)


def _same_values(one: fx.Node, other: fx.Node, known: dict[tuple[fx.Node, fx.Node], bool]) -> bool:
    """Whether two nodes compute the same of the same. ``known``: of pairs that were looked at."""
    if one is other:
        return True
    if one.op != "call_function" or other.op != one.op or one.target is not other.target:
        return False
    if (one, other) not in known:
        known[one, other] = False
        mine, theirs = one.all_input_nodes, other.all_input_nodes
        rest = [fx.node.map_arg((each.args, each.kwargs), lambda source: None) for each in (one, other)]
        alike = one.target not in _RANDOM and len(mine) == len(theirs) and rest[0] == rest[1]
        known[one, other] = alike and all(
            _same_values(a, b, known) for a, b in zip(mine, theirs, strict=True)
        )
    return known[one, other]


def _linear(form: NormalForm, node: fx.Node) -> None:
    weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
    value = form.constant(weight)
    if value is not None and value.dim() == 2:
        _layer_made(form, node, nn.Linear, weight, bias, value.shape[1], value.shape[0])


def _embedding(form: NormalForm, node: fx.Node) -> None:
    """A table whose places may be constants (positions)."""
    weight, read = node.args[:2]
    value = form.constant(weight)
    if value is None or not isinstance(read, fx.Node) or (held := _own_weight(form, weight, {node})) is None:
        return
    rows, columns = value.shape
    unused = int(_argument(node, "padding_idx", 2, -1))
    module = nn.Embedding(rows, columns, padding_idx=unused if unused >= 0 else None, device="meta")
    module.weight = _parameter(held)
    form.put(node, form.name(_layer_name(form, node, weight)), module, read)


def _recurrent(form: NormalForm, node: fx.Node) -> None:
    """Its matrices are modules of their own, of which a policy can say how they are stored; those of a cell
    are read once for each step."""
    for source in node.all_input_nodes:
        _alone(form, source)


def _alone(form: NormalForm, source: fx.Node) -> fx.Node:
    """A matrix that is a parameter as a module of its own, which is called in its place; the call. Anything
    else is as it is."""
    held = form.held(str(source.target)) if source.op == "get_attr" else None
    if not isinstance(held, nn.Parameter) or held.dim() != 2:
        return source
    name = str(source.target)
    owner, _, key = name.rpartition(".")
    delattr(form.graph.get_submodule(owner), key)
    form.graph.add_submodule(name, Weights(held))
    with form.graph.graph.inserting_before(source):
        called = form.graph.graph.call_module(name)
    called.meta = dict(source.meta)
    form.replace(source, called)
    return called


_CONVOLUTIONS: Mapping[Any, type[nn.Module]] = {
    aten.conv1d.default: nn.Conv1d, aten.conv2d.default: nn.Conv2d, aten.conv3d.default: nn.Conv3d,
    aten.conv1d.padding: nn.Conv1d, aten.conv2d.padding: nn.Conv2d, aten.conv3d.padding: nn.Conv3d,
}  # fmt: skip


def _convolution(form: NormalForm, node: fx.Node) -> None:
    cls = _CONVOLUTIONS[node.target]
    given = [_argument(node, name, place, default) for place, (name, default) in enumerate(
        (("input", None), ("weight", None), ("bias", None), ("stride", 1), ("padding", 0), ("dilation", 1),
         ("groups", 1)))]  # fmt: skip
    _, weight, bias, stride, padding, dilation, groups = given
    value = form.constant(weight)
    read = node.args[0]
    if value is None or not isinstance(read, fx.Node) or read.meta["val"].dim() != value.dim():
        return
    sizes = tuple(value.shape[2:])
    options = {
        "kernel_size": sizes, "stride": _sizes(stride, len(sizes)), "dilation": _sizes(dilation, len(sizes)),
        "padding": padding if isinstance(padding, str) else _sizes(padding, len(sizes)), "groups": groups,
    }  # fmt: skip
    _layer_made(form, node, cls, weight, bias, value.shape[1] * groups, value.shape[0], **options)


_TRANSPOSED: Mapping[Any, type[nn.Module]] = {
    aten.conv_transpose1d.default: nn.ConvTranspose1d, aten.conv_transpose2d.input: nn.ConvTranspose2d,
    aten.conv_transpose3d.input: nn.ConvTranspose3d,
}  # fmt: skip


def _transposed(form: NormalForm, node: fx.Node) -> None:
    cls = _TRANSPOSED[node.target]
    given = [_argument(node, name, place, default) for place, (name, default) in enumerate(
        (("input", None), ("weight", None), ("bias", None), ("stride", 1), ("padding", 0),
         ("output_padding", 0), ("groups", 1), ("dilation", 1)))]  # fmt: skip
    _, weight, bias, stride, padding, output_padding, groups, dilation = given
    value = form.constant(weight)
    if value is None:
        return
    n = value.dim() - 2
    _layer_made(
        form, node, cls, weight, bias, value.shape[0], value.shape[1] * groups,
        kernel_size=tuple(value.shape[2:]), stride=_sizes(stride, n), padding=_sizes(padding, n),
        output_padding=_sizes(output_padding, n), groups=groups, dilation=_sizes(dilation, n),
    )  # fmt: skip


def _sizes(value: Any, count: int) -> tuple[int, ...]:
    sizes = [value] if isinstance(value, int) else list(value)
    return tuple(sizes * count) if len(sizes) == 1 else tuple(sizes)


def _norm_made(form: NormalForm, node: fx.Node, module: nn.Module, owned: Mapping[str, Any]) -> bool:
    """Call a norm's module in place of its operator. ``owned``: its parameters and buffers as nodes."""
    values = {key: form.constant(source) for key, source in owned.items() if source is not None}
    if any(value is None for value in values.values()) or not isinstance(node.args[0], fx.Node):
        return False
    first = next((s for s in owned.values() if isinstance(s, fx.Node) and s.op == "get_attr"), None)
    path = str(first.target).rpartition(".")[0] if first is not None else _module_path(node)
    if path and (before := form.norms.get((path, node.args[0]))) is not None:  # the same of the same
        form.replace(node, before)
        return True
    behind = _behind_a_layer(module, owned, node.args[0])
    if behind in form.behind:
        form.norms[path, node.args[0]] = form.call(node, form.behind[behind], node.args[0])
        return True
    name = form.name(path or "norm")
    if name != path and path in form._names and first is not None:
        form.notes.append(f"{path} is used several times: each use has a norm of its own, {name} this one")
    for key, source in owned.items():
        if source is None:
            continue
        own = form.held(str(source.target)) if source.op == "get_attr" and name == path else values[key]
        assert isinstance(own, Tensor)
        if key in ("weight", "bias"):
            setattr(module, key, _parameter(own))
        else:
            setattr(module, key, own.detach().clone())
    read = node.args[0]
    if behind is not None:
        form.behind[behind] = name
    form.norms[path, read] = form.put(node, name, module, read)
    return True


def _behind_a_layer(module: nn.Module, owned: Mapping[str, Any], read: fx.Node) -> tuple[Any, ...] | None:
    """What batch norms have in common that are one module: the same parameters behind the same layer, used
    several times, into whose weights they can be folded. None for a norm that is none of those."""
    if not isinstance(module, _BatchNorm) or read.op != "call_module":
        return None
    return read.target, module.eps, *owned.values()


def _batch_norm(form: NormalForm, node: fx.Node) -> None:
    given: list[Any] = list(node.args)
    x, weight, bias, mean, variance, momentum, eps = given[:7]
    if len(node.users) != 1 or next(iter(node.users)).target is not operator.getitem:
        return
    item = next(iter(node.users))
    cls = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(x.meta["val"].dim(), nn.BatchNorm1d)
    size = form.constant(mean)
    if size is None:
        return
    affine = weight is not None or bias is not None
    module = cls(size.shape[0], eps=eps, momentum=momentum, affine=affine)
    if _norm_made(
        form, node,
        module, {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance},
    ):  # fmt: skip
        called = item.args[0]
        called.meta = dict(item.meta)  # type: ignore[union-attr]
        form.replace(item, called)


def _layer_norm(form: NormalForm, node: fx.Node) -> None:
    shape = list(node.args[1])  # type: ignore[arg-type]
    weight, bias = _argument(node, "weight", 2, None), _argument(node, "bias", 3, None)
    if weight is None and bias is not None:
        return
    eps = _argument(node, "eps", 4, 1e-5)
    module = nn.LayerNorm(shape, eps=eps, elementwise_affine=weight is not None, bias=bias is not None)
    _norm_made(form, node, module, {"weight": weight, "bias": bias})


def _group_norm(form: NormalForm, node: fx.Node) -> None:
    x, groups = node.args[:2]
    weight, bias = _argument(node, "weight", 2, None), _argument(node, "bias", 3, None)
    if (weight is None) != (bias is None):
        return
    eps = _argument(node, "eps", 4, 1e-5)
    channels = int(x.meta["val"].shape[1])  # type: ignore[union-attr]
    module = nn.GroupNorm(groups, channels, eps=eps, affine=weight is not None)  # type: ignore[arg-type]
    _norm_made(form, node, module, {"weight": weight, "bias": bias})


def _rms_norm(form: NormalForm, node: fx.Node) -> None:
    shape, weight = list(node.args[1]), _argument(node, "weight", 2, None)  # type: ignore[arg-type]
    module = nn.RMSNorm(shape, eps=_argument(node, "eps", 3, None), elementwise_affine=weight is not None)
    _norm_made(form, node, module, {"weight": weight})


def _dropout(form: NormalForm, node: fx.Node) -> None:
    read, share = node.args
    assert isinstance(read, fx.Node)
    form.put(node, form.name(_module_path(node) or "dropout"), nn.Dropout(float(share)), read)  # type: ignore[arg-type]


_STEPS = (
    _pieces, _written_over, _shapes, _shuffles, _apart, _expansions, _attention, _projected, _products,
    _means, _pools_of_volumes, _batch_statistics,
)  # fmt: skip

_MAKERS: Mapping[Any, Callable[[NormalForm, fx.Node], None]] = {
    aten.linear.default: _linear,
    aten.embedding.default: _embedding,
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys(_TRANSPOSED, _transposed),
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.layer_norm.default: _layer_norm,
    aten.group_norm.default: _group_norm,
    aten.rms_norm.default: _rms_norm,
    **dict.fromkeys(
        (
            aten.lstm.input,
            aten.gru.input,
            aten.rnn_tanh.input,
            aten.rnn_relu.input,
            aten.lstm_cell.default,
            aten.gru_cell.default,
            aten.rnn_tanh_cell.default,
            aten.rnn_relu_cell.default,
        ),
        _recurrent,
    ),
    DROPOUT: _dropout,
}

_RANDOM = {aten.rand.default, aten.randn.default, aten.bernoulli.p, DROPOUT}
_TURNS = {aten.transpose.int, aten.permute.default, aten.swapaxes.default}


# --- constants and orders


def _is_view(node: fx.Node) -> bool:
    """Whether folding would store more than it saves: an expansion of what is small."""
    return node.target in (aten.expand.default, aten.expand_as.default, aten.repeat.default)


def _order_of_channels(read: fx.Node, *moves: fx.Node) -> tuple[int, Tensor] | None:
    """The dimension and the order of channels that moves amount to, if they amount to that alone."""
    shape = [1 if not isinstance(size, int) else size for size in read.meta["val"].shape]
    last = [1 if not isinstance(size, int) else size for size in moves[-1].meta["val"].shape]
    if shape != last:
        return None
    for axis in (1, len(shape) - 1):
        if axis >= len(shape) or shape[axis] == 1:
            continue
        numbers = torch.arange(shape[axis]).reshape([-1 if d == axis else 1 for d in range(len(shape))])
        moved = numbers.expand(shape)
        for move in moves:
            args = list(move.args[1:])
            if move.target is aten.reshape.default:
                sizes = [1 if not isinstance(s, int) else s for s in move.meta["val"].shape]
                args = [sizes]
            moved = move.target(moved, *args)  # type: ignore[operator]
        first = moved
        for d in range(len(shape)):
            if d != axis:
                first = first.narrow(d, 0, 1)
        if bool((moved == first).all()):
            return axis, first.reshape(-1).clone()
    return None


def _wanted_name(node: fx.Node) -> str:
    if node.op in ("call_module", "get_attr"):
        return _identifier(str(node.target))
    stack = node.meta.get("nn_module_stack") or {}
    path, cls = next(reversed(stack.values()), ("", "")) if stack else ("", "")
    if (
        path
        and str(cls).startswith("torch.nn.modules.")
        and "." not in str(cls).removeprefix("torch.nn.modules.").replace(".", "", 1)
    ):
        return _identifier(str(path).split("@")[0])
    name = node.meta.get("called") or getattr(node.target, "__name__", str(node.target)).split(".")[0]
    return _identifier(str(name))


def _identifier(name: str) -> str:
    made = "".join(letter if letter.isalnum() or letter == "_" else "_" for letter in name)
    return f"_{made}" if made[:1].isdigit() else made
