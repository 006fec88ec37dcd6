"""Which tensors a policy holds in integers: one rule, shared by training, export and the cost models."""

from collections.abc import Mapping

from leanfront.compression.graph.branches import ALIAS
from leanfront.compression.graph.kernels import Kernel
from leanfront.compression.graph.network import Layer
from leanfront.compression.policy.policy import LayerPolicy

SHIFTED_ZERO_POINT = -1
"""Of int8 weights that are not stored around 0 (export/zero_points.py): codes reach from -127 to 127,
so one below still fits."""

SAME_RANGE_OPS = ("maxpool", "flatten", "reshape", "transpose", "slice", "pad", "identity", ALIAS)
"""Operations that move values and compute none: their output keeps the quantizer of their input."""

INTEGER_OPS = ("add", "concat", "avgpool", "global_avgpool", *SAME_RANGE_OPS)
"""Operations besides layers that an engine runs on integers, when all that goes in is held in integers."""

FLOAT_LAYERS = ("conv_transpose2d",)
"""Layers without an integer kernel: they compute in floats whatever their policy, which says how the weights
are stored, and whether an integer sum or concat may have the output in integers."""

JOINING_OPS = ("add", "concat")
"""Operations that compute in integers when all that they join is held in integers."""


def computes_in_integers(layer: Layer, layer_policy: LayerPolicy) -> bool:
    """Whether a layer computes in integers: its policy says so, and engines have a kernel for it."""
    return layer_policy.integer and layer.shape.op not in FLOAT_LAYERS


def integer_kernels(kernels: tuple[Kernel, ...], policy: Mapping[str, LayerPolicy]) -> frozenset[str]:
    """Names of the kernels that compute in integers under a policy; see ``Precision``."""
    _, integer = Precision(kernels).of(policy)
    return frozenset(kernel.name for kernel, computes in zip(kernels, integer, strict=True) if computes)


def tensor_bits(kernels: tuple[Kernel, ...], policy: Mapping[str, LayerPolicy]) -> dict[str, int]:
    """Kernel -> bits at which its output tensor is held, 32: float; see ``Precision``."""
    bits, _ = Precision(kernels).of(policy)
    return {kernel.name: held for kernel, held in zip(kernels, bits, strict=True)}


_NONE: Mapping[int, int] = {}


class Precision:
    """The rule for one network, made ready for many policies.

    A tensor is quantized when an integer layer reads it (at that layer's activation bits), or when an
    integer kernel makes it: engines fuse an integer kernel only when its output is quantized, too. The one
    exception is a linear layer without activation and integer reader, whose kernel puts out floats.

    A layer computes in integers when its policy says so and there is a kernel for it. Another operation of
    INTEGER_OPS does when every tensor that it reads is held in integers: it costs a conversion otherwise.
    """

    def __init__(self, kernels: tuple[Kernel, ...]) -> None:
        index = {kernel.name: row for row, kernel in enumerate(kernels)}
        inputs = [tuple(index[name] for name in kernel.inputs) for kernel in kernels]
        self._count = len(kernels)
        self.moved = [self._moved(row, inputs, kernels) for row in range(len(kernels))]
        """Per row itself and those whose values it only moves."""
        self.layers: list[tuple[int, str, bool, bool, tuple[int, ...]]] = []
        """Row, name, whether there is an integer kernel, whether that puts out integers though nobody wants
        them, and the rows of the tensors that it wants at its own bits: seen through ops that move values."""
        self.sums = [
            (row, source)
            for row, kernel in enumerate(kernels)
            if kernel.op in JOINING_OPS
            for source in inputs[row]
            if kernels[source].op in FLOAT_LAYERS
        ]
        """Row and an input that it wants as itself is wanted, where that one's policy is an integer one."""
        self.others = [
            (row, inputs[row], kernel.op in SAME_RANGE_OPS)
            for row, kernel in enumerate(kernels)
            if kernel.layer is None and kernel.op in INTEGER_OPS and kernel.inputs
        ]
        """Row, inputs, and whether it only moves values: what computes in integers if all its inputs are."""
        for row, kernel in enumerate(kernels):
            if kernel.layer is not None:
                wanted = tuple(source for read in inputs[row] for source in self.moved[read])
                fuses = kernel.op != "linear" or bool(kernel.activation)
                able = kernel.op not in FLOAT_LAYERS
                self.layers.append((row, kernel.layer.name, able, fuses, wanted))

    @staticmethod
    def _moved(row: int, inputs: list[tuple[int, ...]], kernels: tuple[Kernel, ...]) -> tuple[int, ...]:
        found = [row]
        for other in found:
            if kernels[other].layer is None and kernels[other].op in SAME_RANGE_OPS:
                found += inputs[other]
        return tuple(found)

    def of(
        self, policy: Mapping[str, LayerPolicy], aliases: Mapping[int, int] = _NONE
    ) -> tuple[list[int], list[bool]]:
        """Per kernel: bits of its output tensor (32: float), and whether it computes in integers.

        ``aliases``: of branches that are left out (``missing.Missing``); what is said of kernels that are
        not there means nothing then.
        """
        bits = [32] * self._count
        integer = [False] * self._count
        unwanted = []  # of integer layers
        stored = set()  # float layers whose policy is an integer one
        for row, name, able, fuses, wanted in self.layers:
            own = policy[name]
            held = own.activation_bits
            if held > 8 or own.weight_bits > 8:
                continue
            if not able:
                stored.add(row)
                continue
            integer[row] = True
            if fuses:
                unwanted.append(row)
            for source in wanted:
                if held < bits[source]:
                    bits[source] = held
        for row in reversed(aliases):  # hand on what their readers want
            for source in self.moved[aliases[row]]:
                bits[source] = min(bits[source], bits[row])
        for row, source in self.sums:
            if source in stored:
                bits[source] = min(bits[source], bits[row])
        for row in unwanted:
            if bits[row] == 32:
                bits[row] = 8
        for row, inputs, moves in self.others:
            if row in aliases:
                inputs, moves = (aliases[row],), True
            if bits[inputs[0]] <= 8 and max([bits[source] for source in inputs]) <= 8:
                integer[row] = True
                if bits[row] == 32:
                    bits[row] = bits[inputs[0]] if moves else 8
        return bits, integer


def source_of_range(name: str, kernels: tuple[Kernel, ...]) -> str:
    """The kernel whose quantizer a tensor has: its own, or that of the tensor which was only moved."""
    by_name = {kernel.name: kernel for kernel in kernels}
    while by_name[name].op in SAME_RANGE_OPS:
        name = by_name[name].inputs[0]
    return name
