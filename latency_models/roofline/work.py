"""What each kernel asks of a processor: arithmetic, bytes, values; for many policies at once.

A batch of policies is priced as the whole network: a kernel that a policy leaves out asks for nothing there,
nor does an addition that is another name of what stays.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph import Kernel, operation
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.rows import Rows
from leanfront.hw_profiles import HardwareProfile, Roofline
from leanfront.latency_models.cost import check_bits
from leanfront.latency_models.memory import TensorBytes, narrow_rows

Array = NDArray[np.float64]
Bits = NDArray[Any]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Work:
    """What one kernel asks for under n policies, (n,) or one number for all; or of many kernels, ``stacked``:
    (kernels, n) or (kernels, 1). Nothing in it is a speed.

    unit: bits of the arithmetic unit, 0 where there is no arithmetic.
    macs: multiply-accumulates, channels rounded up to the unit's alignment and outputs to whole waves of
    tiles. depthwise: whether they are of a depthwise layer. sum_bytes: of the products that one output of a
    dense layer adds up, where it has more than one position.
    moved_bytes: inputs and output once, weights at their bits, a bias at 32; layer_bytes: those of them that
    are inputs or the output of a layer. values: how many these are
    (without biases). window_values, window_bits: the matrix of windows of a convolution larger than 1x1.
    image_values: elements of the network's first input; image_bits: at which it is handed over.
    gathered_bytes: tensors that appear from nowhere (a layer table has no concats and sums); joined_values:
    elements of those that join whole maps over their positions.
    launches: kernels that are started. conversions: changes of precision; converted_bytes: their traffic.
    """

    depthwise: Flags | bool = False
    unit: Bits | int = 0
    macs: Array | float = 0.0
    sum_bytes: Array | float = 0.0
    moved_bytes: Array | float = 0.0
    layer_bytes: Array | float = 0.0
    values: Array | float = 0.0
    window_values: Array | float = 0.0
    window_bits: Bits | int = 0
    image_values: Array | float = 0.0
    image_bits: Bits | int = 0
    gathered_bytes: Array | float = 0.0
    joined_values: Array | float = 0.0
    launches: Array | float = 0.0
    conversions: Array | float = 0.0
    converted_bytes: Array | float = 0.0

    @property
    def window_bytes(self) -> Array | float:
        """Of the windows."""
        return self.window_values * self.window_bits / 8

    def only(self, there: Flags) -> "Work":
        """The same, and nothing where a kernel is not there. Its unit stays, and bits of tensors."""
        kept = ("depthwise", "unit", "window_bits", "image_bits")
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        masked = {
            name: value if name in kept or (isinstance(value, float) and not value) else value * there
            for name, value in values.items()
        }
        return Work(**masked)

    @staticmethod
    def stacked(works: "list[Work]", count: int) -> "Work":
        """Many kernels under ``count`` policies."""

        def rows(name: str) -> Any:
            return np.array([np.broadcast_to(np.asarray(getattr(work, name)), count) for work in works])

        return Work(**{field.name: rows(field.name) for field in fields(Work)})


def work_of(batch: PolicyBatch, profile: HardwareProfile, roofline: Roofline) -> Work:
    """The work of every kernel, in order of execution, in one; raises TableError as ``works`` does."""
    return Work.stacked(list(Kernels(batch, profile, roofline).works()), batch.count)


class Kernels:
    """The kernels of a batch, to be looked at one after the other.

    held: (kernels, n) bits at which each tensor is held, see ``held_bits``. elements: of each tensor.
    narrow: (kernels,) which have fewer than 32 bits under some policy.
    """

    def __init__(self, batch: PolicyBatch, profile: HardwareProfile, roofline: Roofline) -> None:
        """Raises TableError for a bit pair that the part cannot run; it is named."""
        check_bits(batch, profile)
        self.batch, self.roofline = batch, roofline
        self.kernels, self.idle = batch.kernels, batch.idle
        self.held = held_bits(batch)
        self.narrow = narrow_rows(self.held)
        rows = batch.element_rows
        self.elements = Rows(rows.values.astype(np.float64), rows.of_kernel)
        self._halves = bool((batch.activation_bits == 16).any())
        self._inputs = [[batch.kernel_index[name] for name in kernel.inputs] for kernel in self.kernels]
        self._units = np.array([_unit(roofline, bits) for bits in range(33)])
        self._aligned = None if all(pair == (1, 1) for pair in roofline.alignment.values()) else roofline
        self._sums = self._sums_of_layers() if roofline.fused_sums else {}
        self._readers: list[list[int]] = [[] for _ in self.kernels]
        for row, kernel in enumerate(self.kernels):
            if operation(kernel.op).work != "free":
                for source in self._inputs[row]:
                    self._readers[source].append(row)

    @property
    def tensor_bytes(self) -> TensorBytes:
        """Of each output."""
        return TensorBytes(self.elements, self.held, self.narrow)

    def _sums_of_layers(self) -> dict[int, int]:
        """Row of a sum -> that of an operand which a layer makes and the sum alone reads."""
        found: dict[int, int] = {}
        for row, kernel in enumerate(self.kernels):
            if operation(kernel.op).adds and len(kernel.inputs) == 2:
                for source in self._inputs[row]:
                    if self._alone_reads(row, source):
                        found[row] = source
        return found

    def _alone_reads(self, row: int, source: int) -> bool:
        """Whether a kernel is the only one that reads what a layer without an activation makes."""
        maker = self.kernels[source]
        alone = self.batch.network.consumers[maker.name] == (self.kernels[row].nodes[0].name,)
        return operation(maker.op).layer and not maker.activation and alone

    def _tensor_bits(self, row: int) -> Array:
        """Bits of a tensor; of weights that are read by themselves those that are stored."""
        layer = self.kernels[row].layer
        if layer is not None and layer.weight_only and not self._inputs[row]:
            return np.asarray(self.elements[row] * self.batch.weight_bits[self.batch.layer_index[layer.name]])
        return np.asarray(self.elements[row] * (self.held[row] if self.narrow[row] else 32.0))

    def works(self) -> Iterator[Work]:
        """The work of each. Of what has no formula it is what it moves."""
        first = True
        for row, kernel in enumerate(self.kernels):
            converted = self._conversions(row)
            if operation(kernel.op).given:
                yield replace(self._input(row, first), **converted)
                first = False
            elif operation(kernel.op).work == "free" or self._fused(row):
                yield Work(**converted)
            else:
                yield replace(self._busy(row), **converted)
                first = False

    def summed(self) -> Iterator[tuple[Kernel | None, Work]]:
        """Of each kernel with arithmetic its work; and without a kernel what all others ask for together, and
        the conversions of all. These take as long as what they move, so that is added up before it is priced:
        a network may have hundreds of them, which only move values.
        """
        others: list[int] = []
        first = True
        for row, kernel in enumerate(self.kernels):
            work = operation(kernel.op).work
            if operation(kernel.op).given:
                yield kernel, self._input(row, first)
            elif work == "free" or self._fused(row):
                continue
            elif kernel.layer is not None or kernel.macs or work == "product":
                yield kernel, self._busy(row)
            else:
                others.append(row)
            first = False
        launches, values, moved = self._moves(others)
        count, converted = np.zeros(self.batch.count), np.zeros(self.batch.count)
        # floats of 32 bits are converted only where others are narrower
        for row in range(len(self.kernels)) if self._halves else np.flatnonzero(self.narrow).tolist():
            if found := self._conversions(row):
                count += found["conversions"]
                converted += found["converted_bytes"]
        yield (
            None,
            Work(
                launches=launches, values=values, moved_bytes=moved, conversions=count,
                converted_bytes=converted,
            ),
        )  # fmt: skip

    def _moves(self, rows: list[int]) -> tuple[Array, Array, Array]:
        """Launches, values and bytes of kernels without arithmetic, (n,) each.

        Where a kernel is there as often as what it reads, what it moves is 0 where it is not; so it is enough
        to count how often each tensor is moved, whoever does it.
        """
        places, absent = self.batch.places, self.batch.absent
        launches, values, moved = np.zeros((3, self.batch.count))
        often = np.zeros(len(self.kernels))
        together: dict[frozenset[int], list[int]] = {}
        for row in rows:
            inputs = self._inputs[row]
            entering = row in self.idle and not all(places[row] <= places[source] for source in inputs)
            alone = row in self.batch.aliases or row in self._sums
            if entering or alone or not operation(self.kernels[row].op).reads_held:
                work = self._busy(row)
                launches += work.launches
                values += work.values
                moved += work.moved_bytes
                continue
            np.add.at(often, [row, *inputs], 1.0)
            together.setdefault(places[row], []).append(row)
        for own in together.values():
            there = ~absent[own[0]] if own[0] in absent else 1.0
            launches += len(own) * there
            if held := sum(self.kernels[row].held_bytes for row in own):
                values += held / 4 * there
                moved += held * there
        of_kernel, elements = self.elements.of_kernel, self.elements.values
        values += np.bincount(of_kernel, often, len(elements)) @ elements
        moved += 4.0 * (np.bincount(of_kernel, often * ~self.narrow, len(elements)) @ elements)
        for row in np.flatnonzero(self.narrow & (often > 0)).tolist():
            moved += self.elements[row] * (self.held[row] * (often[row] / 8))
        for row in np.flatnonzero(often).tolist():  # weights by themselves have other bits than tensors
            layer = self.kernels[row].layer
            if layer is not None and layer.weight_only and not self._inputs[row]:
                moved += (self._tensor_bits(row) - self.elements[row] * self.held[row]) * (often[row] / 8)
        return launches, values, moved

    def _input(self, row: int, first: bool) -> Work:
        """What the caller hands over, or in a layer table what appears from nowhere."""
        if first:
            bits = self.held[row]
            return Work(image_values=self.elements[row], image_bits=np.where(bits <= 8, 8, bits))
        if not self.roofline.gathered_passes:
            return Work()
        joined = self.elements[row] if _joins_maps(row, self.batch) else 0.0
        return Work(launches=1.0, gathered_bytes=self._tensor_bits(row) / 8, joined_values=joined)

    def _busy(self, row: int) -> Work:
        kernel, inputs = self.kernels[row], self._inputs[row]
        found: dict[str, Any] = {"launches": 1.0}
        found["values"] = sum((self.elements[source] for source in inputs), self.elements[row])
        moved = sum((self._tensor_bits(source) for source in inputs), self._tensor_bits(row))
        found["moved_bytes"] = moved / 8
        if operation(kernel.op).layer:
            self._add_layer(row, found)
        elif kernel.layer is not None:  # a table, of which as much is read as comes out
            bits = self.batch.weight_bits[self.batch.layer_index[kernel.layer.name]]
            found["values"] = found["values"] + self.elements[row]
            found["moved_bytes"] = found["moved_bytes"] + self.elements[row] * bits / 8
        elif operation(kernel.op).work == "product":
            first = self.kernels[inputs[0]].output
            depth = first.spatial[-1] if first.spatial else self.batch.width_rows[inputs[0]]
            found["macs"] = self.elements[row] * depth
            found["unit"] = self._units[np.where(self.held[row] == 16, 16, 32)]
        self._add_held(row, found)
        if row in self._sums:
            self._fuse_sum(row, found)
        work = Work(**found)
        return work.only(~self.idle[row]) if row in self.idle else work

    def _add_layer(self, row: int, found: dict[str, Any]) -> None:
        batch, (source, *_) = self.batch, self._inputs[row]
        layer = self.kernels[row].layer
        assert layer is not None
        shape, index = layer.shape, batch.layer_index[layer.name]
        weight_bits = batch.weight_bits[index]
        wide = np.maximum(weight_bits, batch.activation_bits[index])
        floats = (wide <= 8) & ~batch.integer[row]  # a layer without an integer kernel
        found["unit"] = unit = self._units[np.where(floats, 32, wide)]
        weights = batch.weight_counts[index].astype(np.float64)
        out = batch.out_channels[index]
        found["depthwise"] = shape.depthwise
        found["layer_bytes"] = found["moved_bytes"]
        found["values"] = found["values"] + weights
        found["moved_bytes"] = found["moved_bytes"] + weights * weight_bits / 8
        if layer.bias:
            found["moved_bytes"] += 4.0 * out
        positions = float(shape.macs // shape.weight_count)  # of this use
        if shape.depthwise:
            found["macs"] = weights * positions
            return
        taps = math.prod(shape.kernel)
        depth, padded_out = taps * batch.reduced[index], out
        if self._aligned is not None:
            inside, outside = _alignments(self._aligned)
            depth = taps * _rounded_up(batch.reduced[index], inside[unit])
            if (few := self.roofline.packed_channel_count) and shape.groups == 1:
                packed = _rounded_up(np.full_like(depth, taps * few), inside[unit])
                depth = np.where(batch.reduced[index] <= few, np.minimum(depth, packed), depth)
            padded_out = _rounded_up(padded_out, outside[unit])
        outputs = positions * padded_out
        if (waves := _waves(positions, out, self.roofline)) is not None:
            outputs = np.maximum(outputs, waves)
        found["macs"] = depth * outputs
        if positions > 1:
            found["sum_bytes"] = depth * unit / 8
        if taps > 1:
            found["window_values"] = batch.width_rows[source] * (positions * taps)
            found["window_bits"] = self.held[source]

    def _add_held(self, row: int, found: dict[str, Any]) -> None:
        """Arithmetic and weights that no policy speaks of: in floats. Of a table as much is read as comes
        out."""
        kernel = self.kernels[row]
        if kernel.macs:
            found["unit"] = self._units[np.full(self.batch.count, 32)]
            found["macs"] = found.get("macs", 0.0) + float(kernel.macs)
        if kernel.held_bytes:
            all_of_it = operation(kernel.op).reads_held
            read = np.minimum(kernel.held_bytes, np.inf if all_of_it else 4.0 * self.elements[row])
            found["values"] = found["values"] + read / 4
            found["moved_bytes"] = found["moved_bytes"] + read

    def _fused(self, row: int) -> bool:
        """Whether an activation is free: it alone reads what a layer makes, and the part fuses it."""
        kernel = self.kernels[row]
        if kernel.op not in (self.roofline.fused_activations or ()) or len(kernel.inputs) != 1:
            return False
        return self._alone_reads(row, self._inputs[row][0])

    def _fuse_sum(self, row: int, found: dict[str, Any]) -> None:
        """In floats the layer's kernel adds: the other operand is read, and nothing is started. What a layer
        puts out in integers is rounded first, which keeps the sum a kernel of its own."""
        made = self._sums[row]
        (other,) = [source for source in self._inputs[row] if source != made] or [made]
        floats = self.held[made] > 8
        found["launches"] = np.where(floats, 0.0, 1.0)
        found["values"] = np.where(floats, self.elements[other], found["values"])
        found["moved_bytes"] = np.where(floats, self._tensor_bits(other) / 8, found["moved_bytes"])

    def _conversions(self, row: int) -> dict[str, Any]:
        """Changes of precision of a kernel's output, and the bytes that they read and write.

        An operation that computes in floats writes floats, which are quantized when the tensor is held in
        integers; one that reads integers has them decoded. Each tensor is converted once, whoever reads it.
        """
        if self.roofline.conversion_overhead_ms is None:
            return {}
        held, elements = self.held[row], self.elements[row]
        coded = held <= 8
        count: Any = 0.0
        moved: Any = 0.0
        if operation(self.kernels[row].op).work != "free":
            quantized = coded & ~self.batch.integer[row]
            if row in self.idle:
                quantized &= ~self.idle[row]
            count = quantized.astype(np.float64)
            moved = quantized * (elements * (held + 32) / 8)
        readers = self._readers[row]
        if not readers:
            return {"conversions": count, "converted_bytes": moved}
        decoded = coded & np.logical_or.reduce([self._reads_floats(reader) for reader in readers])
        if not self._halves:
            return {
                "conversions": count + decoded,
                "converted_bytes": moved + decoded * (elements * (held + 32) / 8),
            }
        floats = np.array([self._float_width(reader) for reader in readers])
        resized = ~coded & ((floats != held) & (floats > 0)).any(axis=0)
        changed = decoded | resized
        return {
            "conversions": count + changed,
            "converted_bytes": moved + changed * elements * (held + floats.max(axis=0)) / 8,
        }

    def _reads_floats(self, row: int) -> Flags:
        floats: Flags = ~self.batch.integer[row]
        return floats & ~self.idle[row] if row in self.idle else floats

    def _float_width(self, row: int) -> Bits:
        """(n,) bits of the floats that a kernel reads: 16 for layers of half precision and what follows them;
        0 where it is not there."""
        layer = self.kernels[row].layer
        if layer is None:
            halved = (self.held[self._inputs[row]] == 16).all(axis=0)
        else:
            halved = self.batch.activation_bits[self.batch.layer_index[layer.name]] == 16
        width = np.where(halved, 16, 32)
        return width * ~self.idle[row] if row in self.idle else width


def held_bits(batch: PolicyBatch) -> Bits:
    """(kernels, n): bits at which each tensor is held, as ``tensor_bits`` has it, with half precision; 0
    where it is left out.

    A tensor of floats has 16 bits when what makes it computes in half precision: a layer with activations of
    16 bits, another operation whose inputs all have 16; the network's input when its readers are such layers.
    """
    half = batch.activation_bits == 16
    if not half.any():
        return batch.bits
    held = batch.bits.copy()
    readers: list[list[tuple[int, int]]] = [[] for _ in batch.kernels]
    for row, kernel in enumerate(batch.kernels):
        if kernel.layer is not None:
            for name in kernel.inputs:
                readers[batch.kernel_index[name]].append((row, batch.layer_index[kernel.layer.name]))
    for row, kernel in enumerate(batch.kernels):
        if kernel.layer is not None:
            halved = half[batch.layer_index[kernel.layer.name]]
        elif kernel.inputs:
            halved = (held[[batch.kernel_index[name] for name in kernel.inputs]] == 16).all(axis=0)
            if row in batch.aliases:
                stays, alias = batch.aliases[row]
                halved = np.where(alias, held[stays] == 16, halved)
        else:
            gone = [batch.idle.get(reader, np.zeros(batch.count, np.bool_)) for reader, _ in readers[row]]
            wanted = [half[layer] | idle for (_, layer), idle in zip(readers[row], gone, strict=True)]
            halved = np.logical_and.reduce(wanted, axis=0) & ~np.logical_and.reduce(gone, axis=0)
        held[row] = np.where((held[row] == 32) & halved, 16, held[row])
    return held


def _joins_maps(row: int, batch: PolicyBatch) -> bool:
    """Whether a gathered tensor is no map: its height over width is far from that of every layer before it.

    A concat, sum, pool or upsampling keeps the proportions. A detection head that reads its boxes from all
    maps at once joins these over their positions (4 x 8400 from 80 x 80, 40 x 40 and 20 x 20).
    """
    size = batch.kernels[row].output.spatial
    maps = False
    for kernel in reversed(batch.kernels[:row]):
        other = kernel.output.spatial
        if kernel.layer is not None and len(size) == len(other) == 2:
            maps = True
            if 0.5 <= size[0] * other[1] / (size[1] * other[0]) <= 2.0:
                return False
    return maps


def _waves(positions: float, out: Bits, roofline: Roofline) -> Array | None:
    """Outputs that a GPU has time for while it computes these: each multiprocessor takes a tile at a time,
    and tiles at the edges and the last wave of tiles take as long as full ones. Fewer tiles than
    multiprocessors are split along the sum (split-K), so that all are busy. None where there are no tiles,
    and for a product with one vector, which has kernels of its own and waits for its weights.

    Source: NVIDIA, Matrix Multiplication Background User's Guide, tile quantization and wave quantization.
    """
    height, width, side_by_side = (
        roofline.tile_position_count, roofline.tile_channel_count, roofline.multiprocessor_count,
    )  # fmt: skip
    if height is None or width is None or side_by_side is None or positions <= 1:
        return None
    tiles = np.ceil(positions / height) * np.ceil(out / width)
    filled = np.where(tiles < side_by_side, tiles, np.ceil(tiles / side_by_side) * side_by_side)
    return np.asarray(filled * (height * width))


def _rounded_up(counts: NDArray[np.int64], multiple: NDArray[np.int64]) -> NDArray[np.int64]:
    return -(-counts // multiple) * multiple


def _unit(roofline: Roofline, bits: int) -> int:
    """Bits of the unit that computes so many; the widest unit for what is wider than all of them."""
    return roofline.unit(bits) or max(map(int, roofline.macs_per_ms))


def _alignments(roofline: Roofline) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Multiples of input and of output channels, by bits of the unit."""
    pairs = [roofline.alignment.get(str(bits), (1, 1)) for bits in range(33)]
    return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
