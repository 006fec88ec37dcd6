"""The latency table of a part whose costs are computed, in the form of a measured one."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from leanfront.compression.graph import Kernel, Network, kernels
from leanfront.compression.policy import Policy, tensor_bits
from leanfront.hw_profiles import HardwareProfile
from leanfront.latency_models.cost import CostModel, Kind
from leanfront.latency_models.kernel_table.table import Device, Entry, LatencyTable
from leanfront.latency_models.registry import model_of


@dataclass(frozen=True)
class ModelledDevice(Device):
    """A part that was not run: ``cpu`` is the profile's name with its digest, ``provider`` the model."""

    @property
    def versions(self) -> str:
        """What computed the entries, in place of the software that ran."""
        return f"model {self.provider}"

    def __str__(self) -> str:
        return self.cpu


def modelled_device(profile: HardwareProfile) -> ModelledDevice:
    """The device of a table that a profile's model wrote; another digest of the profile is another device."""
    return ModelledDevice(f"{profile.name} {profile.digest}", 1, 1, profile.model, "")


def tabulated(profile: HardwareProfile, network: Network, policies: Iterable[Policy]) -> LatencyTable:
    """What the kernels of a network take under some policies, as the profile's model has it.

    A kernel's time may depend on its neighbours (changes of precision, weights that stay on the chip): an
    entry is the median over where the kernel occurs, ``spread`` the range over it. ``runs`` is 0: none ran.

    Args:
        profile: of a computed model.
        network: uncut.
        policies: as a search proposes them; each is cut at the profile's channel multiple.

    Raises:
        TableError: an operation or bits that the part cannot run. PolicyError: a policy does not fit.
    """
    model = model_of(profile)
    found: dict[str, list[float]] = {}
    source: Kind = "modelled"
    for policy in policies:
        resized = policy.cut(network, profile.channel_multiple)
        source = _add(found, model, resized, policy)
    entries = {
        key: Entry(
            median_ms=median(times),
            spread=(max(times) - min(times)) / median(times),
            runs=0,
            quiet=1.0,
            reference_ms=1.0,  # the same for all: none is stale
            resident_bytes=0,
            date="",
            source=source,
        )
        for key, times in found.items()
    }
    return LatencyTable(modelled_device(profile), entries, profile.name)


def _add(found: dict[str, list[float]], model: CostModel, network: Network, policy: Policy) -> Kind:
    fused = kernels(network)
    bits = tensor_bits(fused, policy)
    by_name = {kernel.layer.name if kernel.layer else kernel.name: kernel for kernel in fused}
    rows = model.layers(network, policy)
    for row in rows:
        if row.latency_ms > 0:
            key = kernel_key(by_name[row.name], network, policy, bits)
            found.setdefault(key, []).append(row.latency_ms)
    return rows[0].source if rows else "modelled"


def kernel_key(kernel: Kernel, network: Network, policy: Policy, bits: dict[str, int]) -> str:
    """Operation, shape and bits of a kernel; no name in it.

    For example "conv2d 3x3 64->64 @56x56 relu w8 a8 in 8 out 8".
    """
    held = f"in {','.join(str(bits[name]) for name in kernel.inputs)} out {bits[kernel.name]}"
    if kernel.layer is not None:
        layer = policy[kernel.layer.name]
        parts = [str(kernel.layer.shape), "bias" if kernel.layer.bias else "", kernel.activation]
        parts += [f"w{layer.weight_bits} a{layer.activation_bits}"]
        if layer.pattern != "channel" and layer.sparsity:
            parts.append(f"{layer.pattern} {layer.sparsity:g}")
        return " ".join(part for part in (*parts, held) if part)
    shapes = [_shape(network, name) for name in (*kernel.inputs, kernel.name)]
    window = "x".join(map(str, kernel.output.kernel)) if kernel.output.kernel != (1, 1) else ""
    words = (kernel.op, kernel.output.detail, window, "->".join(shapes), kernel.activation, held)
    return " ".join(word for word in words if word)


def _shape(network: Network, name: str) -> str:
    node = network.node[name]
    return "x".join(map(str, (node.width, *node.spatial)))
