"""What a cut network has to compute: the uncut one with the removed channels set to zero where layers meet
them, and left out of the norms that span them.

Beside that the same is computed with other values in the removed channels. Where the two differ is where the
removed channels are, which tells norms what to leave out; where something that stays differs, an operation
other than a layer or a norm has spread removed channels over others, and what the cut network should compute
there cannot be told.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from leanfront.compression.capture.program import Arguments, tensors_in
from leanfront.search.gate.tensors import read_by, width

Kept = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""Layer -> indices of the input and of the output channels that stay."""

Held = Mapping[str, tuple[int, tuple[int, ...]]]
"""Address of a parameter of the model's own -> the dimension of its channels, and which of them stay."""

RMSNorm: type[nn.Module] = nn.RMSNorm
SPANNING = (nn.LayerNorm, nn.GroupNorm, RMSNorm)
"""Norms that compute with several channels at once."""
_SPREAD = 1e-4
"""Share of a tensor's range by which it may change with the removed channels and still count as unchanged."""


class _Pair:
    """A value with the removed channels at zero, and with other values in them; one object if equal."""

    def __init__(self, zeros: Any, others: Any) -> None:
        self.zeros, self.others = zeros, others


@dataclass
class Masked:
    """What came out. ``spread``: the first node that read values which stay, and which changed with those
    that do not; None: there is none."""

    outputs: list[Tensor] = field(default_factory=list)
    spread: str | None = None


Seen = Callable[[fx.Node, Tensor, Tensor], None]
"""Called with a node, its tensor with zeros in removed channels, and the same with other values in them."""


def masked(
    module: fx.GraphModule,
    cut: nn.Module,
    kept: Kept,
    given: Arguments,
    seen: Seen = lambda node, zeros, others: None,
    held: Held = MappingProxyType({}),
) -> Masked:
    """Run a captured network as the cut one has to compute.

    Args:
        module: uncut, already without the branches that are left out. cut: the cut one, asked for the sizes
            of its norms alone. kept, held: of each layer and each parameter of its own the channels that
            stay.
    """
    return _Run(module, cut, kept, held, seen).run(given)


class _Run:
    def __init__(self, module: fx.GraphModule, cut: nn.Module, kept: Kept, held: Held, seen: Seen) -> None:
        self.module, self.cut, self.kept, self.held, self.seen = module, cut, kept, held, seen
        self.noise = torch.Generator().manual_seed(0)
        self.found = Masked()

    @torch.no_grad()
    def run(self, given: Arguments) -> Masked:
        graph = self.module.graph
        values: dict[fx.Node, _Pair] = {}
        last = {source: node for node in graph.nodes for source in node.all_input_nodes}
        inputs = iter(read_by(graph, given))
        for node in graph.nodes:
            if node.op == "output":
                ended = self._both(values, node.args[0])
                self.found.outputs = tensors_in(ended.zeros)
                for one, other in zip(self.found.outputs, tensors_in(ended.others), strict=True):
                    self._note(node, one, other)
                break
            values[node] = made = self._node(node, values, inputs)
            if isinstance(made.zeros, Tensor):
                self.seen(node, made.zeros, made.others)
            for source in node.all_input_nodes:
                if last[source] is node:
                    del values[source]
        return self.found

    def _node(self, node: fx.Node, values: Mapping[fx.Node, _Pair], inputs: Any) -> _Pair:
        if node.op == "placeholder":
            value = next(inputs, *node.args[:1])
            value = value.clone() if isinstance(value, Tensor) else value
            return _Pair(value, value)
        if node.op == "get_attr":
            value = attrgetter(str(node.target))(self.module)
            axis, stays = self.held.get(str(node.target), (0, ()))
            gone = str(node.target) in self.held and value.is_floating_point()
            # its own values where zeros are: a norm right behind it tells by the others what to leave out
            return _Pair(value, self._without(value, axis, stays).others if gone else value)
        read = self._both(values, (node.args, node.kwargs))
        if node.op == "call_module":
            part = self.module.get_submodule(str(node.target))
            first = _Pair(read.zeros[0][0], read.others[0][0]) if read.zeros[0] else None
            if node.target in self.kept and first is not None and isinstance(first.zeros, Tensor):
                return self._layer(node, part, first, read)
            if isinstance(part, SPANNING) and first is not None and first.zeros is not first.others:
                return self._norm(node, part, first)
        one = self._called(node, read.zeros)
        return _Pair(one, one if read.zeros is read.others else self._called(node, read.others))

    def _both(self, values: Mapping[fx.Node, _Pair], given: Any) -> _Pair:
        """Arguments in both forms; one object where no value differs."""
        differs = False

        def taken(value: Any, other: bool) -> Any:
            nonlocal differs
            if not isinstance(value, fx.Node):
                return value
            pair = values[value]
            differs = differs or pair.zeros is not pair.others
            return pair.others if other else pair.zeros

        zeros = map_aggregate(given, lambda value: taken(value, False))
        return _Pair(zeros, map_aggregate(given, lambda value: taken(value, True)) if differs else zeros)

    def _called(self, node: fx.Node, given: Any) -> Any:
        args, kwargs = given
        if node.op == "call_module":
            return self.module.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _layer(self, node: fx.Node, part: nn.Module, first: _Pair, read: _Pair) -> _Pair:
        """A layer reads zeros in the input channels that go, and puts out zeros in those outputs that go."""
        inputs, outputs = self.kept[str(node.target)]
        args, kwargs = read.zeros
        tensor = first.zeros
        if tensor.is_floating_point():
            axis = _axis(part, tensor)
            stays = torch.tensor(inputs, device=tensor.device)
            self._note(node, tensor.index_select(axis, stays), first.others.index_select(axis, stays))
            tensor = tensor.index_fill(axis, _gone(tensor, axis, inputs), 0)
        made = part(tensor, *args[1:], **kwargs)
        return self._without(made, _axis(part, made), outputs)

    def _without(self, made: Tensor, axis: int, stays: tuple[int, ...]) -> _Pair:
        gone = _gone(made, axis, stays)
        if not len(gone):
            return _Pair(made, made)
        # of both signs and wider than what is there: nothing behind it may take it for the same
        noise = torch.randn(made.shape, generator=self.noise).to(made) * (3 * width(made) + 1)
        others = made.index_copy(axis, gone, noise.index_select(axis, gone))
        return _Pair(made.index_fill(axis, gone, 0), others)

    def _norm(self, node: fx.Node, norm: nn.Module, first: _Pair) -> _Pair:
        """A norm over the channels that stay alone."""
        spread = _changed(first.zeros, first.others)
        if isinstance(norm, nn.GroupNorm):
            gone = spread.any(0) if spread.dim() < 3 else spread.transpose(0, 1).flatten(1).any(1)
            places = gone.nonzero()[:, 0]
            sizes = norm.num_channels
        else:
            shape = tuple(norm.normalized_shape)  # type: ignore[arg-type]
            gone = spread.reshape(-1, *shape).any(0).reshape(-1)
            places, sizes = gone.nonzero()[:, 0], gone.numel()
        smaller = _channels(self.cut.get_submodule(str(node.target)))
        if not len(places):
            made = norm(first.zeros)
            return _Pair(made, made)
        if sizes - len(places) != smaller:  # what stays has changed, too
            self.found.spread = self.found.spread or node.name
            made = norm(first.zeros)
            return _Pair(made, made)
        if isinstance(norm, nn.GroupNorm):
            made = _group_norm(norm, first.zeros, ~gone)
            return self._without(made, 1, tuple((~gone).nonzero()[:, 0].tolist()))
        flat = first.zeros.flatten(first.zeros.dim() - len(norm.normalized_shape))  # type: ignore[arg-type]
        stays = (~gone).nonzero()[:, 0]
        made = torch.zeros_like(flat).index_copy(-1, stays, _over(norm, flat.index_select(-1, stays), stays))
        pair = self._without(made, made.dim() - 1, tuple(stays.tolist()))
        return _Pair(pair.zeros.reshape(first.zeros.shape), pair.others.reshape(first.zeros.shape))

    def _note(self, node: fx.Node, one: Tensor, other: Tensor) -> None:
        if one is not other and self.found.spread is None and bool(_changed(one, other).any()):
            self.found.spread = node.name


def _over(norm: nn.Module, flat: Tensor, stays: Tensor) -> Tensor:
    """A layer norm, or one of root mean squares, over some of its features (..., n)."""
    weight, bias = (
        None if (held := getattr(norm, name, None)) is None else held.reshape(-1)[stays]
        for name in ("weight", "bias")
    )
    if isinstance(norm, nn.LayerNorm):
        return F.layer_norm(flat, (len(stays),), weight, bias, norm.eps)
    eps = norm.eps
    assert eps is None or isinstance(eps, float)
    return F.rms_norm(flat, (len(stays),), weight, eps)


def _group_norm(norm: nn.GroupNorm, tensor: Tensor, stays: Tensor) -> Tensor:
    """A group norm of which each group has the channels that stay."""
    made = torch.zeros_like(tensor)
    size = norm.num_channels // norm.num_groups
    for start in range(0, norm.num_channels, size):
        places = start + stays[start : start + size].nonzero()[:, 0]
        if len(places):
            weight, bias = (None if w is None else w[places] for w in (norm.weight, norm.bias))
            normed = F.group_norm(tensor.index_select(1, places), 1, weight, bias, norm.eps)
            made.index_copy_(1, places, normed)
    return made


def _channels(norm: nn.Module) -> int:
    """Values that a norm's statistics and gains are for."""
    if isinstance(norm, nn.GroupNorm):
        return norm.num_channels
    count = 1
    for size in norm.normalized_shape:  # type: ignore[union-attr]
        count *= size
    return count


def _changed(one: Tensor, other: Tensor) -> Tensor:
    if one.shape != other.shape:
        return torch.ones(1, dtype=torch.bool)
    if not one.is_floating_point():
        return one != other
    return ~((one - other).abs() <= _SPREAD * width(one)) & ~(one == other)


def _axis(layer: nn.Module, tensor: Tensor) -> int:
    """Of the channels of what a layer reads or puts out."""
    window = getattr(layer, "kernel_size", None)
    if not isinstance(window, tuple):
        return tensor.dim() - 1
    return tensor.dim() - len(window) - 1


def _gone(tensor: Tensor, axis: int, stays: tuple[int, ...]) -> Tensor:
    kept = set(stays)
    gone = [index for index in range(tensor.shape[axis]) if index not in kept]
    return torch.tensor(gone, dtype=torch.long, device=tensor.device)
