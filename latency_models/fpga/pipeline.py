"""When each engine of a streaming pipeline puts out its first and its last result."""

from dataclasses import dataclass
from functools import reduce

import numpy as np

from leanfront.latency_models.fpga.kernels import Array


@dataclass(frozen=True, eq=False)
class Stage:
    """One engine; arrays are (n,).

    inputs: rows of the stages that it reads; none: it reads the network's input stream.
    cycles: from its first input to its last output when it never waits.
    positions: of the stream that it writes.
    needed: share of its input that must have come in before it starts, 0 (the first position) to 1 (all).
    """

    inputs: tuple[int, ...]
    cycles: Array
    positions: float
    needed: float


@dataclass(frozen=True, eq=False)
class Times:
    """First and last output of each stage, in cycles since the input began: (stages, n). ``waiting``: share
    of a tensor that the earlier one of two inputs holds back until the other comes: (stages, n)."""

    first: Array
    last: Array
    waiting: Array


def first_window(kernel: tuple[int, int], padding: tuple[int, int], width: float, positions: float) -> float:
    """Share of an input of ``positions`` (rows of ``width``) that comes before its first window is complete.

    A window of kh x kw at the upper left corner reaches kh - 1 - padding rows and kw - 1 - padding columns
    beyond the first position. 0 for 1 x 1 windows, at most 1.
    """
    rows = max(0, kernel[0] - 1 - padding[0])
    columns = max(0, kernel[1] - 1 - padding[1])
    return min(1.0, (rows * width + columns) / max(1.0, positions - 1))


def stream(stages: list[Stage], input_cycles: Array) -> Times:
    """Follow one inference through the pipeline.

    A stage starts when the first window of its input is there; positions come evenly between the first and
    the last output of the stage before. It ends after its own cycles, or one position after its last input,
    whichever is later. So the slowest stage bounds the latency from below, the sum of all from above.

    Args:
        stages: in order of execution.
        input_cycles: (n,) how long the input takes to come in.
    """
    count = len(input_cycles)
    first = np.zeros((len(stages), count))
    last = np.zeros((len(stages), count))
    waiting = np.zeros((len(stages), count))
    nothing = np.zeros(count)
    for row, stage in enumerate(stages):
        starts = [first[i] for i in stage.inputs] or [nothing]
        ends = [last[i] for i in stage.inputs] or [input_cycles]
        ready = [start + stage.needed * (end - start) for start, end in zip(starts, ends, strict=True)]
        begin, end = reduce(np.maximum, ready), reduce(np.maximum, ends)
        each = stage.cycles / stage.positions
        first[row] = begin + each
        last[row] = np.maximum(begin + stage.cycles, end + each)
        if len(stage.inputs) > 1:
            early = reduce(np.minimum, ready)
            waiting[row] = np.clip((begin - early) / np.maximum(end - early, 1.0), 0.0, 1.0)
    return Times(first, last, waiting)
