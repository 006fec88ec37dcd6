"""An overlay accelerator: one fixed array runs the layers one after another (DPU, systolic arrays)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph import Kernel, Network
from leanfront.compression.policy import Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.hw_profiles import HardwareProfile
from leanfront.hw_profiles.sections import Overlay
from leanfront.latency_models.cost import (
    Cost,
    CostArrays,
    CostModel,
    LayerCost,
    costs_by_depth,
    costs_in_portions,
)
from leanfront.latency_models.errors import TableError
from leanfront.latency_models.fpga.kernels import FLOAT_BITS, Array, Work, squeezes, unknown, works
from leanfront.latency_models.fpga.radiation import clock_mhz, energy_mj, occupied, slowed
from leanfront.latency_models.memory import peak_bytes
from leanfront.latency_models.registry import costs_of, section_of

AT_ONCE = 8192
"""Policies that are priced at a time."""
FLOAT_PASSES = (FLOAT_BITS / 8) ** 2
"""Passes that an array of 8 bits needs for products of floats: each byte of one operand with each of the
other. Nothing is known of such an operation there: it may run elsewhere."""


@dataclass(frozen=True, eq=False)
class LayerTimes:
    """Milliseconds of one layer under n policies, with its weights on the chip and with them streamed in."""

    resident_ms: Array
    streamed_ms: Array


def layer_times(work: Work, overlay: Overlay, clock: float) -> LayerTimes:
    """A layer with weights, or a product of two tensors, on an array of ``clock`` MHz.

    Tiles: ceil(steps / pixel_parallel) x ceil(out / output_parallel), each of
    taps x ceil(channels / input_parallel) steps (Xilinx PG338: parallelism in pixels, input and output
    channels), at a share ``efficiency`` of the cycles. A tile takes no less than storing its results does.
    Depthwise layers use a unit of depthwise_pixel_parallel x output_parallel lanes.

    Traffic: "ahead": weights (and tensors, where they live outside) are loaded and stored while the array
    computes, so a layer takes the longer of both. "at_use": in each block of output channels the first tile
    goes no faster than its weights come in.

    Squeeze and excite: where a layer reads globally pooled channels within the network, the tensor that is
    pooled, and scaled afterwards, passes at pooled_bytes_per_ms.
    """
    per_ms = clock * 1e3
    bandwidth = overlay.bandwidth_bytes_per_ms
    weight_bytes = _weight_bytes(work)
    blocks = np.ceil(work.out / overlay.output_parallel)
    if work.depthwise:
        if overlay.depthwise_pixel_parallel is None:
            raise TableError(f"the array has no unit for depthwise layers, such as {work.name!r}")
        tiles = float(-(-work.steps // overlay.depthwise_pixel_parallel))
        tile_ms = np.full_like(work.out, work.taps / per_ms)
    else:
        tiles = float(-(-work.steps // overlay.pixel_parallel))
        tile_ms = _steps(work, overlay) / (per_ms * overlay.efficiency)
        tile_ms = tile_ms * np.where(work.weight_bits == FLOAT_BITS, FLOAT_PASSES, 1.0)
    if overlay.write_pixels_per_ms is not None:
        tile_ms = np.maximum(tile_ms, overlay.pixel_parallel / overlay.write_pixels_per_ms)
    fixed_ms = np.full_like(work.out, overlay.layer_overhead_ms)
    if work.pooled and overlay.pooled_bytes_per_ms is not None:
        fixed_ms += work.read * (work.pooled_positions / overlay.pooled_bytes_per_ms)
    compute_ms = blocks * tiles * tile_ms
    moved = np.zeros_like(work.out)
    if overlay.features_outside:
        moved = (
            work.read * work.read_positions * work.read_bits + work.out * work.positions * work.out_bits
        ) / 8
        if not work.stored:
            moved = moved + work.weights * work.weight_bits / 8  # the second tensor
    if overlay.weights == "ahead":
        return LayerTimes(
            np.maximum(compute_ms, moved / bandwidth) + fixed_ms,
            np.maximum(compute_ms, (weight_bytes + moved) / bandwidth) + fixed_ms,
        )
    first_ms = np.maximum(tile_ms, weight_bytes / np.maximum(blocks, 1.0) / bandwidth)
    streamed_ms = blocks * (first_ms + (tiles - 1) * tile_ms)
    return LayerTimes(
        np.maximum(compute_ms, moved / bandwidth) + fixed_ms,
        np.maximum(streamed_ms, moved / bandwidth) + fixed_ms,
    )


def _weight_bytes(work: Work) -> Array:
    return work.weights * work.weight_bits / 8 if work.stored else np.zeros_like(work.out)


def _steps(work: Work, overlay: Overlay) -> Array:
    """Steps of a tile: window positions times slices of input channels."""
    height, width = work.kernel
    channels = np.ceil(work.reduced / overlay.input_multiple) * overlay.input_multiple
    plain = work.taps * np.ceil(channels / overlay.input_parallel)
    if not overlay.folds_kernel_width:
        return np.asarray(plain)
    folded = height * np.ceil(width * channels / overlay.input_parallel)
    return np.where(channels < overlay.input_parallel, folded, plain)


def other_ms(work: Work, overlay: Overlay, clock: float) -> Array:
    """Kernels without weights: pools read every value of every window, the rest writes every value. What
    there is no formula for reads and writes all its values, one after another."""
    per_ms = clock * 1e3
    held_ms = work.read_bytes / overlay.bandwidth_bytes_per_ms
    if work.stream in ("opaque", "layer"):
        return work.moved / (overlay.elementwise_bytes_per_cycle * per_ms) + held_ms
    if work.stream == "mean":
        return work.read * work.read_positions / (overlay.mean_bytes_per_cycle * per_ms)
    if work.stream == "window":
        return work.out * (work.positions * work.taps / (overlay.window_bytes_per_cycle * per_ms))
    if work.stream == "placed":
        return np.zeros_like(work.out)
    return work.out * (work.positions / (overlay.elementwise_bytes_per_cycle * per_ms)) + held_ms


@costs_of(Overlay)
@dataclass(frozen=True)
class OverlayModel(CostModel):
    """Costs from a profile's [overlay]: latency is the sum over the kernels and a call's overhead."""

    profile: HardwareProfile

    def cost(self, network: Network, policy: Policy) -> Cost:
        """One inference (batch 1) of a network that is already cut to the policy.

        latency_ms is what one caller sees who waits for each inference: one over the frames per second of a
        single thread. resources are the blocks of the array; ``fits``: they are within the part's, and
        weights and live tensors within memory_bytes.

        Raises:
            TableError: a layer or a bit pair that the part cannot run; it is named.
        """
        found = self._costs(PolicyBatch.one(network, policy))
        _, resources = occupied(self.profile, section_of(self.profile, Overlay).footprint)
        return found.first("modelled", self.profile.estimated, resources)

    def costs(self, batch: PolicyBatch) -> CostArrays:
        """Many policies at once; see ``cost``. What is pooled for a layer in the middle of the network
        depends on what is left before and after it."""
        if squeezes(batch):
            return costs_by_depth(batch, self._costs)
        return costs_in_portions(batch, self._costs, AT_ONCE)

    def unknown(self, network: Network) -> tuple[Kernel, ...]:
        """The kernels that there is no formula for."""
        return unknown(network)

    def _costs(self, batch: PolicyBatch) -> CostArrays:
        overlay = section_of(self.profile, Overlay)
        times, moved = self._times(batch)
        latency_ms = slowed(self.profile, times.sum(axis=0) + overlay.call_overhead_ms)
        return CostArrays(
            latency_ms=latency_ms,
            energy_mj=energy_mj(self.profile, batch, latency_ms, moved),
            size_bytes=batch.size_bytes().astype(np.float64),
            modelled=np.ones(batch.count, dtype=np.bool_),
            peak_memory_bytes=peak_bytes(batch, batch.elements.astype(np.float64)),  # each value in a byte
            memory_bytes=self.profile.memory_bytes,
            placed=occupied(self.profile, overlay.footprint)[0],
        )

    def layers(self, network: Network, policy: Policy) -> tuple[LayerCost, ...]:
        """Each kernel that does something, in order; a call's overhead is in none of them."""
        batch = PolicyBatch.one(network, policy)
        busy = [work for work in works(batch, self.profile) if work.busy]
        times, _ = self._times(batch)
        slow = slowed(self.profile, times[:, 0])
        total = self._costs(batch)
        per_ms = float(total.energy_mj[0] / total.latency_ms[0])
        return tuple(
            LayerCost(work.name, float(slow[work.row]), float(slow[work.row]) * per_ms, "modelled")
            for work in busy
        )

    def _times(self, batch: PolicyBatch) -> tuple[Array, Array]:
        """(kernels, n) ms of each kernel, and (n,) bytes from and to the memory outside."""
        overlay, clock = section_of(self.profile, Overlay), clock_mhz(self.profile)
        rows = np.zeros((len(batch.kernels), batch.count))
        layers: list[tuple[Work, LayerTimes]] = []
        moved = np.zeros(batch.count)
        for work in works(batch, self.profile):
            there = ~batch.idle[work.row] if work.row in batch.idle else True
            if work.layer:
                times = layer_times(work, overlay, clock)
                rows[work.row] = np.where(there, times.streamed_ms, 0.0)
                if work.stored:
                    layers.append((work, times))
                moved += _weight_bytes(work)
            elif work.busy:
                rows[work.row] = np.where(there, other_ms(work, overlay, clock), 0.0)
                moved += work.read_bytes * there
            if overlay.features_outside and work.busy:
                moved += work.out * work.positions * work.out_bits / 4 * there  # written once, read once
        if overlay.weight_memory_bytes and layers:
            stay = _resident(layers, overlay.weight_memory_bytes)
            for here, (work, times) in zip(stay, layers, strict=True):
                rows[work.row] = np.where(here, times.resident_ms, rows[work.row])
                moved -= np.where(here, _weight_bytes(work), 0.0)
        return rows, moved


def _resident(layers: list[tuple[Work, LayerTimes]], capacity_bytes: float) -> NDArray[np.bool_]:
    """(layers, n): which weights stay on the chip: those that save most time per byte, while they fit.

    Fully connected layers are streamed: their weights are used once.
    """
    sizes = np.array([_weight_bytes(work) for work, _ in layers])
    gains = np.array([times.streamed_ms - times.resident_ms for _, times in layers])
    gains[sizes == 0.0] = 0.0  # left out
    gains[[work.op == "linear" for work, _ in layers]] = 0.0
    order = np.argsort(-gains / np.maximum(sizes, 1e-9), axis=0, kind="stable")
    before = np.take_along_axis(sizes, order, axis=0).cumsum(axis=0)
    fits = np.zeros(sizes.shape, dtype=np.bool_)
    np.put_along_axis(fits, order, before <= capacity_bytes, axis=0)
    return np.asarray(fits & (gains > 0))
