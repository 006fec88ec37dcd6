"""What an FPGA has, whatever runs on it: its blocks, its power in parts, and what space asks of it."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, Field, field_validator, model_validator

from leanfront.hw_profiles.units import Count, CountOrNone, Factor, Frozen, NotNegative, Positive, Share

BlockName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=24)]


class Logic(Frozen):
    """Lookup tables. ``per_lut6``: how many of them do the work of one 6-input table (1 on AMD parts)."""

    name: BlockName
    count: Count
    per_lut6: Factor = 1.0


class Multiplier(Frozen):
    """DSP blocks. ``macs``: multiply-accumulates per block and cycle by the bits of the wider operand."""

    name: BlockName
    count: Count
    macs: Mapping[str, Positive] = Field(min_length=1)

    @field_validator("macs")
    @classmethod
    def _bits(cls, macs: Mapping[str, float]) -> Mapping[str, float]:
        for bits in macs:
            if not bits.isdigit() or not 1 <= int(bits) <= 32:
                raise ValueError(f"macs is by bits from 1 to 32, not {bits!r}")
        return macs


class MemoryBlock(Frozen):
    """One kind of memory block. ``shapes``: [width in bits, depth in words] that a block can be set to.

    ``halves``: 2 where a block can be used as two independent halves and the shapes are those of a half.
    """

    count: CountOrNone
    bits: Count
    shapes: tuple[tuple[Count, Count], ...] = Field(min_length=1)
    halves: Count = 1

    @model_validator(mode="after")
    def _consistent(self) -> "MemoryBlock":
        for width, depth in self.shapes:
            if width * depth * self.halves > self.bits:
                raise ValueError(
                    f"shape {width} x {depth} ({self.halves} to a block) holds more than the {self.bits} bits"
                    " of a block"
                )
        return self


class Resources(Frozen):
    """Blocks of a part by kind, under the names that its maker gives them.

    ``memory``: buffers go into the first kind, weights into either where there are two. ``usable``: share of
    each that a design which meets its clock fills.
    """

    logic: Logic
    multiplier: Multiplier
    memory: Mapping[BlockName, MemoryBlock] = Field(min_length=1, max_length=2)
    usable: Share = 1.0

    @property
    def limits(self) -> dict[str, float]:
        """Kind -> blocks that a design may use."""
        counts = {self.logic.name: self.logic.count, self.multiplier.name: self.multiplier.count}
        counts |= {name: block.count for name, block in self.memory.items()}
        return {name: count * self.usable for name, count in counts.items()}


class Power(Frozen):
    """Power in parts: energy = idle_w x latency + mac_pj x multiply-accumulates of 8 x 8 bits (fewer bits:
    in proportion to their sum) + outside_byte_pj x bytes from and to the memory outside."""

    idle_w: NotNegative
    mac_pj: NotNegative
    outside_byte_pj: NotNegative = 0.0


class Space(Frozen):
    """What radiation costs.

    triplication: kind of block -> by how much its use is multiplied. memory_ecc: bits stored per bit of data.
    clock_derating: share of ``clock_mhz`` that remains. scrub_period_ms, scrub_share: how often the
    configuration is scrubbed, and the share of time that it takes from computing.
    configuration_immune: the configuration is not upset (flash). upsets_per_bit_day: your own rate, from the
    vendor's report for your orbit; none is shipped.
    """

    triplication: Mapping[BlockName, Factor] = Field(default_factory=dict)
    memory_ecc: Factor = 1.0
    clock_derating: Share = 1.0
    scrub_period_ms: Positive | None = None
    scrub_share: Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)] = 0.0
    configuration_immune: bool = False
    upsets_per_bit_day: NotNegative | None = None


def check_bits(model: str, supported: tuple[tuple[int, int], ...], resources: Resources | None) -> None:
    """Raise ValueError for bits that the part has no units for: these architectures compute in integers."""
    widest = max(map(int, resources.multiplier.macs)) if resources is not None else 8
    for pair in supported:
        if max(pair) > 8:
            raise ValueError(
                f"supported lists weights of {pair[0]} with activations of {pair[1]} bits, but model"
                f' "{model}" computes in integers of up to 8 bits'
            )
        if max(pair) > widest:
            raise ValueError(
                f"supported lists weights of {pair[0]} with activations of {pair[1]} bits, but"
                f" resources.multiplier.macs ends at {widest} bits"
            )


INNER_TABLES: Mapping[str, type[BaseModel]] = {
    "resources": Resources, "power": Power, "space": Space,
    "logic": Logic, "multiplier": Multiplier, "memory": MemoryBlock,
}  # fmt: skip
"""Name of a table of a part, or of one within it -> its schema."""
