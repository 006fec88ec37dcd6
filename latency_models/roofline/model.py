"""The roofline model: what a kernel takes from its arithmetic, its memory traffic and a fixed overhead."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanfront.compression.graph import Kernel, Network
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.zeros import PATTERNS
from leanfront.hw_profiles import HardwareProfile, Roofline
from leanfront.latency_models.cost import Cost, CostArrays, CostModel, Kind, LayerCost, costs_in_portions
from leanfront.latency_models.memory import peak_bytes
from leanfront.latency_models.registry import costs_of, section_of
from leanfront.latency_models.roofline.work import Array, Kernels, Work

NS = 1e-6
"""A nanosecond in ms."""
AT_ONCE = 8192
"""Policies whose arrays fit a processor's near cache."""


@dataclass(frozen=True, eq=False)
class Times:
    """Milliseconds of a kernel under n policies, (n,), or of many, (kernels, n): arithmetic, and what comes
    on top of it (traffic that is not hidden behind it, overheads)."""

    compute_ms: Array
    other_ms: Array

    @property
    def latency_ms(self) -> Array:
        """The whole of each kernel."""
        return np.asarray(self.compute_ms + self.other_ms)


def times(work: Work, roofline: Roofline, gains: Array | float = 1.0) -> Times:
    """How long a kernel takes, or each of many.

    arithmetic  macs (rounded up to alignment and to waves of tiles) / (macs_per_ms x efficiency, or
                depthwise_efficiency), and at least sum_byte_ns x bytes of the sum
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
    rate: Any = dense[work.unit]
    if np.any(work.depthwise):
        rate = np.where(work.depthwise, depthwise[work.unit], rate)
    compute: Any = work.macs / rate
    if roofline.sum_byte_ns:
        compute = np.maximum(compute, roofline.sum_byte_ns * NS * work.sum_bytes)
    moved, values = work.moved_bytes, work.values
    if roofline.im2col_passes:
        moved = moved + roofline.im2col_passes * work.window_bytes
        values = values + roofline.im2col_passes * work.window_values
    if roofline.tensor_passes:
        moved = moved + (roofline.tensor_passes - 1.0) * work.layer_bytes
    if roofline.gathered_passes:
        moved = moved + roofline.gathered_passes * work.gathered_bytes
    bandwidth = roofline.bandwidth_bytes_per_ms * (roofline.bandwidth_efficiency or 1.0)
    memory = moved / bandwidth + (roofline.value_ns or 0.0) * NS * values
    hidden: Any = 0.0
    if not (isinstance(compute, float) and compute == 0.0):
        hidden = np.minimum(compute, memory) * (1.0 if roofline.overlap is None else roofline.overlap)
    other = roofline.overhead_ms * work.launches + (memory - hidden) / gains
    if roofline.conversion_overhead_ms is not None:
        other = other + roofline.conversion_overhead_ms * work.conversions
        other = other + work.converted_bytes / bandwidth
    if roofline.joined_value_ns:
        other = other + roofline.joined_value_ns * NS * work.joined_values
    if roofline.image_value_ns and not isinstance(work.image_values, float):
        image_ns = np.array([roofline.image_value_ns.get(str(bits), 0.0) for bits in range(33)])
        other = other + image_ns[work.image_bits] * NS * work.image_values
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
    """By how much faster a layer runs for the zeros among its weights, where they lie as they should; of
    several patterns by the one that gains most. Below 1: it is slower than dense."""
    gains = [roofline.gain_of_zeros(name, layer.value(name)) for name in PATTERNS if layer.value(name)]
    return max(gains, default=1.0)


def sparse_gains(batch: PolicyBatch, roofline: Roofline) -> Mapping[int, Array]:
    """Row of a layer -> the same under n policies, (n,), of layers in which some policy wants zeros. Rows of
    channels that a cut has left in no whole groups of a pattern gain nothing, nor do depthwise layers."""
    found: dict[int, Array] = {}
    for name in PATTERNS.keys() & batch.more.keys():
        among = PATTERNS[name].among or 1
        for row in np.flatnonzero(batch.more[name].any(axis=1)).tolist():
            layer = batch.network.layers[row]
            if layer.shape.depthwise or layer.weight_only:
                continue
            wanted, only = batch.more[name][row], PATTERNS[name].share
            gains: Any = roofline.gain_of_zeros(name, only or 0.0)
            if only is None:
                shares, places = np.unique(wanted, return_inverse=True)
                gains = np.array([roofline.gain_of_zeros(name, float(share)) for share in shares])[places]
            gains = np.where((wanted > 0) & (batch.reduced[row] % among == 0), gains, 0.0)
            found[row] = np.maximum(found[row], gains) if row in found else gains
    return {row: np.where(gains > 0, gains, 1.0) for row, gains in found.items()}


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
        found = self._costs(PolicyBatch.one(network, policy))
        kind: Kind = "modelled" if self.unknown(network) else self.kind
        return found.first(kind, self.profile.estimated, {})

    def costs(self, batch: PolicyBatch) -> CostArrays:
        """Many policies at once.

        Raises:
            TableError: as ``cost`` does.
        """
        roofline = section_of(self.profile, Roofline)
        return costs_in_portions(batch, self._costs, AT_ONCE, roofline.fused_activations or ())

    def layers(self, network: Network, policy: Policy) -> tuple[LayerCost, ...]:
        """Cost of each kernel that does something, in order of execution; raises TableError as ``cost``."""
        batch = PolicyBatch.one(network, policy)
        unknown = {kernel.name for kernel in self.unknown(network)}
        rows = []
        for kernel, work, found in self._times(self._kernels(batch)):
            name = kernel.label
            latency_ms = float(np.asarray(found.latency_ms).ravel()[0])
            energy_mj = float(self._energy_mj(found.latency_ms, found.compute_ms).ravel()[0])
            if work.launches or latency_ms > 0:
                source: Kind = "modelled" if kernel.name in unknown else self.kind
                rows.append(LayerCost(name, latency_ms, energy_mj, source))
        return tuple(rows)

    @property
    def kind(self) -> Kind:
        """ "calibrated" where a number of the model was fitted to measurements and none is assumed."""
        sources = [self.profile.source(path) for path in self.profile.numbers if path.startswith("roofline.")]
        statuses = {source.status for source in sources if source is not None}
        fitted = "calibrated" in statuses and "assumed" not in statuses
        return "calibrated" if fitted else "modelled"

    def _kernels(self, batch: PolicyBatch) -> Kernels:
        return Kernels(batch, self.profile, section_of(self.profile, Roofline))

    def _times(self, kernels: Kernels) -> Iterator[tuple[Kernel, Work, Times]]:
        """Of each kernel."""
        gains = _gains(kernels)
        for kernel, work in zip(kernels.kernels, kernels.works(), strict=True):
            yield kernel, work, times(work, kernels.roofline, gains.get(kernel.name, 1.0))

    def _energy_mj(self, latency_ms: Array, compute_ms: Array) -> Array:
        """W x ms = mJ; ``compute_ms``: of the latency what is arithmetic."""
        busy = self.profile.power_w
        waiting = section_of(self.profile, Roofline).memory_power_w or busy
        return np.asarray(waiting * latency_ms + (busy - waiting) * compute_ms)

    def _costs(self, batch: PolicyBatch) -> CostArrays:
        kernels = self._kernels(batch)
        gains = _gains(kernels)
        latency_ms, compute_ms = np.zeros(batch.count), np.zeros(batch.count)
        for kernel, work in kernels.summed():
            gain = 1.0 if kernel is None else gains.get(kernel.name, 1.0)
            found = times(work, kernels.roofline, gain)
            latency_ms += found.latency_ms
            compute_ms += found.compute_ms
        return CostArrays(
            latency_ms=latency_ms,
            energy_mj=self._energy_mj(latency_ms, compute_ms),
            size_bytes=batch.size_bytes().astype(np.float64),
            modelled=np.ones(batch.count, dtype=np.bool_),
            peak_memory_bytes=peak_bytes(batch, kernels.tensor_bytes),
            memory_bytes=self.profile.memory_bytes,
        )


def _gains(kernels: Kernels) -> dict[str, Array]:
    """Name of a kernel -> ``sparse_gains`` of its layer."""
    of_layers = sparse_gains(kernels.batch, kernels.roofline)
    rows = kernels.batch.layer_index
    return {
        kernel.name: of_layers[rows[kernel.layer.name]]
        for kernel in (kernels.kernels if of_layers else ())
        if kernel.layer is not None and rows[kernel.layer.name] in of_layers
    }
