"""The numbers of a profile: what they may be, and their units, which the end of a name says."""

from collections.abc import Collection
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]
ShareOrNone = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Factor = Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1)]
CountOrNone = Annotated[int, Field(strict=True, ge=0)]

WEIGHT_BITS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)
"""Bits that weights may have, and that units compute in."""
ACTIVATION_BITS = (2, 3, 4, 5, 6, 7, 8, 16, 32)


class Frozen(BaseModel):
    """A table of a profile: nothing in it changes, and it has no other fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


UNITS = (
    "ms", "us", "ns", "s", "hz", "mhz", "ghz", "w", "mw", "pj", "nj", "mj", "bytes", "kib", "mib", "gib",
    "cycle", "day", "v", "nm", "c",
)  # fmt: skip
"""Last part of a name (after an underscore): what the number is in. ``x_per_ms`` is x per millisecond; c:
degrees Celsius, nm: nanometres, mj: millijoules, mw: milliwatts."""

PURE_NUMBERS = frozenset(
    {
        # counts, and pairs and lists of them
        "supported", "channel_multiple", "alignment", "count", "bits", "shapes", "halves", "macs",
        "footprint", "pixel_parallel", "input_parallel", "output_parallel", "depthwise_pixel_parallel",
        "input_multiple", "dsp_base", "lut_per_layer", "lut_per_lane_bit", "lut_per_multiplier",
        "lut_per_adder_bit", "lut_multiplier_bits", "dsp_per_scale",
        # ratios and shares
        "efficiency", "depthwise_efficiency", "bandwidth_efficiency", "overlap", "im2col_passes",
        "gathered_passes", "tensor_passes", "two_four_gain", "unstructured_break_even", "unstructured_floor",
        "usable", "per_lut6", "triplication", "memory_ecc", "clock_derating", "scrub_share",
        # choices, which have a source like numbers
        "fused_activations", "fused_sums", "folds_kernel_width", "weights", "features_outside",
        "configuration_immune", "unrolled_zeros",
        "name",
    }
)  # fmt: skip
"""Names of numbers without a unit."""


def unit_of(path: str, pure: Collection[str] = ()) -> str | None:
    """The unit of the number at a field path, "1" for pure numbers, None where its name does not say.

    ``pure``: names of pure numbers besides PURE_NUMBERS.

    Numbers in a table of numbers ("roofline.macs_per_ms.8", "overlay.footprint.LUT") have the table's unit.
    """
    for name in reversed(path.split(".")):
        if name in PURE_NUMBERS or name in pure or name.endswith("_count"):
            return "1"
        _, separator, end = name.rpartition("_")
        if separator and end in UNITS:
            return end
    return None
