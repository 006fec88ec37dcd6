"""A hardware profile: the facts that a latency model needs about one part, each with its source."""

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from pydantic import (
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    create_model,
    model_serializer,
    model_validator,
)
from pydantic_core import to_json

from leanfront.hw_profiles.fpga import INNER_TABLES
from leanfront.hw_profiles.near import did_you_mean
from leanfront.hw_profiles.part import Part
from leanfront.hw_profiles.section import Section, model_names, section_named
from leanfront.hw_profiles.sections import Measured
from leanfront.hw_profiles.units import UNITS, unit_of


class ProfileError(ValueError):
    """A profile that is not there, cannot be read, or contradicts itself; or asked for what it has not."""


class HardwareProfile(Part):
    """One part, as the TOML file of the same name describes it.

    ``of`` makes one: of the class that has, besides, the section of its ``model`` (hw_profiles.sections).
    """

    @property
    def section(self) -> Section:
        """The numbers that the part's cost model reads; its class finds the model."""
        found = self.__dict__.get(self.model)
        return found if isinstance(found, Section) else Measured()

    @property
    def measured(self) -> bool:
        """Whether the part's kernels are timed, and not computed."""
        return isinstance(self.section, Measured)

    @model_validator(mode="after")
    def _complete(self) -> "HardwareProfile":
        self.section.check(self)
        self.check_blocks("space.triplication", self.space.triplication if self.space else {})
        self._check_units()
        self._check_sources()
        return self

    @model_serializer(mode="wrap")
    def _in_order(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """The order that files and digests have had from the first version on, with nothing for the tables
        that a profile had not then."""
        fields: dict[str, Any] = handler(self)
        sources = fields.pop("sources", None)
        if fields.get("engine") == "onnxruntime":
            fields.pop("engine")
        first = [name for name in fields if name not in _TABLES and name != self.model]
        others = [name for name in fields if name not in (*_TABLES, *first)]
        found = {name: fields.get(name) for name in (*first, *_TABLES, *others)}
        if info.exclude_none:
            found = {name: value for name, value in found.items() if value is not None}
        return found if sources is None else {**found, "sources": sources}

    def _check_units(self) -> None:
        for path in self.numbers:
            if unit_of(path, self.section.pure_numbers) is None:
                raise ValueError(
                    f"{path} has no unit: the end of a number's name says it, such as clock_mhz; there are"
                    f" {', '.join(UNITS)}, and _count for what is counted"
                )

    def _check_sources(self) -> None:
        numbers = self.numbers
        for path in numbers:
            if self.source(path) is None:
                raise ValueError(
                    f"{path} has no source; add to [sources]:"
                    f' "{path}" = {{ status = "assumed", from = "..." }}'
                )
        for path in self.sources:
            if not any(number == path or number.startswith(f"{path}.") for number in numbers):
                hint = did_you_mean(path, numbers).strip() or f"there are {', '.join(numbers)}"
                raise ValueError(f"sources names {path}, which is no number of this profile; {hint}")

    @property
    def numbers(self) -> dict[str, Any]:
        """Every number of the profile by field path; the pairs of ``supported`` are one entry."""
        fields = self.model_dump(exclude=_WORDS)
        return dict(_leaves(fields, ""))

    @property
    def estimate_sentence(self) -> str:
        """What to say beside latencies and energies that are computed from assumed numbers, or nothing.

        It begins with what is estimated. Of a measured part that is the energy, while its power is assumed.
        """
        assumed = [path for path in self.sources if self.sources[path].status == "assumed"]
        if self.measured:
            if "power_w" not in assumed:
                return ""
            return f"Energy is estimated: power_w of profile {self.name!r} is assumed, {self.power_w:g} W"
        if not assumed:
            return ""
        if self.section.stand_in:
            return f"Latency and energy are estimated: {self.section.stand_in}; profile {self.name!r}"
        named = ", ".join(assumed[:4]) + (f" and {len(assumed) - 4} more" if len(assumed) > 4 else "")
        return (
            f"Latency and energy are estimated: numbers of profile {self.name!r} are assumed"
            f" ({named}; `leanfront profile show {self.name}` has all sources)"
        )

    @property
    def digest(self) -> str:
        """Hash of all fields: two profiles with equal digests give equal answers."""
        return hashlib.sha256(to_json(self.model_dump(by_alias=True))).hexdigest()[:16]

    @staticmethod
    def of(fields: Mapping[str, Any], where: str) -> "HardwareProfile":
        """A profile from the tables of a TOML file; ``where`` names it in errors.

        Raises:
            ProfileError: a field is missing, unknown, impossible or without a source; the first is named.
        """
        try:
            given = {name: v for name, v in fields.items() if v is not None or name not in model_names()}
            return _class_for(given).model_validate(given)
        except ValidationError as error:
            raise ProfileError(f"{where}: {_sentence(error)}") from error
        except ValueError as error:
            raise ProfileError(f"{where}: {error}") from error


_WORDS = {"name", "description", "kind", "engine", "model", "pattern", "sources"}
_TABLES = ("roofline", "resources", "overlay", "dataflow", "power", "space")


def _class_for(fields: Mapping[str, Any]) -> type[HardwareProfile]:
    """The class of profiles of this model; raises ValueError where the model and the tables do not agree."""
    model = fields.get("model")
    section = section_named(model)
    if section is None:
        if model is None:
            return HardwareProfile  # which says that it is missing
        *names, last = map(repr, model_names())
        raise ValueError(f"model: input should be {', '.join(names)} or {last}, not {model!r}")
    for name in model_names():
        if name in fields and name != model:
            raise ValueError(f'model "{model}" does not use the table [{name}]; take it out')
    if not section.model_fields:
        return HardwareProfile
    if model not in fields:
        raise ValueError(f'model "{model}" needs a table [{model}]')
    return _with_section(section)


@cache
def _with_section(section: type[Section]) -> type[HardwareProfile]:
    fields: dict[str, Any] = {section.model_name: (section, ...)}
    return create_model("HardwareProfile", __base__=HardwareProfile, **fields)


def _leaves(fields: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for key, value in fields.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _field_names(first["loc"][:-1])
        hint = did_you_mean(str(first["loc"][-1]), known).strip() or f"there are {', '.join(known)}"
        return f"{path} is no field of a profile; {hint}"
    if first["type"] == "missing":
        return f"{path} is missing"
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        return f"{path}: {message}" if path else message
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{path}: {message}, not {first['input']!r}"


def _field_names(location: tuple[int | str, ...]) -> list[str]:
    section = section_named(location[0]) if location else None
    if section is not None:
        return list(section.model_fields)
    if inner := [INNER_TABLES[str(part)] for part in location if part in INNER_TABLES]:
        return list(inner[-1].model_fields)
    if location[:1] == ("sources",):
        return ["status", "from"]
    return [*HardwareProfile.model_fields, *model_names()]
