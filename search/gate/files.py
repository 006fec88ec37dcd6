"""Whether a file puts out what its network does."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from leanfront.compression.capture.program import Arguments
from leanfront.compression.export.dialects import QDQ, Dialect
from leanfront.compression.export.integer_form import in_integers
from leanfront.compression.export.template import Template
from leanfront.compression.graph import kernels
from leanfront.compression.policy.dynamic import is_dynamic
from leanfront.compression.techniques.compress import Compressed
from leanfront.compression.techniques.quantize import QUANTIZER, quantizers
from leanfront.search.gate.shown import of_floats, operations
from leanfront.search.gate.tensors import (
    STEPS,
    File,
    answers,
    answers_of_each,
    in_steps,
    nudged,
    share_of_range,
    together,
)

OWN = 3.0
"""How many times as far as a network's own answers move with the rounding of floats, its file may lie."""
_TRIES = 4
"""So often it is tried how far they move: roundings that happen to turn are few."""


@dataclass(frozen=True)
class Found:
    """How far a file lies from its network: ``largest`` in ``unit``; ``why`` in words."""

    passed: bool
    largest: float
    unit: str
    why: str


@dataclass(frozen=True)
class _Apart:
    """How far the outputs of a network in floats lie apart, as a share of their range; of one in integers, in
    quantization steps. ``limit``: what is right in any network."""

    unit: str
    limit: float
    of: Callable[[Sequence[Tensor], Sequence[Tensor]], float]
    said: Callable[[float], str]

    @staticmethod
    def allowed(compressed: Compressed, dialect: Dialect) -> "_Apart":
        """What a file of a network is held to."""
        bits, grids = lowest_bits(compressed), output_steps(compressed)
        if bits > 8:
            unit, (limit, far) = "of the range", of_floats(compressed)
            share = partial(share_of_range, far=far)
            return _Apart(unit, limit, share, lambda found: f"{found:.2g} of the range")
        unit = "quantization steps"
        return _Apart(
            unit, STEPS, lambda ours, theirs: in_steps(ours, theirs, grids, bits)[0],
            lambda steps: f"{steps:.1f} quantization steps",
        )  # fmt: skip

    def own(self, module: nn.Module, examples: Sequence[Arguments]) -> float:
        """How far a network's answers move with nothing but the rounding of floats: all examples at once, and
        each with inputs, and what is rounded to a grid on the way, a millionth off."""
        alone = answers_of_each(module, examples)
        found = [self.of(alone, answers(module, together(examples)))]
        for seed in range(_TRIES):
            near = [nudged(example, seed * len(examples) + place) for place, example in enumerate(examples)]
            with _nudging(module, seed):
                found.append(self.of(alone, answers_of_each(module, near)))
        return max(found)


@contextmanager
def _nudging(module: nn.Module, seed: int) -> Iterator[None]:
    """Within, each tensor that is rounded to a grid is a millionth off, as floats' sums are in any order."""
    seeds = itertools.count(1000 * seed)
    handles = [
        part.register_forward_pre_hook(lambda _, given: nudged(given, next(seeds), summed=True))
        for name, part in module.named_children()
        if name.startswith(QUANTIZER)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def held(
    template: Template,
    compressed: Compressed,
    content: bytes,
    examples: Sequence[Arguments],
    dialect: Dialect = QDQ,
    against: nn.Module | None = None,
) -> Found:
    """Compare a file with its network, from end to end; where that is too far, operation by operation as
    well: a deep network whose values happen to be rounded the other way here and there moves as far from
    itself.

    Args:
        content: the file. examples: batches of one. against: what a file in floats is compared with, else the
            compressed module.
    """
    theirs = File(content, dialect=dialect).answers(examples)
    ours = answers_of_each(against or compressed.module, examples)
    apart = _Apart.allowed(compressed, dialect)
    largest = apart.of(ours, theirs)
    if largest <= apart.limit:
        return Found(True, largest, apart.unit, f"within {apart.said(largest)}")
    far = f"no nearer than {apart.said(largest)}"
    if named := operations(template, compressed, examples[0], dialect).first:
        return Found(False, largest, apart.unit, f"{far}; {named}")
    itself = against or in_integers(compressed, dialect).module
    rounded = apart.of(answers_of_each(itself, examples), theirs)
    own = apart.own(itself, examples)
    if math.isfinite(rounded) and rounded <= max(apart.limit, OWN * own):
        why = (
            f"operation by operation; from end to end within {apart.said(largest)}, where its own answers"
            f" move by {apart.said(own)} with the rounding of floats"
        )
        return Found(True, largest, apart.unit, why)
    right = "though each operation by itself is right and its own answers move by"
    return Found(False, largest, apart.unit, f"{far}, {right} {apart.said(own)} at most")


def lowest_bits(compressed: Compressed) -> int:
    """Of the tensors that a network holds in integers, also while it runs alone; 32: of none."""
    dynamic = any(map(is_dynamic, compressed.policy.there().values()))
    return min((one.bits for one in quantizers(compressed.module).values()), default=8 if dynamic else 32)


def output_steps(compressed: Compressed) -> dict[int, float]:
    """Index of an output -> the step of the grid that holds it, of those that are held on one."""
    grids = quantizers(compressed.module)
    kernel = {node.name: k.name for k in kernels(compressed.network) for node in k.nodes}
    return {
        index: grids[kernel[name]].grid().scale
        for index, name in enumerate(compressed.network.outputs)
        if kernel.get(name) in grids
    }
