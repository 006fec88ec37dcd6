"""What a search proposes: for each layer how sparse, and with how many bits."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import InitVar, asdict, dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from leanfront.compression.graph.branches import Branch
from leanfront.compression.graph.network import Network
from leanfront.compression.graph.nodes import Layer
from leanfront.compression.policy.zeros import PATTERNS

CHANNEL = "channel"
"""What ``pattern`` says where channels are cut."""
WEIGHT_BITS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)
ACTIVATION_BITS = (2, 3, 4, 5, 6, 7, 8, 16, 32)


class PolicyError(ValueError):
    """A policy that contradicts itself, or that does not fit the network."""


def unregistered(name: str, known: Iterable[str]) -> PolicyError:
    """What to raise for numbers of a technique that is not among those which are ``known``."""
    return PolicyError(
        f"a policy has numbers of the technique {name!r}, which is not registered here: call"
        f" register(...) in the file of the task; there are {', '.join(known)}"
    )


@dataclass(frozen=True)
class LayerPolicy:
    """How one layer is compressed.

    sparsity: share of the output channels that are cut, 0 .. below 1.
    weight_bits: 32 is float32, 16 float16, 8 and below integers (symmetric, one scale per output channel; 2:
        -1, 0 and 1, 1: -1 and 1).
    activation_bits: the same for the tensor that the layer reads; 32 where it has weight bits alone.
    more: name of another technique -> its number for this layer, as pairs or a mapping; 0, which leaves the
        layer as it is, is not kept. Of a pattern of zeros (``zeros.PATTERNS``) the share of weights that are
        0.
    pattern: is read alone, as policies used to say a pattern of zeros: with its name here, ``sparsity`` is
        its share, which becomes ``more``, and the channels stay.
    """

    sparsity: float = 0.0
    weight_bits: int = 32
    activation_bits: int = 32
    pattern: InitVar[str] = CHANNEL
    more: tuple[tuple[str, float], ...] = ()

    def __post_init__(self, pattern: str) -> None:
        if not 0.0 <= self.sparsity <= 1.0:
            raise PolicyError(f"sparsity must lie in 0..1, not {self.sparsity}")
        if pattern != CHANNEL:
            self._read(pattern)
        if self.weight_bits not in WEIGHT_BITS:
            raise PolicyError(f"weight_bits must be one of {WEIGHT_BITS}, not {self.weight_bits}")
        if self.activation_bits not in ACTIVATION_BITS:
            raise PolicyError(f"activation_bits must be one of {ACTIVATION_BITS}, not {self.activation_bits}")
        if self.sparsity == 1.0:
            raise PolicyError(
                "sparsity must be below 1 of a layer that stays; Policy.absent says which do not"
            )
        # a file may say 0 or 8.0: equal policies are written, and so hashed, alike
        object.__setattr__(self, "sparsity", float(self.sparsity) + 0.0)
        object.__setattr__(self, "weight_bits", int(self.weight_bits))
        object.__setattr__(self, "activation_bits", int(self.activation_bits))
        if self.more:
            more = sorted((str(name), float(value)) for name, value in dict(self.more).items())
            if not all(math.isfinite(value) for _, value in more):
                raise PolicyError(f"more must hold finite numbers, not {dict(more)}")
            object.__setattr__(self, "more", tuple((name, value) for name, value in more if value))
            for name, value in self.more:
                _check_share(name, value)
        else:
            object.__setattr__(self, "more", ())

    def _read(self, pattern: str) -> None:
        """Say in ``more`` what ``sparsity`` and ``pattern`` say of zeros."""
        if pattern not in PATTERNS:
            names = ", ".join((CHANNEL, *PATTERNS))
            raise PolicyError(f"pattern must be one of {names}, not {pattern!r}")
        more = dict(self.more)
        if pattern in more:
            raise PolicyError(
                f"zeros of pattern {pattern!r} are said twice; leave one of pattern and more out"
            )
        object.__setattr__(self, "more", tuple((more | {pattern: self.sparsity}).items()))
        object.__setattr__(self, "sparsity", 0.0)

    def value(self, technique: str) -> float:
        """The number of a technique in ``more``."""
        return dict(self.more).get(technique, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        fields = asdict(self)
        more = dict(fields.pop("more"))
        return fields | {"pattern": CHANNEL} | ({"more": more} if more else {})

    @property
    def integer(self) -> bool:
        """Whether the layer computes in integers: weights and activations both at 8 bits or fewer."""
        return self.weight_bits <= 8 and self.activation_bits <= 8


def _check_share(name: str, value: float) -> None:
    """Raise PolicyError for the number of a pattern of zeros that it cannot have."""
    if name not in PATTERNS:
        return
    wanted = PATTERNS[name].share
    if not 0.0 <= value <= 1.0:
        raise PolicyError(f"the share of zeros of pattern {name!r} must lie in 0..1, not {value}")
    if wanted is not None and value not in (0.0, wanted):
        raise PolicyError(f"of pattern {name!r} the share of zeros (sparsity) is {wanted:g}, not {value:g}")


@dataclass(frozen=True)
class Policy(Mapping[str, LayerPolicy]):
    """Layer name -> LayerPolicy, frozen. Equal policies have equal hashes: they are one trial.

    absent: the layers that are left out, with all of their residual branches. What else is said of them means
    nothing, and is as of an untouched layer.
    """

    items_: tuple[tuple[str, LayerPolicy], ...]
    absent: frozenset[str] = frozenset()

    @staticmethod
    def of(layers: Mapping[str, LayerPolicy], absent: Iterable[str] = ()) -> "Policy":
        """A policy from a mapping, and the names of the layers that are left out."""
        gone = frozenset(absent)
        plain = LayerPolicy()
        return Policy(tuple((name, plain if name in gone else p) for name, p in layers.items()), gone)

    @staticmethod
    def uniform(network: Network, layer_policy: LayerPolicy) -> "Policy":
        """The same for every layer, as far as each can; see ``fitted``."""
        return Policy.of({layer.name: fitted(layer, layer_policy) for layer in network.layers})

    @staticmethod
    def from_json(text: str) -> "Policy":
        """Read what ``to_json`` wrote.

        Raises:
            PolicyError: not JSON, not an object of objects, an unknown field, or a value out of range.
        """
        try:
            raw = json.loads(text)
        except json.JSONDecodeError as error:
            raise PolicyError(f"a policy is JSON, but line {error.lineno} is not: {error.msg}") from error
        except (ValueError, RecursionError) as error:  # too many digits or brackets
            raise PolicyError(f"a policy is JSON of two levels, but: {error}") from error
        return Policy.from_dict(raw)

    @staticmethod
    def from_dict(raw: Any) -> "Policy":
        """Read what ``to_dict`` gave; raises PolicyError as ``from_json`` does."""
        if not isinstance(raw, dict) or not all(isinstance(value, dict) for value in raw.values()):
            raise PolicyError('a policy is an object {"layer": {"sparsity": .., "weight_bits": ..}, ..}')
        known = set(LayerPolicy.__dataclass_fields__)
        for name, fields in raw.items():
            if unknown := set(fields) - known:
                raise PolicyError(
                    f"layer {name!r} of the policy has an unknown field {sorted(unknown)[0]!r};"
                    f" there are {', '.join(sorted(known))}"
                )
        absent = {name for name, fields in raw.items() if is_left_out(fields)}
        try:
            return Policy.of(
                {
                    name: LayerPolicy(**(fields | {"sparsity": 0.0} if name in absent else fields))
                    for name, fields in raw.items()
                },
                absent,
            )
        except (TypeError, ValueError) as error:
            if isinstance(error, PolicyError):
                raise
            raise PolicyError(f"a field of the policy has the wrong type: {error}") from error

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain dictionaries, for JSON, in which a layer that is left out has sparsity 1.0."""
        return {
            name: layer_policy.to_dict() | ({"sparsity": 1.0} if name in self.absent else {})
            for name, layer_policy in self.items_
        }

    def to_json(self) -> str:
        """Readable JSON that ``from_json`` reads back."""
        return json.dumps(self.to_dict(), indent=1)

    @cached_property
    def digest(self) -> str:
        """Canonical hash: does not depend on the order of the layers."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @cached_property
    def _by_name(self) -> dict[str, LayerPolicy]:
        return dict(self.items_)

    def __getitem__(self, name: str) -> LayerPolicy:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self.items_)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self.digest == other.digest

    def channels(self, network: Network, multiple: int = 1) -> dict[str, int]:
        """Group name -> channels that stay, snapped to the nearest ``multiple`` (at least one of them), of
        groups of which a layer is there.

        Raises:
            PolicyError: a layer is missing or unknown, a layer is cut that cannot be, the layers of one group
                disagree, or a layer is left out without its residual branch.
        """
        sizes = network.group_sizes
        return {
            group: kept_channels(sizes[group], share, multiple)
            for group, share in self._shares(network).items()
        }

    def cut(self, network: Network, multiple: int = 1) -> Network:
        """The network as this policy leaves it: residual branches left out, channels cut to ``multiple``.

        Raises:
            PolicyError: as ``channels``.
        """
        return network.resized(self.channels(network, multiple), self.left_out(network))

    def completed(self, network: Network) -> "Policy":
        """The same for a network with layers of weight bits alone that it does not name, as policies from
        before these had any: they keep their bits, and as many channels as their groups."""
        own = self._by_name
        if not (missing := [name for name in network.weight_only if name not in own]):
            return self
        cut = {layer.group: own[layer.name].sparsity for layer in network.layers if layer.name in own}
        more = {name: LayerPolicy(cut.get(network.layer[name].group, 0.0)) for name in missing}
        named = {name: own.get(name) or more.get(name) for name in (*network.layer, *own)}
        return Policy.of({name: layer for name, layer in named.items() if layer is not None}, self.absent)

    def left_out(self, network: Network) -> tuple[Branch, ...]:
        """The residual branches of a network of which every layer is left out."""
        gone = self.absent
        return (
            tuple([branch for branch in network.branches if gone.issuperset(branch.layers)]) if gone else ()
        )

    def there(self) -> dict[str, LayerPolicy]:
        """What is said of the layers that are not left out."""
        return {name: layer for name, layer in self.items_ if name not in self.absent}

    def check(self, network: Network) -> None:
        """Raise PolicyError unless this policy fits the network (see ``channels``), and layers that read
        the same tensor agree on its bits."""
        self._shares(network)

    def _shares(self, network: Network) -> dict[str, float]:
        """Group name -> share of its channels that go, of groups of which a layer is there; raises
        PolicyError as ``check`` does."""
        own, gone = self._by_name, self.absent
        if tuple(own) != network.layer_names:
            if (completed := self.completed(network)) is not self:
                return completed._shares(network)
            if missing := network.layer.keys() - own.keys():
                raise PolicyError(f"the policy says nothing about layer {sorted(missing)[0]!r}")
            if unknown := own.keys() - network.layer.keys():
                raise PolicyError(f"the policy names a layer {sorted(unknown)[0]!r} that the network has not")
        if gone:
            self._check_left_out(network)
        cuts = {name: layer.sparsity for name, layer in self.items_}
        for name in network.uncut:
            if cuts[name] > 0:
                raise PolicyError(
                    f"layer {name!r} cannot be cut (its channels are fixed by what reads them),"
                    f" but the policy gives it sparsity {own[name].sparsity}"
                )
        for name in network.weight_only:
            if own[name].activation_bits != 32:
                raise PolicyError(
                    f"layer {name!r} has weight bits alone: its activation_bits must be 32, not"
                    f" {own[name].activation_bits}"
                )
        for name, layer in self.items_:
            for other, _ in layer.more:
                if other in PATTERNS and not PATTERNS[other].fits(network.layer[name]):
                    raise PolicyError(
                        f"zeros of pattern {other!r} ({PATTERNS[other].said}) do not fit layer {name!r}"
                        f" ({network.layer[name].shape}), but the policy wants them there; leave them out"
                    )
        found = {}
        for group, names in network.group_layers.items():
            shares = {cuts[name] for name in names if name not in gone}
            if len(shares) > 1:
                raise PolicyError(
                    f"the layers of group {group!r} are cut together, but the policy gives them"
                    f" sparsities {sorted(shares)}"
                )
            if shares:  # else all are left out
                found[group] = shares.pop()
        for names in network.reading_together:
            first, *others = [name for name in names if name not in gone] or names
            for other in others:
                if own[first].activation_bits != own[other].activation_bits:
                    raise PolicyError(
                        f"layers {first!r} and {other!r} read the same tensor, but the policy gives it"
                        f" {own[first].activation_bits} and {own[other].activation_bits} bits"
                    )
        return found

    def _check_left_out(self, network: Network) -> None:
        """Raise PolicyError for a layer that is left out while its branch stays, or that is in none."""
        whole = {name for branch in self.left_out(network) for name in branch.layers}
        for name in sorted(self.absent - whole):
            around = next((branch for branch in network.branches if name in branch.layers), None)
            if around is None:
                starts = ", ".join(branch.name for branch in network.branches) or "none"
                raise PolicyError(
                    f"layer {name!r} has sparsity 1.0 but cannot be left out: it is in no residual branch"
                    f" that can be; those start with {starts}"
                )
            raise PolicyError(
                f"layer {name!r} has sparsity 1.0, but a residual branch is left out whole or not at all:"
                f" give 1.0 to all of {', '.join(around.layers)}"
            )


def fitted(layer: Layer, wanted: LayerPolicy) -> LayerPolicy:
    """What is wanted of a layer as far as it can: one whose channels cannot be cut keeps them all, one in
    which zeros cannot lie as is wanted has none, one of weight bits alone puts out floats."""
    cut = 0.0 if layer.group is None else wanted.sparsity
    more = wanted.more
    if more:
        more = tuple((n, v) for n, v in more if n not in PATTERNS or PATTERNS[n].fits(layer))
    if not layer.weight_only:
        return replace(wanted, sparsity=cut, more=more)
    return replace(wanted, sparsity=cut, activation_bits=32, more=more)


def is_left_out(fields: Mapping[str, Any]) -> bool:
    """Whether the entry of a layer in a policy's JSON says that the layer is left out whole."""
    return fields.get("sparsity") == 1.0 and fields.get("pattern", CHANNEL) == CHANNEL


@lru_cache(maxsize=1 << 16)
def kept_channels(size: int, sparsity: float, multiple: int) -> int:
    """Channels that stay of ``size``: the nearest ``multiple``, at least one; all where none is cut."""
    if sparsity == 0.0:
        return size
    snapped = int(size * (1.0 - sparsity) / multiple + 0.5) * multiple
    return min(size, max(snapped, min(multiple, size)))
