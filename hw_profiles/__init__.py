"""What the hardware is: one TOML file per part, with a source for every number."""

from leanfront.hw_profiles.loading import (
    find_profile,
    load_profile,
    profile_names,
    profile_paths,
    read_profile,
    to_toml,
    user_folder,
)
from leanfront.hw_profiles.part import Part, Source
from leanfront.hw_profiles.profile import HardwareProfile, ProfileError
from leanfront.hw_profiles.section import Section, register_section
from leanfront.hw_profiles.sections import Roofline

__all__ = [
    "HardwareProfile",
    "Part",
    "ProfileError",
    "Roofline",
    "Section",
    "Source",
    "find_profile",
    "load_profile",
    "profile_names",
    "profile_paths",
    "read_profile",
    "register_section",
    "to_toml",
    "user_folder",
]
