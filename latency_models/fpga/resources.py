"""Logic, multipliers and memory of the engines of a streaming pipeline."""

from dataclasses import dataclass

import numpy as np

from leanfront.hw_profiles.fpga import MemoryBlock, Multiplier
from leanfront.hw_profiles.sections import Dataflow
from leanfront.latency_models.fpga.kernels import Array

TABLE_BITS = 64
"""What a 6-input lookup table holds."""


def multiplier_luts(weight_bits: Array, activation_bits: Array) -> Array:
    """6-input tables of a multiplier in logic, up to a factor: W x A.

    Source: FINN-R (Blott et al. 2018), cost of the matrix-vector unit: c0 + 1.1 P Q (W A).
    """
    return np.asarray(weight_bits * activation_bits)


def sum_bits(weight_bits: Array, activation_bits: Array, products: Array) -> Array:
    """Width of a sum of so many products: W + A + log2(products), rounded up (FINN, lut_estimation)."""
    return np.asarray(weight_bits + activation_bits + np.ceil(np.log2(products)))


def threshold_bits(out_bits: Array, width: Array) -> Array:
    """Bits that a sum of ``width`` bits is compared with to bring it to ``out_bits``: 2^B - 1 thresholds."""
    return np.asarray((2.0**out_bits - 1) * width)


def threshold_luts(bits: Array, lanes: Array, channels: Array, ports: int = 1) -> Array:
    """6-input tables of thresholds, ``lanes`` values per cycle; ``bits``: as ``threshold_bits``.

    Each lane has comparators, a table for each bit; each channel has thresholds of its own, which are held in
    tables of 64 words (FINN, lut_estimation: comp and thr), ``ports`` of them: 2 if written at run time.
    """
    compared = lanes
    tables = np.maximum(compared, np.ceil(channels / TABLE_BITS))
    return np.asarray(bits * (compared + ports * tables))


@dataclass(frozen=True, eq=False)
class Arithmetic:
    """What the bits of a layer decide, whatever its folding; arrays are (n,).

    in_logic: 1 where multipliers are made of logic because their operands are short, else 0. luts: of one
    multiplier in logic. adder_luts: of adding its product up. packed: products per DSP block and cycle.
    """

    in_logic: Array
    luts: Array
    adder_luts: Array
    packed: Array


def arithmetic(
    dataflow: Dataflow, multiplier: Multiplier, weight_bits: Array, activation_bits: Array
) -> Arithmetic:
    """The arithmetic of a layer with these bits."""
    widest = np.maximum(weight_bits, activation_bits)
    modes = sorted(map(int, multiplier.macs))
    return Arithmetic(
        in_logic=np.asarray(weight_bits + activation_bits <= dataflow.lut_multiplier_bits, dtype=np.float32),
        luts=dataflow.lut_per_multiplier * multiplier_luts(weight_bits, activation_bits),
        adder_luts=np.asarray(dataflow.lut_per_adder_bit * (weight_bits + activation_bits)),
        packed=np.select(
            [widest <= mode for mode in modes],
            [np.float32(multiplier.macs[str(mode)]) for mode in modes],
            np.float32(1),
        ),
    )


@dataclass(frozen=True, eq=False)
class Held:
    """Values held in one memory of some kind of block, whatever the pace; arrays of any one shape.

    The memory's words are as wide as the widest shape of the block, or several blocks beside each other: no
    narrower than what is read at a time, but wider where that saves blocks (a word then serves several
    cycles). So a slower engine never needs more blocks.

    group: blocks beside each other that one value takes (of blocks that can be used in halves, half as many).
    per_word: values in a word of such a group. least: groups that hold them all.
    """

    group: Array
    per_word: Array
    least: Array

    @staticmethod
    def of(block: MemoryBlock, values: Array, bits: Array) -> "Held":
        """So many values of so many bits (1 to 32)."""
        width, depth = max(block.shapes)
        wide = bits
        group, per_word = np.ceil(wide / width) / block.halves, np.maximum(1.0, np.floor(width / wide))
        return Held(group, per_word, np.ceil(values / (per_word * depth)))

    def blocks(self, at_once: Array) -> Array:
        """Memory blocks when ``at_once`` values are read in a cycle: enough words beside each other, and
        room for all."""
        wide = np.ceil(at_once / self.per_word)
        return np.asarray(np.maximum(wide, self.least) * self.group)

    @property
    def least_blocks(self) -> Array:
        """Memory blocks when they are read one after another."""
        return np.asarray(self.least * self.group)
