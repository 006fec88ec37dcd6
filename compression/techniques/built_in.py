"""The built-in ways to compress: channels are cut, residual branches left out whole, bits are fewer."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from leanfront.compression.graph.branches import Branch
from leanfront.compression.graph.network import Network
from leanfront.compression.policy.dynamic import (
    BITS,
    DYNAMIC,
    check_dynamic,
    is_dynamic,
    more_bytes,
    together,
)
from leanfront.compression.policy.policy import Policy, kept_channels
from leanfront.compression.policy.technique import Decision, Options, SpaceError, Technique

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from leanfront.compression.capture.trace import Traced
    from leanfront.compression.policy.batch import PolicyBatch
    from leanfront.hw_profiles import HardwareProfile


class ChannelPruning(Technique):
    """Channels of a group are cut out of every layer that writes or reads them: of each group the share."""

    name = "sparsity"
    stage = 1

    def decisions(
        self, network: Network, profile: "HardwareProfile", options: Options
    ) -> tuple[Decision, ...]:
        """One for each group: the shares that are really cut, ascending, snapped to the part's multiple;
        levels that keep the same number of channels are one."""
        found = []
        for group, layers in network.group_layers.items():
            size = network.group_size(group)
            counts = {kept_channels(size, share, profile.channel_multiple) for share in options.sparsity}
            levels = tuple(round(1.0 - count / size, 6) for count in sorted(counts, reverse=True))
            texts = tuple(f"{level:g}" for level in levels)
            found.append(Decision(f"{self.name}/{group}", levels, texts, 0.0, tuple(layers), "ordered"))
        return tuple(found)

    def apply(self, traced: "Traced", wanted: Network, policy: Policy) -> "Traced":
        """A copy in which each group has the channels of ``wanted``."""
        from leanfront.compression.techniques.prune import cut

        return cut(traced, wanted)


class Depth(Technique):
    """Of each residual branch whether it stays."""

    name = "branch"
    stage = 0

    def decisions(
        self, network: Network, profile: "HardwareProfile", options: Options
    ) -> tuple[Decision, ...]:
        """One for each branch that can be left out."""
        return tuple(
            Decision(
                f"{self.name}/{branch.name}",
                (False, True),
                ("stays", "left out"),
                False,
                branch.layers,
                "switch",
            )
            for branch in (network.branches if options.depth else ())
        )

    def apply(self, traced: "Traced", wanted: Network, policy: Policy) -> "Traced":
        """A copy without the branches whose layers ``wanted`` has not; itself where it has all."""
        layers = set(wanted.layer_names)
        return left_out(traced, [b for b in traced.network.branches if layers.isdisjoint(b.layers)])


def left_out(traced: "Traced", branches: Sequence[Branch]) -> "Traced":
    """The traced model without some of its branches: what reads a join reads the operand that stays.

    Nothing is left of the branches, neither modules nor nodes. ``branches``: in order of execution.
    """
    if not branches:
        return traced
    module = copy.deepcopy(traced.module)
    node = {node.name: node for node in module.graph.nodes}
    for branch in reversed(branches):  # the operand that stays may be the join of an earlier one
        stays = branch.stays
        while stays not in node:  # the join of a branch that a trained network is without already
            stays = traced.network.node[stays].inputs[0]
        node[branch.join].replace_all_uses_with(node[stays])
    # only what reaches the output stays: the default keeps what might have effects, such as dropout
    module.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    module.delete_all_unused_submodules()
    module.recompile()
    return replace(traced, module=module, network=traced.network.without(branches))


class Quantization(Technique):
    """Of each layer the bits of its weights, and of the tensor that it reads."""

    name = "bits"
    stage = 3

    def decisions(
        self, network: Network, profile: "HardwareProfile", options: Options
    ) -> tuple[Decision, ...]:
        """One for each layer: the pairs (weight_bits, activation_bits) of the options that the part runs; for
        layers of weight bits alone those bits, where it has floats to decode them to, or else floats.

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
        decodes = profile.supports(32, 32)
        stored = tuple((bits, 32) for bits in able[0] if decodes or profile.supports(bits, 32))
        return tuple(
            self._decision(layer.name, (stored or ((32, 32),)) if layer.weight_only else pairs)
            for layer in network.layers
        )

    def _decision(self, layer: str, pairs: tuple[tuple[int, int], ...]) -> Decision:
        texts = tuple(f"w{weights}a{activations}" for weights, activations in pairs)
        return Decision(f"{self.name}/{layer}", pairs, texts, max(pairs), (layer,), "category")

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

        attach_quantizers(traced.module, wanted, policy, traced.grids)
        return traced


class DynamicQuantization(Technique):
    """Of each linear layer and each LSTM whether what it reads is quantized while it runs
    (compression/policy/dynamic.py): where the user wants that, on a part whose engine does it and whose
    kernels are timed."""

    name = DYNAMIC
    stage = 3

    def decisions(
        self, network: Network, profile: "HardwareProfile", options: Options
    ) -> tuple[Decision, ...]:
        """A switch for each linear layer, and one for the matrices of an LSTM."""
        if not options.dynamic or self.remark(profile, options):
            return ()
        return tuple(
            Decision(f"{self.name}/{layers[0]}", (0.0, 1.0), ("no", "yes"), 0.0, layers, "switch")
            for layers in together(network)
        )

    def remark(self, profile: "HardwareProfile", options: Options) -> str:
        """Why the part, or the space, has it not."""
        from leanfront.compression.export.dialects import BUILT_IN, dialect_of

        if not options.dynamic:
            return ""
        if not (profile.measured and dialect_of(BUILT_IN[profile.engine]).dynamic):
            return f"nobody knows what quantizing at run time costs on {profile.name}: left out of the space"
        wanted = BITS[0] in options.weight_bits and BITS[1] in options.activation_bits
        if not (wanted and profile.supports(*BITS)):
            return f"space.dynamic needs weights of {BITS[0]} and activations of {BITS[1]} bits: left out"
        return ""

    def fits(self, weight_bits: "Any", activation_bits: "Any") -> "Any":
        """Beside weights of 8 bits and floats."""
        return (weight_bits == BITS[0]) & (activation_bits == BITS[1])

    def apply(self, traced: "Traced", wanted: Network, policy: Policy) -> "Traced":
        """With quantizers put in front of these layers, in place."""
        if any(map(is_dynamic, policy.values())):
            from leanfront.compression.techniques.run_time_grids import attach

            check_dynamic(wanted, policy.there())
            attach(traced, wanted, policy)
        return traced

    def size_change(self, batch: "PolicyBatch", values: "NDArray[Any]") -> "NDArray[Any]":
        """What is written in the place of decoded weights."""
        return more_bytes(batch.network, values)
