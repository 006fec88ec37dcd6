"""How parallel each engine of a pipeline is, so that none takes longer than a given number of cycles."""

from dataclasses import dataclass

import numpy as np

from latency_models.fpga_kernels import Array, Work
from latency_models.fpga_resources import Engine


@dataclass(frozen=True, eq=False)
class Folded:
    """One kernel at a given pace; arrays are (n,). read_lanes, out_lanes: values per cycle of its streams."""

    work: Work
    engine: Engine | None
    cycles: Array
    read_lanes: Array
    out_lanes: Array


def folded(work: Work, target_cycles: Array) -> Folded:
    """The least parallel engine that takes at most ``target_cycles`` (where one does).

    cycles = steps x ceil(out / PE) x ceil(reduced x taps / SIMD)   (FINN, get_exp_cycles)

    with PE outputs and SIMD products of each at a time, at most all of them. Of folding the outputs first and
    folding the products first, what needs fewer multipliers. Streams carry as many values per cycle as the
    pace asks for.
    """
    read_lanes = np.ceil(work.read / _cycles_each(work.read_positions, target_cycles))
    out_lanes = np.ceil(work.out / _cycles_each(work.positions, target_cycles))
    read_cycles = work.read_positions * np.ceil(work.read / read_lanes)
    out_cycles = work.positions * np.ceil(work.out / out_lanes)
    streams = np.maximum(read_cycles, out_cycles)
    if not work.layer:
        return Folded(work, None, streams, read_lanes, out_lanes)
    budget = _cycles_each(work.steps, target_cycles)
    products = work.reduced * float(work.taps)
    outputs_first = _split(work.out, products, budget)
    simd, pe = _split(products, work.out, budget)
    better = outputs_first[0] * outputs_first[1] <= pe * simd
    pe = np.where(better, outputs_first[0], pe)
    simd = np.where(better, outputs_first[1], simd)
    lanes = np.minimum(simd, work.reduced)
    engine = Engine(
        pe=pe,
        lanes=lanes,
        taps=np.ceil(simd / lanes),
        window_lanes=pe if work.depthwise else lanes,
        weights=work.weights,
        out=work.out,
        read=work.read,
        reduced=work.reduced,
        window=work.kernel,
        read_width=float(work.read_width),
        weight_bits=work.weight_bits,
        activation_bits=work.activation_bits,
    )
    compute = work.steps * np.ceil(work.out / pe) * np.ceil(products / simd)
    return Folded(work, engine, np.maximum(compute, streams), read_lanes, out_lanes)


def _cycles_each(positions: int, target_cycles: Array) -> Array:
    """Cycles for each position; no engine takes less than one."""
    return np.maximum(1.0, np.floor(target_cycles / positions))


def _split(first: Array, second: Array, budget: Array) -> tuple[Array, Array]:
    """Parallelism of two loops that together take ``budget`` cycles, the first folded as far as it goes."""
    first_cycles = np.minimum(first, budget)
    second_cycles = np.minimum(second, np.floor(budget / first_cycles))
    return np.ceil(first / first_cycles), np.ceil(second / second_cycles)
