"""Whether a file puts out what its network does."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from leanfront.compression.capture.program import Arguments
from leanfront.compression.export.deployed_form import fold
from leanfront.compression.export.dialects import QDQ, Dialect
from leanfront.compression.export.template import Template
from leanfront.compression.graph import kernels
from leanfront.compression.techniques.compress import Compressed
from leanfront.compression.techniques.quantize import quantizers
from leanfront.search.gate.shown import operations
from leanfront.search.gate.tensors import (
    STEPS,
    File,
    answers,
    answers_of_each,
    in_steps,
    nudged,
    share_of_range,
    together,
    tolerance,
)

OWN = 3.0
"""How many times as far as a network's own answers move with the rounding of floats, its file may lie."""


@dataclass(frozen=True)
class Found:
    """How far a file lies from its network: ``largest`` in ``unit``; ``why`` in words."""

    passed: bool
    largest: float
    unit: str
    why: str


def held(
    template: Template,
    compressed: Compressed,
    content: bytes,
    examples: Sequence[Arguments],
    dialect: Dialect = QDQ,
    against: nn.Module | None = None,
) -> Found:
    """Compare a file with its network, from end to end; in integers, where that is too far, operation by
    operation as well: a deep network whose values happen to be rounded the other way here and there moves as
    far from itself.

    Args:
        content: the file. examples: batches of one. against: what a file in floats is compared with, else the
            compressed module.
    """
    theirs = File(content).answers(examples)
    ours = answers_of_each(against or compressed.module, examples)
    bits = lowest_bits(compressed)

    def first() -> str:
        return operations(template, compressed, examples[0], dialect).first

    if bits > 8:
        largest = share_of_range(ours, theirs)
        if largest <= tolerance(compressed.module):
            return Found(True, largest, "of the range", f"within {largest:.1g} of the range")
        named = first() or "each operation by itself is right"
        return Found(False, largest, "of the range", f"no nearer than {largest:.2g} of the range; {named}")
    grids = output_steps(compressed)
    most, largest = in_steps(ours, theirs, grids, bits)
    unit = "quantization steps"
    if most <= STEPS:
        return Found(True, most, unit, f"within {most:.1f} quantization steps")
    far = f"no nearer than {most:.1f} quantization steps (at most {largest:.1f})"
    if named := first():
        return Found(False, most, unit, f"{far}; {named}")
    deployed = fold(compressed).module
    rounded = in_steps(answers_of_each(deployed, examples), theirs, grids, bits)[0]
    own = own_steps(deployed, examples, grids, bits)
    if rounded <= max(STEPS, OWN * own):
        why = (
            f"operation by operation; from end to end within {most:.1f} quantization steps, where its own"
            f" answers move by {own:.1f} with the rounding of floats"
        )
        return Found(True, most, unit, why)
    why = f"{far}, though each operation by itself is right and its own answers move by {own:.1f} at most"
    return Found(False, most, unit, why)


def own_steps(
    module: nn.Module, examples: Sequence[Arguments], grids: dict[int, float], bits: int = 8
) -> float:
    """Quantization steps by which a network's answers move with nothing but the rounding of floats: all
    examples at once, and each with inputs that are a millionth off."""
    alone = answers_of_each(module, examples)
    found = [in_steps(alone, answers(module, together(examples)), grids, bits)[0]]
    for seed in range(2):
        near = [nudged(example, seed * len(examples) + place) for place, example in enumerate(examples)]
        found.append(in_steps(alone, answers_of_each(module, near), grids, bits)[0])
    return max(found)


def lowest_bits(compressed: Compressed) -> int:
    """Of the tensors that a network holds in integers; 32: of none."""
    return min((one.bits for one in quantizers(compressed.module).values()), default=32)


def output_steps(compressed: Compressed) -> dict[int, float]:
    """Index of an output -> the step of the grid that holds it, of those that are held on one."""
    grids = quantizers(compressed.module)
    kernel = {node.name: k.name for k in kernels(compressed.network) for node in k.nodes}
    return {
        index: grids[kernel[name]].grid().scale
        for index, name in enumerate(compressed.network.outputs)
        if kernel.get(name) in grids
    }
