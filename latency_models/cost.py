"""What a network costs on a part, and what can say so."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leanfront.compression.graph import Kernel, Network, kernels, operation
from leanfront.compression.policy import Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.dynamic import DYNAMIC
from leanfront.hw_profiles import HardwareProfile
from leanfront.latency_models.errors import TableError as TableError

Build = Callable[[Network, Policy], bytes]
"""(network already resized, policy) -> the serialized ONNX model that an export of them has, to be timed."""

Kind = Literal["measured", "calibrated", "modelled"]
"""Where a cost is from, the surest first."""

_NONE = np.zeros(0)
_SUREST_FIRST: tuple[Kind, ...] = ("measured", "calibrated", "modelled")


@dataclass(frozen=True)
class Cost:
    """Cost of one inference (batch 1). ``estimated``: it rests on a number that somebody assumed.

    Costs add as for networks that run one after the other: times, energies, sizes and resources are
    summed, memory is the larger peak, and the sum is as sure as its less sure part.
    """

    latency_ms: float
    energy_mj: float
    size_bytes: int
    peak_memory_bytes: int
    fits: bool = True
    resources: Mapping[str, float] = field(default_factory=dict)
    kind: Kind = "measured"
    estimated: bool = False

    def __add__(self, other: "Cost") -> "Cost":
        names = dict.fromkeys((*self.resources, *other.resources))
        return Cost(
            latency_ms=self.latency_ms + other.latency_ms,
            energy_mj=self.energy_mj + other.energy_mj,
            size_bytes=self.size_bytes + other.size_bytes,
            peak_memory_bytes=max(self.peak_memory_bytes, other.peak_memory_bytes),
            fits=self.fits and other.fits,
            resources={n: self.resources.get(n, 0) + other.resources.get(n, 0) for n in names},
            kind=max(self.kind, other.kind, key=_SUREST_FIRST.index),
            estimated=self.estimated or other.estimated,
        )


def within(weight_bytes: ArrayLike, tensor_bytes: ArrayLike, memory_bytes: int | None) -> NDArray[np.bool_]:
    """Whether weights and the tensors that live at the same time are within the memory of a part, together:
    both stay there while a network runs. None: the part sets no limit, or keeps them elsewhere."""
    return np.less_equal(np.add(weight_bytes, tensor_bytes), np.inf if memory_bytes is None else memory_bytes)


@dataclass(frozen=True, eq=False)
class CostArrays:
    """Costs of n policies: arrays (n,) of what ``Cost`` has of each.

    modelled: a part of the latency is not from a measurement of its own. memory_bytes: what the part has for
    weights and tensors, see ``within``. placed: whether the part has room for what else a policy asks for.
    """

    latency_ms: NDArray[np.float64]
    energy_mj: NDArray[np.float64]
    size_bytes: NDArray[np.float64]
    modelled: NDArray[np.bool_]
    peak_memory_bytes: NDArray[np.float64]
    memory_bytes: int | None = None
    placed: bool | NDArray[np.bool_] = True

    @staticmethod
    def joined(parts: "Sequence[CostArrays]", columns: Sequence[NDArray[np.int64]]) -> "CostArrays":
        """One of several on the same part; ``columns``: where each one's policies go."""
        order = np.argsort(np.concatenate(columns))

        def together(name: str) -> NDArray[Any]:
            values = [np.broadcast_to(getattr(one, name), one.latency_ms.shape) for one in parts]
            return np.asarray(np.concatenate(values)[order])

        names = ("latency_ms", "energy_mj", "size_bytes", "modelled", "peak_memory_bytes", "placed")
        return CostArrays(**{name: together(name) for name in names}, memory_bytes=parts[0].memory_bytes)

    @cached_property
    def fits(self) -> NDArray[np.bool_]:
        """(n,): whether each fits the part."""
        return within(self.size_bytes, self.peak_memory_bytes, self.memory_bytes) & self.placed

    def first(self, kind: Kind, estimated: bool, resources: Mapping[str, float]) -> Cost:
        """The cost of the first policy; ``resources`` are its own."""
        return Cost(
            latency_ms=float(self.latency_ms[0]),
            energy_mj=float(self.energy_mj[0]),
            size_bytes=int(self.size_bytes[0]),
            peak_memory_bytes=int(self.peak_memory_bytes[0]),
            fits=bool(self.fits[0]),
            resources=resources,
            kind=kind,
            estimated=estimated,
        )


def costs_by_depth(batch: PolicyBatch, costs: Callable[[PolicyBatch], CostArrays]) -> CostArrays:
    """What ``costs`` says of policies of one network, asked for each set of branches that some leave out: for
    models that have to look at each network that is left."""
    columns, parts = zip(*batch.by_depth(), strict=True)
    return costs(parts[0]) if len(parts) == 1 else CostArrays.joined([*map(costs, parts)], columns)


def costs_in_portions(
    batch: PolicyBatch,
    costs: Callable[[PolicyBatch], CostArrays],
    at_once: int,
    fusing: Sequence[str] = (),
) -> CostArrays:
    """What ``costs`` says of policies of one network, so many at a time; it prices kernels of the whole
    network, whatever is left out. Policies that leave out what keeps two kernels apart are priced as policies
    of what is left.

    Args:
        fusing: operations that the part computes with the layer before, besides those of ``kernels``.
    """
    parts, columns = [], []
    for begin in range(0, batch.count, at_once):
        whole = np.arange(begin, min(begin + at_once, batch.count))
        part = batch.part(slice(begin, begin + at_once))
        others = part.other_kernels(fusing)
        if not others.any():
            parts.append(costs(part))
            columns.append(whole)
            continue
        for chosen, priced in ((~others, costs), (others, lambda few: costs_by_depth(few, costs))):
            if chosen.any():
                parts.append(priced(part.part(np.flatnonzero(chosen))))
                columns.append(whole[chosen])
    if not parts:
        return costs(batch)
    return parts[0] if len(parts) == 1 else CostArrays.joined(parts, columns)


def check_bits(batch: PolicyBatch, profile: HardwareProfile) -> None:
    """Raise TableError for the first layer whose bits the part has no units for, or whose tensor is quantized
    at run time, which no formula prices. Layers of weight bits alone need none."""
    if batch.more.get(DYNAMIC, _NONE).any():
        name = batch.network.layers[int(np.argwhere(batch.more[DYNAMIC])[0][0])].name
        raise TableError(
            f"nobody knows what profile {profile.name!r} takes to quantize the tensor of layer {name!r} at"
            " run time; it is priced where kernels are timed: this-machine"
        )
    known = np.zeros((33, 33), dtype=np.bool_)
    for pair in profile.supported:
        known[pair] = True
    unknown = ~known[batch.weight_bits, batch.activation_bits]
    for name in batch.network.weight_only:
        unknown[batch.layer_index[name]] = False
    for row, absent in batch.absent_layers.items():
        unknown[row] &= ~absent
    if unknown.any():
        row, column = (int(place) for place in np.argwhere(unknown)[0])
        weights, activations = int(batch.weight_bits[row, column]), int(batch.activation_bits[row, column])
        raise TableError(
            f"profile {profile.name!r} cannot run layer {batch.network.layers[row].name!r} with weights"
            f" of {weights} and activations of {activations} bits; it can: {profile.supported_sentence}"
        )


@dataclass(frozen=True)
class LayerCost:
    """Cost of one kernel: a layer with what is fused into it, or another operation."""

    name: str
    latency_ms: float
    energy_mj: float
    source: Kind


@dataclass(frozen=True)
class LayerEngine:
    """The engine of a layer in a pipeline: how parallel it is, and what it computes.

    pe: outputs at a time; simd: products of each at a time; of ``outputs`` and ``products`` in all. cycles:
    of an inference. read: channels of its input. windowed: windows are made of its input.
    """

    layer: str
    pe: int
    simd: int
    cycles: int
    outputs: int
    products: int
    read: int
    weight_bits: int
    activation_bits: int
    depthwise: bool
    windowed: bool


def unknown_sentence(unknown: Sequence[Kernel], most: int = 6) -> str:
    """What is said of kernels that are priced by what they move; each kind of operation once."""
    kinds: dict[str, list[str]] = {}
    for kernel in unknown:
        kinds.setdefault(kernel.nodes[0].detail or kernel.op, []).append(kernel.name)
    said = [
        f"{kind} (node {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''})"
        for kind, names in kinds.items()
    ]
    more = f" and {len(said) - most} more kinds" if len(said) > most else ""
    count, one = len(unknown), "operation has no formula and is priced by what it moves"
    several = "operations have no formula and are priced by what they move"
    return f"{count} {one if count == 1 else several}: {', '.join(said[:most])}{more}"


class CostModel(Protocol):
    """What can cost a network. The network is already resized to the policy.

    A class that implements it inherits from it, and so what is said of models whose costs are computed.
    """

    profile: HardwareProfile
    """Of the part, as it prices: power may have been measured."""

    @abstractmethod
    def cost(self, network: Network, policy: Policy) -> Cost:
        """The whole network; raises TableError where the part cannot run it. What there is no formula for
        costs what it moves, and then the cost is "modelled"."""
        ...

    @abstractmethod
    def costs(self, batch: PolicyBatch) -> CostArrays:
        """Many policies at once, up to rounding the same numbers as ``cost`` gives for each."""
        ...

    @abstractmethod
    def layers(self, network: Network, policy: Policy) -> tuple[LayerCost, ...]:
        """Each kernel, in order of execution; raises TableError as ``cost`` does."""
        ...

    def unknown(self, network: Network) -> tuple[Kernel, ...]:
        """The kernels that there is no formula for, so that they are priced by what they move."""
        return tuple(
            kernel
            for kernel in kernels(network)
            if not kernel.computes and operation(kernel.op).work in ("opaque", "layer")
        )

    def as_built(self, network: Network, policy: Policy) -> Cost:
        """The cost of one network, with its kernels as they become when it is really built, where the model
        can find that out and need not foretell it; raises TableError as ``cost`` does."""
        return self.cost(network, policy)

    def engines(self, network: Network, policy: Policy) -> tuple[LayerEngine, ...]:
        """The engines of layers that the cost was computed with, in order; none where the part is no pipeline
        of engines."""
        return ()

    @property
    def measured_on(self) -> str | None:
        """The device, with its software, that times are from; None where they are computed."""
        return None
