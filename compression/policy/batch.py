"""Many policies of one network at once, as arrays: what a search that prices a million of them works with."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph.branches import Branch, fused_alone
from leanfront.compression.graph.kernels import Kernel, kernels
from leanfront.compression.graph.network import Network, block_kept
from leanfront.compression.graph.nodes import Layer
from leanfront.compression.graph.operations import operation
from leanfront.compression.policy.dynamic import BITS, DYNAMIC, in_steps
from leanfront.compression.policy.file_size import FileSize
from leanfront.compression.policy.flatbuffer_size import KIND, FlatbufferSize
from leanfront.compression.policy.policy import LayerPolicy, Policy, unregistered
from leanfront.compression.policy.precision import Bits, Precision
from leanfront.compression.policy.rows import Rows, classes
from leanfront.compression.policy.zeros import PATTERNS

Counts = NDArray[np.int64]
Flags = NDArray[np.bool_]
_FLOAT_BITS = 32


class _Plan:
    """What all policies of a network share.

    places: of each kernel the branches that it is in, any of which takes it with it. tensors: of each kernel
    the number of those that put out as many channels wherever they are; positions: the same, and as many
    elements; each with the kernels that stand for all.
    """

    def __init__(self, network: Network) -> None:
        self.kernels = kernels(network)
        self.places = [
            frozenset(row for row, branch in enumerate(network.branches) if kernel.name in branch.nodes)
            for kernel in self.kernels
        ]
        outputs = [(kernel.output.channels, *self.places[row]) for row, kernel in enumerate(self.kernels)]
        self.tensors = classes(outputs)
        positions = [math.prod(kernel.output.spatial) for kernel in self.kernels]
        self.elements = classes([*zip(self.tensors[0].tolist(), positions, strict=True)])
        self.positions = np.array(positions, dtype=np.int64)
        self.layer_index = {layer.name: row for row, layer in enumerate(network.layers)}
        self.kernel_index = {kernel.name: row for row, kernel in enumerate(self.kernels)}
        self.rule = Precision(self.kernels)
        kinds = {kernel.output.written.spelling.kind for kernel in self.kernels if kernel.output.written}
        self.file_size: FileSize | FlatbufferSize = (
            FlatbufferSize(self.kernels) if kinds == {KIND} else FileSize(self.kernels, self.places)
        )
        self.layer_rows = [self.layer_index[layer.name] for layer in self.rule.layers]
        self._network = network
        self._fused_alone: dict[frozenset[str], list[tuple[tuple[int, ...], list[tuple[int, ...]]]]] = {}

    def fused_alone(self, fusing: frozenset[str]) -> list[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
        """As ``branches.fused_alone``; made once."""
        if fusing not in self._fused_alone:
            self._fused_alone[fusing] = fused_alone(
                self._network, self.kernels, self._network.branches, fusing
            )
        return self._fused_alone[fusing]


def _positions(layer: Layer) -> int:
    """How often each weight of a layer is multiplied, in this use of it."""
    shape = layer.shape
    here = shape.out_height * shape.out_width
    return here // math.prod(shape.stride) if shape.op == "conv_transpose2d" else here


@dataclass(frozen=True, eq=False)
class PolicyBatch:
    """n policies of one network. Rows are groups, layers or kernels; columns are policies.

    network: uncut. channels: (groups, n) channels that each group of ``network.groups`` keeps.
    weight_bits, activation_bits: (layers, n), in order of ``network.layers``. left_out: (branches, n), which
    of ``network.branches`` are left out; none where it is None. ``leaving_out`` makes one with some. more:
    name of another technique -> (layers, n) its numbers.
    """

    network: Network
    channels: Counts
    weight_bits: Counts
    activation_bits: Counts
    left_out: Flags | None = None
    more: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @staticmethod
    def of(network: Network, policies: Sequence[Policy], multiple: int = 1) -> "PolicyBatch":
        """From Policy objects, channels snapped to ``multiple``.

        Raises:
            PolicyError: a policy does not fit the network.
        """
        kept = [policy.channels(network, multiple) for policy in policies]
        return PolicyBatch._of(network, policies, kept)

    @staticmethod
    def one(network: Network, policy: Policy) -> "PolicyBatch":
        """One policy of a network that is already cut to it: nothing is cut again."""
        return PolicyBatch.of_cut(network, network, policy)

    @staticmethod
    def of_cut(whole: Network, cut: Network, policy: Policy) -> "PolicyBatch":
        """One policy of ``whole``, with the channels that ``cut``, already cut to it, has."""
        return PolicyBatch._of(whole, [policy], [cut.group_sizes])

    @staticmethod
    def _of(network: Network, policies: Sequence[Policy], kept: Sequence[Mapping[str, int]]) -> "PolicyBatch":
        """``kept``: of each policy the channels of groups; of those that it does not name all stay."""

        def table(rows: list[list[int]], height: int) -> Counts:
            return np.array(rows, dtype=np.int64).reshape(len(policies), height).T.copy()

        sizes = network.group_sizes.items()
        policies = [policy.completed(network) for policy in policies] if network.weight_only else policies
        layers = [[policy[layer.name] for layer in network.layers] for policy in policies]
        return PolicyBatch(
            network,
            table([[counts.get(group, size) for group, size in sizes] for counts in kept], len(sizes)),
            table([[layer.weight_bits for layer in row] for row in layers], len(network.layers)),
            table([[layer.activation_bits for layer in row] for row in layers], len(network.layers)),
            _left_out(network, policies),
            _more(network, policies),
        )

    @property
    def count(self) -> int:
        """Number of policies, n."""
        return int(self.weight_bits.shape[1])

    @property
    def _plan(self) -> "_Plan":
        """Made once for a network, and kept with it."""
        kept: dict[str, _Plan] = self.network.__dict__
        if "_plan" not in kept:
            kept["_plan"] = _Plan(self.network)
        return kept["_plan"]

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels of the uncut network."""
        return self._plan.kernels

    @property
    def layer_index(self) -> Mapping[str, int]:
        """Layer name -> row of ``weight_bits`` and ``activation_bits``."""
        return self._plan.layer_index

    @property
    def kernel_index(self) -> Mapping[str, int]:
        """Kernel name -> row of ``widths``, ``bits`` and ``integer``."""
        return self._plan.kernel_index

    @property
    def places(self) -> Sequence[frozenset[int]]:
        """Of each kernel the rows of ``network.branches`` that it is in: left out with any of them. What is
        in no branch that the tensor it reads is not in, too, is there wherever that tensor is."""
        return self._plan.places

    @property
    def absent(self) -> Mapping[int, Flags]:
        """Row of a kernel -> where (n,) it is left out, of those that are in some policy."""
        return self._without[0]

    @property
    def aliases(self) -> Mapping[int, tuple[int, Flags]]:
        """Row of a join -> the row of the tensor that it is another name of, and where (n,) it is that."""
        return self._without[1]

    @cached_property
    def _without(self) -> tuple[dict[int, Flags], dict[int, tuple[int, Flags]]]:
        absent: dict[int, Flags] = {}
        aliases: dict[int, tuple[int, Flags]] = {}
        if self.left_out is None or not self.left_out.any():
            return absent, aliases
        for branch, gone in zip(self.network.branches, self.left_out, strict=True):
            if not gone.any():
                continue
            for row, kernel in enumerate(self.kernels):
                if kernel.name in branch.nodes:
                    absent[row] = absent[row] | gone if row in absent else gone
            aliases[self.kernel_index[branch.join]] = (self.kernel_index[branch.stays], gone)
        return absent, aliases

    @cached_property
    def idle(self) -> Mapping[int, Flags]:
        """Row of a kernel -> where (n,) nothing of it is computed: it is left out, or another name."""
        idle = dict(self.absent)
        for row, (_, alias) in self.aliases.items():
            idle[row] = idle[row] | alias if row in idle else alias
        return idle

    def other_kernels(self, fusing: Sequence[str] = ()) -> Flags:
        """(n,): where the kernels of what is left are not those of the network that are left: what is left
        out kept two of them apart. ``fusing``: operations that fuse behind layers, see ``fused_alone``."""
        found = np.zeros(self.count, dtype=np.bool_)
        if self.left_out is None or not self.left_out.any():
            return found
        for own, others in self._plan.fused_alone(frozenset(fusing)):
            gone = [self.left_out[list(branches)].any(axis=0) for branches in others]
            found |= np.logical_and.reduce(gone) & ~self.left_out[list(own)].any(axis=0)
        return found

    @cached_property
    def absent_layers(self) -> Mapping[int, Flags]:
        """Row of a layer -> where (n,) it is absent, of those that are in some policy."""
        found = {}
        for row, absent in self.absent.items():
            if (layer := self.kernels[row].layer) is not None:
                found[self.layer_index[layer.name]] = absent
        return found

    @cached_property
    def absent_groups(self) -> Flags:
        """(groups, n): which groups of channels have no layer that is there."""
        absent = np.zeros((len(self.network.groups), self.count), dtype=np.bool_)
        for row, layers in enumerate(self.network.groups.values()):
            gone = [self.absent_layers.get(self.layer_index[layer.name]) for layer in layers]
            there = [where for where in gone if where is not None]
            if len(there) == len(gone):
                absent[row] = np.logical_and.reduce(there)
        return absent

    def leaving_out(self, left_out: Flags) -> "PolicyBatch":
        """These policies with branches (branches, n) left out, in the one form that equal policies have:
        branches within others go with them, layers that are gone have 32 bits, and groups of channels without
        a layer that is there are not cut."""
        branches = self.network.branches
        left_out = left_out.copy()
        for row, branch in enumerate(branches):
            for other in range(len(branches)):
                if branch.nodes < branches[other].nodes:
                    left_out[row] |= left_out[other]
        found = replace(self, left_out=left_out)
        channels, bits = self.channels.copy(), (self.weight_bits.copy(), self.activation_bits.copy())
        more = {name: values.copy() for name, values in self.more.items()}
        for index, absent in found.absent_layers.items():
            for layer_bits in bits:
                layer_bits[index, absent] = 32
            for values in more.values():
                values[index, absent] = 0.0
        for row, (group, absent) in enumerate(zip(self.network.groups, found.absent_groups, strict=True)):
            channels[row, absent] = self.network.group_size(group)
        return PolicyBatch(self.network, channels, *bits, left_out, more)

    @cached_property
    def widths(self) -> Counts:
        """(kernels, n): channels (features) of each kernel's output tensor after the cut; 0 where it is
        absent."""
        return np.asarray(self.width_rows[:])

    @cached_property
    def width_rows(self) -> Rows:
        """The same, of tensors that have as many once."""
        row = {group: index for index, group in enumerate(self.network.groups)}
        sizes = self.network.group_sizes
        of_kernel, first = self._plan.tensors
        found = np.zeros((len(first), self.count), dtype=np.int64)
        for index, place in enumerate(first):
            for segment in self.kernels[place].output.channels:
                if segment.group in row:
                    kept = self.channels[row[segment.group]]
                    size = sizes[segment.group]
                    kept = kept if segment.size == size else block_kept(segment.size, kept, size)
                    found[index] += kept * segment.repeat
                else:
                    found[index] += segment.size * segment.repeat
            if place in self.absent:
                found[index] *= ~self.absent[place]
        return Rows(found, of_kernel)

    @cached_property
    def elements(self) -> Counts:
        """(kernels, n): elements of each kernel's output tensor, batch 1."""
        return np.asarray(self.element_rows[:])

    @cached_property
    def element_rows(self) -> Rows:
        """The same, of tensors that have as many once."""
        of_kernel, first = self._plan.elements
        return Rows(self.width_rows[first] * self._plan.positions[first, None], of_kernel)

    @cached_property
    def weight_counts(self) -> Counts:
        """(layers, n): weights of each layer after the cut, without the bias."""
        found = np.zeros_like(self.weight_bits)
        for kernel in self.kernels:
            if kernel.layer is None:
                continue
            row = self.layer_index[kernel.layer.name]
            found[row] = self.reduced[row] * self.out_channels[row] * math.prod(kernel.layer.shape.kernel)
        return found

    @cached_property
    def reduced(self) -> Counts:
        """(layers, n): input channels that each output channel is computed from, after the cut; rows of a
        table, columns of other weights."""
        found = np.zeros_like(self.weight_bits)
        for kernel in self.kernels:
            if kernel.layer is None:
                continue
            shape, row = kernel.layer.shape, self.layer_index[kernel.layer.name]
            if kernel.layer.weight_only:
                found[row] = shape.in_channels
                continue
            read = self.width_rows[self.kernel_index[kernel.inputs[0]]]
            if kernel.layer.whole_groups:
                found[row] = np.minimum(read, shape.in_channels // shape.groups)
            elif shape.depthwise:
                found[row] = read // np.maximum(self.out_channels[row], 1)
            else:
                found[row] = read // shape.groups
        return found

    @cached_property
    def macs(self) -> Counts:
        """(layers, n): multiply-accumulates of each layer after the cut, of all its uses."""
        positions = np.zeros((len(self.network.layers), 1), dtype=np.int64)
        for kernel in self.kernels:
            if kernel.layer is not None and not kernel.layer.weight_only:
                positions[self.layer_index[kernel.layer.name]] += _positions(kernel.layer)
        return self.weight_counts * positions

    def depth(self, kernel: Kernel) -> NDArray[np.float64] | float:
        """Products that each value of a product of two tensors is the sum of; (n,) where a cut changes it."""
        first = self.kernel_index[kernel.inputs[0]]
        size = self.kernels[first].output.spatial
        return float(size[-1]) if size else self.widths[first].astype(np.float64)

    def bops(self) -> NDArray[np.float64]:
        """(n,): bit operations, multiply-accumulates times the bits of the one that is multiplied and of the
        other, as qonnx counts them (``qonnx.analysis.inference_cost``, zeros counted as well): a layer's
        weights with the tensor that it reads, and two tensors; 32 where one is held in floats, of 16 bits
        too."""
        found = np.zeros(self.count)
        for columns, part in self.by_depth():
            found[columns] = part._bops()
        return found

    def _bops(self) -> NDArray[np.float64]:
        held = np.where(self.weight_bits > 8, _FLOAT_BITS, self.weight_bits) * self.weight_counts.astype(
            float
        )
        found = np.zeros(self.count)
        steps = in_steps(self.network) if DYNAMIC in self.more else {}
        for kernel in self.kernels:
            read = [self.bits[self.kernel_index[name]].astype(np.float64) for name in kernel.inputs]
            if kernel.layer is not None and not kernel.layer.weight_only:
                if DYNAMIC in self.more:  # rounded to the bits of its weights
                    own = self.more[DYNAMIC][self.layer_index[kernel.layer.name]] > 0
                    read[0] = np.where(own, BITS[0], read[0])
                found += held[self.layer_index[kernel.layer.name]] * _positions(kernel.layer) * read[0]
            elif operation(kernel.op).stream == "product":
                row = self.kernel_index[kernel.name]
                found += self.elements[row] * self.depth(kernel) * read[0] * read[-1]
            elif kernel.macs:
                each: NDArray[np.float64] | float = float(_FLOAT_BITS**2)
                if layers := steps.get(kernel.name):
                    own = self.more[DYNAMIC][self.layer_index[layers[0]]] > 0
                    each = np.where(own, float(BITS[0] ** 2), each)
                found += float(kernel.macs) * each
        return found

    @cached_property
    def out_channels(self) -> Counts:
        """(layers, n): output channels of each layer after the cut."""
        found = np.empty_like(self.weight_bits)
        for row, kernel in enumerate(self.kernels):
            if kernel.layer is not None:
                out = kernel.layer.shape.out_channels  # another width: it is read along another dimension
                own = self.width_rows[row]
                own = own if kernel.output.width == out else np.where(own, out, 0)
                found[self.layer_index[kernel.layer.name]] = own
        return found

    @cached_property
    def integer_layers(self) -> Flags:
        """(layers, n): whether a layer computes in integers."""
        found = np.empty(self.weight_bits.shape, dtype=np.bool_)
        found[self._plan.layer_rows] = self.integer[[layer.row for layer in self._plan.rule.layers]]
        return found

    @cached_property
    def bits(self) -> Bits:
        """(kernels, n): bits at which each kernel's output tensor is held, as ``tensor_bits`` has it; 0 where
        it is absent."""
        return self._precision[0]

    @cached_property
    def integer(self) -> Flags:
        """(kernels, n): whether each kernel computes in integers, as ``integer_kernels`` has it."""
        return self._precision[1]

    @cached_property
    def _precision(self) -> tuple[Bits, Flags]:
        rows = self._plan.layer_rows
        return self._plan.rule.of(
            self.weight_bits[rows], self.activation_bits[rows], self.absent, self.aliases
        )

    def size_bytes(self) -> NDArray[np.int64]:
        """(n,): bytes of each policy's file, as ``compression.policy.file_size.size_bytes`` has it."""
        rows = self._plan.layer_rows
        found = self._plan.file_size.of(
            self.width_rows, self.reduced[rows], self.bits, self.weight_bits[rows], self.integer
        )
        for name, values in self.more.items():
            if name not in SIZE_CHANGES:
                raise unregistered(name, SIZE_CHANGES)
            found = found + np.asarray(SIZE_CHANGES[name](self, values), dtype=np.int64)
        return found

    def policy(self, column: int) -> Policy:
        """One of the policies, as an object; sparsities are the shares that are really cut."""
        network = self.network
        kept = {group: int(self.channels[row, column]) for row, group in enumerate(network.groups)}
        gone = set() if self.left_out is None else set(np.flatnonzero(self.left_out[:, column]).tolist())
        absent = {name for row in gone for name in network.branches[row].layers}
        layers = {}
        for row, layer in enumerate(network.layers):
            sparsity = 0.0
            if layer.group is not None and layer.name not in absent:
                sparsity = round(1.0 - kept[layer.group] / network.group_size(layer.group), 6)
            bits = int(self.weight_bits[row, column]), int(self.activation_bits[row, column])
            more = tuple((name, float(values[row, column])) for name, values in self.more.items())
            layers[layer.name] = LayerPolicy(sparsity, *bits, more=more)
        return Policy.of(layers, absent)

    def part(self, columns: slice | NDArray[np.int64]) -> "PolicyBatch":
        """Some of the policies."""
        return PolicyBatch(
            self.network,
            self.channels[:, columns],
            self.weight_bits[:, columns],
            self.activation_bits[:, columns],
            None if self.left_out is None else self.left_out[:, columns],
            {name: values[:, columns] for name, values in self.more.items()},
        )

    def depths(self) -> Iterator[tuple[NDArray[np.int64], tuple[Branch, ...]]]:
        """The policies by the branches that they leave out: columns (m,), and those branches."""
        if self.left_out is None or not self.left_out.any():
            yield np.arange(self.count), ()
            return
        numbers = np.zeros(self.count, dtype=np.int64)
        for gone in self.left_out:  # number the sets anew with each branch: there may be many
            numbers = np.unique(2 * numbers + gone, return_inverse=True)[1].reshape(-1)
        order = np.argsort(numbers, kind="stable")
        for columns in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
            flags = self.left_out[:, columns[0]]
            yield columns, tuple(b for b, gone in zip(self.network.branches, flags, strict=True) if gone)

    def by_depth(self) -> "Iterator[tuple[NDArray[np.int64], PolicyBatch]]":
        """As ``depths``, with these policies as policies of the network without those branches."""
        for columns, branches in self.depths():
            if len(columns) == self.count and not branches:
                yield columns, replace(self, left_out=None)
                return
            network, own = self.network.without(branches), self.part(columns)
            row_of = {group: row for row, group in enumerate(self.network.groups)}
            groups = [row_of[group] for group in network.groups]
            layers = [self.layer_index[layer.name] for layer in network.layers]
            bits = own.weight_bits[layers], own.activation_bits[layers]
            more = {name: values[layers] for name, values in own.more.items()}
            yield columns, PolicyBatch(network, own.channels[groups], *bits, more=more)


SIZE_CHANGES: dict[str, Callable[[PolicyBatch, NDArray[Any]], NDArray[Any] | int]] = {
    name: lambda batch, values: 0
    for name in PATTERNS  # files are dense
}
"""Name of a technique -> its ``size_change``; ``technique.register`` adds them."""


def size_bytes(network: Network, policy: Policy) -> int:
    """Bytes of the ONNX file of a network that has already been cut to the policy.

    Weights at their storage bits, biases and scales at 4 bytes a channel, and the measured overhead per
    node and stored tensor. Norms that cannot be folded into a layer count 16 bytes a channel.
    """
    return int(PolicyBatch.one(network, policy).size_bytes()[0])


def zeros_of(network: Network, policy: Policy) -> int:
    """Weights that are 0 at least in a network that has already been cut to the policy."""
    batch = PolicyBatch.one(network, policy)
    found = 0
    for row, layer in enumerate(network.layers):
        inputs, outputs = int(batch.reduced[row, 0]), int(batch.out_channels[row, 0])
        sizes = inputs, outputs, int(batch.weight_counts[row, 0]) // max(inputs * outputs, 1)
        own = policy[layer.name].more if layer.name in policy else ()
        found += max((PATTERNS[n].zeros(share, *sizes) for n, share in own if n in PATTERNS), default=0)
    return found


def _left_out(network: Network, policies: Sequence[Policy]) -> Flags | None:
    """(branches, policies): which branches each leaves out; None where none does."""
    left_out = [policy.left_out(network) for policy in policies]
    if not any(left_out):
        return None
    return np.array([[branch in gone for gone in left_out] for branch in network.branches], dtype=np.bool_)


def _more(network: Network, policies: Sequence[Policy]) -> dict[str, NDArray[np.float64]]:
    """Name of another technique -> (layers, policies), of those that are in some policy."""
    rows = [[dict(policy[layer.name].more) for policy in policies] for layer in network.layers]
    names = dict.fromkeys(name for row in rows for more in row for name in more)
    return {name: np.array([[more.get(name, 0.0) for more in row] for row in rows]) for name in names}
