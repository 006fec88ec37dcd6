"""The base of all sections, and the one list of them: value of ``model`` in a profile -> its schema."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from leanfront.hw_profiles.profile import HardwareProfile

Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]
ShareOrNone = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Factor = Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1)]
CountOrNone = Annotated[int, Field(strict=True, ge=0)]

WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8, 16, 32)
"""Bits that weights may have, and that units compute in."""
ACTIVATION_BITS = (4, 8, 16, 32)

TAKEN: set[str] = set()
"""Names of the fields that all profiles have, which no section can bear."""
_SECTIONS: "dict[str, type[Section]]" = {}


class Frozen(BaseModel):
    """A table of a profile: nothing in it changes, and it has no other fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Section(Frozen):
    """The numbers that one cost model reads. A section without fields has no table in a profile.

    Names of numbers end in their unit (hw_profiles.units); ``pure_numbers`` names those that have none.
    """

    model_name: ClassVar[str] = ""
    pure_numbers: ClassVar[frozenset[str]] = frozenset()

    def check(self, part: "HardwareProfile") -> None:
        """Raise ValueError where the section contradicts the part that it stands for."""


S = TypeVar("S", bound=Section)


def register_section(model: str) -> Callable[[type[S]], type[S]]:
    """Decorator of a section: profiles with this ``model`` have it, in a table of the same name.

    Raises:
        ValueError: the name is taken by another section, or by a field of all profiles.
    """

    def register(section: type[S]) -> type[S]:
        if model in TAKEN:
            raise ValueError(f"{model!r} is a field of every profile; give the section another name")
        known = _SECTIONS.get(model)
        if known is not None and known.__qualname__ != section.__qualname__:
            raise ValueError(
                f"model {model!r} is taken by {known.__qualname__}; give the section another name"
            )
        section.model_name = model
        _SECTIONS[model] = section
        return section

    return register


def model_names() -> tuple[str, ...]:
    """The values that ``model`` may have in a profile."""
    return tuple(_SECTIONS)


def section_named(model: object) -> type[Section] | None:
    """The section of a model; None where there is no such model."""
    return _SECTIONS.get(model) if isinstance(model, str) else None


@register_section("measured")
class Measured(Section):
    """A part whose kernels are timed: its numbers are in a latency table, not in the profile."""
