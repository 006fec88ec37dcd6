"""Microcontrollers: whether a network's file fits the flash, and the interpreter's arena the memory.

No latency is claimed: multiply-accumulates stand for it.
"""

from dataclasses import dataclass

import numpy as np

from leanfront.compression.graph import Network
from leanfront.compression.policy import Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.hw_profiles import HardwareProfile
from leanfront.hw_profiles.sections import Microcontroller
from leanfront.latency_models.arena import arena_bytes
from leanfront.latency_models.cost import Cost, CostArrays, CostModel, LayerCost, check_bits, costs_by_depth
from leanfront.latency_models.registry import costs_of, section_of


@costs_of(Microcontroller)
@dataclass(frozen=True)
class MicrocontrollerModel(CostModel):
    """Costs from a profile's [microcontroller] numbers."""

    profile: HardwareProfile

    def cost(self, network: Network, policy: Policy) -> Cost:
        """Of a network that is already cut to the policy; raises TableError for bits that it has not."""
        return self._costs(PolicyBatch.one(network, policy)).first("modelled", self.profile.estimated, {})

    def costs(self, batch: PolicyBatch) -> CostArrays:
        """Many policies at once; raises TableError as ``cost`` does."""
        return costs_by_depth(batch, self._costs)

    def layers(self, network: Network, policy: Policy) -> tuple[LayerCost, ...]:
        """Each layer, by its multiply-accumulates; raises TableError as ``cost`` does."""
        batch = PolicyBatch.one(network, policy)
        check_bits(batch, self.profile)
        each = batch.macs[:, 0] / section_of(self.profile, Microcontroller).macs_per_ms
        rows = zip(network.layers, each.tolist(), strict=True)
        return tuple(
            LayerCost(layer.name, ms, ms * self.profile.power_w, "modelled") for layer, ms in rows if ms
        )

    def _costs(self, batch: PolicyBatch) -> CostArrays:
        check_bits(batch, self.profile)
        numbers = section_of(self.profile, Microcontroller)
        stand_in_ms = batch.macs.sum(axis=0) / numbers.macs_per_ms
        size, arena = batch.size_bytes().astype(np.float64), arena_bytes(batch)
        return CostArrays(
            latency_ms=stand_in_ms,
            energy_mj=stand_in_ms * self.profile.power_w,
            size_bytes=size,
            modelled=np.ones(batch.count, dtype=np.bool_),
            peak_memory_bytes=arena,
            placed=(size <= numbers.flash_bytes) & (arena <= numbers.ram_bytes),
        )
