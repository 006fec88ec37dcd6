"""Apply a policy to a copy of a traced model: leave branches out, cut channels, put quantizers in."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import fx

from leanfront.compression.capture.trace import Traced
from leanfront.compression.graph import Branch, Network
from leanfront.compression.policy import Policy, PolicyError
from leanfront.compression.techniques.prune import cut
from leanfront.compression.techniques.quantize import attach_quantizers


@dataclass(frozen=True)
class Compressed:
    """A compressed module, its Network (after the cut) and the policy that made it."""

    module: fx.GraphModule
    network: Network
    policy: Policy


def compress(traced: Traced, policy: Policy, multiple: int = 1) -> Compressed:
    """A cut copy with fake quantizers; its batch norms and ranges are still to be estimated.

    ``multiple``: channel counts are snapped to it (the profile's).

    Raises:
        PolicyError: the policy does not fit the network or contradicts itself, or has a pattern other than
            "channel": those can be priced, but nothing here cuts them.
    """
    for name, layer in policy.items():
        if layer.sparsity and layer.pattern != "channel":
            raise PolicyError(
                f"layer {name!r} has pattern {layer.pattern!r}, which can be priced but not applied;"
                ' only whole channels are cut: pattern "channel"'
            )
    channels = policy.channels(traced.network, multiple)
    shallower = left_out(traced, policy.left_out(traced.network))
    network = shallower.network.resized(channels)
    module = cut(shallower, channels)
    attach_quantizers(module, network, policy)
    return Compressed(module, network, policy)


def left_out(traced: Traced, branches: Sequence[Branch]) -> Traced:
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
