"""What space asks of an FPGA design: triplication, check bits, slower clocks, scrubbing, expected upsets.

Also the power of a design, in space or not.
"""

from collections.abc import Mapping

import numpy as np

from leanfront.compression.policy.batch import PolicyBatch
from leanfront.hw_profiles import HardwareProfile
from leanfront.hw_profiles.sections import Dataflow, Overlay
from leanfront.latency_models.cost import Cost
from leanfront.latency_models.errors import TableError
from leanfront.latency_models.fpga.kernels import Array, other_macs


def clock_mhz(profile: HardwareProfile) -> float:
    """The clock of the architecture after derating."""
    section = profile.section
    if not isinstance(section, Overlay | Dataflow):
        raise TableError(f"profile {profile.name!r} has neither [overlay] nor [dataflow]")
    derating = profile.space.clock_derating if profile.space else 1.0
    return section.clock_mhz * derating


def slowed(profile: HardwareProfile, latency_ms: Array) -> Array:
    """Latency with the share of time that scrubbing takes: t / (1 - share)."""
    share = profile.space.scrub_share if profile.space else 0.0
    return latency_ms / (1.0 - share)


def hardened(profile: HardwareProfile, blocks: Mapping[str, Array]) -> dict[str, Array]:
    """Blocks with triplication and with the check bits of memories that have none of their own."""
    space, resources = profile.space, profile.resources
    if space is None:
        return dict(blocks)
    memory = set(resources.memory) if resources else set()
    return {
        name: count * space.triplication.get(name, 1.0) * (space.memory_ecc if name in memory else 1.0)
        for name, count in blocks.items()
    }


def occupied(profile: HardwareProfile, blocks: Mapping[str, float]) -> tuple[bool, dict[str, float]]:
    """Whether blocks fit the part after hardening, and how many they are then."""
    wanted = {n: float(c) for n, c in hardened(profile, {n: np.array(c) for n, c in blocks.items()}).items()}
    limits = profile.resources.limits if profile.resources else {}
    return all(count <= limits.get(name, np.inf) for name, count in wanted.items()), wanted


def upsets_per_day(profile: HardwareProfile, cost: Cost, upsets_per_bit_day: float) -> float:
    """Expected upsets per day in the memory blocks that a network occupies, before any correction.

    rate x bits of the blocks in ``cost.resources``. The rate is the user's, from the vendor's report for the
    part, orbit and shielding; leanfront knows none.

    Raises:
        TableError: the rate is negative or not finite, or the profile does not say what its blocks hold.
    """
    if not 0 <= upsets_per_bit_day < np.inf:
        raise TableError(f"upsets per bit and day must be 0 or more, not {upsets_per_bit_day}")
    memory = profile.resources.memory if profile.resources else {}
    used = [name for name in cost.resources if name in memory]
    if not used:
        raise TableError(
            f"profile {profile.name!r} does not say which memory blocks a network occupies; upsets can be"
            " counted on FPGA profiles with [resources]"
        )
    return sum(cost.resources[name] * memory[name].bits for name in used) * upsets_per_bit_day


def energy_mj(profile: HardwareProfile, batch: PolicyBatch, latency_ms: Array, moved: Array) -> Array:
    """Energy of one inference in mJ: power_w x latency, or the parts of [power] where they are known.

    Args:
        moved: bytes from and to the memory outside.
    """
    power = profile.power
    if power is None:
        return latency_ms * profile.power_w  # W x ms = mJ
    bits = (batch.weight_bits + batch.activation_bits) / 16.0
    macs = (batch.macs * bits).sum(axis=0) + other_macs(batch)
    picojoules = macs * power.mac_pj + moved * power.outside_byte_pj
    return np.asarray(latency_ms * power.idle_w + picojoules * 1e-9)
