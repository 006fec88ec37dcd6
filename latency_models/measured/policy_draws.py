"""Policies that cover a space: for calibrating and for validating a latency model."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from leanfront.compression.graph import Branch, Network
from leanfront.compression.policy import Policy
from leanfront.compression.policy.space import BITS, BRANCH, SPARSITY, Pair, Space
from leanfront.compression.policy.technique import Value
from leanfront.latency_models.evenly_spaced import spread_evenly as spread_evenly

Combination = tuple[str, bool, str | None, bool | None, tuple[tuple[str, float], ...], str]
"""(layer, is it integer, a reader of its output, is that integer, (group, sparsity) ..., name of the branch
that is left out between them or "")"""

MOST_COMBINATIONS = 2000
"""More levels than this of one layer (concats of many groups): only those of its own group are listed."""


def draw(space: Space, rng: np.random.Generator, mode: str | None = None) -> Policy:
    """One policy: an overall level of sparsity with a jitter per group, one of several mixes of bits, and in
    every second one a share of the branches left out.

    Uniform draws of every decision would all lie near the middle of the range of latency. ``mode``: the mix
    of bits ("integer", "float", "mixed" or "runs"); drawn where it is None.
    """
    overall, jitter = rng.random(), rng.choice([0.0, 0.1, 0.25])
    choices: dict[str, Value] = {}
    for group, levels in space.levels.items():
        at = np.clip(overall + jitter * rng.standard_normal(), 0.0, 1.0)
        choices[f"{SPARSITY}/{group}"] = levels[round(float(at) * (len(levels) - 1))]
    return space.policy(choices | _bits(space, rng, mode) | _left_out(space, rng) | _others(space, rng))


def alone(space: Space) -> list[Policy]:
    """Each branch left out alone, and all together at some widths: what meets then is seen nowhere else. At
    uniform bits: integers and floats where the space has them."""
    kinds = [[pair for pair in space.pairs if (max(pair) <= 8) == integer] for integer in (True, False)]
    pairs = [max(kind) for kind in kinds if kind]
    widths = sorted({level for levels in space.levels.values() for level in levels})[::2] or [0.0]
    sets = [(0.0, [branch]) for branch in space.branches]
    if space.branches:
        sets += [(sparsity, list(space.branches)) for sparsity in widths]
    return [space.uniform(sparsity, pair, left_out) for sparsity, left_out in sets for pair in pairs]


def _left_out(space: Space, rng: np.random.Generator) -> dict[str, Value]:
    """No branch, or each with a probability that is drawn first."""
    if not space.branches or rng.random() < 0.5:
        return {}
    share = rng.uniform(0.0, 0.8)
    return {f"{BRANCH}/{branch.name}": rng.random() < share for branch in space.branches}


def _others(space: Space, rng: np.random.Generator) -> dict[str, Value]:
    """What other techniques decide, each at random."""
    return {d.name: d.values[int(rng.integers(len(d.values)))] for d in space.others}


def _bits(space: Space, rng: np.random.Generator, mode: str | None) -> dict[str, Value]:
    """All integer, all float, layer by layer at random, or in runs of neighbours."""
    integers = [pair for pair in space.pairs if max(pair) <= 8]
    floats = [pair for pair in space.pairs if max(pair) > 8]
    names = [layer.name for layer in space.network.layers]
    mode = mode or rng.choice(["integer", "float", "mixed", "runs"], p=[0.2, 0.15, 0.3, 0.35])
    share = {"integer": 1.0, "float": 0.0}.get(mode, rng.uniform(0.15, 0.95))
    if not integers or not floats:
        share = 1.0 if integers else 0.0
    keep = 0.75 if mode == "runs" else 0.0
    bits: dict[str, Value] = {}
    integer = bool(rng.random() < share)
    for name in names:
        if rng.random() >= keep:
            integer = bool(rng.random() < share)
        choice: Sequence[Pair] = space.stored.get(name) or (integers if integer else floats)
        bits[f"{BITS}/{name}"] = choice[int(rng.integers(len(choice)))]
    return bits


class Cover:
    """Which combinations of widths and bits a set of policies has shown, and policies that show the rest.

    For each layer: its input channels, its output channels and whether it computes in integers, together;
    and between a layer and those that read its output: the width, and both precisions. For each branch that
    may be left out: it is, with the precisions of the layers before and behind it.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        network = space.network
        self._integer = [pair for pair in space.pairs if max(pair) <= 8]
        self._float = [pair for pair in space.pairs if max(pair) > 8]
        self._inputs = {n.layer: n.source for n in network.nodes if n.layer is not None}
        self._sources = {
            layer.name: tuple(
                dict.fromkeys(s.group for s in network.node[self._inputs[layer.name]].channels if s.group)
            )
            for layer in network.layers
        }
        self._after = _following_layers(network)
        around = {branch.name: _around(network, branch, self._after) for branch in space.branches}
        self._around = {name: layers for name, layers in around.items() if layers is not None}
        self._open = set(self._everything())

    @property
    def complete(self) -> bool:
        """Whether everything was shown."""
        return not self._open

    @property
    def left(self) -> int:
        """Combinations not shown yet."""
        return len(self._open)

    def note(self, policy: Policy) -> None:
        """A policy was seen."""
        self._open -= set(self._shown(policy))

    def next(self, rng: np.random.Generator, tries: int = 12) -> Policy:
        """Of some random policies around one open combination the one that shows most of what is open."""
        wanted = sorted(self._open, key=repr)
        candidates = [self._with(wanted[int(rng.integers(len(wanted)))], rng) for _ in range(tries)]
        best = max(candidates, key=lambda policy: len(self._open.intersection(self._shown(policy))))
        if not self._open.intersection(self._shown(best)):  # cannot be shown: bits that layers share
            self._open.discard(wanted[0])
        return best

    def _levels(self, groups: Sequence[str]) -> list[tuple[float, ...]]:
        return list(itertools.product(*(self._space.levels[group] for group in groups)))

    def _precisions(self, layer: str) -> list[bool]:
        if layer in self._space.stored:
            return [False]
        return [integer for integer, pairs in ((True, self._integer), (False, self._float)) if pairs]

    def _everything(self) -> Iterator[Combination]:
        for layer in self._space.network.layers:
            groups = tuple(
                dict.fromkeys([*self._sources[layer.name], *([layer.group] if layer.group else [])])
            )
            if math.prod(len(self._space.levels[group]) for group in groups) > MOST_COMBINATIONS:
                groups = groups[-1:]
            for levels in self._levels(groups):
                for integer in self._precisions(layer.name):
                    yield (layer.name, integer, None, None, tuple(zip(groups, levels, strict=True)), "")
            for reader in self._after[layer.name]:
                out = (layer.group,) if layer.group else ()
                both = self._precisions(layer.name), self._precisions(reader)
                for levels in self._levels(out):
                    for integer, reads in itertools.product(*both):
                        yield (layer.name, integer, reader, reads, tuple(zip(out, levels, strict=True)), "")
        for name, (before, behind) in self._around.items():
            for integer, reads in itertools.product(self._precisions(before), self._precisions(behind)):
                yield (before, integer, behind, reads, (), name)

    def _shown(self, policy: Policy) -> Iterator[Combination]:
        there = [layer for layer in self._space.network.layers if layer.name not in policy.absent]
        at = {layer.group: policy[layer.name].sparsity for layer in there if layer.group is not None}
        for layer in there:
            integer = policy[layer.name].integer
            groups = tuple(
                dict.fromkeys([*self._sources[layer.name], *([layer.group] if layer.group else [])])
            )
            levels = tuple((group, at.get(group, 0.0)) for group in groups)
            yield (layer.name, integer, None, None, levels, "")
            yield (layer.name, integer, None, None, levels[-1:], "")
            out = ((layer.group, at[layer.group]),) if layer.group else ()
            for reader in self._after[layer.name]:
                if reader not in policy.absent:
                    yield (layer.name, integer, reader, policy[reader].integer, out, "")
        for branch in policy.left_out(self._space.network):
            layers = self._around.get(branch.name)
            if layers is not None and policy.absent.isdisjoint(layers):
                before, behind = layers
                yield (before, policy[before].integer, behind, policy[behind].integer, (), branch.name)

    def _with(self, wanted: Combination, rng: np.random.Generator) -> Policy:
        name, integer, reader, reads, at, out = wanted
        space = self._space
        choices: dict[str, Value] = {
            f"{SPARSITY}/{group}": float(levels[rng.integers(len(levels))])
            for group, levels in space.levels.items()
        }
        choices |= {f"{SPARSITY}/{group}": level for group, level in at}
        share = rng.random()
        kinds = {layer.name: bool(rng.random() < share) for layer in space.network.layers} | {name: integer}
        if reader is not None and reads is not None:
            kinds[reader] = reads
        for layer, kind in kinds.items():
            pairs = space.stored.get(layer) or (self._integer if kind else self._float) or space.pairs
            choices[f"{BITS}/{layer}"] = pairs[int(rng.integers(len(pairs)))]
        return space.policy(choices | ({f"{BRANCH}/{out}": True} if out else {}))


def _following_layers(network: Network) -> dict[str, tuple[str, ...]]:
    """Layer -> layers that read its output, through operations that are no layers."""
    after: dict[str, tuple[str, ...]] = {}
    reached: dict[str, tuple[str, ...]] = {}
    for node in reversed(network.nodes):
        readers: dict[str, None] = {}
        for consumer in network.consumers[node.name]:
            layer = network.node[consumer].layer
            readers.update(dict.fromkeys((layer,) if layer is not None else reached[consumer]))
        reached[node.name] = tuple(readers)
        if node.layer is not None:  # of one that is used several times those behind each use
            readers |= dict.fromkeys(after.get(node.layer, ()))
            after[node.layer] = tuple(name for name in readers if name != node.layer)
    return after


def _around(network: Network, branch: Branch, after: dict[str, tuple[str, ...]]) -> tuple[str, str] | None:
    """Of the layers whose output reads on past the branch the last before it, and the first behind it."""
    order = [layer.name for layer in network.layers]
    first, last = branch.layers[0], branch.layers[-1]
    before = [name for name in order if first in after[name] and name not in branch.layers]
    behind = [name for name in order if name in after[last] and name not in branch.layers]
    return (before[-1], behind[0]) if before and behind else None
