"""What an FPGA profile says: its blocks, the architecture that runs on them, and what space asks of them."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]
Factor = Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1)]
CountOrNone = Annotated[int, Field(strict=True, ge=0)]
BlockName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=24)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Logic(_Section):
    """Lookup tables. ``per_lut6``: how many of them do the work of one 6-input table (1 on AMD parts)."""

    name: BlockName
    count: Count
    per_lut6: Factor = 1.0


class Multiplier(_Section):
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

    def macs_at(self, bits: int) -> float | None:
        """Multiply-accumulates per block and cycle in the narrowest mode wide enough, or None."""
        wide_enough = [width for width in map(int, self.macs) if width >= bits]
        return self.macs[str(min(wide_enough))] if wide_enough else None


class MemoryBlock(_Section):
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


class Resources(_Section):
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


class Overlay(_Section):
    """A fixed array that runs one layer after another (latency_models.fpga.overlay has the formulas).

    pixel_parallel, input_parallel, output_parallel: positions, input and output channels per cycle.
    input_multiple: input channels are stored in multiples of this.
    folds_kernel_width: with few input channels, columns of the kernel share their lanes.
    efficiency: share of its cycles that the array computes in.
    depthwise_pixel_parallel: positions per cycle of depthwise layers; left out: it runs none.
    write_pixels_per_ms: positions of all output channels that are stored per ms; left out: never a limit.
    window_bytes_per_cycle, elementwise_bytes_per_cycle, mean_bytes_per_cycle: values that pools read (each
        as often as windows hold it), that additions and the like write, and that global means read.
    bandwidth_bytes_per_ms: of the memory outside.
    weights: "ahead": the next weights load while a layer computes; "at_use": the first tile of each block of
        output channels waits for them.
    weight_memory_bytes: weights that stay on the chip between calls. features_outside: tensors go through the
        memory outside.
    layer_overhead_ms, call_overhead_ms: per layer with weights, per inference.
    pooled_bytes_per_ms: how fast tensors are pooled globally and scaled within the network (squeeze and
        excite).
    footprint: blocks that the array occupies.
    """

    clock_mhz: Positive
    pixel_parallel: Count
    input_parallel: Count
    output_parallel: Count
    input_multiple: Count = 1
    folds_kernel_width: bool = False
    efficiency: Share = 1.0
    depthwise_pixel_parallel: Count | None = None
    write_pixels_per_ms: Positive | None = None
    window_bytes_per_cycle: Positive
    elementwise_bytes_per_cycle: Positive
    mean_bytes_per_cycle: Positive
    bandwidth_bytes_per_ms: Positive
    weights: Literal["ahead", "at_use"]
    weight_memory_bytes: NotNegative = 0.0
    features_outside: bool
    layer_overhead_ms: NotNegative
    call_overhead_ms: NotNegative
    pooled_bytes_per_ms: Positive | None = None
    footprint: Mapping[BlockName, NotNegative] = Field(default_factory=dict)


class Dataflow(_Section):
    """A pipeline with an engine for each layer (latency_models.fpga.dataflow has the formulas).

    input_bytes_per_cycle: how fast the input comes in. call_overhead_ms: per inference.
    lut_per_layer, lut_per_lane_bit, lut_per_multiplier, lut_per_adder_bit: coefficients of the logic of an
        engine: fixed, per bit of its streams, times FINN's term for a multiplier in logic, per bit of what a
        multiply-accumulate adds up.
    lut_multiplier_bits: weight and activation bits together up to which multipliers are made of logic.
    dsp_per_scale, dsp_base: DSP blocks per lane of a requantization above 4 bits, and of the interfaces.
    """

    clock_mhz: Positive
    input_bytes_per_cycle: Positive
    call_overhead_ms: NotNegative = 0.0
    lut_per_layer: NotNegative
    lut_per_lane_bit: NotNegative
    lut_per_multiplier: NotNegative
    lut_per_adder_bit: NotNegative
    lut_multiplier_bits: NotNegative
    dsp_per_scale: NotNegative
    dsp_base: NotNegative


class Power(_Section):
    """Power in parts: energy = idle_w x latency + mac_pj x multiply-accumulates of 8 x 8 bits (fewer bits:
    in proportion to their sum) + outside_byte_pj x bytes from and to the memory outside."""

    idle_w: NotNegative
    mac_pj: NotNegative
    outside_byte_pj: NotNegative = 0.0


class Space(_Section):
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


SECTIONS: Mapping[str, type[BaseModel]] = {
    "resources": Resources,
    "overlay": Overlay,
    "dataflow": Dataflow,
    "power": Power,
    "space": Space,
}
_WITHIN: Mapping[str, type[BaseModel]] = {"logic": Logic, "multiplier": Multiplier, "memory": MemoryBlock}


def section_fields(location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields that the table at ``location`` (of a field in one of SECTIONS) may have."""
    inner = [_WITHIN[str(part)] for part in location[1:] if part in _WITHIN]
    return list((inner[-1] if inner else SECTIONS[str(location[0])]).model_fields)


def check_bits(model: str, supported: tuple[tuple[int, int], ...], resources: Resources | None) -> None:
    """Raise ValueError for bits that the part has no units for: these architectures compute in integers."""
    for pair in supported:
        if max(pair) > 8:
            raise ValueError(
                f"supported lists weights of {pair[0]} with activations of {pair[1]} bits, but model"
                f' "{model}" computes in integers of up to 8 bits'
            )
        if resources is not None and resources.multiplier.macs_at(max(pair)) is None:
            raise ValueError(
                f"supported lists weights of {pair[0]} with activations of {pair[1]} bits, but"
                f" resources.multiplier.macs ends at {max(map(int, resources.multiplier.macs))} bits"
            )


def check_sections(
    model: str,
    supported: tuple[tuple[int, int], ...],
    resources: Resources | None,
    overlay: Overlay | None,
    dataflow: Dataflow | None,
    space: Space | None,
) -> None:
    """Raise ValueError unless a profile has the tables that its model needs, and only blocks of its part."""
    for name, section in (("overlay", overlay), ("dataflow", dataflow)):
        if model == name and section is None:
            raise ValueError(f'model "{name}" needs a table [{name}]')
        if model != name and section is not None:
            raise ValueError(f'model "{model}" does not use the table [{name}]; take it out')
    if overlay is not None or dataflow is not None:
        check_bits(model, supported, resources)
    if model == "dataflow" and resources is None:
        raise ValueError('model "dataflow" needs a table [resources]: the folding is chosen to fit the part')
    known = list(resources.limits) if resources else []
    named = {"space.triplication": space.triplication if space else {}}
    named["overlay.footprint"] = overlay.footprint if overlay else {}
    for where, blocks in named.items():
        if unknown := [block for block in blocks if block not in known]:
            raise ValueError(f"{where} names {unknown[0]}, but [resources] has {', '.join(known) or 'none'}")
    if overlay is not None and resources is not None:
        for block, count in overlay.footprint.items():
            if count > resources.limits[block]:
                limit = resources.limits[block]
                raise ValueError(f"overlay.footprint takes {count:g} {block}, of {limit:g} to use")
