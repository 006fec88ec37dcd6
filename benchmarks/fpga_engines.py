"""Engines of published designs, with their own folding: logic and memory blocks.

fpgaConvNet gives every multiplier and every lane of a window a memory of its own, FINN's BNN-PYNQ every
output at a time (PE). The designs that leanfront chooses have one memory for each engine instead, as FINN's
decoupled weights have it (latency_models.fpga.resources).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from leanfront.hw_profiles.fpga import MemoryBlock
from leanfront.latency_models.fpga.kernels import Array
from leanfront.latency_models.fpga.resources import TABLE_BITS

SHALLOW_WORDS = 32
"""Line buffers up to this deep are made of logic: what the memory blocks of fpgaConvNet's designs tell."""
SUM_BITS = 30
"""Width of the partial sums of fpgaConvNet's designs."""
PORTS = 2
"""Tables for each 64 words of a memory in logic that is written at run time: it has a second port."""


@dataclass(frozen=True, eq=False)
class Engine:
    """One layer's engine; arrays are (n,) or numbers.

    pe: outputs at a time. lanes: input channels of each at a time. taps: window positions at a time. So it
    has pe x lanes x taps multipliers. window_lanes: input channels of its sliding window at a time.
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
    weights_in_logic: bool = False

    @property
    def multipliers(self) -> Array:
        """Multiply-accumulates per cycle."""
        return _array(self.pe) * _array(self.lanes) * _array(self.taps)

    @property
    def memories(self) -> Array:
        """Memories of weights, and of partial sums."""
        return _array(self.pe) * (_array(self.lanes) if self.own_memories else 1.0)

    @property
    def weight_words(self) -> Array:
        """Depth of the weight memories (FINN: WMEM)."""
        return np.asarray(np.ceil(_array(self.weights) / self.multipliers))


def weight_luts(engine: Engine) -> float:
    """6-input tables of weight memories in logic: P Q W ceil(WMEM / 64) (FINN, lut_estimation: c2)."""
    if not engine.weights_in_logic:
        return 0.0
    words = np.ceil(engine.weight_words / TABLE_BITS)
    return PORTS * float(engine.multipliers * _array(engine.weight_bits) * words)


def blocks(block: MemoryBlock, depth: ArrayLike, width: ArrayLike) -> Array:
    """Memory blocks of a memory of ``depth`` words of ``width`` bits: the best of the block's shapes."""
    deep, wide = _array(depth), _array(width)
    least = np.full(np.broadcast_shapes(deep.shape, wide.shape), np.inf)
    for shape_width, shape_depth in block.shapes:
        np.minimum(least, np.ceil(deep / shape_depth) * np.ceil(wide / shape_width), out=least)
    return np.asarray(np.where(deep * wide > 0, least, 0.0) / block.halves)


def weight_blocks(block: MemoryBlock, engine: Engine) -> Array:
    """Memories that are each as wide as the weights that they give in a cycle."""
    if engine.weights_in_logic:
        return np.zeros(())
    width = engine.multipliers / engine.memories * _array(engine.weight_bits)
    return np.asarray(engine.memories * blocks(block, engine.weight_words, width))


def buffer_blocks(block: MemoryBlock, engine: Engine) -> Array:
    """Line buffers of a sliding window, and memories of partial sums.

    BNN-PYNQ (slidingwindow.h): kh + 1 memories of a line, in words of the lanes. fpgaConvNet: per lane kh - 1
    lines and kh x (kw - 1) cells of one position, where they are deeper than SHALLOW_WORDS; partial sums wait
    where every lane sums over the channels that come after one another.
    """
    height, width = engine.window
    lanes, bits = _array(engine.window_lanes), _array(engine.activation_bits)
    cells = np.ceil(_array(engine.read) / lanes)
    line = engine.read_width * cells
    if not engine.own_memories:
        return np.asarray((height + 1) * (height > 1) * blocks(block, line, lanes * bits))
    total = np.zeros_like(cells)
    for deep, memories in ((line, height - 1), (cells, height * (width - 1))):
        if memories:
            total = total + np.where(deep > SHALLOW_WORDS, lanes * memories * blocks(block, deep, bits), 0.0)
    folded = _array(engine.reduced) > 1
    sums = blocks(block, np.ceil(_array(engine.out) / _array(engine.pe)), SUM_BITS)
    return np.asarray(total + np.where(folded, engine.memories * sums, 0.0))


def _array(value: ArrayLike) -> Array:
    return np.asarray(value, dtype=np.float64)
