"""A network made from a trained one: cut further or held in other bits, it keeps what the training taught."""

import copy
from dataclasses import replace

from torch import fx, nn

from leanfront.compression.capture.trace import Traced
from leanfront.compression.graph import Network
from leanfront.compression.policy import Policy, PolicyError
from leanfront.compression.techniques.built_in import left_out
from leanfront.compression.techniques.compress import Compressed, applied
from leanfront.compression.techniques.prune import kept_channels
from leanfront.compression.techniques.quantize import QUANTIZER, quantizers, taken_off, weight_quantizers


def inherit(traced: Traced, trained: Compressed, policy: Policy, multiple: int = 1) -> Compressed:
    """What a policy makes of a trained network; its batch norms and ranges are still to be estimated. Steps
    of grids that it has learned stay where the bits do.

    The channels that go are the least important ones of the trained weights, so a network of the same policy
    that was cut from the uncompressed model may have kept others. ``trained`` stays as it is.

    Args:
        traced: the uncompressed model that ``trained`` was made from.
        trained: a compressed network.
        policy: has no channel and no layer that ``trained`` has not; any bits.
        multiple: channel counts are snapped to it (the profile's).

    Raises:
        PolicyError: the policy does not fit the model, or keeps what is gone in ``trained``.
    """
    wanted = policy.cut(traced.network, multiple)
    check_kept(trained.network, wanted)
    parent = replace(traced, module=_plain(trained.module), network=trained.network, classes=trained.classes)
    made = applied(parent, wanted, policy)
    _hand_down_steps(trained, parent, made)
    return made


def check_kept(trained: Network, wanted: Network) -> None:
    """Raise PolicyError where a network keeps what is gone in a trained one."""
    there = trained.group_sizes
    for group, size in wanted.group_sizes.items():
        if size > there.get(group, 0):
            raise PolicyError(
                f"group {group!r} is to keep {size} channels, but the trained network has"
                f" {there.get(group, 0)}: what was cut does not come back; cut the uncompressed model"
            )
    if missing := set(wanted.layer_names) - set(trained.layer_names):
        raise PolicyError(
            f"layer {min(missing)!r} is left out of the trained network and does not come back;"
            " cut the uncompressed model"
        )


def _hand_down_steps(trained: Compressed, parent: Traced, made: Compressed) -> None:
    """Let grids of as many bits as in the trained network have the steps that it has learned. ``parent``:
    that network without grids."""
    before, after = quantizers(trained.module), quantizers(made.module)
    for name in before.keys() & after.keys():
        if before[name].bits == after[name].bits and before[name].step is not None:
            after[name].learn(before[name])
    learned = {name: one.step for name, one in weight_quantizers(trained.module).items()}
    if all(step is None for step in learned.values()):
        return
    left = [b for b in parent.network.branches if not set(b.layers) & set(made.network.layer_names)]
    kept, _ = kept_channels(left_out(parent, left), made.network)
    bits = {name: layer.weight_bits for name, layer in trained.policy.items()}
    for name, quantizer in weight_quantizers(made.module).items():
        step = learned.get(name)
        if step is not None and quantizer.bits == bits[name]:
            quantizer.learn(step[list(kept[name][1])])


def _plain(module: fx.GraphModule) -> fx.GraphModule:
    """A copy without fake quantizers; weights as training changes them, not as their codes show them."""
    plain = copy.deepcopy(module)
    for layer in plain.modules():
        if (weight := taken_off(layer)) is not None:
            layer.register_parameter("weight", nn.Parameter(weight))
    for node in list(plain.graph.nodes):
        if node.op == "call_module" and str(node.target).startswith(QUANTIZER):
            node.replace_all_uses_with(node.args[0])
            plain.graph.erase_node(node)
    plain.delete_all_unused_submodules()
    plain.recompile()
    return plain.eval()
