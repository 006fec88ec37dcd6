"""Random policies that a network is tried with."""

from collections.abc import Sequence

import numpy as np

from leanfront.compression.graph import Network
from leanfront.compression.policy import LayerPolicy, Policy

FLOAT = (32, 32)
INTEGER = (8, 8)
MIXED = (FLOAT, INTEGER, (4, 8), (8, 32), (32, 8))
"""Bits of weights and of activations."""

DEEP, MODERATE = (0.75,), (0.25, 0.5)
"""Shares of the channels of a group that are cut."""
_BRANCHES_OUT = 0.3


def drawn(
    network: Network,
    rng: np.random.Generator,
    pairs: Sequence[tuple[int, int]],
    cuts: Sequence[float] = (),
) -> Policy:
    """A policy with one of the ``pairs`` for each layer. With ``cuts``, shares, two of three groups are cut
    by one of them, and a third of the branches left out; of what there is, always something."""
    groups, branches = tuple(network.groups), network.branches
    shares = dict.fromkeys(groups, 0.0)
    absent: set[str] = set()
    if cuts:
        for place, group in enumerate(rng.permutation(np.array(groups, dtype=object))):
            shares[group] = float(rng.choice(cuts)) if place % 3 < 2 else 0.0
        count = min(len(branches), max(1, round(_BRANCHES_OUT * len(branches))))
        for row in rng.permutation(len(branches))[:count]:
            absent.update(branches[row].layers)
    bits = _bits(network, rng, pairs)
    layers = {
        layer.name: LayerPolicy(shares.get(layer.group or "", 0.0), *bits[layer.name])
        for layer in network.layers
    }
    return Policy.of(layers, absent)


def in_floats(policy: Policy) -> Policy:
    """The same cut, with nothing in integers."""
    return Policy.of({name: LayerPolicy(layer.sparsity) for name, layer in policy.items()}, policy.absent)


def _bits(
    network: Network, rng: np.random.Generator, pairs: Sequence[tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Layer -> bits of weights and activations; layers that read the same tensor agree on its bits."""
    of_tensor: dict[str, int] = {}
    found: dict[str, tuple[int, int]] = {}
    for node in network.nodes:
        if node.layer is None or node.layer in found:
            continue
        pair = pairs[int(rng.integers(len(pairs)))]
        if network.layer[node.layer].weight_only:
            found[node.layer] = (pair[0], 32)
            continue
        activations = of_tensor.setdefault(network.first_readers[node.layer], pair[1])
        if activations != pair[1]:
            alike = [other for other in pairs if other[1] == activations]
            pair = alike[int(rng.integers(len(alike)))]
        found[node.layer] = pair
    return found
