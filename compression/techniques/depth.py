"""Residual branches are left out whole."""

from typing import TYPE_CHECKING

from leanfront.compression.graph.network import Network
from leanfront.compression.policy.technique import Decision, Options, Technique

if TYPE_CHECKING:
    from leanfront.hw_profiles import HardwareProfile


class Depth(Technique):
    """Of each residual branch whether it stays."""

    name = "branch"

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
