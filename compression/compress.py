"""Apply a policy to a traced model: cut it, then put quantizers in. The traced model is not touched."""

from dataclasses import dataclass

from torch import fx

from compression.policy import Network, Policy, PolicyError
from compression.prune import cut
from compression.quantize import attach_quantizers
from compression.trace import Traced


@dataclass(frozen=True)
class Compressed:
    """A compressed module, its Network (after the cut) and the policy that made it."""

    module: fx.GraphModule
    network: Network
    policy: Policy


def compress(traced: Traced, policy: Policy, multiple: int = 1) -> Compressed:
    """A cut copy with fake quantizers; its batch norms and ranges are still to be estimated.

    ``multiple``: channel counts are snapped to it (the profile's).

    Raises:
        PolicyError: the policy does not fit the network or contradicts itself, or has a pattern other than
            "channel": those can be priced, but nothing here cuts them.
    """
    for name, layer in policy.items():
        if layer.sparsity and layer.pattern != "channel":
            raise PolicyError(
                f"layer {name!r} has pattern {layer.pattern!r}, which can be priced but not applied;"
                ' only whole channels are cut: pattern "channel"'
            )
    channels = policy.channels(traced.network, multiple)
    network = traced.network.resized(channels)
    module = cut(traced, channels)
    attach_quantizers(module, network, policy)
    return Compressed(module, network, policy)
