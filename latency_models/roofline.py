"""The roofline model: a kernel takes as long as its arithmetic or its memory traffic, whichever is longer."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compression.policy import Kernel, LayerPolicy, Network, Policy, kernels, tensor_bits
from compression.policy.size import size_bytes
from hw_profiles import HardwareProfile, Roofline
from latency_models.cost import Cost, LayerCost, TableError
from latency_models.memory import peak_memory_bytes

FREE_OPS = ("input", "constant", "flatten", "reshape", "identity")
"""No value is computed or moved: another view of a tensor that is there."""

MEMORY_OPS = (
    "batchnorm", "relu", "relu6", "hardswish", "hardsigmoid", "silu", "gelu", "sigmoid", "tanh", "leaky_relu",
    "softmax", "layernorm", "groupnorm", "add", "sub", "mul", "div", "identity_arithmetic", "elementwise",
    "concat", "slice", "pad", "transpose", "maxpool", "avgpool", "global_avgpool", "mean", "upsample",
    "upsample_nearest",
)  # fmt: skip
"""A handful of operations for each value: bound by memory traffic on any part."""


def roofline_ms(
    macs: ArrayLike,
    moved_bytes: ArrayLike,
    macs_per_ms: ArrayLike,
    bandwidth_bytes_per_ms: ArrayLike,
    overhead_ms: ArrayLike,
) -> NDArray[np.float64]:
    """overhead + max(macs / macs_per_ms, moved_bytes / bandwidth), in ms; numbers or arrays of them.

    Source: S. Williams, A. Waterman, D. Patterson: Roofline: an insightful visual performance model for
    multicore architectures, CACM 52(4), 2009: attainable performance is the smaller of peak performance
    and bandwidth times operational intensity. The fixed overhead per kernel is added to it here.
    """
    compute_ms = np.divide(macs, macs_per_ms, dtype=np.float64)
    memory_ms = np.divide(moved_bytes, bandwidth_bytes_per_ms, dtype=np.float64)
    return np.asarray(np.add(overhead_ms, np.maximum(compute_ms, memory_ms)), dtype=np.float64)


@dataclass(frozen=True)
class RooflineModel:
    """Costs from a profile's [roofline] numbers; see ``roofline_ms`` and ``_work`` for what is counted."""

    profile: HardwareProfile

    def cost(self, network: Network, policy: Policy) -> Cost:
        """Cost of one inference (batch 1) of a network that is already cut to the policy.

        latency_ms is the sum over the kernels, which run one after the other; energy_mj is power_w times
        it. ``fits``: weights and live tensors together stay within the profile's memory_bytes, if given.

        Raises:
            TableError: an operation or a bit pair whose cost is not known.
        """
        rows = self.layers(network, policy)
        weights, tensors = size_bytes(network, policy), peak_memory_bytes(network, policy)
        limit = self.profile.memory_bytes
        return Cost(
            latency_ms=sum(row.latency_ms for row in rows),
            energy_mj=sum(row.energy_mj for row in rows),
            size_bytes=weights,
            peak_memory_bytes=tensors,
            fits=limit is None or weights + tensors <= limit,
            resources={},
            kind="modelled",
            estimated=self.profile.estimated,
        )

    def layers(self, network: Network, policy: Policy) -> tuple[LayerCost, ...]:
        """Cost of each kernel that does something, in order of execution; raises TableError as ``cost``."""
        roofline = _roofline(self.profile)
        fused = kernels(network)
        bits = tensor_bits(fused, policy)
        elements = {kernel.name: kernel.output.elements for kernel in fused}
        busy = [kernel for kernel in fused if kernel.op not in FREE_OPS]
        work = [_work(kernel, policy, bits, elements, self.profile) for kernel in busy]
        latency_ms = roofline_ms(
            [macs for macs, _, _ in work],
            [moved for _, moved, _ in work],
            [rate for _, _, rate in work],
            roofline.bandwidth_bytes_per_ms,
            roofline.overhead_ms,
        )
        return tuple(
            LayerCost(
                name=kernel.layer.name if kernel.layer else kernel.name,
                latency_ms=float(ms),
                energy_mj=float(ms) * self.profile.power_w,  # W x ms = mJ
                source="modelled",
            )
            for kernel, ms in zip(busy, latency_ms, strict=True)
        )


def _roofline(profile: HardwareProfile) -> Roofline:
    if profile.roofline is None:
        raise TableError(
            f"profile {profile.name!r} has no [roofline] numbers; its latencies come from"
            f" model {profile.model!r}"
        )
    return profile.roofline


def _work(
    kernel: Kernel,
    policy: Policy,
    bits: dict[str, int],
    elements: dict[str, int],
    profile: HardwareProfile,
) -> tuple[float, float, float]:
    """(multiply-accumulates, bytes moved, multiply-accumulates per ms) of one kernel.

    Moved: each input and the output once, at the bits at which the tensor is held, the weights at theirs
    and a bias at 32. The arithmetic runs in the unit for the wider operand: weights that are narrower than
    the activations are decoded on the way.
    """
    if kernel.layer is None:
        if kernel.op not in MEMORY_OPS:
            raise TableError(
                f"the cost of operation {kernel.output.detail or kernel.op!r} (node {kernel.name!r}) on"
                f" profile {profile.name!r} is not known; known are layers and {', '.join(MEMORY_OPS)}"
            )
        read = sum(elements[source] * bits[source] for source in kernel.inputs)
        return 0.0, (read + elements[kernel.name] * bits[kernel.name]) / 8, 1.0
    layer_policy: LayerPolicy = policy[kernel.layer.name]
    shape = kernel.layer.shape
    rate = _roofline(profile).rate(max(layer_policy.weight_bits, layer_policy.activation_bits))
    if rate is None or not profile.supports(layer_policy.weight_bits, layer_policy.activation_bits):
        raise TableError(
            f"profile {profile.name!r} cannot run layer {kernel.layer.name!r} with weights of"
            f" {layer_policy.weight_bits} and activations of {layer_policy.activation_bits} bits;"
            f" it can: {profile.supported_sentence}"
        )
    # tensor_bits knows integers and floats; a half-precision layer reads and writes floats of 16 bits
    widest = 16 if layer_policy.activation_bits == 16 else 32
    read = sum(elements[source] * min(bits[source], widest) for source in kernel.inputs)
    written = elements[kernel.name] * min(bits[kernel.name], widest)
    weights = shape.weight_count * layer_policy.weight_bits
    bias = shape.out_channels * 32 if kernel.layer.bias else 0
    return float(shape.macs), (read + written + weights + bias) / 8, rate
