"""Channels of a group are cut out of every layer that writes or reads them."""

from dataclasses import replace
from typing import TYPE_CHECKING

from leanfront.compression.graph.network import Network
from leanfront.compression.policy.policy import Policy, kept_channels
from leanfront.compression.policy.technique import Decision, Options, Technique

if TYPE_CHECKING:
    from leanfront.compression.capture.trace import Traced
    from leanfront.hw_profiles import HardwareProfile


class ChannelPruning(Technique):
    """Of each group of channels the share that is cut."""

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

        return replace(traced, module=cut(traced, wanted.group_sizes), network=wanted)
