"""Classes of channels: which are one, in which groups they are cut, which blocks keep their own share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import fx

from leanfront.compression.capture.channels import STAYS, Flow, Numbers, one_of_each
from leanfront.compression.graph import Segment

Array = NDArray[np.int64]


@dataclass(frozen=True)
class Classes:
    """What the channels of a network's tensors are. By name of a node: of_node: the class of each channel, -1
    where it stays; axes: the dimension of channels; segments: the same as blocks; group: the group of what a
    layer puts out. blocks: (classes,) number of the block of each class; block_numbers: (group, block) ->
    its number.
    """

    of_node: Mapping[str, Array]
    axes: Mapping[str, int]
    segments: Mapping[str, tuple[Segment, ...]]
    group: Mapping[str, str | None]
    blocks: Array
    block_numbers: Mapping[tuple[str, int], int]


def classes_of(numbers: Numbers, flows: Mapping[fx.Node, Flow], layers: Sequence[fx.Node]) -> Classes:
    """Classes, groups and blocks of the channels that ``flows`` have.

    A class has a channel of a layer, else nothing is won by cutting it. A group has the classes of its
    layers, for a layer has one sparsity; a block those of them that appear equally often in every tensor, so
    that how many of it stay settles every size. ``layers``: their nodes, in order of execution.
    """
    while True:
        roots = numbers.classes()
        wild = [node for node, flow in flows.items() if flow.wild]
        own = {node: roots[flow.numbers.numpy()] for node, flow in flows.items()}
        useful = np.zeros(len(roots), dtype=np.bool_)
        for node in layers:
            useful[own[node]] = True
        useful[STAYS] = False
        axes = {node: flow.axis for node, flow in flows.items()}
        crossed = []
        for node in wild:
            found = np.where(useful[own[node]], own[node], STAYS)
            varying = [d for d in range(found.ndim) if (found != found.take([0], axis=d)).any()]
            if len(varying) > 1:
                crossed.append(node)
            if varying:
                axes[node] = varying[0]
        if not crossed:
            break
        for node in crossed:
            numbers.stay(flows[node].numbers)
    lines = {node: _line(own[node], axes[node], flow.wild) for node, flow in flows.items()}
    numbered = {node: np.where(useful[line], line, STAYS) for node, line in lines.items()}
    return _named(numbered, axes, layers)


def _line(own: Array, axis: int, wild: bool) -> Array:
    """Classes along the dimension of channels."""
    if not wild:
        return own
    return np.moveaxis(own, axis, 0).reshape(own.shape[axis], -1)[:, 0] if own.ndim else own.reshape(1)


def _named(
    numbered: Mapping[fx.Node, Array], axes: Mapping[fx.Node, int], layers: Sequence[fx.Node]
) -> Classes:
    # classes in the order in which layers have them, so that channels are numbered as layers number them
    order = np.concatenate([np.zeros(0, dtype=np.int64), *(numbered[node] for node in layers)])
    seen = list(dict.fromkeys(order[order != STAYS].tolist()))
    index = np.full(max([STAYS, *(int(line.max(initial=0)) for line in numbered.values())]) + 1, -1)
    index[seen] = np.arange(len(seen))
    of_node = {node: index[line] for node, line in numbered.items()}
    group_of, names = _groups(of_node, layers, len(seen))
    blocks = _blocks(of_node, group_of)
    group_names = (
        [names[group] for group in group_of[np.unique(blocks, return_index=True)[1]]] if len(seen) else []
    )
    sizes = np.bincount(blocks, minlength=len(group_names)) if len(seen) else np.zeros(0, dtype=np.int64)
    within: dict[str, int] = {}
    place = []
    for name in group_names:
        place.append(within.get(name, 0))
        within[name] = place[-1] + 1
    segments = {
        node.name: _segments(line, blocks, group_names, place, sizes) for node, line in of_node.items()
    }
    group = {}
    for node in layers:
        own = of_node[node][of_node[node] >= 0]
        group[node.name] = names[group_of[own[0]]] if len(own) else None
    return Classes(
        {node.name: line for node, line in of_node.items()},
        {node.name: axis for node, axis in axes.items()},
        segments,
        group,
        blocks,
        {key: number for number, key in enumerate(zip(group_names, place, strict=True))},
    )


def _groups(
    of_node: Mapping[fx.Node, Array], layers: Sequence[fx.Node], count: int
) -> tuple[Array, dict[int, str]]:
    """Of each class its group, and the groups' names: of the first layer that has it."""
    one, other = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for node in layers:
        own = of_node[node][of_node[node] >= 0]
        if len(own):
            one.append(own)
            other.append(np.full_like(own, own[0]))
    roots = one_of_each(count, np.concatenate(one), np.concatenate(other))
    names: dict[int, str] = {}
    for node in layers:
        own = of_node[node][of_node[node] >= 0]
        for root in np.unique(roots[own]).tolist():
            names.setdefault(root, str(node.target))
    return roots, names


def _blocks(of_node: Mapping[fx.Node, Array], group_of: Array) -> Array:
    """Of each class its block, numbered in order of their first classes."""
    blocks = np.unique(group_of, return_inverse=True)[1].reshape(-1)
    for line in of_node.values():
        there = line[line >= 0]
        if not len(there):
            continue
        counts = np.bincount(there, minlength=len(blocks))
        top = int(counts.max()) + 1
        blocks = np.unique(blocks * top + counts, return_inverse=True)[1].reshape(-1)
    _, first, inverse = np.unique(blocks, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.asarray(rank[inverse.reshape(-1)])


def _segments(
    line: Array, blocks: Array, names: Sequence[str], place: Sequence[int], sizes: Array
) -> tuple[Segment, ...]:
    """The blocks of a tensor in order, and what of it stays."""
    found: dict[int, int] = {}
    for block in np.where(line >= 0, blocks[line] if len(blocks) else -1, -1).tolist():
        found[block] = found.get(block, 0) + 1
    return tuple(
        Segment(None, count)
        if block < 0
        else Segment(names[block], int(sizes[block]), count // int(sizes[block]), place[block])
        for block, count in found.items()
    )
