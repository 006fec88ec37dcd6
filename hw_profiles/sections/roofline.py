"""The numbers of the roofline model: a part's peaks, and what share of them networks reach."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from leanfront.hw_profiles.part import Part
from leanfront.hw_profiles.section import Section, register_section
from leanfront.hw_profiles.units import WEIGHT_BITS, Count, Factor, NotNegative, Positive, Share, ShareOrNone

ACTIVATIONS = ("hardswish", "silu", "gelu", "sigmoid", "tanh", "leaky_relu", "hardsigmoid")
"""What a part may fuse besides ReLU, ReLU6 and batch norm, which are never kernels behind a layer."""


@register_section("roofline")
class Roofline(Section):
    """The numbers of the roofline model; latency_models.roofline.model says how they make a latency.

    Peaks, from data sheets: macs_per_ms, multiply-accumulates by the bits of the wider operand, and
    bandwidth_bytes_per_ms. What networks reach of them: efficiency and depthwise_efficiency by bits (of
    macs_per_ms), bandwidth_efficiency. All by-bits tables but macs_per_ms may leave bits out.

    overhead_ms: what each kernel costs before it computes anything.
    overlap: 1: a kernel takes the longer of arithmetic and traffic; 0: their sum.
    value_ns: each value that is packed, requantized or stored, besides its bytes.
    im2col_passes: how often the matrix of windows of a convolution larger than 1x1 crosses memory; 0 where
        windows are gathered on the fly.
    image_value_ns: each value of the network's input, converted and handed over, by bits of that tensor.
    gathered_passes: how often a tensor crosses memory that a layer table says nothing about (a concat, slice
        or sum between two listed layers).
    conversion_overhead_ms: a change of precision between two kernels, besides its traffic; left out: free.
    alignment: [input channels per group, output channels] are computed in multiples of these, by bits.
    joined_value_ns: each value of a tensor that joins whole maps over their positions, between two layers of
        a layer table: what a detection head does around it (transposes, softmax, arithmetic on boxes).
    packed_channel_count: a layer of at most so many input channels (of an image) has kernels that read them
        in so many and multiply those of all taps as one sum, rounded up to the alignment; left out: it
        computes whole alignments of channels at each tap.
    sum_byte_ns: what each byte of a sum (input channels x taps) takes at least where a layer has more than
        one position, however many multiprocessors compute: weights that nothing has fetched beforehand are
        waited for, one step of the sum after the other.
    fused_sums: the sum of what a layer makes and another tensor, in floats, is made by the layer's kernel,
        which reads the other tensor besides.
    tensor_passes: how often the inputs and the output of a layer cross memory; weights do once.
    multiprocessor_count: of a GPU; each computes tile_position_count x tile_channel_count outputs of a dense
        layer at a time, and a layer takes the time of whole waves of whole tiles. All three or none.
    fused_activations: activations that are free behind a layer.
    two_four_gain: how much faster a layer with 2:4 sparse weights is; left out: no faster.
    unstructured_break_even: sparsity at which a sparse layer takes as long as a dense one, and
        unstructured_floor: share of the dense time that remains when nearly all weights are 0; left out:
        zeros gain nothing.
    memory_power_w: power while a kernel waits for memory; left out: power_w.
    """

    macs_per_ms: Mapping[str, Positive] = Field(min_length=1)
    bandwidth_bytes_per_ms: Positive
    overhead_ms: NotNegative
    efficiency: Mapping[str, Share] = Field(default_factory=dict)
    depthwise_efficiency: Mapping[str, Share] = Field(default_factory=dict)
    bandwidth_efficiency: Share | None = None
    overlap: ShareOrNone | None = None
    value_ns: NotNegative | None = None
    im2col_passes: NotNegative | None = None
    image_value_ns: Mapping[str, NotNegative] = Field(default_factory=dict)
    gathered_passes: NotNegative | None = None
    joined_value_ns: NotNegative | None = None
    packed_channel_count: Count | None = None
    sum_byte_ns: NotNegative | None = None
    fused_sums: bool | None = None
    tensor_passes: Factor | None = None
    conversion_overhead_ms: NotNegative | None = None
    alignment: Mapping[str, tuple[Count, Count]] = Field(default_factory=dict)
    multiprocessor_count: Count | None = None
    tile_position_count: Count | None = None
    tile_channel_count: Count | None = None
    fused_activations: tuple[str, ...] | None = None
    two_four_gain: Factor | None = None
    unstructured_break_even: Annotated[float, Field(strict=True, gt=0, lt=1)] | None = None
    unstructured_floor: Annotated[float, Field(strict=True, ge=0, lt=1)] | None = None
    memory_power_w: Positive | None = None

    @field_validator("macs_per_ms", "efficiency", "depthwise_efficiency", "image_value_ns", "alignment")
    @classmethod
    def _known_bits(cls, by_bits: Mapping[str, object]) -> Mapping[str, object]:
        for bits in by_bits:
            if bits not in map(str, WEIGHT_BITS):
                raise ValueError(f"the bits must be among {WEIGHT_BITS}, not {bits!r}")
        return by_bits

    @field_validator("fused_activations")
    @classmethod
    def _known_activations(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in names or ():
            if name not in ACTIVATIONS:
                raise ValueError(f"an activation is one of {', '.join(ACTIVATIONS)}, not {name!r}")
        return names

    @model_validator(mode="after")
    def _consistent(self) -> "Roofline":
        for field in ("efficiency", "depthwise_efficiency", "alignment"):
            for bits in getattr(self, field):
                if bits not in self.macs_per_ms:
                    raise ValueError(
                        f"{field} is given at {bits} bits, but macs_per_ms has no unit of {bits} bits;"
                        f" there are {', '.join(self.macs_per_ms)}"
                    )
        if (self.unstructured_break_even is None) != (self.unstructured_floor is None):
            raise ValueError("give both unstructured_break_even and unstructured_floor, or none of them")
        tiling = (self.multiprocessor_count, self.tile_position_count, self.tile_channel_count)
        if len({number is None for number in tiling}) > 1:
            raise ValueError(
                "give all of multiprocessor_count, tile_position_count and tile_channel_count, or none"
            )
        return self

    def unit(self, bits: int) -> int | None:
        """Bits of the narrowest unit that is wide enough for ``bits``, or None."""
        return min((width for width in map(int, self.macs_per_ms) if width >= bits), default=None)

    def gain_of_zeros(self, pattern: str, share: float) -> float:
        """2:4: the measured gain (of whole networks), never the 2 of the data sheet. Unstructured: time falls
        linearly with the share of weights that are left, from more than the dense layer's time down to
        unstructured_floor; at unstructured_break_even both are alike.
        """
        if share <= 0.0:
            return 1.0
        if pattern == "2:4":
            return self.two_four_gain or 1.0
        even, floor = self.unstructured_break_even, self.unstructured_floor
        if pattern == "unstructured" and even is not None and floor is not None:
            return 1.0 / (floor + (1.0 - floor) * (1.0 - share) / (1.0 - even))
        return 1.0

    def check(self, part: Part) -> None:
        """Raise ValueError for bits that the part has no unit for."""
        for weight_bits, activation_bits in part.supported:
            if self.unit(max(weight_bits, activation_bits)) is None:
                raise ValueError(
                    f"supported lists weights of {weight_bits} with activations of {activation_bits} bits,"
                    f" but roofline.macs_per_ms ends at {max(map(int, self.macs_per_ms))} bits"
                )
