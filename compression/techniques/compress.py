"""Apply a policy to a copy of a traced model: whatever the techniques do, one after the other."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import fx

from leanfront.compression.capture.trace import Traced
from leanfront.compression.graph import Network
from leanfront.compression.policy import Policy
from leanfront.compression.policy.technique import technique, techniques


@dataclass(frozen=True, eq=False)
class Compressed:
    """A compressed module, its Network (after the cut) and the policy that made it. ``classes``: of each
    tensor the classes of the channels that it has left, as ``Traced`` has them."""

    module: fx.GraphModule
    network: Network
    policy: Policy
    classes: Mapping[str, NDArray[np.int64]] = field(default_factory=dict, repr=False)


def compress(traced: Traced, policy: Policy, multiple: int = 1) -> Compressed:
    """A cut copy with fake quantizers; its batch norms and ranges are still to be estimated.

    ``multiple``: channel counts are snapped to it (the profile's).

    Raises:
        PolicyError: the policy does not fit the network or contradicts itself.
    """
    policy = policy.completed(traced.network)
    return applied(traced, policy.cut(traced.network, multiple), policy)


def applied(traced: Traced, wanted: Network, policy: Policy) -> Compressed:
    """A traced model changed by every technique in turn. ``wanted``: the network that comes out.

    Raises:
        PolicyError: the policy has numbers of a technique that nobody registered.
    """
    for name in {name for layer in policy.values() for name, _ in layer.more}:
        technique(name)
    for one in sorted(techniques().values(), key=lambda one: one.stage):
        traced = one.apply(traced, wanted, policy)
    return Compressed(traced.module, wanted, policy, traced.classes)
