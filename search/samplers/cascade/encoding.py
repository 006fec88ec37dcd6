"""Policies of a space as columns of integers, one row a decision."""

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.policy import Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.policy import kept_channels
from leanfront.compression.policy.space import Space

Codes = NDArray[np.int64]
"""(decisions, n): which of its values each decision has, in n policies."""


class Encoding:
    """The decisions of a space in order: sparsities of groups, then branches left out or not, then bits of
    layers. ``names`` and ``sizes``: the parameter of the study that each one is, and how many values it has.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self._branches = space.branches
        self.names = (
            *(f"sparsity/{group}" for group in space.levels),
            *(f"branch/{branch.name}" for branch in self._branches),
            *(f"bits/{layer.name}" for layer in space.network.layers),
        )
        self.sizes: NDArray[np.int64] = np.array(
            [len(levels) for levels in space.levels.values()]
            + [2] * len(self._branches)
            + [len(space.pairs)] * len(space.network.layers),
            dtype=np.int64,
        )
        self._groups, self._bits = len(space.levels), len(space.levels) + len(self._branches)

    @property
    def movable(self) -> NDArray[np.int64]:
        """Decisions that have a choice."""
        return np.flatnonzero(self.sizes > 1)

    @property
    def ordered(self) -> NDArray[np.bool_]:
        """(decisions,): whether neighbouring values are alike: sparsities are."""
        return np.arange(len(self.sizes)) < self._groups

    def keep_nothing_else(self, codes: Codes, other: Codes) -> NDArray[np.bool_]:
        """(n,): which columns of codes (decisions, n) keep only what the policy ``other`` (decisions,) keeps,
        of channels and of branches."""
        ours, theirs = self.batch(codes), self.batch(other[:, None])
        channels = (ours.channels <= theirs.channels) | ours.absent_groups
        branches = slice(self._groups, self._bits)
        return np.asarray(channels.all(axis=0) & (codes[branches] >= other[branches, None]).all(axis=0))

    def batch(self, codes: Codes) -> PolicyBatch:
        """The policies that columns of codes stand for."""
        return self.space.batch(codes[: self._groups], codes[self._bits :], codes[self._groups : self._bits])

    def canonical(self, codes: Codes) -> Codes:
        """The codes that each column's policy has when read back: equal policies have equal ones."""
        return self.of_batch(self.batch(codes))

    def of_batch(self, batch: PolicyBatch) -> Codes:
        """(decisions, n): the codes of policies of this space. What is left out has code 0, or float bits."""
        rows = []
        for counts, lookup in zip(batch.channels, self._level_of, strict=True):
            rows.append(lookup[counts])
        if self._branches:
            none = np.zeros((len(self._branches), batch.count))
            rows += list((none if batch.left_out is None else batch.left_out).astype(np.int64))
        rows += list(self._pair_of[batch.weight_bits, batch.activation_bits])
        return np.array(rows, dtype=np.int64).reshape(len(self.sizes), batch.count)

    def of(self, policy: Policy) -> Codes:
        """(decisions,): the codes of one policy of this space."""
        return self.of_batch(PolicyBatch.of(self.space.network, [policy], self.space.multiple))[:, 0]

    def params(self, codes: Codes) -> dict[str, Any]:
        """(decisions,) codes as the study's parameters; decisions without a choice are none."""
        values: dict[str, Any] = {}
        for index, (name, size, code) in enumerate(zip(self.names, self.sizes, codes, strict=True)):
            if size > 1:
                values[name] = self._texts[int(code)] if index >= self._bits else int(code)
        return values

    def uncompressed(self) -> Codes:
        """(decisions,): nothing cut, nothing left out, the widest bits."""
        codes = np.zeros(len(self.sizes), dtype=np.int64)
        codes[self._bits :] = self.space.pairs.index(max(self.space.pairs))
        return codes

    def random(self, count: int, rng: np.random.Generator) -> Codes:
        """(decisions, count): every decision drawn uniformly."""
        return rng.integers(self.sizes[:, None], size=(len(self.sizes), count))

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        return tuple(f"w{weights}a{activations}" for weights, activations in self.space.pairs)

    @cached_property
    def _level_of(self) -> list[NDArray[np.int64]]:
        """Per group: kept channels -> level; 0 channels, those of a branch that is left out, are level 0."""
        network, found = self.space.network, []
        for group, levels in self.space.levels.items():
            size = network.group_size(group)
            lookup = np.zeros(size + 1, dtype=np.int64)
            for index, level in enumerate(levels):
                lookup[kept_channels(size, level, self.space.multiple)] = index
            found.append(lookup)
        return found

    @cached_property
    def _pair_of(self) -> NDArray[np.int64]:
        """(weight bits, activation bits) -> pair; of a layer that is left out, the widest."""
        lookup = np.full((33, 33), self.space.pairs.index(max(self.space.pairs)), dtype=np.int64)
        for index, (weights, activations) in enumerate(self.space.pairs):
            lookup[weights, activations] = index
        return lookup


def keys(codes: Codes) -> list[bytes]:
    """Something hashable per column: equal for equal columns."""
    small = np.ascontiguousarray(codes.T.astype(np.uint16))
    return [row.tobytes() for row in small]


def fresh(codes: Codes, known: set[bytes]) -> Codes:
    """(decisions, n): the columns of ``codes`` whose keys are not yet among ``known``, to which they go."""
    places = []
    for place, key in enumerate(keys(codes)):
        if key not in known:
            known.add(key)
            places.append(place)
    return codes[:, places]
