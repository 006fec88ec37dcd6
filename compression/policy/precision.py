"""Which tensors a policy holds in integers: one rule, shared by training, export and the cost models."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph.kernels import Kernel
from leanfront.compression.graph.nodes import Layer
from leanfront.compression.graph.operations import named, operation
from leanfront.compression.policy.policy import LayerPolicy

SHIFTED_ZERO_POINT = -1
"""Of int8 weights that are not stored around 0 (latency_models/benchmark/shifted_weights.py): codes reach
from -127 to 127, so one below still fits."""

SAME_RANGE_OPS = named(lambda row: row.same_range)
"""Operations that move values and compute none: their output keeps the quantizer of their input."""

Counts = NDArray[np.int64]
Bits = NDArray[np.int16]
Flags = NDArray[np.bool_]
_NONE: Mapping[int, Any] = {}
_FLOAT, _INTEGER = np.int16(32), np.int16(8)


def computes_in_integers(layer: Layer, layer_policy: LayerPolicy) -> bool:
    """Whether a use of a layer computes in integers: its policy says so, engines have a kernel for it, and it
    is no constant that they compute when they load a file (for which onnxruntime has kernels of its own: it
    takes MatMulNBits, which rounds what it reads once more)."""
    return layer_policy.integer and _has_kernel(layer)


def integer_kernels(kernels: tuple[Kernel, ...], policy: Mapping[str, LayerPolicy]) -> frozenset[str]:
    """Names of the kernels that compute in integers under a policy; see ``Precision``."""
    _, integer = Precision(kernels).of_one(policy)
    return frozenset(kernel.name for kernel, computes in zip(kernels, integer, strict=True) if computes)


def tensor_bits(kernels: tuple[Kernel, ...], policy: Mapping[str, LayerPolicy]) -> dict[str, int]:
    """Kernel -> bits at which its output tensor is held, 32: float; see ``Precision``."""
    bits, _ = Precision(kernels).of_one(policy)
    return {kernel.name: int(held) for kernel, held in zip(kernels, bits, strict=True)}


def summands(kernels: tuple[Kernel, ...], outputs: Collection[str]) -> frozenset[str]:
    """Kernels of layers, with their activation, whose output nothing reads but one sum. ``outputs``: of the
    network."""
    readers = Counter(name for kernel in kernels for name in kernel.inputs)
    summed = {name for kernel in kernels if operation(kernel.op).adds for name in kernel.inputs}
    return frozenset(
        kernel.name
        for kernel in kernels
        if kernel.layer is not None
        and kernel.name in summed
        and readers[kernel.name] == 1
        and kernel.name not in outputs
    )


@dataclass(frozen=True)
class _Layer:
    """A kernel with weights. able: there is an integer kernel; fuses: that puts out integers though nobody
    wants them. wanted: rows of the tensors that it wants at its bits, seen through ops that move values."""

    row: int
    name: str
    able: bool
    fuses: bool
    wanted: tuple[int, ...]


class Precision:
    """The rule for one network, made ready for many policies.

    A tensor is quantized when an integer layer reads it (at that layer's activation bits), or when an
    integer kernel makes it: engines fuse an integer kernel only when its output is quantized, too. The one
    exception is a linear layer without activation and integer reader, whose kernel puts out floats.

    A layer computes in integers when its policy says so and there is a kernel for it; where there is none, it
    computes in floats whatever its policy, which says how the weights are stored, and whether an integer sum
    or concat may have the output in integers. Another operation that has one does when every tensor that it
    reads is held in integers: it costs a conversion otherwise.
    """

    def __init__(self, kernels: tuple[Kernel, ...]) -> None:
        index = {kernel.name: row for row, kernel in enumerate(kernels)}
        # what else is read by an operation that moves values says which of them, and where to
        inputs = [
            tuple(index[name] for name in kernel.inputs[: 1 if operation(kernel.op).same_range else None])
            for kernel in kernels
        ]
        self._count = len(kernels)
        self.moved = [self._moved(row, inputs, kernels) for row in range(len(kernels))]
        """Per row itself and those whose values it only moves."""
        self.layers: list[_Layer] = []
        """In order of the kernels."""
        self.sums = [
            (row, source)
            for row, kernel in enumerate(kernels)
            if operation(kernel.op).joining
            for source in inputs[row]
            if _float_layer(kernels[source])
        ]
        """Row and an input that it wants as itself is wanted, where that one's policy is an integer one."""
        self.others = [
            (row, inputs[row], operation(kernel.op).same_range)
            for row, kernel in enumerate(kernels)
            if kernel.layer is None and operation(kernel.op).integer and kernel.inputs
        ]
        """Row, inputs, and whether it only moves values: what computes in integers if all its inputs are."""
        for row, kernel in enumerate(kernels):
            if kernel.layer is not None:
                wanted = tuple(source for read in inputs[row] for source in self.moved[read])
                fuses = kernel.op != "linear" or bool(kernel.activation)
                able = not _float_layer(kernel)
                self.layers.append(_Layer(row, kernel.layer.name, able, fuses, wanted))

    @staticmethod
    def _moved(row: int, inputs: list[tuple[int, ...]], kernels: tuple[Kernel, ...]) -> tuple[int, ...]:
        found = [row]
        for other in found:
            if kernels[other].layer is None and operation(kernels[other].op).same_range:
                found += inputs[other]
        return tuple(found)

    def of_one(self, policy: Mapping[str, LayerPolicy]) -> tuple[Bits, Flags]:
        """What ``of`` says of one policy, (kernels,) each."""
        layers = [policy[layer.name] for layer in self.layers]
        weight_bits = np.array([[layer.weight_bits] for layer in layers]).reshape(-1, 1)
        activation_bits = np.array([[layer.activation_bits] for layer in layers]).reshape(-1, 1)
        bits, integer = self.of(weight_bits, activation_bits)
        return bits[:, 0], integer[:, 0]

    def of(
        self,
        weight_bits: Counts,
        activation_bits: Counts,
        absent: Mapping[int, Flags] = _NONE,
        aliases: Mapping[int, tuple[int, Flags]] = _NONE,
    ) -> tuple[Bits, Flags]:
        """Per kernel and policy, (kernels, n): bits of its output tensor (32: float), and whether it computes
        in integers; 0 and no where it is absent.

        Args:
            weight_bits, activation_bits: (layers, n), in order of ``layers``.
            absent: row -> where (n,) branches that are left out take the kernel with them.
            aliases: row of a join -> row of the tensor that it becomes another name of, and where (n,).
        """
        bits = np.full((self._count, weight_bits.shape[1]), 32, dtype=np.int16)
        activation_bits = activation_bits.astype(np.int16)
        integer = np.zeros(bits.shape, dtype=np.bool_)
        coded = (weight_bits <= 8) & (activation_bits <= 8)
        stored = {layer.row: own for layer, own in zip(self.layers, coded, strict=True)}
        for layer, own in zip(self.layers, activation_bits, strict=True):
            if layer.able:
                integer[layer.row] = stored[layer.row]
                if layer.row in absent:
                    integer[layer.row] &= ~absent[layer.row]
                held = np.where(integer[layer.row], own, _FLOAT)
                for source in layer.wanted:
                    np.minimum(bits[source], held, out=bits[source])
        for row in sorted(aliases, reverse=True):  # an alias hands on the wish of its readers
            stays, alias = aliases[row]
            held = np.where(alias, bits[row], _FLOAT)
            for source in self.moved[stays]:
                np.minimum(bits[source], held, out=bits[source])
        for row, source in self.sums:
            bits[source] = np.where(stored[source], np.minimum(bits[source], bits[row]), bits[source])
        for layer in self.layers:
            if layer.fuses:
                bits[layer.row][(bits[layer.row] == 32) & integer[layer.row]] = 8
        for row, inputs, moves in self.others:
            first, *others = inputs
            np.less_equal(bits[first], 8, out=integer[row])
            for source in others:
                integer[row] &= bits[source] <= 8
            if moves and not others:
                made = bits[first]  # 8 or fewer, or floats
            else:
                made = np.where(integer[row], bits[first] if moves else _INTEGER, _FLOAT)
            if row in aliases:
                stays, alias = aliases[row]
                integer[row] = np.where(alias, bits[stays] <= 8, integer[row])
                made = np.where(alias, np.where(integer[row], bits[stays], _FLOAT), made)
            bits[row] = np.where(bits[row] < 32, bits[row], made)
        for row, flags in absent.items():
            integer[row] &= ~flags
            bits[row] *= ~flags
        return bits, integer


def _float_layer(kernel: Kernel) -> bool:
    return kernel.layer is not None and not _has_kernel(kernel.layer)


def _has_kernel(layer: Layer) -> bool:
    return layer.given and operation(layer.shape.op).integer


def source_of_range(name: str, kernels: tuple[Kernel, ...]) -> str:
    """The kernel whose quantizer a tensor has: its own, or that of the tensor which was only moved."""
    by_name = {kernel.name: kernel for kernel in kernels}
    while operation(by_name[name].op).same_range:
        name = by_name[name].inputs[0]
    return name
