"""Policies of a space as columns of integers, one row a decision."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.policy import Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.space import BITS, BRANCH, SPARSITY, Space

Codes = NDArray[np.int64]
"""(decisions, n): which of its values each decision has, in n policies."""


class Encoding:
    """The decisions of a space in order. ``names`` and ``sizes``: the parameter of the study that each one
    is, and how many values it has."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.names = tuple(decision.name for decision in space.decisions)
        self.sizes: NDArray[np.int64] = np.array([len(d.values) for d in space.decisions], dtype=np.int64)

    @cached_property
    def movable(self) -> NDArray[np.int64]:
        """Decisions that have a choice."""
        return np.flatnonzero(self.sizes > 1)

    @cached_property
    def ordered(self) -> NDArray[np.bool_]:
        """(decisions,): whether neighbouring values are alike: sparsities are."""
        return np.array([decision.scale == "ordered" for decision in self.space.decisions], dtype=np.bool_)

    def keep_nothing_else(self, codes: Codes, other: Codes) -> NDArray[np.bool_]:
        """(n,): which columns of codes (decisions, n) keep only what the policy ``other`` (decisions,) keeps,
        of channels, of branches and of weights that are not 0."""
        ours, theirs = self.batch(codes), self.batch(other[:, None])
        channels = (ours.channels <= theirs.channels) | ours.absent_groups
        branches = self.space.rows(BRANCH)
        fewer = np.hstack([branches, self._zeros])
        return np.asarray(channels.all(axis=0) & (codes[fewer] >= other[fewer, None]).all(axis=0))

    @cached_property
    def _zeros(self) -> NDArray[np.int64]:
        """Decisions on shares of zeros, which ascend."""
        places = [self.space.decisions.index(decision) for decision in self.space.zeros]
        return np.array(places, dtype=np.int64)

    def batch(self, codes: Codes) -> PolicyBatch:
        """The policies that columns of codes stand for."""
        return self.space.batch(codes)

    def canonical(self, codes: Codes) -> Codes:
        """The codes that each column's policy has when read back: equal policies have equal ones."""
        return self.of_batch(self.batch(codes))

    def of_batch(self, batch: PolicyBatch) -> Codes:
        """(decisions, n): the codes of policies of this space. What is left out has code 0, or the widest
        bits; but where it is the first that reads a tensor, those of a layer that is there."""
        space = self.space
        codes = np.zeros((len(self.sizes), batch.count), dtype=np.int64)
        for row, counts, lookup in zip(space.rows(SPARSITY), batch.channels, self._level_of, strict=True):
            codes[row] = lookup[counts]
        if batch.left_out is not None and space.branches:
            codes[space.rows(BRANCH)] = batch.left_out
        pairs = self._pair_of[batch.weight_bits, batch.activation_bits]
        for name, stored in space.stored.items():
            row = batch.layer_index[name]
            pairs[row] = _places(stored)[batch.weight_bits[row], batch.activation_bits[row]]
        row_of, absent = batch.layer_index, batch.absent_layers
        for name, first in reversed(list(space.first_readers.items())):
            row, at = row_of[name], row_of[first]
            if at in absent and row != at:
                there = absent[at] & ~absent.get(row, np.zeros(batch.count, dtype=np.bool_))
                pairs[at] = np.where(there, pairs[row], pairs[at])
        codes[space.rows(BITS)] = pairs
        for decision in space.others:
            if decision.kind in batch.more:  # 0 where a layer is left out
                table = batch.more[decision.kind][[batch.layer_index[name] for name in decision.layers]]
                chosen = np.take_along_axis(table, np.abs(table).argmax(axis=0)[None], axis=0)
                values = np.array(decision.values)[:, None]
                codes[space.decisions.index(decision)] = np.abs(values - chosen).argmin(axis=0)
            else:
                codes[space.decisions.index(decision)] = decision.plain_code
        return codes

    def of(self, policy: Policy) -> Codes:
        """(decisions,): the codes of one policy of this space."""
        return self.of_batch(PolicyBatch.of(self.space.network, [policy], self.space.multiple))[:, 0]

    def params(self, codes: Codes) -> dict[str, Any]:
        """(decisions,) codes as the study's parameters; decisions without a choice are none."""
        return {
            decision.name: decision.param(int(code))
            for decision, code in zip(self.space.decisions, codes, strict=True)
            if len(decision.values) > 1
        }

    def uncompressed(self) -> Codes:
        """(decisions,): nothing cut, nothing left out, the widest bits."""
        return np.array([decision.plain_code for decision in self.space.decisions], dtype=np.int64)

    @cached_property
    def uniform(self) -> Codes:
        """(decisions, n): the uniform policies of the space."""
        return np.stack([self.of(policy) for policy in self.space.uniform_policies()], axis=1)

    def random(self, count: int, rng: np.random.Generator) -> Codes:
        """(decisions, count): every decision drawn uniformly."""
        return rng.integers(self.sizes[:, None], size=(len(self.sizes), count))

    @cached_property
    def _level_of(self) -> list[NDArray[np.int64]]:
        """Per group: kept channels -> level; 0 channels, those of a branch that is left out, are level 0."""
        found = []
        for group, counts in self.space.kept_at.items():
            lookup = np.zeros(self.space.network.group_size(group) + 1, dtype=np.int64)
            lookup[list(counts)] = np.arange(len(counts))
            found.append(lookup)
        return found

    @cached_property
    def _pair_of(self) -> NDArray[np.int64]:
        return _places(self.space.pairs)


def _places(pairs: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """(weight bits, activation bits) -> its place; of a layer that is left out, that of the widest."""
    lookup = np.full((33, 33), pairs.index(max(pairs)), dtype=np.int64)
    for index, (weights, activations) in enumerate(pairs):
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
