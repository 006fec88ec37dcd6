"""Peak memory of the tensors that are alive at the same time. What onnxruntime needs is in ``arena``."""

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph import Kernel, Network, kernels
from leanfront.compression.graph.branches import ALIAS
from leanfront.compression.policy import Policy, tensor_bits

_SAME_TENSOR = ("flatten", "reshape", "identity", ALIAS)


def peak_memory_bytes(network: Network, policy: Policy) -> int:
    """The largest sum of live activation tensors over the order of execution, batch 1, in bytes.

    A tensor lives from the kernel that makes it to the last one that reads it; the network's inputs and
    outputs belong to the caller but count, too. Flattening and reshaping make no new tensor.

    Args:
        network: already resized to the policy.
        policy: decides how many bits each tensor has.
    """
    fused = kernels(network)
    bits = tensor_bits(fused, policy)
    sizes = [tensor_bytes(kernel.output.elements, bits[kernel.name]) for kernel in fused]
    return peak_bytes(lifetimes(fused, network.outputs), sizes)


def tensor_bytes(elements: int, bits: int) -> int:
    """Bytes of a tensor: integers of 8 bits or fewer take one byte each."""
    return elements * (1 if bits <= 8 else bits // 8)


def lifetimes(fused: tuple[Kernel, ...], outputs: tuple[str, ...]) -> NDArray[np.float64]:
    """Which tensors are alive while each kernel runs: 1 or 0, (kernels that run, kernels that made a tensor).

    Kernels that hand on the tensor they read make none. Depends on the connections alone, not on widths.
    """
    index = {kernel.name: i for i, kernel in enumerate(fused)}
    holder: list[int] = []  # the kernel that made the tensor that a kernel puts out
    for i, kernel in enumerate(fused):
        hands_on = kernel.op in _SAME_TENSOR and len(kernel.inputs) == 1
        holder.append(holder[index[kernel.inputs[0]]] if hands_on else i)
    alive = np.zeros((len(fused), len(fused)))
    last_use = list(range(len(fused)))
    for i, kernel in enumerate(fused):
        for source in (*(index[name] for name in kernel.inputs), i):
            last_use[holder[source]] = i
        if any(node.name in outputs for node in kernel.nodes):
            last_use[holder[i]] = len(fused)
    for i in range(len(fused)):
        if holder[i] == i:
            alive[i : last_use[i] + 1, i] = 1.0
    return alive


def peak_bytes(alive: NDArray[np.float64], sizes: list[int]) -> int:
    """The peak for tensors of given sizes (bytes, in order of the kernels)."""
    return int((alive @ np.asarray(sizes, dtype=np.float64)).max())
