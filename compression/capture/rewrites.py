"""Rewrites: several tensors at once become single ones, sizes are reshapes, attention is products."""

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

from leanfront.compression.capture.edited_graph import (
    EditedGraph,
    alike,
    argument,
    module_path,
    same_size,
)
from leanfront.compression.capture.program import TraceError
from leanfront.compression.graph.operations import OPAQUE, by_aten

aten = torch.ops.aten


def _pieces(form: EditedGraph) -> None:
    """Chunks, splits and unbinds become slices, each on its own."""
    targets = (
        aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int,
        aten.tensor_split.sections, aten.split.sizes,
    )  # fmt: skip
    for node in form.functions(*targets):
        read, values = node.args[0], list(node.meta["val"])
        assert isinstance(read, fx.Node)
        shape = read.meta["val"].shape
        dim = argument(node, "dim", 1 if node.target is aten.unbind.int else 2, 0) % len(shape)
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


_BAGS = {0: (aten.sum.dim_IntList, [1]), 1: (aten.mean.dim, [1]), 2: (aten.amax.default, [1])}
"""Mode of a bag -> what is made of its rows."""


def _bags(form: EditedGraph) -> None:
    """A bag of each row of ids, all as long, is a table that is looked up, and a sum, mean or maximum."""
    for node in form.functions(aten.embedding_bag.padding_idx, aten.embedding_bag.default):
        weight, flat, starts = node.args[:3]
        weighed = argument(node, "per_sample_weights", 6, None) is not None
        padding = argument(node, "padding_idx", 8, None)
        if weighed or (padding is not None and padding >= 0):
            continue
        if not (isinstance(flat, fx.Node) and flat.target is aten.reshape.default and flat.args[1] == [-1]):
            continue
        ids = flat.args[0]
        assert isinstance(ids, fx.Node)
        length = ids.meta["val"].shape[-1]
        evenly = isinstance(starts, fx.Node) and starts.target is aten.arange.start_step
        if ids.meta["val"].dim() != 2 or not evenly or starts.args[0] != 0 or starts.args[2] != length:  # type: ignore[union-attr]
            continue
        if not all(user.target is operator.getitem and user.args[1] == 0 for user in node.users):
            continue
        target, dims = _BAGS[int(argument(node, "mode", 4, 0))]
        for user in list(node.users):
            rows = user.meta["val"].unsqueeze(1).expand(-1, length, -1)
            looked_up = form.function(user, aten.embedding.default, (weight, ids), rows)
            made = form.function(user, target, (looked_up, dims))
            made.meta = dict(user.meta)
            form.replace(user, made)


def _distances(form: EditedGraph) -> None:
    """Distances between rows, which torch.onnx has no operation for, written out."""
    norms = {2.0: (aten.square.default, aten.sqrt.default), 1.0: (aten.abs.default, None)}
    for node in form.functions(aten.cdist.default):
        one, other = node.args[:2]
        p = float(argument(node, "p", 2, 2.0))
        if p not in norms or not isinstance(one, fx.Node) or not isinstance(other, fx.Node):
            continue
        rows, columns = one.meta["val"].unsqueeze(-2), other.meta["val"].unsqueeze(-3)
        each, whole = norms[p]
        apart = form.function(
            node,
            aten.sub.Tensor,
            (
                form.function(node, aten.unsqueeze.default, (one, -2), rows),
                form.function(node, aten.unsqueeze.default, (other, -3), columns),
            ),
            rows - columns,
        )
        found = form.function(node, each, (apart,), apart.meta["val"])
        found = form.function(node, aten.sum.dim_IntList, (found, [-1]), node.meta["val"])
        if whole is not None:
            found = form.function(node, whole, (found,), node.meta["val"])
        found.meta = dict(node.meta)
        form.replace(node, found)


def _written_over(form: EditedGraph) -> None:
    """A tensor of which a slice is written over is what stays on either side, with the new slice between:
    joined, each has a range and channels of its own."""
    for node in form.functions(aten.copy.default):
        over, new = node.args[:2]
        assert isinstance(over, fx.Node)
        if isinstance(new, fx.Node) and alike(over.meta["val"], new.meta["val"]):
            form.replace(node, new)
    for node in form.functions(aten.slice_scatter.default, aten.select_scatter.default):
        over, new = node.args[:2]
        assert isinstance(over, fx.Node)
        assert isinstance(new, fx.Node)
        value, one = over.meta["val"], node.target is aten.select_scatter.default
        dim = int(argument(node, "dim", 2, 0)) % value.dim()
        size, start = value.shape[dim], argument(node, "index" if one else "start", 3, 0) or 0
        end = (start + 1 or None) if one else argument(node, "end", 4, None)
        if not one and alike(value, new.meta["val"]):  # all of it
            form.replace(node, new)
            continue
        known = all(isinstance(number, int) for number in (size, start, end or 0))
        if not known or argument(node, "step", 5, 1) != 1 or value.dtype != new.meta["val"].dtype:
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


def _shapes(form: EditedGraph) -> None:
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


def _shuffles(form: EditedGraph) -> None:
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
    """A reshape to (batch, everything else) says so, and not how much that is. Where channels are counted
    together with the batch, that is the size that is left open, and none beside it: it changes with a cut."""
    sizes, value = list(node.args[1]), node.meta.get("val")  # type: ignore[arg-type]
    if not isinstance(value, Tensor):
        return
    if len(sizes) == 2 and -1 not in sizes and isinstance(sizes[0], fx.Node):
        node.args = (node.args[0], [sizes[0], -1])
        node.meta["called"] = "flatten"
    elif -1 in sizes and any(isinstance(size, fx.Node) and size.target is operator.mul for size in sizes):
        place = sizes.index(-1)
        if isinstance(value.shape[place], int):
            node.args = (node.args[0], [*sizes[:place], int(value.shape[place]), *sizes[place + 1 :]])


# --- attention and products


def _attention(form: EditedGraph) -> None:
    """Attention as its products (Vaswani et al. 2017, equation 1)."""
    for node in form.functions(aten.scaled_dot_product_attention.default):
        query, key, value = node.args[:3]
        mask = argument(node, "attn_mask", 3, None)
        causal, grouped = argument(node, "is_causal", 5, False), argument(node, "enable_gqa", 6, False)
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
    return read if same_rank and alike(values[0], values[1]) else node  # type: ignore[arg-type]


def _expansions(form: EditedGraph) -> None:
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
        sizes = [-1 if same_size(one, other) else other for one, other in zip(met, value.shape, strict=False)]
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


def _apart(form: EditedGraph) -> None:
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
    if same_size(value.shape[0], 1):
        return True
    source = operand.args[0] if operand.target is aten.reshape.default else None
    if not isinstance(source, fx.Node) or source.target is not aten.expand.default:
        return None
    sizes = [*map(str, (*leading, *value.shape[1:]))]
    fits = [*map(str, source.meta["val"].shape)] == sizes and same_size(value.shape[0], together)
    return source if fits else None


def _met_sizes(values: list[Tensor]) -> list[Any]:
    """Sizes of tensors that meet value by value, those of 1 repeated."""
    rank = max(value.dim() for value in values)
    aligned = [[1] * (rank - value.dim()) + list(value.shape) for value in values]
    return [
        next((size for size in sizes if not same_size(size, 1)), 1) for sizes in zip(*aligned, strict=True)
    ]


_NOT_ALIKE = {aten.prelu.default, aten._prelu_kernel.default, aten.copy.default}
"""What does not treat all of its operands value by value."""


def _products(form: EditedGraph) -> None:
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


def _projected(form: EditedGraph) -> None:
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
                f"{module_path(node) or 'an LSTM'} has proj_size and starts from a state that is given, of"
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
    form: EditedGraph, node: fx.Node, reads: tuple[fx.Node, fx.Node], own: list[list[fx.Node]], size: int,
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
        across, projection = form.alone(across), form.alone(projection)
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
    form: EditedGraph, node: fx.Node, read: fx.Node, dim: int, start: int, length: int, whole: int
) -> fx.Node:
    """So much of a tensor along a dimension; itself where that is all."""
    if length == whole:
        return read
    return form.function(node, aten.slice.Tensor, (read, dim, start, start + length))


def _joined(form: EditedGraph, node: fx.Node, parts: list[fx.Node], dim: int) -> fx.Node:
    return parts[0] if len(parts) == 1 else form.function(node, aten.cat.default, (parts, dim))


_ZEROS = (aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default)


# --- means


def _means(form: EditedGraph) -> None:
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


def _pools_of_volumes(form: EditedGraph) -> None:
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
    form: EditedGraph, node: fx.Node, read: fx.Node, dim: int, before: int, after: int
) -> fx.Node:
    """A pool to so many places along one dimension, whose windows overlap or differ in size."""
    parts, value = [], read.meta["val"]
    for place in range(after):
        start, end = place * before // after, -(-(place + 1) * before // after)
        part = value.narrow(dim, start, end - start)
        piece = form.function(node, aten.slice.Tensor, (read, dim, start, end), part)
        parts.append(form.function(node, aten.mean.dim, (piece, [dim], True), part.narrow(dim, 0, 1)))
    return form.function(node, aten.cat.default, (parts, dim))


def _batch_statistics(form: EditedGraph) -> None:
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
            weight, bias = argument(node, "weight", 2, None), argument(node, "bias", 3, None)
            own, eps = given[1] == value.shape[1], argument(node, "eps", 4, 1e-5)
        if own and over:
            made = _normed(form, node, given[0], over, weight, bias, eps)
            made.meta = dict(node.meta)
            form.replace(node, made)


def _normed(
    form: EditedGraph, node: fx.Node, x: fx.Node, over: list[int], weight: Any, bias: Any, eps: float
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


def _nothing_joined(form: EditedGraph) -> None:
    """What is joined with tensors that hold nothing (caches that are still empty) is itself."""
    for node in form.functions(aten.cat.default, aten.concat.default, aten.concatenate.default):
        parts = list(node.args[0])  # type: ignore[arg-type]
        held = [part for part in parts if not any(same_size(size, 0) for size in part.meta["val"].shape)]
        if not held or len(held) == len(parts):
            continue
        if len(held) == 1 and held[0].meta["val"].dtype == node.meta["val"].dtype:
            form.replace(node, held[0])
        elif len({part.meta["val"].dtype for part in held} | {node.meta["val"].dtype}) == 1:
            node.args = (held, *node.args[1:])


REWRITES = (
    _nothing_joined, _pieces, _distances, _written_over, _shapes, _bags, _shuffles, _apart, _expansions,
    _attention, _projected, _products, _means, _pools_of_volumes, _batch_statistics,
)  # fmt: skip
"""In this order."""
