"""Many policies of one network at once, as arrays: what a search that prices a million of them works with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from compression.policy.kernels import Kernel, kernels
from compression.policy.network import LAYER_OPS, Network
from compression.policy.policy import Policy
from compression.policy.precision import FLOAT_LAYERS, INTEGER_OPS, JOINING_OPS, SAME_RANGE_OPS
from compression.policy.size import (
    ACTIVATION_BYTES,
    FILE_BYTES,
    layer_bytes,
    operation_bytes,
    quantizer_bytes,
    storage_bits,
)

Counts = NDArray[np.int64]

_STORAGE_BITS = np.array([0, *(storage_bits(bits) for bits in range(1, 33))])
_QUANTIZER_BYTES = {
    moved: np.array([quantizer_bytes(moved, bits) for bits in range(33)]) for moved in (False, True)
}


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
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels of the uncut network."""
        return kernels(self.network)

    @cached_property
    def layer_index(self) -> Mapping[str, int]:
        """Layer name -> row of ``weight_bits`` and ``activation_bits``."""
        return {layer.name: row for row, layer in enumerate(self.network.layers)}

    @cached_property
    def kernel_index(self) -> Mapping[str, int]:
        """Kernel name -> row of ``widths``, ``bits`` and ``integer``."""
        return {kernel.name: row for row, kernel in enumerate(self.kernels)}

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
        """The rule of ``compression.policy.precision``, on arrays."""
        fused, index = self.kernels, self.kernel_index
        wish = np.full((len(fused), self.count), 32, dtype=np.int64)
        for row in reversed(range(len(fused))):
            for source in fused[row].inputs:
                target = index[source]
                wish[target] = np.minimum(wish[target], self._wanted(fused[target], fused[row], wish[row]))
        bits = np.full_like(wish, 32)
        integer = np.zeros(wish.shape, dtype=np.bool_)
        for row, kernel in enumerate(fused):
            integer[row] = self._integer(kernel, bits)
            made = np.full(self.count, 32, dtype=np.int64)
            if kernel.op in SAME_RANGE_OPS and kernel.inputs:
                made = np.where(integer[row], bits[index[kernel.inputs[0]]], 32)
            elif kernel.op != "linear" or kernel.activation:
                made = np.where(integer[row], 8, 32)
            bits[row] = np.where(wish[row] < 32, wish[row], made)
        return bits, integer

    def _wanted(self, maker: Kernel, reader: Kernel, wish: Counts) -> Counts | int:
        """The bits that a kernel wants its input at; ``wish``: those that its own output is wanted at."""
        if reader.layer is not None:
            row = self.layer_index[reader.layer.name]
            return np.where(self.integer_layers[row], self.activation_bits[row], 32)
        if maker.layer is not None and maker.op in FLOAT_LAYERS and reader.op in JOINING_OPS:
            row = self.layer_index[maker.layer.name]
            return np.where((self.weight_bits[row] <= 8) & (self.activation_bits[row] <= 8), wish, 32)
        return wish if reader.op in SAME_RANGE_OPS else 32

    def _integer(self, kernel: Kernel, bits: Counts) -> NDArray[np.bool_]:
        if kernel.op in LAYER_OPS and kernel.layer is not None:
            return np.asarray(self.integer_layers[self.layer_index[kernel.layer.name]])
        if kernel.op not in INTEGER_OPS or not kernel.inputs:
            return np.zeros(self.count, dtype=np.bool_)
        return np.asarray((bits[[self.kernel_index[name] for name in kernel.inputs]] <= 8).all(axis=0))

    def size_bytes(self) -> NDArray[np.int64]:
        """(n,): bytes of each policy's ONNX file, as ``compression.policy.size.size_bytes`` has it."""
        total = np.full(self.count, FILE_BYTES, dtype=np.int64)
        for row, kernel in enumerate(self.kernels):
            if kernel.layer is not None:
                index = self.layer_index[kernel.layer.name]
                stored = _STORAGE_BITS[self.weight_bits[index]]
                weights, out = self.weight_counts[index], self.out_channels[index]
                total += layer_bytes(kernel.layer, weights, out, stored, self.integer_layers[index])
            else:
                total += operation_bytes(kernel, self.widths[row])
            total += ACTIVATION_BYTES if kernel.activation else 0
            total += _QUANTIZER_BYTES[kernel.op in SAME_RANGE_OPS][self.bits[row]]
        return total

    def part(self, columns: slice | NDArray[np.int64]) -> "PolicyBatch":
        """Some of the policies."""
        return PolicyBatch(
            self.network,
            self.channels[:, columns],
            self.weight_bits[:, columns],
            self.activation_bits[:, columns],
        )
