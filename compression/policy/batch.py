"""Many policies of one network at once, as arrays: what a search that prices a million of them works with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from compression.policy.kernels import Kernel, kernels
from compression.policy.network import Network
from compression.policy.policy import Policy
from compression.policy.precision import FLOAT_LAYERS, Precision
from compression.policy.size import FileSize

Counts = NDArray[np.int64]


class _Plan:
    """What all policies of a network share."""

    def __init__(self, network: Network) -> None:
        self.kernels = kernels(network)
        self.layer_index = {layer.name: row for row, layer in enumerate(network.layers)}
        self.kernel_index = {kernel.name: row for row, kernel in enumerate(self.kernels)}
        self.rule = Precision(self.kernels)
        self.file_size = FileSize(self.kernels)
        self.layer_rows = [self.layer_index[name] for _, name, *_ in self.rule.layers]


@dataclass(frozen=True, eq=False)
class PolicyBatch:
    """n policies of one network. Rows are groups, layers or kernels; columns are policies.

    network: uncut. channels: (groups, n) channels that each group of ``network.groups`` keeps.
    weight_bits, activation_bits: (layers, n), in order of ``network.layers``.
    """

    network: Network
    channels: Counts
    weight_bits: Counts
    activation_bits: Counts

    @staticmethod
    def of(network: Network, policies: Sequence[Policy], multiple: int = 1) -> "PolicyBatch":
        """From Policy objects, channels snapped to ``multiple``.

        Raises:
            PolicyError: a policy does not fit the network.
        """
        kept = [policy.channels(network, multiple) for policy in policies]
        names = [layer.name for layer in network.layers]

        def table(rows: list[list[int]], height: int) -> Counts:
            return np.array(rows, dtype=np.int64).reshape(len(policies), height).T.copy()

        return PolicyBatch(
            network,
            table([[counts[group] for group in network.groups] for counts in kept], len(network.groups)),
            table([[policy[name].weight_bits for name in names] for policy in policies], len(names)),
            table([[policy[name].activation_bits for name in names] for policy in policies], len(names)),
        )

    @staticmethod
    def one(network: Network, policy: Policy) -> "PolicyBatch":
        """One policy of a network that is already cut to it: nothing is cut again."""
        layers = [policy[layer.name] for layer in network.layers]

        def column(values: list[int]) -> Counts:
            return np.array(values, dtype=np.int64).reshape(len(values), 1)

        return PolicyBatch(
            network,
            column([network.group_size(group) for group in network.groups]),
            column([layer.weight_bits for layer in layers]),
            column([layer.activation_bits for layer in layers]),
        )

    @property
    def count(self) -> int:
        """Number of policies, n."""
        return int(self.weight_bits.shape[1])

    @cached_property
    def _plan(self) -> "_Plan":
        return _Plan(self.network)

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

    @cached_property
    def widths(self) -> Counts:
        """(kernels, n): channels (features) of each kernel's output tensor after the cut."""
        row = {group: index for index, group in enumerate(self.network.groups)}
        found = np.zeros((len(self.kernels), self.count), dtype=np.int64)
        for index, kernel in enumerate(self.kernels):
            for segment in kernel.output.channels:
                if segment.group in row:
                    found[index] += self.channels[row[segment.group]] * segment.repeat
                else:
                    found[index] += segment.size * segment.repeat
        return found

    @cached_property
    def elements(self) -> Counts:
        """(kernels, n): elements of each kernel's output tensor, batch 1."""
        positions = [math.prod(kernel.output.spatial) for kernel in self.kernels]
        return self.widths * np.array(positions, dtype=np.int64)[:, None]

    @cached_property
    def weight_counts(self) -> Counts:
        """(layers, n): weights of each layer after the cut, without the bias."""
        found = np.zeros_like(self.weight_bits)
        for kernel in self.kernels:
            if kernel.layer is None:
                continue
            shape = kernel.layer.shape
            out = self.out_channels[self.layer_index[kernel.layer.name]]
            groups = out if shape.depthwise else shape.groups
            read = self.widths[self.kernel_index[kernel.inputs[0]]] // groups
            found[self.layer_index[kernel.layer.name]] = read * out * math.prod(shape.kernel)
        return found

    @cached_property
    def macs(self) -> Counts:
        """(layers, n): multiply-accumulates of each layer after the cut."""
        positions = []
        for layer in self.network.layers:
            shape = layer.shape
            here = shape.out_height * shape.out_width
            positions.append(here // math.prod(shape.stride) if shape.op == "conv_transpose2d" else here)
        return self.weight_counts * np.array(positions, dtype=np.int64)[:, None]

    @cached_property
    def out_channels(self) -> Counts:
        """(layers, n): output channels of each layer after the cut."""
        row = {group: index for index, group in enumerate(self.network.groups)}
        found = np.empty_like(self.weight_bits)
        for index, layer in enumerate(self.network.layers):
            cut = layer.group in row
            found[index] = self.channels[row[layer.group or ""]] if cut else layer.shape.out_channels
        return found

    @cached_property
    def integer_layers(self) -> NDArray[np.bool_]:
        """(layers, n): whether a layer computes in integers."""
        kernel = np.array(
            [layer.shape.op not in FLOAT_LAYERS for layer in self.network.layers], dtype=np.bool_
        )
        return np.asarray((self.weight_bits <= 8) & (self.activation_bits <= 8) & kernel[:, None])

    @cached_property
    def bits(self) -> Counts:
        """(kernels, n): bits at which each kernel's output tensor is held, as ``tensor_bits`` has it."""
        return self._precision[0]

    @cached_property
    def integer(self) -> NDArray[np.bool_]:
        """(kernels, n): whether each kernel computes in integers, as ``integer_kernels`` has it."""
        return self._precision[1]

    @cached_property
    def _precision(self) -> tuple[Counts, NDArray[np.bool_]]:
        """As ``Precision.of``, on arrays."""
        rule = self._plan.rule
        bits = np.full((len(self.kernels), self.count), 32, dtype=np.int64)
        integer = np.zeros(bits.shape, dtype=np.bool_)
        for layer, (row, _, able, _, wanted) in zip(self._plan.layer_rows, rule.layers, strict=True):
            integer[row] = self.integer_layers[layer]
            if able:
                held = np.where(integer[row], self.activation_bits[layer], 32)
                for source in wanted:
                    np.minimum(bits[source], held, out=bits[source])
        for row, source in rule.sums:
            layer = self.layer_index[self.kernels[source].nodes[0].layer or ""]
            stored = (self.weight_bits[layer] <= 8) & (self.activation_bits[layer] <= 8)
            bits[source] = np.where(stored, np.minimum(bits[source], bits[row]), bits[source])
        for row, _, _, fuses, _ in rule.layers:
            if fuses:
                bits[row][(bits[row] == 32) & integer[row]] = 8
        for row, inputs, moves in rule.others:
            integer[row] = (bits[list(inputs)] <= 8).all(axis=0)
            made = np.where(integer[row], bits[inputs[0]] if moves else 8, 32)
            bits[row] = np.where(bits[row] < 32, bits[row], made)
        return bits, integer

    def size_bytes(self) -> NDArray[np.int64]:
        """(n,): bytes of each policy's ONNX file, as ``compression.policy.size.size_bytes`` has it."""
        rows = self._plan.layer_rows
        return self._plan.file_size.of(
            self.widths, self.bits, self.weight_bits[rows], self.integer_layers[rows]
        )

    def part(self, columns: slice | NDArray[np.int64]) -> "PolicyBatch":
        """Some of the policies."""
        part = PolicyBatch(
            self.network,
            self.channels[:, columns],
            self.weight_bits[:, columns],
            self.activation_bits[:, columns],
        )
        part.__dict__["_plan"] = self._plan  # of the same network
        return part
