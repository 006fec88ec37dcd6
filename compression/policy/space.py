"""The space of policies: whatever the techniques offer for one network on one part."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from leanfront.compression.graph import Branch, Network
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.policy import kept_channels
from leanfront.compression.policy.space_size import number_of_policies
from leanfront.compression.policy.technique import (
    Decision,
    Options,
    SpaceError,
    Trial,
    Value,
    technique,
    techniques,
)
from leanfront.compression.policy.zeros import PATTERNS
from leanfront.hw_profiles import HardwareProfile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from leanfront.compression.policy.batch import PolicyBatch

_MOST_UNIFORM = 0.51
"""The most that a seed cuts from every group alike."""
_ZEROS = (0.5, 0.8)
"""Shares of weights that are 0 in a seed."""
SPARSITY, BRANCH, BITS = "sparsity", "branch", "bits"
"""Kinds of decisions that policies have fields of their own for."""

Pair = tuple[int, int]
"""(weight_bits, activation_bits)"""


class Space:
    """Every policy that a search may propose for one network on one profile.

    ``decisions`` is the one list of them, those of a technique together. Of them, ``levels[group]`` are the
    sparsities of a group of channels that are cut together, ascending; ``branches`` are the residual branches
    that may be left out whole; ``pairs`` are the bit widths that a layer may have, and ``stored`` those of
    layers of weight bits alone. Layers that read the same tensor share its activation bits. ``left_out`` says
    which of the wanted bits the part has no units for; "" if none.
    """

    def __init__(
        self,
        network: Network,
        profile: HardwareProfile,
        sparsity: Iterable[float],
        weight_bits: Iterable[int],
        activation_bits: Iterable[int],
        depth: bool = True,
        zeros: Iterable[float] | None = None,
        zipped: bool = False,
        dynamic: bool = False,
    ) -> None:
        """``depth``: branches may be left out; ``zeros``, ``zipped``, ``dynamic``: see ``Options``.

        Raises SpaceError when the profile can run none of the bit widths, or one of them with nothing, or
        when zeros are wanted that nothing pays for.
        """
        self.network = network
        self.multiple = profile.channel_multiple
        options = Options(
            tuple(sparsity),
            tuple(weight_bits),
            tuple(activation_bits),
            depth,
            None if zeros is None else tuple(zeros),
            zipped,
            dynamic,
        )
        offering = techniques().values()
        self.decisions: tuple[Decision, ...] = tuple(
            decision for one in offering for decision in one.decisions(network, profile, options)
        )
        self.left_out = "; ".join(filter(None, (one.remark(profile, options) for one in offering)))
        self.levels: Mapping[str, tuple[float, ...]] = {d.about: d.values for d in self._of(SPARSITY)}
        names = {decision.about for decision in self._of(BRANCH)}
        self.branches = tuple(branch for branch in network.branches if branch.name in names)
        self.bits: Mapping[str, tuple[Pair, ...]] = {d.about: d.values for d in self._of(BITS)}
        computing = [pairs for name, pairs in self.bits.items() if not network.layer[name].weight_only]
        self.stored: Mapping[str, tuple[Pair, ...]] = {name: self.bits[name] for name in network.weight_only}
        self.pairs: tuple[Pair, ...] = (computing or list(self.bits.values()))[0]
        for decision in self.others:
            if 0.0 not in decision.values:
                raise SpaceError(
                    f"a decision must offer 0, which leaves a layer as it is, but {decision.name!r} has"
                    f" {list(decision.values)}; add it"
                )

    def _of(self, kind: str) -> list[Decision]:
        return [decision for decision in self.decisions if decision.kind == kind]

    @cached_property
    def others(self) -> list[Decision]:
        """The decisions of other techniques: numbers."""
        return [decision for decision in self.decisions if decision.kind not in (SPARSITY, BRANCH, BITS)]

    @cached_property
    def zeros(self) -> list[Decision]:
        """Those of them that say which share of a layer's weights is 0."""
        return [decision for decision in self.others if decision.kind in PATTERNS]

    def rows(self, kind: str) -> "NDArray[np.int64]":
        """The places of the decisions of a technique."""
        return self._rows.get(kind, np.zeros(0, dtype=np.int64))

    @cached_property
    def _rows(self) -> "Mapping[str, NDArray[np.int64]]":
        kinds = [decision.kind for decision in self.decisions]
        return {kind: np.flatnonzero(np.array(kinds) == kind) for kind in kinds}

    @cached_property
    def first_readers(self) -> Mapping[str, str]:
        """Layer -> the first layer that reads the same tensor, which sets the activation bits of both; see
        ``Network.first_readers``."""
        return self.network.first_readers

    @cached_property
    def kept_at(self) -> Mapping[str, tuple[int, ...]]:
        """Group -> channels that it keeps at each of its levels."""
        size = self.network.group_size
        return {
            group: tuple(kept_channels(size(group), level, self.multiple) for level in levels)
            for group, levels in self.levels.items()
        }

    @cached_property
    def size(self) -> int:
        """Number of policies."""
        return number_of_policies(self.network, self.branches, self.decisions, self.first_readers)

    def channels(self, policy: Policy) -> dict[str, int]:
        """Group -> channels that a policy keeps, of the groups that are there."""
        return policy.channels(self.network, self.multiple)

    def resized(self, policy: Policy) -> Network:
        """The network as a policy cuts it: what a cost model wants beside the policy.

        Raises:
            PolicyError: the policy does not fit the network.
        """
        return policy.cut(self.network, self.multiple)

    def policy(self, choices: Mapping[str, Value]) -> Policy:
        """Name of a decision -> value, as a policy; what is not named is as in the uncompressed network.

        A layer that reads a tensor together with an earlier one takes that one's activation bits (also where
        that one is left out), and of the weight bits that go with them the nearest to its own.
        """
        chosen = {decision.name: decision.plain for decision in self.decisions} | dict(choices)
        gone = {name for d in self._of(BRANCH) if chosen[d.name] for name in d.layers}
        layers = {}
        for layer in self.network.layers:
            weights, _ = chosen[f"{BITS}/{layer.name}"]
            _, activations = chosen[f"{BITS}/{self.first_readers.get(layer.name, layer.name)}"]
            weights = weights if layer.weight_only else self._weight_bits(weights, activations)
            sparsity = chosen[f"{SPARSITY}/{layer.group}"] if layer.group else 0.0
            layers[layer.name] = LayerPolicy(sparsity, weights, activations)
        more: dict[str, dict[str, float]] = {name: {} for name in layers}
        for decision in self.others:
            bits = [(layers[name].weight_bits, layers[name].activation_bits) for name in decision.layers]
            if all(technique(decision.kind).fits(*pair) for pair in bits):
                for name in decision.layers:
                    more[name][decision.kind] = chosen[decision.name]
        return Policy.of(
            {name: replace(layer, more=tuple(more[name].items())) for name, layer in layers.items()}, gone
        )

    @cached_property
    def reference(self) -> Policy:
        """The uncompressed network: nothing cut, floats or else the widest bits that the space has."""
        return self.policy({})

    def alone(self, decision: Decision) -> tuple[Policy, ...]:
        """Of each value of a decision the policy with it alone, all others as in ``reference``."""
        return tuple(self.policy({decision.name: value}) for value in decision.values)

    def suggest(self, trial: Trial) -> Policy:
        """Ask a study's sampler for a policy."""
        return self.policy({decision.name: decision.suggest(trial) for decision in self.decisions})

    def params_of(self, policy: Policy) -> dict[str, Any]:
        """The parameters that make ``suggest`` return this policy, for ``study.enqueue_trial``.

        Raises:
            ValueError: the policy is not in this space.
        """
        choices = self._choices(policy)
        return {
            decision.name: decision.param(decision.values.index(choices[decision.name]))
            for decision in self.decisions
            if len(decision.values) > 1
        }

    def nearest(self, policy: Policy) -> Policy:
        """The policy of this space that is most like one of another: of each decision the nearest value; of
        bits those of a tensor first, and weights that are no coarser where there are such.

        Raises:
            PolicyError: it is no policy of this network.
        """
        return self.policy(self._choices(policy, exact=False))

    def _choices(self, policy: Policy, exact: bool = True) -> dict[str, Value]:
        """Name of each decision -> the value that a policy has, or the nearest; where it is to be ``exact``,
        raises ValueError as ``params_of`` does."""
        kept, bits = self.channels(policy), self._bits(policy)
        left_out = {branch.name for branch in policy.left_out(self.network)}
        if exact and left_out and not self.branches:
            raise ValueError(f"branch {min(left_out)!r} cannot be left out here")
        found: dict[str, Value] = {}
        for decision in self.decisions:
            about = decision.about
            if decision.kind == SPARSITY:
                counts = self.kept_at[about]
                here = kept.get(about, counts[0])
                if exact and here not in counts:
                    raise ValueError(f"group {about!r} cannot keep {here} channels here, but {list(counts)}")
                near = min(counts, key=lambda count: abs(count - here))
                value = decision.values[counts.index(near)]
            elif decision.kind == BRANCH:
                value = about in left_out
            elif decision.kind == BITS:
                value = bits[about]
            else:
                there = [name for name in decision.layers if name not in policy.absent]
                value = policy[there[0]].value(decision.kind) if there else 0.0
            if exact and value not in decision.values:
                raise ValueError(
                    f"{decision.kind} of {about!r} cannot be {value} here, but {list(decision.values)}"
                )
            if value not in decision.values:
                value = min(decision.values, key=partial(_far if decision.kind == BITS else _apart, value))
            found[decision.name] = value
        return found

    def _bits(self, policy: Policy) -> dict[str, Pair]:
        """The decision on the bits of each layer. One that is left out has those of a layer that reads the
        same tensor and follows it, or the most frequent."""
        found = {name: (p.weight_bits, p.activation_bits) for name, p in policy.there().items()}
        computing = [pair for name, pair in found.items() if name not in self.stored]
        usual = Counter(computing).most_common(1)[0][0] if computing else self.pairs[0]
        followed = {first: found[name] for name, first in self.first_readers.items() if name in found}
        followed |= {name: max(pairs) for name, pairs in self.stored.items()}
        return {
            layer.name: found.get(layer.name) or followed.get(layer.name, usual)
            for layer in self.network.layers
        }

    def random(self, rng: np.random.Generator, depth: bool = True) -> Policy:
        """A policy, each decision drawn uniformly, switches last; without ``depth`` no branch is left out."""
        return self.policy(
            {
                decision.name: decision.values[rng.integers(len(decision.values))]
                for decision in sorted(self.decisions, key=lambda decision: decision.scale == "switch")
                if depth or decision.kind != BRANCH
            }
        )

    def batch(self, codes: "NDArray[np.int64]") -> "PolicyBatch":
        """Many policies at once, (decisions, n) codes: what ``policy`` makes of the values of each column."""
        from leanfront.compression.policy.batch import PolicyBatch

        network, count = self.network, codes.shape[1]
        levels = codes[self.rows(SPARSITY)]
        kept = [np.array(counts)[row] for counts, row in zip(self.kept_at.values(), levels, strict=True)]
        pairs = codes[self.rows(BITS)]
        tables = {
            row: self.stored[layer.name] for row, layer in enumerate(network.layers) if layer.weight_only
        }
        coded = {row: np.array(own)[pairs[row]] for row, own in tables.items()}
        pairs[list(tables)] = 0
        row_of = {layer.name: row for row, layer in enumerate(network.layers)}
        first = [row_of[self.first_readers.get(layer.name, layer.name)] for layer in network.layers]
        activations = np.array([activations for _, activations in self.pairs])[pairs[first]]
        nearest = np.zeros((len(self.pairs), 33), dtype=np.int64)  # own pair, activation bits -> weight bits
        for row, (weights, _) in enumerate(self.pairs):
            for bits in {activations for _, activations in self.pairs}:
                nearest[row, bits] = self._weight_bits(weights, bits)
        weights = nearest[pairs, activations]
        for row, own in coded.items():
            weights[row], activations[row] = own.T
        channels = np.array(kept, dtype=np.int64).reshape(len(kept), count)
        more: dict[str, NDArray[np.float64]] = {}
        for decision in self.others:
            table = more.setdefault(decision.kind, np.zeros(pairs.shape))
            chosen = np.array(decision.values)[codes[self.decisions.index(decision)]]
            rows = [row_of[name] for name in decision.layers]
            fits = np.asarray(technique(decision.kind).fits(weights[rows], activations[rows]))
            table[rows] = chosen * (fits.all(axis=0) if fits.ndim == 2 else fits)
        found = PolicyBatch(network, channels, weights, activations, more=more)
        if not self.branches:
            return found
        return found.leaving_out(codes[self.rows(BRANCH)].astype(np.bool_))

    def _weight_bits(self, wanted: int, activation_bits: int) -> int:
        """Of the weight bits that go with these activation bits the nearest."""
        fitting = [weights for weights, activations in self.pairs if activations == activation_bits]
        return min(fitting, key=lambda weights: abs(math.log2(weights / wanted)))

    def mutated(self, policy: Policy, rng: np.random.Generator, changes: int = 2) -> Policy:
        """A policy that differs from ``policy`` in about ``changes`` decisions: levels move by one."""
        choices = self._choices(policy)
        movable = [decision for decision in self.decisions if len(decision.values) > 1]
        for _ in range(changes if movable else 0):
            decision = movable[rng.integers(len(movable))]
            here, last = decision.values.index(choices[decision.name]), len(decision.values) - 1
            if decision.scale == "ordered":
                there = min(last, max(0, here + int(rng.choice([-1, 1]))))
            else:
                there = last - here if decision.scale == "switch" else int(rng.integers(last + 1))
            choices[decision.name] = decision.values[there]
        return self.policy(choices)

    def uniform(
        self, sparsity: float, pair: Pair, left_out: Collection[Branch] = (), zeros: float = 0.0
    ) -> Policy:
        """Every group at its level nearest to ``sparsity``, every layer at ``pair``, those of weight bits
        alone at the nearest to its, some branches out; of every pattern the share nearest to ``zeros``."""
        choices: dict[str, Value] = {f"{BRANCH}/{branch.name}": True for branch in left_out}
        for decision in self.zeros:
            choices[decision.name] = min(decision.values, key=lambda share: abs(share - zeros))
        for decision in self._of(SPARSITY):
            choices[decision.name] = min(decision.values, key=lambda level: abs(level - sparsity))
        choices |= {decision.name: pair for decision in self._of(BITS)}
        for name, pairs in self.stored.items():
            choices[f"{BITS}/{name}"] = min(pairs, key=lambda own: abs(math.log2(own[0] / pair[0])))
        return self.policy(choices)

    def uniform_policies(self) -> list[Policy]:
        """Every pair of bits in all layers, with every level of sparsity in all groups; each policy once."""
        cuts = sorted({level for levels in self.levels.values() for level in levels} | {0.0})
        return list(dict.fromkeys(self.uniform(level, pair) for pair in self.pairs for level in cuts))

    def seeds(self) -> list[Policy]:
        """Policies that every study starts from, the most useful first, each once.

        The uncompressed network, then uniform policies at sparsities from 0 to about a half (beyond, uniform
        cuts lose too much to be near any front): 8-bit integers, lower weight bits, half precision, floats;
        of each only what the space contains. Last the first kind uncut with a branch left out, with a third
        of them, and with half and most of its weights 0.
        """
        cuts = sorted({level for levels in self.levels.values() for level in levels} - {0.0})
        moderate = [level for level in cuts if level <= _MOST_UNIFORM] or cuts[:1]
        levels = [0.0, *_spread(moderate, 3)]
        kinds = [
            [pair for pair in self.pairs if pair == (8, 8)],
            [pair for pair in self.pairs if pair[0] < 8 and pair[1] == 8],
            [pair for pair in self.pairs if pair == (16, 16)],
            [pair for pair in self.pairs if pair == (32, 32)],
            [pair for pair in self.pairs if pair[0] < 8 and pair[1] == 32],
        ]
        # of each kind one pair: 4 bits of weights before fewer or more
        pairs = [min(kind, key=lambda pair: abs(pair[0] - 4)) for kind in kinds if kind] or [max(self.pairs)]
        compressed = [pair for pair in pairs if pair[1] <= 8] or pairs
        wanted = [(0.0, max(self.pairs))]
        wanted += [(level, pair) for level in levels for pair in compressed]
        wanted += [(level, pair) for level in levels for pair in pairs if pair not in compressed]
        shallower = [self._shallower(1), self._shallower(-(-len(self.branches) // 3))]
        found = [self.uniform(level, pair) for level, pair in wanted]
        found += [self.uniform(0.0, compressed[0], left_out) for left_out in shallower if left_out]
        found += [self.uniform(0.0, compressed[0], zeros=share) for share in _ZEROS if self.zeros]
        return list(dict.fromkeys(found))

    def _shallower(self, count: int) -> list[Branch]:
        """So many branches, spread over the network."""
        every = len(self.branches) / max(count, 1)
        return [
            self.branches[int((number + 0.5) * every)] for number in range(min(count, len(self.branches)))
        ]


def _far(wanted: Pair, pair: Pair) -> tuple[int, bool, int]:
    """How far bits are from others: first by the tensor, then by whether weights are coarser, then by how
    much."""
    return abs(pair[1] - wanted[1]), pair[0] < wanted[0], abs(pair[0] - wanted[0])


def _apart(wanted: float, value: float) -> float:
    return abs(value - wanted)


def _spread(levels: Sequence[float], count: int) -> list[float]:
    """At most ``count`` of the levels, evenly spread, the outermost included."""
    if len(levels) <= count:
        return list(levels)
    picks = {round(i * (len(levels) - 1) / (count - 1)) for i in range(count)}
    return [levels[i] for i in sorted(picks)]
