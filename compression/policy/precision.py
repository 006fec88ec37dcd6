"""Which tensors a policy holds in integers: one rule, shared by training, export and the cost models."""

from collections.abc import Mapping

from compression.policy.kernels import Kernel
from compression.policy.network import Layer
from compression.policy.policy import LayerPolicy

SAME_RANGE_OPS = ("maxpool", "flatten", "reshape", "transpose", "slice", "pad", "identity")
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
        self._inputs = [tuple(index[name] for name in kernel.inputs) for kernel in kernels]
        self._layers = [kernel.layer for kernel in kernels]
        self._moves = [kernel.op in SAME_RANGE_OPS for kernel in kernels]
        self._joins = [kernel.op in JOINING_OPS for kernel in kernels]
        self._may = [kernel.op in INTEGER_OPS and bool(kernel.inputs) for kernel in kernels]
        self._fuses = [kernel.op != "linear" or bool(kernel.activation) for kernel in kernels]

    def of(self, policy: Mapping[str, LayerPolicy]) -> tuple[list[int], list[bool]]:
        """Per kernel: bits of its output tensor (32: float), and whether it computes in integers."""
        count = len(self._layers)
        own = [32] * count  # activation bits of the layers that compute in integers
        stored = [False] * count  # float layers whose policy is an integer one
        for row, layer in enumerate(self._layers):
            if layer is not None:
                layer_policy = policy[layer.name]
                if computes_in_integers(layer, layer_policy):
                    own[row] = layer_policy.activation_bits
                stored[row] = layer_policy.integer and own[row] == 32
        wish = [32] * count  # the bits that integer layers want, seen through ops that only move values
        for row in reversed(range(count)):
            wanted = own[row] if self._layers[row] is not None else wish[row]
            if wanted == 32 or (self._layers[row] is None and not (self._moves[row] or self._joins[row])):
                continue
            for source in self._inputs[row]:
                if not self._joins[row] or stored[source]:
                    wish[source] = min(wish[source], wanted)
        bits = [32] * count
        integer = [False] * count
        for row, inputs in enumerate(self._inputs):
            if self._layers[row] is not None:
                integer[row] = own[row] < 32
            elif self._may[row]:
                integer[row] = max([bits[source] for source in inputs]) <= 8
            if wish[row] < 32:
                bits[row] = wish[row]
            elif integer[row] and (self._moves[row] or self._fuses[row]):
                bits[row] = bits[inputs[0]] if self._moves[row] else 8
        return bits, integer


def source_of_range(name: str, kernels: tuple[Kernel, ...]) -> str:
    """The kernel whose quantizer a tensor has: its own, or that of the tensor which was only moved."""
    by_name = {kernel.name: kernel for kernel in kernels}
    while by_name[name].op in SAME_RANGE_OPS:
        name = by_name[name].inputs[0]
    return name
