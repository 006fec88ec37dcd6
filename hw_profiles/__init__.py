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
from leanfront.hw_profiles.profile import HardwareProfile, ProfileError, Roofline, Source

__all__ = [
    "HardwareProfile",
    "ProfileError",
    "Roofline",
    "Source",
    "find_profile",
    "load_profile",
    "profile_names",
    "profile_paths",
    "read_profile",
    "to_toml",
    "user_folder",
]
