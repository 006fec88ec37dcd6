"""The base of all sections, and the one list of them: value of ``model`` in a profile -> its schema."""

from collections.abc import Callable
from typing import ClassVar, TypeVar

from leanfront.hw_profiles.part import Part
from leanfront.hw_profiles.units import Frozen

_SECTIONS: "dict[str, type[Section]]" = {}


class Section(Frozen):
    """The numbers that one cost model reads. A section without fields has no table in a profile.

    Names of numbers end in their unit (hw_profiles.units); ``pure_numbers`` names those that have none.
    ``stand_in``: what latency and energy are, where no latency of the part is claimed.
    """

    model_name: ClassVar[str] = ""
    pure_numbers: ClassVar[frozenset[str]] = frozenset()
    stand_in: ClassVar[str] = ""

    def check(self, part: Part) -> None:
        """Raise ValueError where the section contradicts the part that it stands for."""

    def gain_of_zeros(self, pattern: str, share: float) -> float:
        """By how much faster a layer runs with this share of its weights 0 in a pattern (compression.policy.
        zeros); below 1: it is slower than dense. 1 where nothing is said of it."""
        return 1.0


S = TypeVar("S", bound=Section)


def register_section(model: str) -> Callable[[type[S]], type[S]]:
    """Decorator of a section: profiles with this ``model`` have it, in a table of the same name.

    Raises:
        ValueError: the name is taken by another section, or by a field of all profiles.
    """

    def register(section: type[S]) -> type[S]:
        if model in Part.model_fields:
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
    return tuple(sorted(_SECTIONS))


def section_named(model: object) -> type[Section] | None:
    """The section of a model; None where there is no such model."""
    return _SECTIONS.get(model) if isinstance(model, str) else None


@register_section("measured")
class Measured(Section):
    """A part whose kernels are timed: its numbers are in a latency table, not in the profile."""
