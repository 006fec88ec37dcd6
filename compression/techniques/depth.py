"""Residual branches are left out whole."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from leanfront.compression.graph.branches import Branch
from leanfront.compression.graph.network import Network
from leanfront.compression.policy.policy import Policy
from leanfront.compression.policy.technique import Decision, Options, Technique

if TYPE_CHECKING:
    from leanfront.compression.capture.trace import Traced
    from leanfront.hw_profiles import HardwareProfile


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
        node[branch.join].replace_all_uses_with(node[branch.stays])
    # only what reaches the output stays: the default keeps what might have effects, such as dropout
    module.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    module.delete_all_unused_submodules()
    module.recompile()
    return replace(traced, module=module, network=traced.network.without(branches))
