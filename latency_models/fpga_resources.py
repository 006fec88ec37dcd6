"""Logic, multipliers and memory of one engine of a streaming pipeline."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hw_profiles.fpga import Dataflow, MemoryBlock, Multiplier
from latency_models.fpga_kernels import Array


@dataclass(frozen=True, eq=False)
class Engine:
    """One layer's engine; arrays are (n,) or numbers.

    pe: outputs at a time. lanes: input channels of each at a time. taps: window positions at a time. So it
    has pe x lanes x taps multipliers. window_lanes: input channels at a time in all: pe in depthwise layers,
    else lanes.
    weights: number of weights. out: output channels. read: input channels. window, read_width: kernel and
    width of the input in positions. reduced: input channels of each output.
    """

    pe: ArrayLike
    lanes: ArrayLike
    taps: ArrayLike
    window_lanes: ArrayLike
    weights: ArrayLike
    out: ArrayLike
    read: ArrayLike
    reduced: ArrayLike
    window: tuple[int, int]
    read_width: float
    weight_bits: ArrayLike
    activation_bits: ArrayLike
    own_memories: bool = False

    @property
    def multipliers(self) -> Array:
        """Multiply-accumulates per cycle."""
        return _array(self.pe) * _array(self.lanes) * _array(self.taps)

    @property
    def memories(self) -> Array:
        """Memories of weights, and of partial sums."""
        return _array(self.pe) * (_array(self.lanes) if self.own_memories else 1.0)


def multiplier_luts(weight_bits: ArrayLike, activation_bits: ArrayLike) -> Array:
    """6-input tables of a multiplier in logic: (2 ceil((W + A) / 6) - 1) (W + A).

    Source: FINN, finn/custom_op/fpgadataflow/matrixvectoractivation.py, lut_estimation.
    """
    bits = _array(weight_bits) + _array(activation_bits)
    return np.asarray((2 * np.ceil(bits / 6) - 1) * bits)


def fixed_luts(dataflow: Dataflow, streams: ArrayLike, bits: ArrayLike) -> Array:
    """Logic of an engine besides its arithmetic: control, and stream registers by their width in bits."""
    return np.asarray(dataflow.lut_per_layer + dataflow.lut_per_lane_bit * _array(streams) * _array(bits))


def adder_luts(dataflow: Dataflow, engine: Engine) -> Array:
    """Logic of the adder trees and accumulators: in proportion to the bits that are added up."""
    bits = _array(engine.weight_bits) + _array(engine.activation_bits)
    return np.asarray(dataflow.lut_per_adder_bit * engine.multipliers * bits)


@dataclass(frozen=True, eq=False)
class Arithmetic:
    """What the bits of a layer decide, whatever its folding; arrays are (n,).

    in_logic: 1 where multipliers are made of logic because their operands are short, else 0. luts: of one
    multiplier in logic. packed: products per DSP block and cycle.
    """

    in_logic: Array
    luts: Array
    packed: Array


def arithmetic(
    dataflow: Dataflow, multiplier: Multiplier, weight_bits: Array, activation_bits: Array
) -> Arithmetic:
    """The arithmetic of a layer with these bits."""
    widest = np.maximum(weight_bits, activation_bits)
    modes = sorted(map(int, multiplier.macs))
    return Arithmetic(
        in_logic=np.asarray(weight_bits + activation_bits <= dataflow.lut_multiplier_bits, dtype=np.float64),
        luts=dataflow.lut_per_multiplier * multiplier_luts(weight_bits, activation_bits),
        packed=np.select([widest <= m for m in modes], [multiplier.macs[str(m)] for m in modes], default=1.0),
    )


def dsps(engine: Engine, packed: ArrayLike) -> Array:
    """DSP blocks when all multipliers are in DSP blocks, ``packed`` of them in each.

    Products of several outputs with one activation share a block, so a block never serves more outputs than
    the engine has at a time. Below 1, several blocks make one product.
    """
    products = _array(engine.lanes) * _array(engine.taps)
    shared = np.ceil(_array(engine.pe) / np.maximum(_array(packed), 1.0))
    return np.asarray(shared * products / np.minimum(_array(packed), 1.0))


def blocks(block: MemoryBlock, depth: ArrayLike, width: ArrayLike) -> Array:
    """Memory blocks of a memory of ``depth`` words of ``width`` bits: the best of the block's shapes."""
    deep, wide = _array(depth), _array(width)
    least = np.full(np.broadcast_shapes(deep.shape, wide.shape), np.inf)
    for shape_width, shape_depth in block.shapes:
        np.minimum(least, np.ceil(deep / shape_depth) * np.ceil(wide / shape_width), out=least)
    return np.asarray(np.where(deep * wide > 0, least, 0.0) / block.halves)


def weight_blocks(block: MemoryBlock, engine: Engine) -> Array:
    """Memories that are each as wide as the weights that they give in a cycle (FINN: WMEM)."""
    depth = np.ceil(_array(engine.weights) / engine.multipliers)
    width = engine.multipliers / engine.memories * _array(engine.weight_bits)
    return np.asarray(engine.memories * blocks(block, depth, width))


def buffer_blocks(block: MemoryBlock, dataflow: Dataflow, engine: Engine) -> Array:
    """Line buffers of a sliding window and memories of partial sums.

    Per lane kh - 1 lines of width x channels, and kh x (kw - 1) cells of one position, where they are deeper
    than what goes into logic (shallow_words). Partial sums wait where every lane sums over the channels that
    come after one another (fpgaConvNet); where an output's products are folded innermost (FINN) the sum is a
    register.
    """
    height, width = engine.window
    lanes, bits = _array(engine.window_lanes), _array(engine.activation_bits)
    cells = np.ceil(_array(engine.read) / lanes)
    line = engine.read_width * cells
    total = np.zeros_like(cells)
    for deep, memories in ((line, height - 1), (cells, height * (width - 1))):
        if memories:
            total = total + np.where(
                deep > dataflow.shallow_words, lanes * memories * blocks(block, deep, bits), 0.0
            )
    if not engine.own_memories:
        return total
    folded = _array(engine.reduced) > 1
    sums = blocks(block, np.ceil(_array(engine.out) / _array(engine.pe)), dataflow.accumulator_bits)
    return np.asarray(total + np.where(folded, engine.memories * sums, 0.0))


def _array(value: ArrayLike) -> Array:
    return np.asarray(value, dtype=np.float64)
