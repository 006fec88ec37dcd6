"""The normal form of a captured program: layers, norms and dropouts are modules of torch under the user's own
names, everything else an ATen operator; what computes nothing is gone, and sizes can be changed.

Nothing behind this room knows how the user wrote it: a function, a subclass, weight_norm, a hook, a mask:
what is computed counts.
"""

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from leanfront.compression.capture.edited_graph import EditedGraph, same_size
from leanfront.compression.capture.layer_modules import MAKERS
from leanfront.compression.capture.rewrites import REWRITES

aten = torch.ops.aten

_TURNS = {aten.transpose.int, aten.permute.default, aten.swapaxes.default}


class NormalForm(EditedGraph):
    """A program on its way to the normal form."""

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
        for step in REWRITES:
            step(self)
            self.graph.graph.eliminate_dead_code()

    def _modules_in(self) -> None:
        held = (*self.graph.named_parameters(), *self.graph.named_buffers())
        self._names = {name for name, _ in held}
        for node in list(self.graph.graph.nodes):
            if node.op == "call_function" and (make := MAKERS.get(node.target)) is not None:
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
            if bool((index == torch.arange(len(index))).all()):  # of windows that there is one of
                self.replace(last, read)
                continue
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
}  # fmt: skip
_PADS = {aten.constant_pad_nd.default, aten.pad.default}
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
    if node.target in _PADS:  # one that cuts off as much elsewhere has the same shape, and shifts
        return not any(list(node.args[1]))  # type: ignore[arg-type]
    if node.target not in _SAME_SHAPE or len(before.shape) != len(after.shape):
        return False
    return all(same_size(one, other) for one, other in zip(before.shape, after.shape, strict=True))


def _is_view(node: fx.Node) -> bool:
    """Whether folding would store more than it saves: an expansion of what is small."""
    return node.target in (aten.expand.default, aten.expand_as.default, aten.repeat.default)


def _order_of_channels(read: fx.Node, *moves: fx.Node) -> tuple[int, Tensor] | None:
    """The dimension and the order of channels that moves amount to, if they amount to that alone: every value
    is numbered and followed."""
    shape, last = (_of_two(node.meta["val"]) for node in (read, moves[-1]))
    if shape != last:
        return None
    numbers = torch.arange(math.prod(shape)).reshape(shape)
    moved = numbers
    for move in moves:
        args = [_of_two(move.meta["val"])] if move.target is aten.reshape.default else list(move.args[1:])
        moved = move.target(moved, *args)  # type: ignore[operator]
    for axis in (1, len(shape) - 1):
        if axis >= len(shape) or shape[axis] == 1:
            continue
        places = [0] * axis + [slice(None)] + [0] * (len(shape) - axis - 1)
        index = moved[tuple(places)] // numbers.stride(axis) % shape[axis]
        if torch.equal(moved, numbers.index_select(axis, index)):
            return axis, index.clone()
    return None


def _of_two(value: Tensor) -> list[int]:
    """Sizes of a tensor with a batch of two: so it is seen where examples change places, too. A dimension may
    be a multiple of the batch (frames of a film)."""
    return [
        size
        if isinstance(size, int)
        else int(size.node.expr.subs(dict.fromkeys(size.node.expr.free_symbols, 2)))
        for size in value.shape
    ]


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
