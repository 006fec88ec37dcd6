"""Where a file has to keep onnxruntime from fusing what it should not: one rule, for files and sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph.branches import ALIAS
from leanfront.compression.graph.kernels import Kernel
from leanfront.compression.graph.operations import operation
from leanfront.compression.policy.policy import LayerPolicy
from leanfront.compression.policy.precision import Bits, Flags, Precision
from leanfront.compression.policy.rows import Rows


@dataclass(frozen=True)
class Guarded:
    """Names of kernels. between: layers that compute in floats between tensors that are held in integers;
    clipped: those that compute in integers and put out floats that are only clipped."""

    between: frozenset[str]
    clipped: frozenset[str]


def guarded(kernels: tuple[Kernel, ...], policy: Mapping[str, LayerPolicy]) -> Guarded:
    """What has to be guarded under a policy; see ``Guards``."""
    guards = Guards(kernels, [frozenset()] * len(kernels))
    between, clipped = guards.of(*Precision(kernels).of_one(policy))
    return Guarded(guards.names(between), guards.names(clipped))


@dataclass(frozen=True)
class _Step:
    """A tensor behind a layer that is looked through. row: its kernel; before: the step before it, -1: the
    layer; others: rows of what reads the tensor before it, too, and has to be left out. join: it is looked
    through as another name of what it reads; clips: it is the first that clips."""

    row: int
    before: int
    others: tuple[int, ...]
    join: bool
    clips: bool


class Guards:
    """The rule for one network, made ready for many policies.

    onnxruntime makes an integer layer of a float one whose input is held in integers, and whose output is.
    It sees that through whatever it makes part of the layer first: a sum or a product with a constant, or a
    batch norm, is part of a convolution, and what clips goes where a quantizer does so, too.

    Where an integer linear layer on vectors puts out floats that only a clipping operation reads, it looks
    for the quantizer behind that, finds none, and leaves the layer in floats.
    """

    def __init__(self, kernels: tuple[Kernel, ...], places: Sequence[frozenset[int]]) -> None:
        """``places``: of each kernel the branches that it is left out with."""
        self._kernels, self._places = kernels, places
        self._index = {kernel.name: row for row, kernel in enumerate(kernels)}
        self._inputs = [tuple(self._index[name] for name in kernel.inputs) for kernel in kernels]
        self._readers: list[dict[int, None]] = [{} for _ in kernels]
        constant: list[bool] = []
        for row, (kernel, inputs) in enumerate(zip(kernels, self._inputs, strict=True)):
            constant.append(not operation(kernel.op).given and all(constant[source] for source in inputs))
            for source in inputs:
                self._readers[source][row] = None
        self._constant = constant
        spatial = {k.layer.name for k in kernels if k.layer is not None and k.output.spatial}
        layers = [(row, k, k.layer) for row, k in enumerate(kernels) if k.layer is not None]
        self._rows = np.array([row for row, _, _ in layers], dtype=np.int64)
        self._sources = np.array([(*self._inputs[row], row)[0] for row, _, _ in layers], dtype=np.int64)
        self._computes = np.array([[not layer.weight_only] for _, _, layer in layers], dtype=np.bool_)
        steps = [() if layer.weight_only else self._steps(row) for row, _, layer in layers]
        self._behind = [(place, self._rows[place], found) for place, found in enumerate(steps) if found]
        vectors = [kernel.op == "linear" and layer.name not in spatial for _, kernel, layer in layers]
        self._vectors = [
            (place, row, found)
            for place, row, found in self._behind
            if vectors[place] and any(step.clips for step in found)
        ]

    def _steps(self, row: int) -> tuple[_Step, ...]:
        """What is looked through behind a layer."""
        found: list[_Step] = []
        absorbs = operation(self._kernels[row].op).absorbs
        waiting = [(row, -1, bool(self._kernels[row].activation))]
        for read, before, clipped in waiting:
            for reader in self._readers[read]:
                others = tuple(other for other in self._readers[read] if other != reader)
                if not all(self._places[other] for other in others):
                    continue
                kernel = self._kernels[reader]
                made = operation(kernel.op)
                beside = [source for source in self._inputs[reader] if source != read]
                join = kernel.op == ALIAS or (made.adds and any(self._places[source] for source in beside))
                folds = absorbs and made.folds and not clipped and all(self._constant[s] for s in beside)
                if join or folds or made.clips:
                    clips = clipped or (not join and (made.clips or bool(kernel.activation)))
                    conditional = join and kernel.op != ALIAS
                    found.append(_Step(reader, before, others, conditional, made.clips and not clipped))
                    waiting.append((reader, len(found) - 1, clips))
        return tuple(found)

    def names(self, flags: Flags) -> frozenset[str]:
        """Of the kernels of layers that are set, (layers, 1)."""
        return frozenset(self._kernels[row].name for row in self._rows[flags[:, 0]])

    def of(self, bits: Bits, integer: Flags, gone: Rows | None = None) -> tuple[Flags, Flags]:
        """Per layer (in order of the kernels) and policy, (layers, n): whether what it reads is guarded, and
        whether what it puts out is.

        Args:
            bits, integer: (kernels,) or (kernels, n), see ``Precision``.
            gone: which kernels are left out, where something is.
        """
        bits, integer = bits.reshape(len(bits), -1), integer.reshape(len(integer), -1)
        computes = integer[self._rows]
        clipped = np.zeros(computes.shape, dtype=np.bool_)
        if self._vectors and computes.any():
            for place, row, steps in self._vectors:
                reached = self._reached(steps, bits, gone)
                first = [found for step, found in zip(steps, reached, strict=True) if step.clips]
                clipped[place] = computes[place] & (bits[row] > 8) & np.logical_or.reduce(first)
        if computes.all():
            return np.zeros(computes.shape, dtype=np.bool_), clipped
        read, held = bits[self._sources], _held(bits[self._rows])
        able = (read <= 8) & ~computes & (bits[self._rows] > 0) & self._computes.reshape(-1, 1)
        for place, _, steps in self._behind:
            if able[place].any():
                for step, found in zip(steps, self._reached(steps, bits, gone), strict=True):
                    held[place] |= found & _held(bits[step.row])
        return able & held, clipped

    def _reached(self, steps: Sequence[_Step], bits: Bits, gone: Rows | None) -> list[Flags]:
        """Of each step where (n,) it is looked through."""
        found: list[Flags] = []
        for step in steps:
            reached = found[step.before] if step.before >= 0 else np.ones(bits.shape[1], dtype=np.bool_)
            if step.others or step.join:
                if gone is None:
                    reached = np.zeros_like(reached)
                else:
                    reached = np.logical_and.reduce([reached, *(gone[other] for other in step.others)])
                    if step.join:
                        one = np.logical_or.reduce([gone[source] for source in self._inputs[step.row]])
                        reached &= one & ~gone[step.row]
            found.append(reached)
        return found


def _held(bits: Bits) -> NDArray[np.bool_]:
    """Where tensors are there and are held in integers."""
    return np.asarray((bits <= 8) & (bits > 0))
