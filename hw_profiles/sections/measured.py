"""A part whose kernels are timed: its numbers are in a latency table, not in the profile."""

from leanfront.hw_profiles.section import Section, register_section


@register_section("measured")
class Measured(Section):
    """No numbers."""
