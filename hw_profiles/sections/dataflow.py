"""The numbers of a streaming dataflow: a pipeline with an engine for each layer."""

from leanfront.hw_profiles.fpga import check_bits
from leanfront.hw_profiles.part import Part
from leanfront.hw_profiles.section import Section, register_section
from leanfront.hw_profiles.units import NotNegative, Positive


@register_section("dataflow")
class Dataflow(Section):
    """A pipeline with an engine for each layer (latency_models.fpga.dataflow has the formulas).

    input_bytes_per_cycle: how fast the input comes in. call_overhead_ms: per inference.
    lut_per_layer, lut_per_lane_bit, lut_per_multiplier, lut_per_adder_bit: coefficients of the logic of an
        engine: fixed, per bit of its streams, times FINN's term for a multiplier in logic, per bit of what a
        multiply-accumulate adds up.
    lut_multiplier_bits: weight and activation bits together up to which multipliers are made of logic.
    dsp_per_scale, dsp_base: DSP blocks per lane of a requantization above 4 bits, and of the interfaces.
    unrolled_zeros: an engine that makes all products of a position at once has its weights in its logic, and
        those that are 0 take none (hls4ml, strategy "latency").
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
    unrolled_zeros: bool = False

    def check(self, part: Part) -> None:
        """Raise ValueError for bits that the part has not, or where its blocks are not listed."""
        check_bits(self.model_name, part.supported, part.resources)
        if part.resources is None:
            raise ValueError(
                'model "dataflow" needs a table [resources]: the folding is chosen to fit the part'
            )

    def gain_of_zeros(self, pattern: str, share: float) -> float:
        """What is left of an unrolled engine is smaller by that much; the room goes to all engines. Zeros may
        lie anywhere, so that other patterns gain nothing over that."""
        return 1.0 / (1.0 - share) if self.unrolled_zeros and pattern == "unstructured" and share < 1 else 1.0
