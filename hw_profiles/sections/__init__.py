"""What a cost model reads of a profile: one schema for each, in the table that has its name."""

from leanfront.hw_profiles.section import Measured
from leanfront.hw_profiles.sections.dataflow import Dataflow
from leanfront.hw_profiles.sections.microcontroller import Microcontroller
from leanfront.hw_profiles.sections.overlay import Overlay
from leanfront.hw_profiles.sections.roofline import Roofline

__all__ = ["Dataflow", "Measured", "Microcontroller", "Overlay", "Roofline"]
