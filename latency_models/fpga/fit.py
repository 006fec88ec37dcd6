"""Why a network does not fit a part, and what would."""

from leanfront.compression.graph import Network
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.hw_profiles import HardwareProfile
from leanfront.latency_models.cost import Cost
from leanfront.latency_models.registry import model_of

_SPARSITIES = tuple(step / 20 for step in range(20))


def misfit(profile: HardwareProfile, network: Network, policy: Policy, cost: Cost) -> str:
    """One sentence: what a network takes too much of, by how much, and the largest that would fit.

    Args:
        network: uncut, so that channels can be cut where they are followed.
        policy: the one that does not fit.
        cost: its cost on the profile.
    """
    return f"{_shortage(profile, cost)}; {_largest(profile, network, policy)}"


def _shortage(profile: HardwareProfile, cost: Cost) -> str:
    limits = profile.resources.limits if profile.resources else {}
    over = {
        name: count / limits[name] if limits[name] else float("inf")
        for name, count in cost.resources.items()
        if count > limits.get(name, float("inf"))
    }
    if over:
        worst = max(over, key=lambda name: over[name])
        return (
            f"it does not fit {profile.name}: even its smallest design takes {cost.resources[worst]:,.0f}"
            f" {worst}, the part has {limits[worst]:,.0f} to use ({over[worst]:.3g} times as many)"
        )
    needed, there = cost.size_bytes + cost.peak_memory_bytes, profile.memory_bytes or 0
    return (
        f"it does not fit {profile.name}: weights and live tensors take {needed:,} bytes, there are"
        f" {there:,} bytes of memory ({needed / max(1, there):.3g} times as many)"
    )


def _largest(profile: HardwareProfile, network: Network, policy: Policy) -> str:
    """The widest uniform bits that fit uncut, or else the least uniform sparsity that does."""
    if profile.measured:
        return "take a larger part or a smaller network"
    pairs = sorted({(p.weight_bits, p.activation_bits) for p in policy.there().values()})
    widest = max(pairs, key=lambda pair: (pair[1], pair[0]))
    narrower = [
        pair
        for pair in sorted(profile.supported, key=lambda pair: (pair[1], pair[0]), reverse=True)
        if pair[0] <= widest[0] and pair[1] <= widest[1]
    ]
    if found := next((pair for pair in narrower if _fits(profile, network, 0.0, pair)), None):
        return f"it fits with weights of {found[0]} and activations of {found[1]} bits in every layer"
    if network.groups:
        for pair in dict.fromkeys((widest, narrower[-1])):
            found_cut = next((s for s in _SPARSITIES[1:] if _fits(profile, network, s, pair)), None)
            if found_cut is not None:
                return (
                    f"it fits with {found_cut:.0%} of the channels cut everywhere, weights of {pair[0]}"
                    f" and activations of {pair[1]} bits"
                )
    cuts = (
        "no uniform cut" if network.groups else "its channels are not followed, and no uniform choice of bits"
    )
    return f"{cuts} makes it fit; take a larger part or a smaller network"


def _fits(profile: HardwareProfile, network: Network, sparsity: float, pair: tuple[int, int]) -> bool:
    wanted = Policy.uniform(network, LayerPolicy(sparsity, *pair))
    cut = wanted.cut(network, profile.channel_multiple) if sparsity else network
    return model_of(profile).cost(cut, wanted).fits
