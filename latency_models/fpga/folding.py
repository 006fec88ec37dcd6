"""How parallel each engine of a pipeline is, so that none takes longer than a given number of cycles."""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from leanfront.latency_models.fpga.kernels import Array


@dataclass(frozen=True, eq=False)
class Folding:
    """Engines at a given pace; arrays are (layers, n).

    pe: outputs at a time. simd: products of each at a time. slots: multipliers, with those that are idle
    because a DSP block makes several products of one activation. wide: values per cycle of the wider of
    what an engine reads and writes. held: 1 where weights lie in memory, 0 where they are in the logic.
    """

    pe: Array
    simd: Array
    slots: Array
    wide: Array
    held: Array


def folding(
    outputs: Array, products: Array, reduced: Array, packed: Array, unrolled: Array, budget: Array
) -> Folding:
    """The least parallel engines that take at most ``budget`` cycles for each position.

    cycles of a position = ceil(outputs / PE) x ceil(products / SIMD)   (FINN, get_exp_cycles)

    Of folding the outputs first, folding the products first, and all products at once with the weights in
    the logic, what needs fewest slots. The fewer cycles there are, the more slots it takes, never fewer
    (``wide`` may go either way).

    Args:
        outputs, products: of a layer, and of each output.
        reduced: input channels that each output is computed from.
        packed: products that a DSP block makes in a cycle, of as many outputs.
        unrolled: slots of all products at once, without those that are 0; infinite where no engine is so.
        budget: whole cycles for each position, at least 1.
    """
    one, other = candidates(outputs, products, reduced, packed, budget)
    first = (one.slots < other.slots) | ((one.slots == other.slots) & (one.wide <= other.wide))
    found = _chosen(first, one, other)
    if not np.isfinite(unrolled).any():
        return found
    whole = at_once(outputs, products, reduced, unrolled)
    return _chosen(whole.slots <= found.slots, whole, found)


def _chosen(first: NDArray[np.bool_], one: Folding, other: Folding) -> Folding:
    names = [field.name for field in fields(Folding)]
    return Folding(*(np.where(first, getattr(one, name), getattr(other, name)) for name in names))


def at_once(outputs: Array, products: Array, reduced: Array, unrolled: Array) -> Folding:
    """All products of a position at once; see ``folding``."""
    wide = np.maximum(np.minimum(products, reduced), outputs)
    return Folding(outputs, products, unrolled, wide, np.zeros_like(outputs))


def candidates(
    outputs: Array, products: Array, reduced: Array, packed: Array, budget: Array
) -> tuple[Folding, Folding]:
    """Two of ``folding``: outputs folded first, products folded first."""
    shared = np.maximum(packed, 1.0)
    found = []
    for outputs_first in (True, False):
        first, second = (outputs, products) if outputs_first else (products, outputs)
        cycles = np.minimum(first, budget)
        rest = np.minimum(second, np.floor(budget / cycles))
        parallel, other = np.ceil(first / cycles), np.ceil(second / rest)
        pe, simd = (parallel, other) if outputs_first else (other, parallel)
        slots = np.ceil(pe / shared) * shared * simd
        found.append(Folding(pe, simd, slots, np.maximum(np.minimum(simd, reduced), pe), np.ones_like(pe)))
    return found[0], found[1]


def lanes(values: Array, positions: Array, pace: Array) -> Array:
    """Values per cycle of a stream that brings ``positions`` times ``values`` within ``pace`` cycles."""
    return np.asarray(np.ceil(values / np.maximum(1.0, np.floor(pace / positions))))
