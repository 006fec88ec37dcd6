"""What a kit holds."""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from leanfront.compression.graph import Layer, Network
from leanfront.compression.policy import Policy
from leanfront.latency_models.measured.policy_draws import Cover, draw

if TYPE_CHECKING:
    from leanfront.compression.policy.space import Space
    from leanfront.latency_models.cost import Build
    from leanfront.latency_models.kit.engine_folder import EngineNetwork
    from leanfront.latency_models.kit.folder import KitNetwork, KitSet

Log = Callable[[str], None]

EXPORT_VERSION = 1
"""What an export looks like. One more whenever the nodes of an exported file change (tests/goldens holds
them): what was seen of exports is stale then. No hash of sources, for a comment must not throw measured
tables away."""
_HASHED = {(1, "2.13.0"): "e7b9dc9ba10b"}
"""Version 0.1 had a hash of the sources instead: what it has measured of the same exports is kept."""

DRAWS = 200
"""Policies spread over a space, of which some are timed as whole networks."""
MOST_NETWORKS = 400
"""With so many, what a space offers beyond is left to be estimated from its neighbours."""
MORE = 160
"""Random policies beyond that, which show what kernels become beside neighbours that are rarely theirs."""
ENGINE_DRAWS = 8
"""Random networks beside the uniform ones, where each takes an engine a minute to build."""
WHOLES = 60
"""Whole networks that a device times: four of five for the correction, the fifth to check it."""


def network_digest(network: Network) -> str:
    """Tells an uncut network from others."""
    return hashlib.sha256(repr(network).encode()).hexdigest()[:16]


@lru_cache
def exporter_digest() -> str:
    """Tells exports from those that another version, or another torch, has written."""
    torch = version("torch").partition("+")[0]
    made = hashlib.sha256(f"{EXPORT_VERSION} {torch}".encode()).hexdigest()[:12]
    return _HASHED.get((EXPORT_VERSION, torch), made)


def networks_of_search(
    title: str, space: "Space", build: "Build", log: Log = lambda line: None
) -> "tuple[KitSet, list[KitNetwork]]":
    """Networks with random weights that show what a search's space can reach; ``build`` exports them.

    Raises:
        TraceError, PolicyError: a network that cannot be exported.
    """
    from leanfront.latency_models.kit.folder import KitNetwork
    from leanfront.latency_models.measured.optimised_kernels import canonical

    rng = np.random.default_rng(0)
    cover = Cover(space)
    found: dict[str, KitNetwork] = {}

    def add(policy: Policy, whole: bool) -> None:
        network = space.resized(policy)
        plain = canonical(policy)
        widths = sorted(space.channels(policy).items())
        bits = sorted((name, p.activation_bits, name in plain.absent) for name, p in plain.items())
        key = f"{widths} {bits}"
        if key not in found:
            found[key] = KitNetwork(policy.to_json(), build(network, plain), whole)
        cover.note(policy)

    for policy in [*space.seeds(), *(draw(space, rng) for _ in range(DRAWS))]:
        add(policy, whole=True)
    while not cover.complete and len(found) < MOST_NETWORKS:
        add(cover.next(rng), whole=False)
    for index in range(MORE):
        add(draw(space, rng) if index % 2 else space.random(rng), whole=False)
    if not cover.complete:
        log(f"{cover.left} combinations of widths and bits are left to be estimated from their neighbours")
    return _set(title, space.network, build), list(found.values())


def networks_of_engine(
    space: "Space", build: "Build", takes: "Callable[[Layer, int, int], bool]"
) -> "list[EngineNetwork]":
    """A few whole networks of a search's space for an engine that times such alone: the space's uniform
    policies, and random ones, of those that the engine takes. ``build`` writes their files.
    """
    from leanfront.latency_models.kit.engine_folder import EngineNetwork

    rng = np.random.default_rng(0)
    networks: dict[str, EngineNetwork] = {}
    for policy in [*space.seeds(), *(draw(space, rng) for _ in range(ENGINE_DRAWS))]:
        network = space.resized(policy)
        there = policy.there()
        bits = {(layer.weight_bits, layer.activation_bits) for layer in there.values()}
        if not all(takes(network.layer[name], p.weight_bits, p.activation_bits) for name, p in there.items()):
            continue
        precisions = ("fp32", "fp16") if bits == {(32, 32)} else ("",)
        if bits != {(16, 16)}:  # that is a file in floats, built with --fp16
            networks[policy.digest] = EngineNetwork(policy.to_json(), build(network, policy), precisions)
    return list(networks.values())


def networks_at_large(build: "Build") -> "tuple[list[KitSet], list[KitNetwork]]":
    """The reference networks, for a table without a search; ``build`` makes them of shapes alone."""
    from leanfront.latency_models.kit.folder import KitNetwork
    from leanfront.latency_models.measured.reference_networks import reference_networks

    sets: dict[str, KitSet] = {}
    networks = []
    for title, network, policy in reference_networks():
        one = _set(title.rpartition(" ")[0], network, build)
        sets.setdefault(one.digest, one)
        index = list(sets).index(one.digest)
        networks.append(KitNetwork(policy.to_json(), build(network, policy), True, index))
    return list(sets.values()), networks


def _set(title: str, network: Network, build: "Build") -> "KitSet":
    from leanfront.latency_models.kit.folder import KitSet
    from leanfront.latency_models.measured.optimised_kernels import Structure

    return KitSet(title, network_digest(network), Structure(network, build).owners)
