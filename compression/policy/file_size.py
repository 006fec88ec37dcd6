"""Size of the file that an export writes, without writing it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph.kernels import Kernel
from leanfront.compression.graph.nodes import Spelling
from leanfront.compression.graph.operations import operation
from leanfront.compression.policy.grids import never_negative
from leanfront.compression.policy.guards import Guards
from leanfront.compression.policy.layer_size import (
    BYTE_BYTES,
    CLIP_BYTES,
    DECODE_BYTES,
    DEQUANTIZE_BYTES,
    FILE_BYTES,
    FLOATS,
    LARGE,
    MASKS_BYTES,
    MAX_BYTES,
    QUANTIZE_BYTES,
    READ_BYTES,
    SCALAR_BYTES,
    TENSOR_BYTES,
    UNEVEN_BYTES,
    layer_sizes,
    length_bytes,
    vector_bytes,
    way_of,
)
from leanfront.compression.policy.rows import Rows, classes

NAME_BYTES = 3
"""Of a value's name, in all but large files."""
SHORT_NAMES = 62**2
"""Names of values that have so many bytes; those of more values have one more."""
_AT_ONCE = 2048
"""Policies that are priced at once: what is computed for them stays in a processor's cache."""
# Where nothing was measured: fitted to exported files of a dozen kinds of network.
INFO_BYTES = 120  # inputs and outputs of the network
NAME_COPIES = 3  # a layer's name stands at its node, at its output and where that is read
CONVOLUTION_BYTES = 105  # with its attributes: kernel, strides, pads, dilations
LINEAR_BYTES = 48
PRODUCT_BYTES = 49  # a product at each position, and the addition behind it, which bears no name
ACTIVATION_BYTES = 22
STORED_TENSOR_BYTES = 47  # its name where it is read, its shape, its type
VALUES = 2  # of an operation, and of what it reads
VALUES_OF_QUANTIZER = 3  # codes, what they stand for, and a scale
VALUES_OF_INTEGER_LAYER = 5  # codes and scales of weights and bias, decoded


def framed(size: int) -> int:
    """Bytes of a part of a message that has so many: they are said before it."""
    return size + 1 + max(1, -(-size.bit_length() // 7))


class FileSize:
    """The size of a network's file under many policies."""

    def __init__(self, kernels: tuple[Kernel, ...], places: Sequence[frozenset[int]]) -> None:
        """``kernels``: of the network, cut or not: only channels differ. ``places``: of each the branches
        that it is left out with."""
        index = {kernel.name: row for row, kernel in enumerate(kernels)}
        layers = [(row, k, k.layer) for row, k in enumerate(kernels) if k.layer is not None]
        shapes = [layer.shape for _, _, layer in layers]
        self._once = np.array([k.use == 1 for _, k, _ in layers], dtype=np.bool_)
        self._again = np.flatnonzero(~self._once)

        def column(values: Sequence[int]) -> NDArray[np.int64]:
            return np.array(values, dtype=np.int64).reshape(-1, 1)

        self._rows = np.array([row for row, _, _ in layers], dtype=np.int64)
        self._guards = Guards(kernels, places)
        self._windows = column([math.prod(shape.kernel) for shape in shapes])[self._once]
        linear = column([shape.op == "linear" for shape in shapes])
        self._linear_again = linear[self._again]
        self._spelling = _spelling(kernels)
        self._sizes = layer_sizes(self._spelling)
        ways = [way_of(layer) for _, _, layer in layers]
        self._first_kind = self._sizes.first(column(ways)[self._once])
        most = max((4 * shape.weight_count for shape in shapes), default=0)
        self._lengths = [2**power for power in (7, 14, 21, 28) if 2**power <= most]
        reads = max((shape.in_channels for shape in shapes), default=0)
        self._long_sizes = [2**power for power in (7, 14, 21, 28) if 2**power <= reads]
        self._products = np.flatnonzero(linear[:, 0] & self._once)
        self._by_width = self._sizes.by_width(max((shape.out_channels for shape in shapes), default=0) + 1)

        measured = any(k.output.written for k in kernels)
        per_channel = [_channel_bytes(k) for k in kernels]
        self._stored = [row for row, each in enumerate(per_channel) if each]
        self._stored_bytes = column([per_channel[row] for row in self._stored])
        self._own = np.array([_own_bytes(k) for k in kernels], dtype=np.int64)
        self._own[self._rows] += [
            FLOATS[way] if k.use == 1 else 0 for way, (_, k, _) in zip(ways, layers, strict=True)
        ]
        self._constant = FILE_BYTES + int(self._own.sum()) + (0 if measured else INFO_BYTES)
        self._shared = _shared_parts(kernels)
        self._constant += sum(size for size, _ in self._shared)

        self._quantizer_bytes = _quantizers(kernels)
        written = [
            row
            for row, k in enumerate(kernels)
            if (operation(k.op).written or operation(k.op).given) and any(self._quantizer_bytes[row])
        ]
        self._tensors = np.array(written, dtype=np.int64)
        both = np.array([self._quantizer_bytes[row] for row in written], dtype=np.float32).reshape(-1, 2)
        self._coded, self._clipped = both[:, 0], both[:, 1] - both[:, 0]
        unsigned = never_negative(kernels)
        zero = [self._spelling.centred or kernels[row].name in unsigned for row in written]
        self._unsigned = 33 * np.array(zero, dtype=np.int16)  # a zero point that all such tensors read
        self._unsigned = self._unsigned.reshape(-1, 1)
        self._place, self._first = classes(places)
        self._own_of_place = np.bincount(self._place, self._own, len(self._first)).astype(np.int64)
        self._always = frozenset(index[name] for name in unsigned)
        self._signed = _newly_unsigned(kernels, places, unsigned)
        self._same_range = frozenset(row for row, k in enumerate(kernels) if operation(k.op).same_range)
        self._values = sum(n.written.values if n.written else VALUES for k in kernels for n in k.nodes)
        self._most_values = self._values + VALUES_OF_QUANTIZER * len(written)
        self._most_values += VALUES_OF_INTEGER_LAYER * len(layers)
        moved = [row for row, k in enumerate(kernels) if operation(k.op).same_range and k.inputs]
        self._moved = [(row, index[kernels[row].inputs[0]]) for row in moved]
        self._readers = _readers(kernels)
        self._named = [
            (row, len(k.label) - NAME_BYTES)
            for row, k, _ in layers
            if k.output.written and not k.activation and len(self._readers[row]) > 1
        ]
        self._joins = [
            (row, [index[name] for name in kernel.inputs])
            for row, kernel in enumerate(kernels)
            if operation(kernel.op).adds
        ]

    def of(
        self, widths: Rows, reduced: NDArray[np.int64], bits: NDArray[np.int16],
        weight_bits: NDArray[np.int64], integer: NDArray[Any],
    ) -> NDArray[np.int64]:  # fmt: skip
        """Bytes of each of n files.

        Args:
            widths: (kernels, n) channels of their outputs; 0: left out, as is an addition that reads it.
            reduced: (layers, n) input channels that each output channel is computed from; layers in order of
                the kernels, also below.
            bits: (kernels, n) of their outputs; 0 where they are left out.
            weight_bits: (layers, n).
            integer: (kernels, n) whether it computes in integers.
        """
        count = bits.shape[1]
        found = np.empty(count, dtype=np.int64)
        for start in range(0, count, _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            found[part] = self._of(
                widths.part(part), reduced[:, part], bits[:, part], weight_bits[:, part], integer[:, part]
            )
        return found

    def _of(
        self,
        widths: Rows,
        reduced: NDArray[np.int64],
        bits: NDArray[np.int16],
        weight_bits: NDArray[np.int64],
        integer: NDArray[Any],
    ) -> NDArray[np.int64]:
        """``of`` for some of the policies."""
        out, computes, bits = widths[self._rows], integer[self._rows], self._stored_bits(bits)
        if len(self._again):  # weights are there once, however often they are used
            once = self._once
            total = self._constant + self._weights(
                out[once], reduced[once], weight_bits[once], computes[once]
            )
            total += self._further_uses(out[self._again], computes[self._again])
        else:
            total = self._constant + self._weights(out, reduced, weight_bits, computes)
        gone = Rows(np.asarray(widths[self._first] == 0), self._place)
        some = bool(gone.values.any())
        total += self._quantizers(bits, computes, self._newly_unsigned(gone) if some else {})
        if self._spelling.guards or self._spelling.clips:
            total += self._guarded(bits, integer, gone if some else None)
        if len(self._products) > 1 and not self._spelling.centred:
            total -= _shared_bytes(out[self._products] * computes[self._products])
        if self._stored:
            total += (self._stored_bytes * widths[self._stored]).sum(axis=0)
        if some:
            total -= self._left_out(gone, bits)
        return np.asarray(total + length_bytes(total))

    def _guarded(
        self, bits: NDArray[np.int16], integer: NDArray[Any], gone: Rows | None
    ) -> NDArray[np.int64]:
        """(n,): bytes of what keeps layers from being fused."""
        between, clipped = self._guards.of(bits, integer, gone)
        found = np.concatenate(
            [between[: len(between) * self._spelling.guards], clipped[: len(clipped) * self._spelling.clips]]
        )
        return np.asarray(MAX_BYTES * _count(found) + SCALAR_BYTES * found.any(axis=0))

    def _stored_bits(self, bits: NDArray[np.int16]) -> NDArray[np.int16]:
        """The same, but for tensors whose values were only moved: they are on the grid of what they were
        moved from, however many bits their readers ask for."""
        if not self._moved or not ((bits < 8) & (bits > 0)).any():
            return bits
        found = bits.copy()
        for row, source in self._moved:
            np.copyto(found[row], found[source], where=(found[row] <= 8) & (found[row] > 0))
        return found

    def _left_out(self, gone: Rows, bits: NDArray[np.int16]) -> NDArray[np.int64]:
        """(n,): bytes of what is not there. ``gone``: which kernels are left out."""
        some = np.logical_or.reduce(gone.values, axis=1).take(self._place).tolist()
        total = self._own_of_place @ gone.values
        aliases: dict[int, NDArray[np.bool_]] = {}
        for row, inputs in self._joins:
            alias = np.logical_or.reduce([gone[source] for source in inputs])
            alias &= ~gone[row]
            if not alias.any():
                continue
            aliases[row] = alias
            some[row] = True
            total += alias * self._with_quantizer(row).take(bits[row])

        def idle(row: int) -> NDArray[np.bool_]:
            """Whether nothing of a kernel is written."""
            return gone[row] | aliases[row] if row in aliases else gone[row]

        for size, readers in self._shared:
            if all(some[row] for row in readers):
                total += size * np.logical_and.reduce([idle(row) for row in readers])

        def reads(row: int) -> NDArray[np.int64]:
            """How often the tensor of a kernel is read; by what reads another name of it, too."""
            found = np.zeros(bits.shape[1], dtype=np.int64)
            for reader in self._readers[row]:
                alias = aliases.get(reader)
                found += ~gone[reader] if alias is None else np.where(alias, reads(reader), ~gone[reader])
            return found

        for row, longer in self._named:
            if any(some[reader] for reader in self._readers[row]):
                total += longer * (len(self._readers[row]) - reads(row)) * (bits[row] > 8)
        return np.asarray(total, dtype=np.int64)

    def _weights(
        self,
        out: NDArray[np.int64],
        reduced: NDArray[np.int64],
        weight_bits: NDArray[np.int64],
        computes: NDArray[Any],
    ) -> NDArray[np.int64]:
        """(n,): bytes of weights and biases, of what decodes them, and of how long they are."""
        kind = self._first_kind + 2 * weight_bits
        kind += computes
        weights = reduced * out
        weights *= self._windows
        weights *= self._sizes.held.take(kind)
        weights += 7
        weights >>= 3
        long = 2 * sum(_count(weights >= power) for power in self._lengths)
        for size in self._long_sizes:
            long = long + _count((reduced >= size) & (out > 0))
        more: Any = 0
        if (single := (weight_bits == 1) & (out > 0)).any():
            more = self._signs(single, weights, reduced, out)
        if (coded := self._sizes.finer.take(kind)).any():
            long = long + SCALAR_BYTES * _ONES.take(np.bitwise_or.reduce(coded, axis=0))
        place = self._sizes.class_of.take(kind)
        place *= self._by_width.shape[1]
        place += out
        weights += self._by_width.take(place)
        return np.asarray(weights.sum(axis=0) + long + more)

    def _signs(
        self, single: NDArray[np.bool_], stored: NDArray[Any], reduced: NDArray[Any], out: NDArray[Any]
    ) -> NDArray[np.int64]:
        """(n,): bytes of weights of 1 bit besides what ``layer_sizes`` says: they are bytes in one dimension
        (another of size 1), and not every number of weights fills these. ``single``: which are such."""
        found = MASKS_BYTES * single.any(axis=0) - np.where(single & (out >= 2**7), 1, 0).sum(axis=0)
        for power in self._lengths:
            found = found + _count(single & (stored >= power))
        for size in self._long_sizes:
            found = found - _count(single & (reduced >= size))
        uneven = single & (reduced * out * self._windows % 8 > 0)
        return np.asarray(found + UNEVEN_BYTES * _count(uneven).astype(np.int64))

    def _further_uses(self, out: NDArray[np.int64], computes: NDArray[Any]) -> NDArray[np.int64]:
        """(n,): bytes of what layers take in each use but the first. A layer that computes in integers adds
        its bias in steps of what it reads, so that each use has its own; all else is there once."""
        if self._spelling.centred:  # floats, which all uses read
            return np.zeros(out.shape[1], dtype=np.int64)
        there, vector = out * computes, vector_bytes(out, 4)
        fixed = 2 * (TENSOR_BYTES + 2) + DECODE_BYTES
        # of linear layers with zero points; up to a size they are those of the first use
        zeros = READ_BYTES + (TENSOR_BYTES + 2 + vector) * (4 * out > LARGE)
        each = fixed + 2 * vector + self._linear_again * zeros
        return np.asarray((each * (there > 0)).sum(axis=0))

    def _newly_unsigned(self, gone: Rows) -> dict[int, NDArray[np.bool_]]:
        """Rows of kernels -> (n,): whether their output has no negative values since a branch was left out
        that had them."""
        found: dict[int, NDArray[np.bool_]] = {}
        there: dict[int, NDArray[np.bool_]] = {}
        if self._spelling.centred:
            return found
        for row, inputs in self._signed:
            each = [
                found[source] | gone[source] if source in found else gone[source]
                for source in inputs
                if source not in self._always
            ]
            flags = np.logical_and.reduce(each) & ~gone[row] if each else ~gone[row]
            if flags.any():
                found[row] = flags
                alias = np.logical_or.reduce([gone[source] for source in inputs])
                there[row] = flags & ~alias
        return there

    def _quantizers(
        self, bits: NDArray[np.int16], computes: NDArray[Any], fresh: Mapping[int, NDArray[np.bool_]]
    ) -> NDArray[np.int64]:
        """(n,): bytes of what quantizes the tensors, of what all quantizers, or all with as many bits, read
        together, and by which names are longer."""
        held = bits[self._tensors]
        coded = ((held <= 8) & (held > 0)).astype(np.float32)
        found = (self._coded @ coded).astype(np.int64)
        if (narrow := (held < 8) & (held > 0)).any():
            found += (self._clipped @ narrow.astype(np.float32)).astype(np.int64)
        unsigned = self._unsigned
        if fresh:
            unsigned = np.broadcast_to(unsigned, held.shape).copy()
            for row, flags in fresh.items():
                unsigned[self._tensors == row] += np.int16(33) * flags
                if row not in self._same_range:  # its zero point is one that there is already
                    found -= BYTE_BYTES * (flags & (bits[row] <= 8) & (bits[row] > 0))
        constants = np.bitwise_or.reduce(_GRIDS.take(held + unsigned), axis=0)
        found += BYTE_BYTES * _ONES.take(constants)
        if self._most_values > SHORT_NAMES:
            values = self._values + VALUES_OF_QUANTIZER * coded.sum(axis=0).astype(np.int64)
            values += VALUES_OF_INTEGER_LAYER * _count(computes)
            found += VALUES * np.maximum(values - SHORT_NAMES, 0)
        return found

    def _with_quantizer(self, row: int) -> NDArray[np.int64]:
        """(33,): bytes of a kernel and of what quantizes its tensor, for the bits of that."""
        coded, narrow = self._quantizer_bytes[row]
        return np.asarray(self._own[row] + np.array([0, *[narrow] * 7, coded, *[0] * 24]))


def _newly_unsigned(
    kernels: tuple[Kernel, ...], places: Sequence[frozenset[int]], unsigned: frozenset[str]
) -> list[tuple[int, list[int]]]:
    """Rows of what may have no negative values once something is left out, with those of what it reads."""
    index = {kernel.name: row for row, kernel in enumerate(kernels)}
    found: dict[int, list[int]] = {}
    for row, k in enumerate(kernels):
        if k.name in unsigned or k.layer is not None or not operation(k.output.op).keeps_sign:
            continue
        signed = [index[name] for name in k.inputs if name not in unsigned]
        if k.inputs and all(source in found or not places[source] <= places[row] for source in signed):
            found[row] = [index[name] for name in k.inputs]
    return list(found.items())


def _spelling(kernels: tuple[Kernel, ...]) -> Spelling:
    """How the file is spelled for which the kernels were measured; onnxruntime's where they were not."""
    return next((kernel.output.written.spelling for kernel in kernels if kernel.output.written), Spelling())


def _usual_quantizers(kernels: tuple[Kernel, ...]) -> list[int]:
    """Of each kernel the bytes of what quantizes its output to 8 bits: behind an operation that keeps the
    range on a grid that is there already; of what has no negative values, with the zero point 0."""
    unsigned = never_negative(kernels)
    moved = QUANTIZE_BYTES + DEQUANTIZE_BYTES
    return [
        moved
        if operation(kernel.op).same_range
        else moved + SCALAR_BYTES + BYTE_BYTES * (kernel.name not in unsigned)
        for kernel in kernels
    ]


def _quantizers(kernels: tuple[Kernel, ...]) -> list[tuple[int, int]]:
    """Of each kernel what quantizes its output to 8 bits, and to fewer."""
    return [
        (k.output.written.coded, k.output.written.narrow) if k.output.written else (usual, usual + CLIP_BYTES)
        for k, usual in zip(kernels, _usual_quantizers(kernels), strict=True)
    ]


def _count(flags: NDArray[np.bool_]) -> NDArray[np.int16]:
    """(n,): how many of a column are set."""
    return np.asarray(np.add.reduce(flags.view(np.int8), axis=0, dtype=np.int16))


def _readers(kernels: tuple[Kernel, ...]) -> list[list[int]]:
    """Of each kernel the rows of those that read its output."""
    found: dict[str, list[int]] = {kernel.name: [] for kernel in kernels}
    for row, kernel in enumerate(kernels):
        for name in kernel.inputs:
            found[name].append(row)
    return list(found.values())


def _shared_parts(kernels: tuple[Kernel, ...]) -> list[tuple[int, list[int]]]:
    """What several kernels read together: bytes, and their rows."""
    found: dict[str, tuple[int, list[int]]] = {}
    for row, kernel in enumerate(kernels):
        for node in kernel.nodes:
            for name, size in node.written.shared if node.written else ():
                found.setdefault(name, (size, []))[1].append(row)
    return list(found.values())


def _shared_bytes(widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,): bytes of zero points that integer linear layers share with another one, as equal constants are
    stored once, unless they are large. ``widths``: (layers, n), 0 where a layer is no integer one."""
    width = np.sort(np.minimum(widths, LARGE + 1).T.astype(np.int16), axis=1)
    repeated = width[:, 1:] * (width[:, 1:] == width[:, :-1])
    return np.asarray(_SHARED_BYTES.take(repeated).sum(axis=1))


def _own_bytes(kernel: Kernel) -> int:
    """Bytes of a kernel besides weights, channels and quantizers."""
    if kernel.output.written is not None:
        return sum(node.written.fixed for node in kernel.nodes if node.written is not None)
    own = kernel.held_bytes + (ACTIVATION_BYTES if kernel.activation else 0)
    if kernel.layer is not None:
        name = len(kernel.label)
        if kernel.layer.weight_only:
            return own + (operation(kernel.op).file_bytes + name if kernel.layer.looked_up else 0)
        if kernel.layer.shape.op != "linear":
            return own + CONVOLUTION_BYTES + NAME_COPIES * name
        return own + (PRODUCT_BYTES + name if kernel.output.spatial else LINEAR_BYTES + NAME_COPIES * name)
    row = operation(kernel.op)
    if not row.written:
        return own
    own += row.file_bytes + (0 if row.stored else len(kernel.nodes[0].name))  # a constant's is a number
    return own + STORED_TENSOR_BYTES * (row.parameters or _said_channel_bytes(kernel) // 4)


def _channel_bytes(kernel: Kernel) -> int:
    """Bytes of a kernel for each channel of its output, besides those of a layer. Norms that are folded into
    a layer have none."""
    if kernel.output.written is not None:
        return sum(node.written.each for node in kernel.nodes if node.written is not None)
    row = operation(kernel.op)
    if row.parameters:
        return 4 * row.parameters
    said = _said_channel_bytes(kernel)
    if row.stored and not (said or kernel.held_bytes):
        return 4 * math.prod(kernel.output.spatial)
    return said


def _said_channel_bytes(kernel: Kernel) -> int:
    return sum(node.channel_bytes for node in kernel.nodes if not operation(node.op).parameters)


_GRIDS = np.zeros((2, 33), dtype=np.uint8)
"""The same for the highest codes of narrow tensors, and for 0: the lowest, and a zero point."""
_GRIDS[:, 2:8] = [1 << bits | 1 for bits in range(2, 8)]
_GRIDS[1, 8] = 1
_ONES = np.array([number.bit_count() for number in range(256)])


_SHARED_BYTES = np.array(
    [
        sum(
            TENSOR_BYTES + 2 + int(vector_bytes(np.array(width), each))
            for each in (1, 4)
            if 0 < each * width <= LARGE
        )
        for width in range(LARGE + 2)
    ]
)
"""Of the zero points of a layer so wide: those of its weights, and of its bias."""
