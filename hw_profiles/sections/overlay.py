"""The numbers of an overlay accelerator: one fixed array runs the layers one after another."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from leanfront.hw_profiles.fpga import BlockName, check_bits
from leanfront.hw_profiles.part import Part
from leanfront.hw_profiles.section import Section, register_section
from leanfront.hw_profiles.units import Count, NotNegative, Positive, Share


@register_section("overlay")
class Overlay(Section):
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

    def check(self, part: Part) -> None:
        """Raise ValueError for bits and blocks that the part has not."""
        check_bits(self.model_name, part.supported, part.resources)
        part.check_blocks("overlay.footprint", self.footprint)
        if part.resources is not None:
            for block, count in self.footprint.items():
                if count > (limit := part.resources.limits[block]):
                    raise ValueError(f"overlay.footprint takes {count:g} {block}, of {limit:g} to use")
