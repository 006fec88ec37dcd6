"""Weights and the tensors that layers read are held in fewer bits."""

from typing import TYPE_CHECKING

from leanfront.compression.graph.network import Network
from leanfront.compression.policy.policy import Policy
from leanfront.compression.policy.technique import Decision, Options, SpaceError, Technique

if TYPE_CHECKING:
    from leanfront.compression.capture.trace import Traced
    from leanfront.hw_profiles import HardwareProfile


class Quantization(Technique):
    """Of each layer the bits of its weights, and of the tensor that it reads."""

    name = "bits"
    stage = 3

    def decisions(
        self, network: Network, profile: "HardwareProfile", options: Options
    ) -> tuple[Decision, ...]:
        """One for each layer: the pairs (weight_bits, activation_bits) of the options that the part runs.

        Raises:
            SpaceError: the part can run none of the bits, or one of them with nothing.
        """
        wanted = {"weight_bits": options.weight_bits, "activation_bits": options.activation_bits}
        able: list[list[int]] = []
        for place, (name, offered) in enumerate(wanted.items()):
            units = {pair[place] for pair in profile.supported}
            able.append([bits for bits in offered if bits in units])
            if not able[-1]:
                raise SpaceError(
                    f"space.{name} has nothing that profile {profile.name!r} can run;"
                    f" it can run {profile.supported_sentence}"
                )
        pairs = tuple(
            (weights, activations)
            for weights in able[0]
            for activations in able[1]
            if profile.supports(weights, activations)
        )
        for place, name in enumerate(wanted):
            paired = {pair[place] for pair in pairs}
            if refused := [bits for bits in able[place] if bits not in paired]:
                raise SpaceError(
                    f"space.{name} has {refused[0]}, which profile {profile.name!r} cannot run with anything"
                    f" else that the space allows; it can run {profile.supported_sentence}"
                )
        texts = tuple(f"w{weights}a{activations}" for weights, activations in pairs)
        return tuple(
            Decision(f"{self.name}/{layer.name}", pairs, texts, max(pairs), (layer.name,), "category")
            for layer in network.layers
        )

    def remark(self, profile: "HardwareProfile", options: Options) -> str:
        """Bits that the part has no units for."""
        dropped = []
        for place, (name, offered) in enumerate(
            (("weights", options.weight_bits), ("activations", options.activation_bits))
        ):
            units = {pair[place] for pair in profile.supported}
            if out := [bits for bits in offered if bits not in units]:
                dropped.append(f"{name} of {', '.join(map(str, out))} bits")
        return f"{profile.name} cannot run {' and '.join(dropped)}: left out of the space" if dropped else ""

    def apply(self, traced: "Traced", wanted: Network, policy: Policy) -> "Traced":
        """With fake quantizers put into the module, in place."""
        from leanfront.compression.techniques.quantize import attach_quantizers

        attach_quantizers(traced.module, wanted, policy)
        return traced
