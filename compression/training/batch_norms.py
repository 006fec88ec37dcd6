"""Statistics of batch norms of a network that was cut or rounded: kept, corrected, or estimated again."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanfront.compression.capture.program import called
from leanfront.compression.capture.trace import Traced
from leanfront.compression.graph import Network
from leanfront.compression.techniques.compress import Compressed

Statistics = Mapping[str, tuple[Tensor, Tensor]]
"""Batch norm -> its mean and variance, (channels,) each."""

COARSE_BITS = 7
"""Weights of so many bits or fewer change what a layer puts out by more than batches differ."""


def norms_of(module: nn.Module) -> dict[str, _BatchNorm]:
    """Name -> batch norm, of those that keep statistics."""
    return {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.track_running_stats
    }


def shared_norms(module: nn.Module) -> list[_BatchNorm]:
    """Batch norms of a captured network that are called several times in a pass. What one call sees is not
    what they store, which is the mean of all calls: trained with what each sees (a head with a norm that all
    levels of a pyramid share), a network learns to be another than the one that is scored."""
    nodes = module.graph.nodes if isinstance(module, fx.GraphModule) else ()
    calls = Counter(str(node.target) for node in nodes if node.op == "call_module")
    return [norm for name, norm in norms_of(module).items() if calls[name] > 1]


def statistics(module: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """What its batch norms hold."""
    return {
        name: (norm.running_mean.clone(), norm.running_var.clone())  # type: ignore[union-attr]
        for name, norm in norms_of(module).items()
    }


@torch.no_grad()
def set_statistics(module: nn.Module, wanted: Statistics) -> None:
    """Let batch norms hold these; others stay."""
    for name, norm in norms_of(module).items():
        if name in wanted:
            mean, variance = wanted[name]
            norm.running_mean.copy_(mean)  # type: ignore[union-attr]
            norm.running_var.copy_(variance)  # type: ignore[union-attr]


@torch.no_grad()
def re_estimate(module: nn.Module, batches: Sequence[Any], names: frozenset[str] | None = None) -> None:
    """Set the running mean and variance of batch norms (all, or those of ``names``) to those of ``batches``
    of inputs, as the module takes them.

    Everything else runs as in eval mode: no dropout, no range that moves. Without it the accuracy of a cut
    network says nothing (Yu and Huang 2019, section 3.3).
    """
    norms = [norm for name, norm in norms_of(module).items() if names is None or name in names]
    if not norms or not batches:
        return
    was_training = module.training
    module.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean over the batches
        norm.train()
    for batch in batches:
        called(module, batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.train(was_training)


def changed_nodes(whole: Network, compressed: Compressed) -> frozenset[str]:
    """The nodes that put out something else than in the network that a compressed one was made from, since
    there or before something was cut, left out, changed by a technique that has a number in ``more`` (zeros),
    or rounded to ``COARSE_BITS`` or fewer."""
    network, policy = compressed.network, compressed.policy
    changed: set[str] = set()
    for node in network.nodes:
        before = whole.node.get(node.name)
        new = before is None or before.width != node.width or before.inputs != node.inputs
        own = policy[node.layer] if node.layer is not None else None
        coarse = own is not None and (own.weight_bits <= COARSE_BITS or bool(own.more))
        narrow = node.layer is not None and not new and _reads_less(node.inputs, network, whole)
        if new or coarse or narrow or any(source in changed for source in node.inputs):
            changed.add(node.name)
    return frozenset(changed)


def changed_norms(traced: Traced, compressed: Compressed) -> frozenset[str]:
    """The batch norms among ``changed_nodes``: the statistics of the others hold as they are."""
    changed = changed_nodes(traced.network, compressed)
    targets = {
        node.name: str(node.target) for node in compressed.module.graph.nodes if node.op == "call_module"
    }
    return (
        frozenset(targets[name] for name in changed if name in targets) & norms_of(compressed.module).keys()
    )


def _reads_less(inputs: Sequence[str], network: Any, whole: Any) -> bool:
    return any(network.node[one].width != whole.node[one].width for one in inputs if one in whole.node)


@dataclass(frozen=True)
class Shift:
    """What the uncut network's batch norms see on some inputs: what a cut shifts is told from it."""

    seen: Statistics
    lines: Mapping[str, Any]

    @staticmethod
    def of(traced: Traced, batches: Sequence[Any]) -> "Shift":
        """On ``batches``; the traced network is left as it is."""
        module = copy.deepcopy(traced.module)
        re_estimate(module, batches)
        return Shift(statistics(module), _lines(module, traced.classes))

    def corrected(self, compressed: Compressed, kept: Statistics, estimated: Statistics) -> Statistics:
        """``kept``: of the compressed network as it was cut; ``estimated``: on the inputs of ``seen``. Means
        move by what the cut moved them, variances by as many times."""
        lines, found = _lines(compressed.module, compressed.classes), {}
        for name, (mean, variance) in estimated.items():
            if name not in self.seen or name not in lines:
                continue
            stays = torch.from_numpy(_stays(self.lines[name], lines[name]))
            whole_mean, whole_variance = (each.to(mean.device)[stays] for each in self.seen[name])
            if len(whole_mean) != len(mean):
                continue
            own_mean, own_variance = kept[name]
            ratio = variance / whole_variance.clamp(min=1e-12)
            found[name] = (own_mean + mean - whole_mean, own_variance * ratio)
        return found


def _lines(module: Any, classes: Mapping[str, Any]) -> dict[str, Any]:
    """Batch norm -> the classes of its channels."""
    there = norms_of(module)
    nodes = [(node.name, str(node.target)) for node in module.graph.nodes if node.op == "call_module"]
    return {target: classes[name] for name, target in nodes if target in there and name in classes}


def _stays(whole: Any, left: Any) -> Any:
    """Places of the uncut network's channels that are left."""
    return np.flatnonzero((whole < 0) | np.isin(whole, left))
