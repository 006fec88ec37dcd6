"""The space of policies: sparsities of channel groups, branches that are left out, bit widths of layers."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from leanfront.compression.graph import Branch, Network
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.policy import kept_channels
from leanfront.compression.policy.space_size import number_of_policies
from leanfront.hw_profiles import HardwareProfile
from leanfront.search.config import ConfigError

if TYPE_CHECKING:
    import optuna
    from numpy.typing import NDArray

    from leanfront.compression.policy.batch import PolicyBatch

_MOST_UNIFORM = 0.51
"""The most that a seed cuts from every group alike."""

Pair = tuple[int, int]
"""(weight_bits, activation_bits)"""


class Space:
    """Every policy that a search may propose for one network on one profile.

    Decisions: ``levels[group]`` are the sparsities of a group of channels that are cut together, snapped to
    the profile's channel multiple (levels that keep the same number of channels are one), ascending;
    ``branches`` are the residual branches that may be left out whole; ``pairs`` are the bit widths that a
    layer may have. Layers that read the same tensor share its activation bits. ``left_out`` says which of the
    wanted bits the part has no units for; "" if none.

    As parameters of a study: "sparsity/<group>" is an index into ``levels[group]`` (an integer, so that
    samplers know that levels are ordered), "branch/<name>" is 1 where the branch is left out, and
    "bits/<layer>" a category such as "w4a8".
    """

    def __init__(
        self,
        network: Network,
        profile: HardwareProfile,
        sparsity: Iterable[float],
        weight_bits: Iterable[int],
        activation_bits: Iterable[int],
        depth: bool = True,
    ) -> None:
        """``depth``: branches may be left out.

        Raises ConfigError when the profile can run none of the bit widths, or one of them with nothing.
        """
        self.network = network
        self.branches: tuple[Branch, ...] = network.branches if depth else ()
        self.multiple = profile.channel_multiple
        weight_bits, activation_bits, self.left_out = _run_by(profile, weight_bits, activation_bits)
        self.pairs = _pairs(profile, weight_bits, activation_bits)
        self.levels: Mapping[str, tuple[float, ...]] = {
            group: _levels(network.group_size(group), self.multiple, sparsity) for group in network.groups
        }
        self._text = {
            f"w{weights}a{activations}": (weights, activations) for weights, activations in self.pairs
        }

    @cached_property
    def first_readers(self) -> Mapping[str, str]:
        """Layer -> the first layer that reads the same tensor, which sets the activation bits of both."""
        first: dict[str, str] = {}
        readers: dict[str, str] = {}
        for node in self.network.nodes:
            if node.layer is not None:
                first[node.layer] = readers.setdefault(node.inputs[0], node.layer)
        return first

    @cached_property
    def size(self) -> int:
        """Number of policies."""
        return number_of_policies(self.network, self.branches, self.levels, self.pairs, self.first_readers)

    def channels(self, policy: Policy) -> dict[str, int]:
        """Group -> channels that a policy keeps, of the groups that are there."""
        return policy.channels(self.network, self.multiple)

    def resized(self, policy: Policy) -> Network:
        """The network as a policy cuts it: what a cost model wants beside the policy.

        Raises:
            PolicyError: the policy does not fit the network.
        """
        return policy.cut(self.network, self.multiple)

    def policy(
        self,
        sparsity: Mapping[str, float],
        bits: Mapping[str, Pair],
        left_out: Collection[Branch] = (),
    ) -> Policy:
        """Group -> sparsity, layer -> pair, and the branches that are left out, as a policy of this space.

        A layer that reads a tensor together with an earlier one takes that one's activation bits (also where
        that one is left out), and of the weight bits that go with them the nearest to its own.
        """
        gone = {name for branch in left_out for name in branch.layers}
        layers = {}
        for layer in self.network.layers:
            weights, _ = bits[layer.name]
            activations = bits[self.first_readers.get(layer.name, layer.name)][1]
            layers[layer.name] = LayerPolicy(
                sparsity=1.0 if layer.name in gone else sparsity[layer.group] if layer.group else 0.0,
                weight_bits=self._weight_bits(weights, activations),
                activation_bits=activations,
            )
        return Policy.of(layers)

    def suggest(self, trial: "optuna.trial.BaseTrial") -> Policy:
        """Ask a study's sampler for a policy."""
        sparsity = {
            group: levels[trial.suggest_int(f"sparsity/{group}", 0, len(levels) - 1)]
            if len(levels) > 1
            else levels[0]
            for group, levels in self.levels.items()
        }
        left_out = [b for b in self.branches if trial.suggest_int(f"branch/{b.name}", 0, 1)]
        texts = list(self._text)
        bits = {
            layer.name: self._text[trial.suggest_categorical(f"bits/{layer.name}", texts)]
            if len(texts) > 1
            else self.pairs[0]
            for layer in self.network.layers
        }
        return self.policy(sparsity, bits, left_out)

    def params_of(self, policy: Policy) -> dict[str, Any]:
        """The parameters that make ``suggest`` return this policy, for ``study.enqueue_trial``.

        Raises:
            ValueError: the policy is not in this space.
        """
        kept = self.channels(policy)
        params: dict[str, Any] = {}
        for group, levels in self.levels.items():
            counts = [kept_channels(self.network.group_size(group), level, self.multiple) for level in levels]
            here = kept.get(group, counts[0])
            if here not in counts:
                raise ValueError(f"group {group!r} cannot keep {here} channels here, but {counts}")
            if len(levels) > 1:
                params[f"sparsity/{group}"] = counts.index(here)
        left_out = policy.left_out(self.network)
        if left_out and not self.branches:
            raise ValueError(f"branch {left_out[0].name!r} cannot be left out here")
        params |= {f"branch/{branch.name}": int(branch in left_out) for branch in self.branches}
        for name, pair in self._bits(policy).items():
            if pair not in self.pairs:
                raise ValueError(f"layer {name!r} cannot have bits {pair} here, but {list(self.pairs)}")
            if len(self.pairs) > 1:
                params[f"bits/{name}"] = f"w{pair[0]}a{pair[1]}"
        return params

    def _bits(self, policy: Policy) -> dict[str, Pair]:
        """The decision on the bits of each layer. One that is left out has those of a layer that reads the
        same tensor and follows it, or the most frequent."""
        found = {name: (p.weight_bits, p.activation_bits) for name, p in policy.items() if not p.left_out}
        usual = Counter(found.values()).most_common(1)[0][0] if found else self.pairs[0]
        followed = {first: found[name] for name, first in self.first_readers.items() if name in found}
        return {
            layer.name: found.get(layer.name) or followed.get(layer.name, usual)
            for layer in self.network.layers
        }

    def random(self, rng: np.random.Generator, depth: bool = True) -> Policy:
        """A policy, each decision drawn uniformly; without ``depth`` no branch is left out."""
        sparsity = {group: levels[rng.integers(len(levels))] for group, levels in self.levels.items()}
        bits = {layer.name: self.pairs[rng.integers(len(self.pairs))] for layer in self.network.layers}
        left_out = [branch for branch in self.branches if depth and rng.integers(2)]
        return self.policy(sparsity, bits, left_out)

    def batch(
        self,
        levels: "NDArray[np.int64]",
        pairs: "NDArray[np.int64]",
        left_out: "NDArray[np.integer[Any] | np.bool_] | None" = None,
    ) -> "PolicyBatch":
        """Many policies at once: what ``policy`` makes of each column.

        Args:
            levels: (groups, n) indices into ``self.levels`` of each group, in order.
            pairs: (layers, n) indices into ``self.pairs``.
            left_out: (branches, n) which of ``self.branches`` are left out; None: none.
        """
        from leanfront.compression.policy.batch import PolicyBatch

        network = self.network
        kept = [
            np.array([kept_channels(network.group_size(group), level, self.multiple) for level in offered])[
                row
            ]
            for (group, offered), row in zip(self.levels.items(), levels, strict=True)
        ]
        row_of = {layer.name: row for row, layer in enumerate(network.layers)}
        first = [row_of[self.first_readers.get(layer.name, layer.name)] for layer in network.layers]
        activations = np.array([activations for _, activations in self.pairs])[pairs[first]]
        nearest = np.zeros((len(self.pairs), 33), dtype=np.int64)  # own pair, activation bits -> weight bits
        for row, (weights, _) in enumerate(self.pairs):
            for bits in {activations for _, activations in self.pairs}:
                nearest[row, bits] = self._weight_bits(weights, bits)
        channels = np.array(kept, dtype=np.int64).reshape(len(kept), pairs.shape[1])
        found = PolicyBatch(network, channels, nearest[pairs, activations], activations)
        if left_out is None or not self.branches:
            return found
        return found.leaving_out(left_out.astype(np.bool_))

    def random_batch(self, count: int, rng: np.random.Generator) -> "PolicyBatch":
        """Policies as ``random`` draws them, many at once."""
        levels = [rng.integers(len(offered), size=count) for offered in self.levels.values()]
        pairs = rng.integers(len(self.pairs), size=(len(self.network.layers), count))
        left_out = rng.integers(2, size=(len(self.branches), count))
        return self.batch(np.array(levels, dtype=np.int64).reshape(len(levels), count), pairs, left_out)

    def _weight_bits(self, wanted: int, activation_bits: int) -> int:
        """Of the weight bits that go with these activation bits the nearest."""
        fitting = [weights for weights, activations in self.pairs if activations == activation_bits]
        return min(fitting, key=lambda weights: abs(math.log2(weights / wanted)))

    def mutated(self, policy: Policy, rng: np.random.Generator, changes: int = 2) -> Policy:
        """A policy that differs from ``policy`` in about ``changes`` decisions: levels move by one."""
        left_out = set(policy.left_out(self.network)).intersection(self.branches)
        sparsity = {group: levels[0] for group, levels in self.levels.items()}
        for layer in self.network.layers:
            if layer.group is not None and not policy[layer.name].left_out:
                sparsity[layer.group] = policy[layer.name].sparsity
        bits = self._bits(policy)
        movable = [group for group, levels in self.levels.items() if len(levels) > 1]
        layers = list(bits) if len(self.pairs) > 1 else []
        for _ in range(changes):
            choice = int(rng.integers(max(1, len(movable) + len(self.branches) + len(layers))))
            if choice < len(movable):
                group = movable[choice]
                levels = self.levels[group]
                here = int(np.argmin([abs(level - sparsity[group]) for level in levels]))
                there = min(len(levels) - 1, max(0, here + int(rng.choice([-1, 1]))))
                sparsity[group] = levels[there]
            elif choice < len(movable) + len(self.branches):
                left_out ^= {self.branches[choice - len(movable)]}
            elif layers:
                name = layers[choice - len(movable) - len(self.branches)]
                bits[name] = self.pairs[rng.integers(len(self.pairs))]
        return self.policy(sparsity, bits, left_out)

    def uniform(self, sparsity: float, pair: Pair, left_out: Collection[Branch] = ()) -> Policy:
        """Every group at its level nearest to ``sparsity``, every layer at ``pair``, some branches out."""
        nearest = {
            group: min(levels, key=lambda level: abs(level - sparsity))
            for group, levels in self.levels.items()
        }
        return self.policy(nearest, {layer.name: pair for layer in self.network.layers}, left_out)

    def uniform_policies(self) -> list[Policy]:
        """Every pair of bits in all layers, with every level of sparsity in all groups; each policy once."""
        cuts = sorted({level for levels in self.levels.values() for level in levels} | {0.0})
        return list(dict.fromkeys(self.uniform(level, pair) for pair in self.pairs for level in cuts))

    def seeds(self) -> list[Policy]:
        """Policies that every study starts from, the most useful first, each once.

        The uncompressed network, then uniform policies at sparsities from 0 to about a half (beyond, uniform
        cuts lose too much to be near any front): 8-bit integers, lower weight bits, floats; of each only what
        the space contains. Last the first kind uncut with a branch left out, and with a third of them.
        """
        cuts = sorted({level for levels in self.levels.values() for level in levels} - {0.0})
        moderate = [level for level in cuts if level <= _MOST_UNIFORM] or cuts[:1]
        levels = [0.0, *_spread(moderate, 3)]
        kinds = [
            [pair for pair in self.pairs if pair == (8, 8)],
            [pair for pair in self.pairs if pair[0] < 8 and pair[1] == 8],
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
        return list(dict.fromkeys(found))

    def _shallower(self, count: int) -> list[Branch]:
        """So many branches, spread over the network."""
        every = len(self.branches) / max(count, 1)
        return [
            self.branches[int((number + 0.5) * every)] for number in range(min(count, len(self.branches)))
        ]


def _run_by(
    profile: HardwareProfile, weight_bits: Iterable[int], activation_bits: Iterable[int]
) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    """The weight and activation bits that the part has units for, and a word on those it has none for."""
    units = [{pair[place] for pair in profile.supported} for place in (0, 1)]
    wanted = [tuple(weight_bits), tuple(activation_bits)]
    able = [tuple(b for b in bits if b in there) for bits, there in zip(wanted, units, strict=True)]
    names = ("weights", "activations")
    dropped = [
        f"{name} of {', '.join(map(str, out))} bits"
        for name, bits, there in zip(names, wanted, units, strict=True)
        if (out := [b for b in bits if b not in there])
    ]
    for name, found in zip(("weight_bits", "activation_bits"), able, strict=True):
        if not found:
            raise ConfigError(
                f"space.{name} has nothing that profile {profile.name!r} can run;"
                f" it can run {profile.supported_sentence}"
            )
    note = f"{profile.name} cannot run {' and '.join(dropped)}: left out of the space" if dropped else ""
    return able[0], able[1], note


def _pairs(
    profile: HardwareProfile, weight_bits: Sequence[int], activation_bits: Sequence[int]
) -> tuple[Pair, ...]:
    pairs = tuple(
        (weights, activations)
        for weights in weight_bits
        for activations in activation_bits
        if profile.supports(weights, activations)
    )
    for name, wanted, able in (
        ("weight_bits", weight_bits, {weights for weights, _ in pairs}),
        ("activation_bits", activation_bits, {activations for _, activations in pairs}),
    ):
        if refused := [bits for bits in wanted if bits not in able]:
            raise ConfigError(
                f"space.{name} has {refused[0]}, which profile {profile.name!r} cannot run with anything else"
                f" that the space allows; it can run {profile.supported_sentence}"
            )
    return pairs


def _levels(size: int, multiple: int, sparsity: Iterable[float]) -> tuple[float, ...]:
    """The share that is really cut at each level, ascending, each number of kept channels once."""
    counts = {kept_channels(size, level, multiple) for level in sparsity}
    return tuple(round(1.0 - count / size, 6) for count in sorted(counts, reverse=True))


def _spread(levels: Sequence[float], count: int) -> list[float]:
    """At most ``count`` of the levels, evenly spread, the outermost included."""
    if len(levels) <= count:
        return list(levels)
    picks = {round(i * (len(levels) - 1) / (count - 1)) for i in range(count)}
    return [levels[i] for i in sorted(picks)]
