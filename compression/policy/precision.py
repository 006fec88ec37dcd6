"""Which tensors a policy holds in integers: one rule, shared by training, export and the cost models."""

from collections.abc import Mapping

from compression.policy.kernels import Kernel
from compression.policy.network import LAYER_OPS, Layer
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
    """Names of the kernels that compute in integers under a policy.

    A layer does when its policy says so and there is a kernel for it. Another operation of INTEGER_OPS does
    when every tensor that it reads is held in integers: it costs a conversion otherwise.
    """
    bits = tensor_bits(kernels, policy)
    return frozenset(kernel.name for kernel in kernels if _integer(kernel, policy, bits))


def tensor_bits(kernels: tuple[Kernel, ...], policy: Mapping[str, LayerPolicy]) -> dict[str, int]:
    """Bits at which each kernel's output tensor is held; 32: float.

    A tensor is quantized when an integer layer reads it (at that layer's activation bits), or when an
    integer kernel makes it: engines fuse an integer kernel only when its output is quantized, too. The one
    exception is a linear layer without activation and integer reader, whose kernel puts out floats.
    """
    readers: dict[str, list[Kernel]] = {kernel.name: [] for kernel in kernels}
    for kernel in kernels:
        for source in kernel.inputs:
            readers[source].append(kernel)

    wish: dict[str, int] = {}  # the bits that integer layers want, seen through ops that only move values
    for kernel in reversed(kernels):
        wanted = 32
        joins = kernel.layer is not None and kernel.op in FLOAT_LAYERS and policy[kernel.layer.name].integer
        for reader in readers[kernel.name]:
            if reader.layer is not None:
                layer_policy = policy[reader.layer.name]
                if computes_in_integers(reader.layer, layer_policy):
                    wanted = min(wanted, layer_policy.activation_bits)
            elif reader.op in SAME_RANGE_OPS or (joins and reader.op in JOINING_OPS):
                wanted = min(wanted, wish[reader.name])
        wish[kernel.name] = wanted

    bits: dict[str, int] = {}
    for kernel in kernels:
        made_integer = _integer(kernel, policy, bits)
        if wish[kernel.name] < 32:
            bits[kernel.name] = wish[kernel.name]
        elif made_integer and kernel.op in SAME_RANGE_OPS:
            bits[kernel.name] = bits[kernel.inputs[0]]
        elif made_integer and (kernel.op != "linear" or kernel.activation):
            bits[kernel.name] = 8
        else:
            bits[kernel.name] = 32
    return bits


def source_of_range(name: str, kernels: tuple[Kernel, ...]) -> str:
    """The kernel whose quantizer a tensor has: its own, or that of the tensor which was only moved."""
    by_name = {kernel.name: kernel for kernel in kernels}
    while by_name[name].op in SAME_RANGE_OPS:
        name = by_name[name].inputs[0]
    return name


def _integer(kernel: Kernel, policy: Mapping[str, LayerPolicy], bits: Mapping[str, int]) -> bool:
    if kernel.op in LAYER_OPS and kernel.layer is not None:
        return computes_in_integers(kernel.layer, policy[kernel.layer.name])
    return (
        kernel.op in INTEGER_OPS
        and bool(kernel.inputs)
        and all(bits.get(source, 32) <= 8 for source in kernel.inputs)
    )
