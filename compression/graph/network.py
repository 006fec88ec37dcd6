"""A network as the cost models and the search see it: what it has, and what is left of it when it is cut."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from leanfront.compression.graph.branches import Branch, find_branches, rest
from leanfront.compression.graph.nodes import Graph, Layer, Node, Segment

_REMEMBERED_GROUPS = 3  # tensors of more groups come in too many sizes to remember them
_REMEMBERED_CUTS = 4096


@dataclass(frozen=True)
class Network(Graph):
    """A graph whose groups of channels can be cut, and whose branches can be left out."""

    @cached_property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers, in order of execution."""
        return tuple(self.layer)

    @cached_property
    def groups(self) -> Mapping[str, tuple[Layer, ...]]:
        """Group name -> the layers whose output channels it is, in order of execution."""
        members: dict[str, list[Layer]] = {}
        for layer in self.layers:
            if layer.group is not None:
                members.setdefault(layer.group, []).append(layer)
        return {name: tuple(layers) for name, layers in members.items()}

    @cached_property
    def group_layers(self) -> Mapping[str, tuple[str, ...]]:
        """Group name -> names of the layers whose output channels it is."""
        return {group: tuple(layer.name for layer in layers) for group, layers in self.groups.items()}

    @cached_property
    def uncut(self) -> tuple[str, ...]:
        """Names of the layers whose channels cannot be cut."""
        return tuple(layer.name for layer in self.layers if layer.group is None)

    @cached_property
    def weight_only(self) -> tuple[str, ...]:
        """Names of the layers of which a policy says how they are stored alone."""
        return tuple(layer.name for layer in self.layers if layer.weight_only)

    @cached_property
    def reading_together(self) -> tuple[tuple[str, ...], ...]:
        """Names of layers that read the same tensor, of each tensor that several do."""
        readers: dict[str, list[str]] = {}
        for node in self.nodes:
            if node.layer is not None and node.layer not in readers.setdefault(node.source, []):
                readers[node.source].append(node.layer)
        return tuple(tuple(names) for names in readers.values() if len(names) > 1)

    @cached_property
    def first_readers(self) -> Mapping[str, str]:
        """Layer -> the first layer whose tensors have as many bits as its own: it reads the same one, or one
        that is read by a layer which reads several, being used several times, and so on."""
        first = {name: name for node in self.nodes if (name := node.layer) is not None}
        place = {name: number for number, name in enumerate(first)}
        readers: dict[str, str] = {}
        for node in self.nodes:
            if node.layer is None:
                continue
            one, other = first[node.layer], first[readers.setdefault(node.source, node.layer)]
            if one != other:
                low, high = sorted((one, other), key=place.__getitem__)
                first = {name: low if own == high else own for name, own in first.items()}
        return first

    @cached_property
    def branches(self) -> tuple[Branch, ...]:
        """Residual branches that can be left out whole, in order of execution."""
        return find_branches(self)

    def without(self, branches: Iterable[Branch]) -> "Network":
        """The network with some of its ``branches`` left out; itself where there are none."""
        left_out = tuple(branches)
        if not left_out:
            return self
        key = frozenset([branch.join for branch in left_out])
        if key not in self._without:
            if len(self._without) >= _REMEMBERED_CUTS:
                self._without.clear()
            self._without[key] = self.resized({}, left_out)
        return self._without[key]

    @cached_property
    def _without(self) -> "dict[frozenset[str], Network]":
        return {}

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(layer.shape.macs for node in self.nodes if (layer := self.used(node)) is not None)

    @property
    def weight_count(self) -> int:
        """Weights of all layers, without biases."""
        return sum(layer.shape.weight_count for layer in self.layers)

    def group_size(self, group: str) -> int:
        """Channels of a group, all its blocks together."""
        return self.group_sizes[group]

    @cached_property
    def blocks(self) -> Mapping[tuple[str, int], int]:
        """(group, block) -> its channels."""
        return {
            (s.group, s.block): s.size for node in self.nodes for s in node.channels if s.group is not None
        }

    def resized(self, channels: Mapping[str, int], left_out: tuple[Branch, ...] = ()) -> "Network":
        """The network with the groups named in ``channels`` cut to so many channels; the rest as it is, but
        for the branches that are left out.

        Raises:
            ValueError: a group is unknown, or would have no channel or more than it has.
        """
        sizes = self.group_sizes
        for group, count in channels.items():
            if group not in sizes:
                raise ValueError(f"no channel group {group!r}; there are {', '.join(sizes) or 'none'}")
            if not 1 <= count <= sizes[group]:
                raise ValueError(f"group {group!r} has {sizes[group]} channels, cannot keep {count}")

        counts = {**sizes, **channels}
        nodes, layers = self._parts(counts, left_out)
        return Network(nodes, layers, self.outputs)

    def _parts(
        self, counts: Mapping[str, int], left_out: tuple[Branch, ...]
    ) -> tuple[tuple[Node, ...], tuple[Layer, ...]]:
        """Nodes and layers with so many channels in groups, without branches."""
        nodes, made = list(self.nodes), self._made
        for groups, indices in self._nodes_of_groups.items():
            kept = tuple([counts.get(group, 0) for group in groups])
            for index, node in zip(indices, made.get((groups, kept)) or self._cut(groups, kept), strict=True):
                nodes[index] = node
        layers = []
        for row, (own, source) in enumerate(self._layer_sources):
            shape = self.layers[row].shape
            key = (
                row,
                nodes[source].width if self.nodes[source].width == shape.in_channels else shape.in_channels,
                nodes[own].width if self.nodes[own].width == shape.out_channels else shape.out_channels,
            )  # where something else is read along another dimension, its width is another
            layers.append(made.get(key) or self._resized(*key))
        if left_out:
            return rest(nodes, layers, left_out)
        return tuple(nodes), tuple(layers)

    @cached_property
    def group_sizes(self) -> Mapping[str, int]:
        """Group name -> channels, all its blocks together."""
        found = dict.fromkeys(self.groups, 0)
        for (group, _), size in self.blocks.items():
            if group in found:
                found[group] += size
        return found

    @cached_property
    def _nodes_of_groups(self) -> Mapping[tuple[str, ...], tuple[int, ...]]:
        """Groups whose channels a tensor has -> indices of the nodes with such tensors."""
        found: dict[tuple[str, ...], list[int]] = {}
        for index, node in enumerate(self.nodes):
            if groups := tuple(dict.fromkeys(s.group for s in node.channels if s.group is not None)):
                found.setdefault(groups, []).append(index)
        return {groups: tuple(indices) for groups, indices in found.items()}

    @cached_property
    def _layer_sources(self) -> tuple[tuple[int, int], ...]:
        """For each layer the index of its node, and of the node that it reads: of its first use, for all have
        as many channels."""
        index = {node.name: row for row, node in enumerate(self.nodes)}
        own = [self.node[self.uses[layer.name][0]] for layer in self.layers]
        return tuple((index[node.name], index[node.source]) for node in own)

    @cached_property
    def _made(self) -> dict[object, Any]:
        """Nodes and layers that were cut before: a search resizes the same ones again and again."""
        return {}

    def _cut(self, groups: tuple[str, ...], kept: tuple[int, ...]) -> tuple[Node, ...]:
        """The nodes whose tensors have the channels of these groups, with so many of each kept; 0: all."""
        counts, sizes = dict(zip(groups, kept, strict=True)), self.group_sizes

        def smaller(segment: Segment) -> Segment:
            group = segment.group or ""
            if not counts.get(group):
                return segment
            return replace(segment, size=block_kept(segment.size, counts[group], sizes[group]))

        made = tuple(
            replace(node, channels=tuple(smaller(segment) for segment in node.channels))
            for node in [self.nodes[index] for index in self._nodes_of_groups[groups]]
        )
        if len(kept) <= _REMEMBERED_GROUPS:
            self._made[groups, kept] = made
        return made

    def _resized(self, row: int, in_channels: int, out_channels: int) -> Layer:
        """A layer with so many channels."""
        made = self.layers[row].with_channels(in_channels, out_channels)
        self._made[row, in_channels, out_channels] = made
        return made


def block_kept(size: Any, kept: Any, of: Any) -> Any:
    """Channels that a block keeps where its group keeps ``kept`` of ``of``: its share, at least one. Numbers
    or arrays."""
    share = (2 * size * kept + of) // (2 * of)
    return share + (share == 0)
