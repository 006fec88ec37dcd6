"""Peak memory of the tensors that are alive at the same time."""

from collections.abc import Mapping

from compression.policy import Network, Policy, kernels, tensor_bits
from compression.policy.kernels import Kernel


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
    return peak_of(
        fused, {kernel.name: tensor_bytes(kernel, bits[kernel.name]) for kernel in fused}, network.outputs
    )


def tensor_bytes(kernel: Kernel, bits: int) -> int:
    """Bytes of a kernel's output tensor: integers of 8 bits or fewer take one byte each."""
    return kernel.output.elements * (1 if bits <= 8 else bits // 8)


def peak_of(fused: tuple[Kernel, ...], bytes_of: Mapping[str, int], outputs: tuple[str, ...]) -> int:
    """``peak_memory_bytes`` for tensors of given sizes."""
    holder: dict[str, str] = {}  # kernel -> the kernel whose tensor it puts out
    for kernel in fused:
        moves = kernel.op in ("flatten", "reshape", "identity") and len(kernel.inputs) == 1
        holder[kernel.name] = holder[kernel.inputs[0]] if moves else kernel.name
    last_use = {name: index for index, name in enumerate(holder[kernel.name] for kernel in fused)}
    for index, kernel in enumerate(fused):
        for source in kernel.inputs:
            last_use[holder[source]] = index
    for kernel in fused:
        if any(node.name in outputs for node in kernel.nodes):
            last_use[holder[kernel.name]] = len(fused)
    live = peak = 0
    alive: dict[str, int] = {}
    for index, kernel in enumerate(fused):
        if holder[kernel.name] == kernel.name:
            alive[kernel.name] = bytes_of[kernel.name]
            live += bytes_of[kernel.name]
        peak = max(peak, live)
        for name in [name for name in alive if last_use[name] <= index]:
            live -= alive.pop(name)
    return peak
