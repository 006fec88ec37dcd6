"""Integer grids of tensors: one rule for the sign of a tensor, shared by files that are used and timed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from leanfront.compression.graph.kernels import Kernel
from leanfront.compression.graph.operations import operation
from leanfront.compression.policy.policy import LayerPolicy
from leanfront.compression.policy.precision import tensor_bits

GridKind = Literal["affine", "symmetric", "signed"]
"""Where an engine lets the zero of a tensor's grid lie: anywhere; at the lowest code of a tensor without
negative values, else in the middle; or always in the middle."""


_STRICTEST: tuple[GridKind, ...] = ("signed", "symmetric", "affine")


def all_of(kind: GridKind, wanted: GridKind) -> bool:
    """Whether every grid of one kind is of another, too."""
    return _STRICTEST.index(kind) <= _STRICTEST.index(wanted)


@dataclass(frozen=True)
class ActivationGrid:
    """Integers 0 .. 2^bits - 1 stand for (integer - zero_point) * scale. With the zero in the middle,
    2^(bits - 1), they are an engine's signed integers, moved."""

    scale: float
    zero_point: int
    bits: int = 8

    def as_of(self, kind: GridKind) -> "ActivationGrid":
        """Itself, or with its zero moved to the middle where that kind has it there."""
        return self if self.is_of(kind) else replace(self, zero_point=2 ** (self.bits - 1))

    def is_of(self, kind: GridKind) -> bool:
        """Whether its zero lies where that kind lets it."""
        middle = 2 ** (self.bits - 1)
        return kind == "affine" or self.zero_point == middle or (kind == "symmetric" and not self.zero_point)


def never_negative(kernels: tuple[Kernel, ...]) -> frozenset[str]:
    """Names of the kernels whose output has no negative values: its zero point is 0."""
    found: set[str] = set()
    for kernel in kernels:
        last = operation(kernel.output.op)
        moved = last.keeps_sign and bool(kernel.inputs) and found.issuperset(kernel.inputs)
        clamped = last.never_negative or operation(kernel.activation).never_negative
        if clamped or (kernel.layer is None and moved):
            found.add(kernel.name)
    return frozenset(found)


def stand_in_grids(
    kernels: tuple[Kernel, ...], policy: Mapping[str, LayerPolicy]
) -> dict[str, ActivationGrid]:
    """Kernel -> the grid of its output, as calibration finds it, as far as onnxruntime's optimiser looks.

    A tensor without negative values has zero point 0, else its ReLU would not be fused. No range reaches
    beyond that of a ReLU6. No two tensors have the same grid: codes would be passed on without a conversion.
    """
    unsigned = never_negative(kernels)
    grids = {}
    for index, (name, bits) in enumerate(tensor_bits(kernels, policy).items()):
        if bits <= 8:
            levels = 2**bits - 1
            scale = (5.0 - index / len(kernels)) / levels
            grids[name] = ActivationGrid(scale, 0 if name in unsigned else (levels + 1) // 2, bits)
    return grids


def with_moved(
    grids: Mapping[str, ActivationGrid], kernels: tuple[Kernel, ...], bits: Mapping[str, int]
) -> dict[str, ActivationGrid]:
    """The same and the grids of tensors whose values were only moved: those of what they were moved from.

    ``bits``: kernel -> those of its output; without integers (above 8) there is no grid.
    """
    found = dict(grids)
    for kernel in kernels:
        if operation(kernel.op).same_range and bits[kernel.name] <= 8:
            found[kernel.name] = found[kernel.inputs[0]]
    return found
