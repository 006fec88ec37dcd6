"""One network under one policy on one part: what ``leanfront cost`` and ``leanfront.cost`` say."""

from collections.abc import Callable
from dataclasses import dataclass

from leanfront.compression.graph import Network
from leanfront.compression.policy import Policy
from leanfront.hw_profiles import HardwareProfile, ProfileError
from leanfront.latency_models.cost import Build, Cost, CostModel, LayerCost


@dataclass(frozen=True)
class Price:
    """``network``: after the cut. ``layers``: a row for each kernel. ``model``: what priced it."""

    network: Network
    cost: Cost
    layers: tuple[LayerCost, ...]
    model: CostModel


def price(
    network: Network,
    policy: Policy,
    profile: HardwareProfile,
    build: Build,
    log: Callable[[str], None] = lambda line: None,
) -> Price:
    """Price a network that is not cut yet under a policy. A measured profile of this machine times what
    ``build`` makes of it.

    Raises:
        ProfileError: the part cannot run those bits. PolicyError: the policy does not fit the network.
        TableError: a cost is not known, or the machine cannot measure.
    """
    policy.check(network)
    policy = policy.completed(network)
    for name, layer in policy.there().items():
        if name not in network.weight_only and not profile.supports(layer.weight_bits, layer.activation_bits):
            raise ProfileError(
                f"profile {profile.name!r} cannot run weights of {layer.weight_bits} with activations of"
                f" {layer.activation_bits} bits (layer {name!r}); it can: {profile.supported_sentence}"
            )
    cut = bool(policy.absent) or any(layer.sparsity for layer in policy.values())
    resized = policy.cut(network, profile.channel_multiple) if cut else network
    if profile.measured:
        from leanfront.latency_models.measured.building import file_cost_model

        model: CostModel = file_cost_model(resized, policy, profile, build, log)
    else:
        from leanfront.latency_models.registry import model_of

        model = model_of(profile)
    return Price(resized, model.cost(resized, policy), model.layers(resized, policy), model)
