"""The numbers of a microcontroller: what a network has to fit into."""

from typing import ClassVar

from leanfront.hw_profiles.section import Section, register_section
from leanfront.hw_profiles.units import Count, Positive


@register_section("microcontroller")
class Microcontroller(Section):
    """flash_bytes: what there is for a network's file. ram_bytes: for the interpreter's arena. macs_per_ms:
    multiply-accumulates that stand for a millisecond, so that smaller networks are told from larger ones: no
    latency of any part."""

    stand_in: ClassVar[str] = (
        "no latency is claimed, multiply-accumulates stand for it (microcontroller.macs_per_ms)"
    )
    flash_bytes: Count
    ram_bytes: Count
    macs_per_ms: Positive
