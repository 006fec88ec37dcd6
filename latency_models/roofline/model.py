"""The roofline model: what a kernel takes from its arithmetic, its memory traffic and a fixed overhead."""

from dataclasses import dataclass

import numpy as np

from leanfront.compression.graph import Network
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.hw_profiles import HardwareProfile, Roofline
from leanfront.latency_models.cost import Cost, CostArrays, CostModel, Kind, LayerCost, costs_by_depth
from leanfront.latency_models.memory import peak_bytes
from leanfront.latency_models.registry import costs_of, section_of
from leanfront.latency_models.roofline.work import Array, Work, work_of

NS = 1e-6
"""A nanosecond in ms."""


@dataclass(frozen=True, eq=False)
class Times:
    """Milliseconds of each kernel under n policies, arrays (kernels, n): arithmetic, and what comes on top
    of it (traffic that is not hidden behind it, overheads)."""

    compute_ms: Array
    other_ms: Array

    @property
    def latency_ms(self) -> Array:
        """The whole of each kernel."""
        return np.asarray(self.compute_ms + self.other_ms)


def times(work: Work, roofline: Roofline, gains: Array | float = 1.0) -> Times:
    """How long each kernel takes.

    arithmetic  macs (rounded up to alignment and to waves of tiles) / (macs_per_ms x efficiency, or
                depthwise_efficiency)
    traffic     (moved, the tensors of layers tensor_passes times + im2col_passes x windows
                + gathered_passes x gathered) / (bandwidth x its efficiency)
                + value_ns x values (those of the windows im2col_passes times)
    kernel      overhead_ms + the longer of both + (1 - overlap) x the shorter, divided by ``gains``
    besides     conversion_overhead_ms and the traffic of each change of precision; image_value_ns for each
                value of the network's input, joined_value_ns for each of a detection head's

    With overlap 1 and all efficiencies 1 this is overhead + max(macs / macs_per_ms, moved / bandwidth): S.
    Williams, A. Waterman, D. Patterson: Roofline: an insightful visual performance model for multicore
    architectures, CACM 52(4), 2009, with a fixed overhead per kernel added to it.
    """
    dense, depthwise = _rates(roofline)
    rate = np.where(work.depthwise[:, None], depthwise[work.unit], dense[work.unit])
    compute = np.divide(work.macs, rate)
    passes = roofline.im2col_passes or 0.0
    moved = work.moved_bytes + passes * work.window_bytes
    moved = moved + ((roofline.tensor_passes or 1.0) - 1.0) * work.layer_bytes
    moved = moved + (roofline.gathered_passes or 0.0) * work.gathered_bytes
    bandwidth = roofline.bandwidth_bytes_per_ms * (roofline.bandwidth_efficiency or 1.0)
    memory = moved / bandwidth + (roofline.value_ns or 0.0) * NS * (work.values + passes * work.window_values)
    exposed = np.minimum(compute, memory) * (1.0 if roofline.overlap is None else roofline.overlap)
    other = roofline.overhead_ms * work.launches + (memory - exposed) / gains
    other = other + (roofline.conversion_overhead_ms or 0.0) * work.conversions
    other = other + work.converted_bytes / bandwidth
    other = other + (roofline.joined_value_ns or 0.0) * NS * work.joined_values
    if roofline.image_value_ns:
        image_ns = np.array([roofline.image_value_ns.get(str(bits), 0.0) for bits in range(33)])
        other = other + image_ns[work.image_bits] * NS * work.image_values[:, None]
    return Times(compute / gains, other)


def _rates(roofline: Roofline) -> tuple[Array, Array]:
    """Multiply-accumulates per ms that dense and depthwise layers reach, by bits of the unit (33,)."""
    dense, depthwise = np.ones(33), np.ones(33)
    for unit, peak in roofline.macs_per_ms.items():
        efficiency = roofline.efficiency.get(unit, 1.0)
        dense[int(unit)] = peak * efficiency
        depthwise[int(unit)] = peak * roofline.depthwise_efficiency.get(unit, efficiency)
    return dense, depthwise


def sparse_gain(layer: LayerPolicy, roofline: Roofline) -> float:
    """By how much faster a layer runs for the zeros among its weights; below 1: it is slower than dense.

    2:4: the profile's measured gain (of whole networks), never the 2 of the data sheet. Unstructured: time
    falls linearly with the share of weights that are left, from more than the dense layer's time down to
    unstructured_floor; at unstructured_break_even both are alike.
    """
    if layer.pattern == "2:4" and layer.sparsity >= 0.5:
        return roofline.two_four_gain or 1.0
    even, floor = roofline.unstructured_break_even, roofline.unstructured_floor
    if layer.pattern == "unstructured" and layer.sparsity > 0 and even is not None and floor is not None:
        return 1.0 / (floor + (1.0 - floor) * (1.0 - layer.sparsity) / (1.0 - even))
    return 1.0


@costs_of(Roofline)
@dataclass(frozen=True)
class RooflineModel(CostModel):
    """Costs from a profile's [roofline] numbers."""

    profile: HardwareProfile

    def cost(self, network: Network, policy: Policy) -> Cost:
        """Cost of one inference (batch 1) of a network that is already cut to the policy.

        latency_ms is the sum over the kernels, which run one after the other; energy_mj is power_w times
        it, or memory_power_w for what is not arithmetic. ``fits``: weights and live tensors together stay
        within the profile's memory_bytes, if given.

        Raises:
            TableError: a bit pair whose cost is not known.
        """
        batch = PolicyBatch.one(network, policy)
        found = self._costs(batch, self._times(batch, policy))
        kind: Kind = "modelled" if self.unknown(network) else self.kind
        return found.first(kind, self.profile.estimated, {})

    def costs(self, batch: PolicyBatch) -> CostArrays:
        """Many policies at once; sparsity that cuts no channels is not part of a batch.

        Raises:
            TableError: as ``cost`` does.
        """
        return costs_by_depth(batch, lambda part: self._costs(part, self._times(part)))

    def layers(self, network: Network, policy: Policy) -> tuple[LayerCost, ...]:
        """Cost of each kernel that does something, in order of execution; raises TableError as ``cost``."""
        batch = PolicyBatch.one(network, policy)
        work, found = self._times(batch, policy)
        energy = self._energy_mj(found)
        latency = found.latency_ms
        unknown = {kernel.name for kernel in self.unknown(network)}
        return tuple(
            LayerCost(
                name,
                float(latency[row, 0]),
                float(energy[row, 0]),
                "modelled" if batch.kernels[row].name in unknown else self.kind,
            )
            for row, name in enumerate(work.names)
            if work.busy[row] or latency[row, 0] > 0
        )

    @property
    def kind(self) -> Kind:
        """ "calibrated" where a number of the model was fitted to measurements and none is assumed."""
        sources = [self.profile.source(path) for path in self.profile.numbers if path.startswith("roofline.")]
        statuses = {source.status for source in sources if source is not None}
        fitted = "calibrated" in statuses and "assumed" not in statuses
        return "calibrated" if fitted else "modelled"

    def _times(self, batch: PolicyBatch, policy: Policy | None = None) -> tuple[Work, Times]:
        roofline = section_of(self.profile, Roofline)
        work = work_of(batch, self.profile, roofline)
        gains: Array | float = 1.0
        if policy is not None and any(p.pattern in ("2:4", "unstructured") for p in policy.values()):
            gains = np.ones((len(work.names), 1))
            for row, name in enumerate(work.layers):
                if name is not None and not work.depthwise[row]:
                    gains[row] = sparse_gain(policy[name], roofline)
        return work, times(work, roofline, gains)

    def _energy_mj(self, found: Times) -> Array:
        """W x ms = mJ."""
        busy = self.profile.power_w
        waiting = section_of(self.profile, Roofline).memory_power_w or busy
        return np.asarray(busy * found.compute_ms + waiting * found.other_ms)

    def _costs(self, batch: PolicyBatch, timed: tuple[Work, Times]) -> CostArrays:
        work, found = timed
        weights = batch.size_bytes().astype(np.float64)
        return CostArrays(
            latency_ms=found.latency_ms.sum(axis=0),
            energy_mj=self._energy_mj(found).sum(axis=0),
            size_bytes=weights,
            modelled=np.ones(batch.count, dtype=np.bool_),
            peak_memory_bytes=peak_bytes(batch, work.tensor_bytes),
            memory_bytes=self.profile.memory_bytes,
        )
