"""Finding and reading profiles: built in, in the user's folder, or any file."""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leanfront.hw_profiles.near import did_you_mean
from leanfront.hw_profiles.profile import HardwareProfile, ProfileError

BUILT_IN = Path(__file__).parent


def user_folder() -> Path:
    """Where the user's own profiles are: $LEANFRONT_PROFILES, or else ~/.config/leanfront/profiles."""
    named = os.environ.get("LEANFRONT_PROFILES")
    return Path(named).expanduser() if named else Path.home() / ".config" / "leanfront" / "profiles"


def profile_paths() -> dict[str, Path]:
    """Profile name -> file, sorted by name. A user's file goes before the built-in one of the same name."""
    files = [*BUILT_IN.glob("*.toml"), *user_folder().glob("*.toml")]
    return dict(sorted({path.stem: path for path in files}.items()))


def profile_names() -> tuple[str, ...]:
    """The names that ``load_profile`` finds."""
    return tuple(profile_paths())


def load_profile(name_or_path: str | Path) -> HardwareProfile:
    """The profile of that name, or in that file (anything that ends in .toml or has a slash).

    Raises:
        ProfileError: there is none, or it is not valid.
    """
    return read_profile(find_profile(name_or_path))


def find_profile(name_or_path: str | Path) -> Path:
    """The file of a profile; raises ProfileError as ``load_profile`` does when there is none."""
    wanted = str(name_or_path)
    if wanted.endswith(".toml") or "/" in wanted or os.sep in wanted:
        try:
            return Path(wanted).expanduser()
        except RuntimeError as error:  # of a user that does not exist
            raise ProfileError(f"cannot read the profile {wanted}: {error}") from error
    paths = profile_paths()
    if wanted not in paths:
        raise ProfileError(
            f"no hardware profile {wanted!r}; {did_you_mean(wanted, paths)}there are {', '.join(paths)}"
            f" (own ones go into {user_folder()})"
        )
    return paths[wanted]


def read_profile(path: Path) -> HardwareProfile:
    """Read and check one file.

    Raises:
        ProfileError: not there, not TOML, or not a valid profile; the name must be that of the file.
    """
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"cannot read the profile {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not text, not TOML, too many digits or brackets, no path
        raise ProfileError(f"{path} is not TOML: {error}") from error
    profile = HardwareProfile.of(fields, where=str(path))
    if profile.name != path.stem:
        raise ProfileError(f'{path}: the name must be that of the file, "{path.stem}", not "{profile.name}"')
    return profile


def to_toml(profile: HardwareProfile) -> str:
    """The profile as the text of a TOML file that ``read_profile`` reads back."""
    fields = profile.model_dump(by_alias=True, exclude_none=True)
    sources = fields.pop("sources")
    lines = [*_table(fields, ""), "", "[sources]"]
    for path, entry in sources.items():
        given = {"status": entry["status"], "from": entry["from"]}
        said = ", ".join(f"{name} = {toml_value(value)}" for name, value in given.items())
        lines.append(f"{toml_value(path)} = {{ {said} }}")
    return "\n".join(lines) + "\n"


def _table(fields: Mapping[str, Any], path: str) -> list[str]:
    lines = [f"\n[{path}]"] if path else []
    lines += [f"{toml_key(k)} = {toml_value(v)}" for k, v in fields.items() if not isinstance(v, Mapping)]
    for key, value in fields.items():
        if isinstance(value, Mapping) and value:
            lines += _table(value, f"{path}.{key}" if path else key)
    return lines


def toml_key(key: str) -> str:
    """A key of TOML, quoted where it must be."""
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else toml_value(key)


def toml_value(value: Any) -> str:
    """One TOML value. JSON's strings are TOML's, but for DEL, which TOML wants escaped."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, Mapping):
        pairs = (f"{toml_key(key)} = {toml_value(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, float):
        return repr(value)  # repr says inf and nan as TOML does
    return str(value)  # integers, and TOML's dates and times, whose str is their TOML form
