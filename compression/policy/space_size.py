"""How many policies a space has."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from leanfront.compression.graph import Branch, Network
from leanfront.compression.policy.technique import Decision

_MOST_TOGETHER = 16
"""So many branches that share decisions are counted set by set; of more, as if each policy were its own."""


def number_of_policies(
    network: Network,
    branches: Sequence[Branch],
    offered: Sequence[Decision],
    first_readers: Mapping[str, str],
) -> int:
    """Policies that differ: decisions on layers that are left out make no others; see ``Space``."""
    tables = set(network.weight_only)
    computing = [d for d in offered if d.kind == "bits" and d.about not in tables]
    weights_at = Counter(activations for _, activations in computing[0].values) if computing else Counter()
    alone_decided = [d for d in offered if d.kind != "branch" and d not in computing]
    decisions = [(len(d.values), set(d.layers)) for d in alone_decided]
    reading: dict[str, set[str]] = {}
    for name, first in first_readers.items():
        if name not in tables:
            reading.setdefault(first, set()).add(name)

    def choices(gone: set[str], about: set[str]) -> int:
        """Of the decisions about some layers, with some layers left out."""
        found = 1
        for count, layers in decisions:
            if layers & about and layers - gone:
                found *= count
        for layers in reading.values():
            if layers & about and layers - gone:
                found *= sum(n ** len(layers - gone) for n in weights_at.values())
        return found

    total, alone = 1, {layer.name for layer in network.layers}
    together = [layers for _, layers in decisions] + list(reading.values())
    for some in _sharing(branches, together):
        about = {name for branch in some for name in branch.layers}
        about |= {name for layers in together if layers & about for name in layers}
        alone -= about
        if len(some) > _MOST_TOGETHER:
            total *= choices(set(), about) * 2 ** len(some)
            continue
        sets = {frozenset(gone) for gone in _unions(some)}
        total *= sum(choices(set(gone), about) for gone in sets)
    return total * choices(set(), alone)


def _sharing(branches: Sequence[Branch], together: Sequence[set[str]]) -> list[list[Branch]]:
    """The branches, those together that have layers or decisions in common."""
    found: list[tuple[list[Branch], set[str]]] = []
    for branch in branches:
        touched = set(branch.layers)
        touched |= {name for layers in together if layers & touched for name in layers}
        own, rest = [branch], []
        for some, names in found:
            if names & touched:
                own, touched = some + own, touched | names
            else:
                rest.append((some, names))
        found = [*rest, (own, touched)]
    return [some for some, _ in found]


def _unions(branches: Sequence[Branch]) -> Iterator[set[str]]:
    """The layers of each subset."""
    for number in range(2 ** len(branches)):
        chosen = [branch for place, branch in enumerate(branches) if number >> place & 1]
        yield {name for branch in chosen for name in branch.layers}
