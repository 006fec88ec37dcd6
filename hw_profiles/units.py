"""The unit of every number of a profile: the end of its name, or it is known to be a pure number."""

from collections.abc import Collection

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
        "fused_activations", "folds_kernel_width", "weights", "features_outside", "configuration_immune",
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
