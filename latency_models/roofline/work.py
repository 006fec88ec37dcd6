"""What each kernel asks of a processor: arithmetic, bytes, values; for many policies at once."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph import Kernel
from leanfront.compression.graph.operations import operation
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.hw_profiles import HardwareProfile, Roofline
from leanfront.latency_models.cost import check_bits

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Work:
    """What the kernels ask for under n policies; arrays are (kernels, n). Nothing in it is a speed.

    names: of the layer, or of the kernel. unit: bits of the arithmetic unit, 0 where there is no arithmetic.
    macs: multiply-accumulates, channels rounded up to the unit's alignment and outputs to whole waves of
    tiles. depthwise: (kernels,).
    moved_bytes: inputs and output once, weights at their bits, a bias at 32; layer_bytes: those of them that
    are inputs or the output of a layer. values: how many these are
    (without biases). window_bytes, window_values: the matrix of windows of a convolution larger than 1x1.
    image_values: (kernels,) elements of the network's first input; image_bits: at which it is handed over.
    gathered_bytes: tensors that appear from nowhere (a layer table has no concats and sums); joined_values:
    elements of those that join whole maps over their positions.
    launches: kernels that are started. conversions: changes of precision; converted_bytes: their traffic.
    """

    names: tuple[str, ...]
    layers: tuple[str | None, ...]
    busy: NDArray[np.bool_]
    depthwise: NDArray[np.bool_]
    image_values: Array
    image_bits: NDArray[np.int64]
    unit: NDArray[np.int64]
    macs: Array
    moved_bytes: Array
    layer_bytes: Array
    values: Array
    window_bytes: Array
    window_values: Array
    gathered_bytes: Array
    joined_values: Array
    launches: Array
    conversions: Array
    converted_bytes: Array
    tensor_bytes: Array = field(repr=False)


def work_of(batch: PolicyBatch, profile: HardwareProfile, roofline: Roofline) -> Work:
    """The work of every kernel, in order of execution. Of what has no formula it is what it moves.

    Raises:
        TableError: a bit pair whose cost is not known; it is named.
    """
    check_bits(batch, profile)
    held = held_bits(batch)
    height, n = len(batch.kernels), batch.count
    fields = {name: np.zeros((height, n)) for name in (
        "macs", "moved_bytes", "layer_bytes", "values", "window_bytes", "window_values", "gathered_bytes",
        "joined_values", "launches",
    )}  # fmt: skip
    unit = np.zeros((height, n), dtype=np.int64)
    busy, depthwise = np.zeros(height, dtype=np.bool_), np.zeros(height, dtype=np.bool_)
    image = np.zeros(height)
    elements = batch.elements.astype(np.float64)
    for row, kernel in enumerate(batch.kernels):
        inputs = [batch.kernel_index[name] for name in kernel.inputs]
        row_of = operation(kernel.op)
        if row_of.given:
            if not busy.any() and not image.any():
                image[row] = float(elements[row].max())
            elif roofline.gathered_passes:
                busy[row] = True
                fields["launches"][row] = 1.0
                fields["gathered_bytes"][row] = elements[row] * held[row] / 8
                if _joins_maps(row, batch):
                    fields["joined_values"][row] = elements[row]
            continue
        if row_of.work == "free" or _fused(kernel, batch, roofline):
            continue
        busy[row] = True
        fields["launches"][row] = 1.0
        touched = [row, *inputs]
        fields["values"][row] = elements[touched].sum(axis=0)
        fields["moved_bytes"][row] = (elements[touched] * held[touched]).sum(axis=0) / 8
        if kernel.layer is not None:
            depthwise[row] = kernel.layer.shape.depthwise
            fields["layer_bytes"][row] = fields["moved_bytes"][row]
            _add_layer(row, inputs[0], kernel, batch, held, roofline, fields, unit)
        elif row_of.work == "product":
            first = batch.kernels[inputs[0]].output
            depth = first.spatial[-1] if first.spatial else batch.widths[inputs[0]]
            fields["macs"][row] += elements[row] * depth
            unit[row] = _units(roofline)[np.where(held[row] == 16, 16, 32)]
        _add_held(row, kernel, elements[row], roofline, fields, unit)
    conversions, converted = _conversions(batch, held, elements, roofline)
    return Work(
        names=tuple(kernel.layer.name if kernel.layer else kernel.name for kernel in batch.kernels),
        layers=tuple(kernel.layer.name if kernel.layer else None for kernel in batch.kernels),
        busy=busy,
        depthwise=depthwise,
        image_values=image,
        image_bits=np.where(held <= 8, 8, held),
        unit=unit,
        conversions=conversions,
        converted_bytes=converted,
        tensor_bytes=elements * np.where(held <= 8, 1.0, held / 8),
        **fields,
    )


def held_bits(batch: PolicyBatch) -> NDArray[np.int64]:
    """(kernels, n): bits at which each tensor is held, as ``tensor_bits`` has it, with half precision.

    A tensor of floats has 16 bits when what makes it computes in half precision: a layer with activations of
    16 bits, another operation whose inputs all have 16; the network's input when its readers are such layers.
    """
    held = batch.bits.copy()
    if not (batch.activation_bits == 16).any():
        return held
    half = batch.activation_bits == 16
    readers: list[list[int]] = [[] for _ in batch.kernels]
    for kernel in batch.kernels:
        for name in kernel.inputs:
            if kernel.layer is not None:
                readers[batch.kernel_index[name]].append(batch.layer_index[kernel.layer.name])
    for row, kernel in enumerate(batch.kernels):
        if kernel.layer is not None:
            halved = half[batch.layer_index[kernel.layer.name]]
        elif kernel.inputs:
            halved = (held[[batch.kernel_index[name] for name in kernel.inputs]] == 16).all(axis=0)
        else:
            halved = half[readers[row]].all(axis=0) if readers[row] else np.zeros(batch.count, np.bool_)
        held[row] = np.where((held[row] == 32) & halved, 16, held[row])
    return held


def _add_layer(
    row: int,
    source: int,
    kernel: Kernel,
    batch: PolicyBatch,
    held: NDArray[np.int64],
    roofline: Roofline,
    fields: dict[str, Array],
    unit: NDArray[np.int64],
) -> None:
    assert kernel.layer is not None
    shape, index = kernel.layer.shape, batch.layer_index[kernel.layer.name]
    wide = np.maximum(batch.weight_bits[index], batch.activation_bits[index])
    floats = ~batch.integer_layers[index] & (wide <= 8)  # a layer without an integer kernel
    unit[row] = _units(roofline)[np.where(floats, 32, wide)]
    weights = batch.weight_counts[index].astype(np.float64)
    out = batch.out_channels[index]
    fields["values"][row] += weights
    fields["moved_bytes"][row] += weights * batch.weight_bits[index] / 8
    if kernel.layer.bias:
        fields["moved_bytes"][row] += 4.0 * out
    if shape.depthwise:
        fields["macs"][row] = batch.macs[index]
        return
    read = batch.widths[source]
    positions = batch.macs[index] / np.maximum(weights, 1.0)
    taps = math.prod(shape.kernel)
    inside, outside = _alignments(roofline)
    padded_in = _rounded_up(batch.reduced[index], inside[unit[row]])
    outputs = positions * _rounded_up(out, outside[unit[row]])
    fields["macs"][row] = taps * padded_in * np.maximum(outputs, _waves(positions, out, roofline))
    if taps > 1:
        fields["window_values"][row] = positions * read * taps
        fields["window_bytes"][row] = fields["window_values"][row] * held[source] / 8


def _add_held(
    row: int,
    kernel: Kernel,
    made: Array,
    roofline: Roofline,
    fields: dict[str, Array],
    unit: NDArray[np.int64],
) -> None:
    """Arithmetic and weights that no policy speaks of: in floats. Of a table as much is read as comes out."""
    if kernel.macs:
        unit[row] = _units(roofline)[32]
        fields["macs"][row] += kernel.macs
    if kernel.held_bytes:
        all_of_it = operation(kernel.op).reads_held
        read = np.minimum(kernel.held_bytes, np.inf if all_of_it else 4.0 * made)
        fields["values"][row] += read / 4
        fields["moved_bytes"][row] += read


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


def _waves(positions: Array, out: NDArray[np.int64], roofline: Roofline) -> Array | float:
    """Outputs that a GPU has time for while it computes these: each multiprocessor takes a tile at a time,
    and tiles at the edges and the last wave of tiles take as long as full ones. Fewer tiles than
    multiprocessors are split along the sum (split-K), so that all are busy. 0 where there are no tiles, and
    for a product with one vector, which has kernels of its own and waits for its weights.

    Source: NVIDIA, Matrix Multiplication Background User's Guide, tile quantization and wave quantization.
    """
    height, width, side_by_side = (
        roofline.tile_position_count, roofline.tile_channel_count, roofline.multiprocessor_count,
    )  # fmt: skip
    if height is None or width is None or side_by_side is None:
        return 0.0
    tiles = np.ceil(positions / height) * np.ceil(out / width)
    filled = np.where(tiles < side_by_side, tiles, np.ceil(tiles / side_by_side) * side_by_side)
    return np.asarray(np.where(positions > 1, filled * (height * width), 0.0))


def _rounded_up(counts: NDArray[np.int64], multiple: NDArray[np.int64]) -> NDArray[np.int64]:
    return -(-counts // multiple) * multiple


def _units(roofline: Roofline) -> NDArray[np.int64]:
    """Bits -> bits of the unit that computes them; the widest unit for what is wider than all of them."""
    widest = max(map(int, roofline.macs_per_ms))
    return np.array([roofline.unit(bits) or widest for bits in range(33)])


def _alignments(roofline: Roofline) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Multiples of input and of output channels, by bits of the unit."""
    pairs = [roofline.alignment.get(str(bits), (1, 1)) for bits in range(33)]
    return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])


def _fused(kernel: Kernel, batch: PolicyBatch, roofline: Roofline) -> bool:
    """Whether an activation is free: it alone reads what a layer makes, and the part fuses it."""
    if kernel.op not in (roofline.fused_activations or ()) or len(kernel.inputs) != 1:
        return False
    maker = batch.kernels[batch.kernel_index[kernel.inputs[0]]]
    alone = batch.network.consumers[maker.name] == (kernel.nodes[0].name,)
    return maker.layer is not None and not maker.activation and alone


def _conversions(
    batch: PolicyBatch, held: NDArray[np.int64], elements: Array, roofline: Roofline
) -> tuple[Array, Array]:
    """(kernels, n) changes of precision of each kernel's output, and the bytes that they read and write.

    An operation that computes in floats writes floats, which are quantized when the tensor is held in
    integers; one that reads integers has them decoded. Each tensor is converted once, whoever reads it.
    """
    count, moved = np.zeros(elements.shape), np.zeros(elements.shape)
    if roofline.conversion_overhead_ms is None:
        return count, moved
    width = np.where(held <= 8, held, np.where(held == 16, 16, 32))
    wanted: list[list[int]] = [[] for _ in batch.kernels]
    for row, kernel in enumerate(batch.kernels):
        for name in kernel.inputs:
            if operation(kernel.op).work != "free":
                wanted[batch.kernel_index[name]].append(row)
    for row, kernel in enumerate(batch.kernels):
        if operation(kernel.op).work != "free":
            quantized = (held[row] <= 8) & ~batch.integer[row]
            count[row] += quantized
            moved[row] += quantized * elements[row] * (width[row] + 32) / 8
        if wanted[row]:
            decoded = (held[row] <= 8) & ~batch.integer[wanted[row]].all(axis=0)
            floats = np.array([_float_width(batch, reader, held) for reader in wanted[row]])
            resized = (held[row] > 8) & (floats != held[row]).any(axis=0)
            count[row] += decoded | resized
            moved[row] += (decoded | resized) * elements[row] * (width[row] + floats.max(axis=0)) / 8
    return count, moved


def _float_width(batch: PolicyBatch, row: int, held: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) bits of the floats that a kernel reads: 16 for layers of half precision and what follows them."""
    kernel = batch.kernels[row]
    if kernel.layer is None:
        inputs = held[[batch.kernel_index[name] for name in kernel.inputs]]
        return np.asarray(np.where((inputs == 16).all(axis=0), 16, 32))
    return np.where(batch.activation_bits[batch.layer_index[kernel.layer.name]] == 16, 16, 32)
