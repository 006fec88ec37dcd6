"""Policies that cover a space: for calibrating and for validating a latency model."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from compression.policy import Network, Policy
from latency_models.spread import spread_evenly as spread_evenly
from search.space import Pair, Space

Combination = tuple[str, bool, str | None, bool | None, tuple[tuple[str, float], ...]]
"""(layer, is it integer, a reader of its output, is that integer, (group, sparsity) ...)"""

MOST_COMBINATIONS = 2000
"""More levels than this of one layer (concats of many groups): only those of its own group are listed."""


def draw(space: Space, rng: np.random.Generator) -> Policy:
    """One policy: an overall level of sparsity with a jitter per group, and one of several mixes of bits.

    Uniform draws of every decision would all lie near the middle of the range of latency.
    """
    overall, jitter = rng.random(), rng.choice([0.0, 0.1, 0.25])
    sparsity = {}
    for group, levels in space.levels.items():
        at = np.clip(overall + jitter * rng.standard_normal(), 0.0, 1.0)
        sparsity[group] = levels[round(float(at) * (len(levels) - 1))]
    return space.policy(sparsity, _bits(space, rng))


def _bits(space: Space, rng: np.random.Generator) -> dict[str, Pair]:
    """All integer, all float, layer by layer at random, or in runs of neighbours."""
    integers = [pair for pair in space.pairs if max(pair) <= 8]
    floats = [pair for pair in space.pairs if max(pair) > 8]
    names = [layer.name for layer in space.network.layers]
    mode = rng.choice(["integer", "float", "mixed", "runs"], p=[0.2, 0.15, 0.3, 0.35])
    share = {"integer": 1.0, "float": 0.0}.get(mode, rng.uniform(0.15, 0.95))
    if not integers or not floats:
        share = 1.0 if integers else 0.0
    keep = 0.75 if mode == "runs" else 0.0
    bits: dict[str, Pair] = {}
    integer = bool(rng.random() < share)
    for name in names:
        if rng.random() >= keep:
            integer = bool(rng.random() < share)
        choice: Sequence[Pair] = integers if integer else floats
        bits[name] = choice[int(rng.integers(len(choice)))]
    return bits


class Cover:
    """Which combinations of widths and bits a set of policies has shown, and policies that show the rest.

    For each layer: its input channels, its output channels and whether it computes in integers, together;
    and between a layer and those that read its output: the width, and both precisions.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        network = space.network
        self._integer = [pair for pair in space.pairs if max(pair) <= 8]
        self._float = [pair for pair in space.pairs if max(pair) > 8]
        self._inputs = {n.layer: n.inputs[0] for n in network.nodes if n.layer is not None}
        self._sources = {
            layer.name: tuple(
                dict.fromkeys(s.group for s in network.node[self._inputs[layer.name]].channels if s.group)
            )
            for layer in network.layers
        }
        self._after = _following_layers(network)
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

    def _precisions(self) -> list[bool]:
        return [integer for integer, pairs in ((True, self._integer), (False, self._float)) if pairs]

    def _everything(self) -> Iterator[Combination]:
        for layer in self._space.network.layers:
            groups = tuple(
                dict.fromkeys([*self._sources[layer.name], *([layer.group] if layer.group else [])])
            )
            if math.prod(len(self._space.levels[group]) for group in groups) > MOST_COMBINATIONS:
                groups = groups[-1:]
            for levels in self._levels(groups):
                for integer in self._precisions():
                    yield (layer.name, integer, None, None, tuple(zip(groups, levels, strict=True)))
            for reader in self._after[layer.name]:
                out = (layer.group,) if layer.group else ()
                for levels in self._levels(out):
                    for integer, reads in itertools.product(self._precisions(), repeat=2):
                        yield (layer.name, integer, reader, reads, tuple(zip(out, levels, strict=True)))

    def _shown(self, policy: Policy) -> Iterator[Combination]:
        at = {group: policy[layers[0].name].sparsity for group, layers in self._space.network.groups.items()}
        for layer in self._space.network.layers:
            integer = policy[layer.name].integer
            groups = tuple(
                dict.fromkeys([*self._sources[layer.name], *([layer.group] if layer.group else [])])
            )
            yield (layer.name, integer, None, None, tuple((group, at[group]) for group in groups))
            yield (layer.name, integer, None, None, tuple((group, at[group]) for group in groups[-1:]))
            out = ((layer.group, at[layer.group]),) if layer.group else ()
            for reader in self._after[layer.name]:
                yield (layer.name, integer, reader, policy[reader].integer, out)

    def _with(self, wanted: Combination, rng: np.random.Generator) -> Policy:
        name, integer, reader, reads, at = wanted
        space = self._space
        sparsity = {group: float(levels[rng.integers(len(levels))]) for group, levels in space.levels.items()}
        sparsity |= dict(at)
        share = rng.random()
        kinds = {layer.name: bool(rng.random() < share) for layer in space.network.layers} | {name: integer}
        if reader is not None and reads is not None:
            kinds[reader] = reads
        bits = {}
        for layer, kind in kinds.items():
            choice = (self._integer if kind else self._float) or list(space.pairs)
            bits[layer] = choice[int(rng.integers(len(choice)))]
        return space.policy(sparsity, bits)


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
        if node.layer is not None:
            after[node.layer] = tuple(readers)
    return after
