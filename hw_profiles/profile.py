"""A hardware profile: the facts that a latency model needs about one part, each with its source."""

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from leanfront.hw_profiles.sections.fpga import (
    SECTIONS,
    Dataflow,
    Overlay,
    Power,
    Resources,
    Space,
    check_sections,
    section_fields,
)
from leanfront.hw_profiles.sections.roofline import Roofline as Roofline
from leanfront.hw_profiles.units import UNITS, unit_of

WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8, 16, 32)
ACTIVATION_BITS = (4, 8, 16, 32)

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1)]
Bits = Annotated[int, Field(strict=True)]
SpecName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]


class ProfileError(ValueError):
    """A profile that is not there, cannot be read, or contradicts itself; or asked for what it has not."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Frozen):
    """Where a number is from. ``assumed``: nobody measured or published it for this part."""

    status: Literal["measured", "published", "calibrated", "assumed"]
    from_: str = Field(alias="from")

    @field_validator("from_")
    @classmethod
    def _says_something(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("a source names where the number is from and must not be blank")
        return text


class HardwareProfile(_Frozen):
    """One part, as the TOML file of the same name describes it. hw_profiles/README.md lists the fields.

    ``specs`` are facts of the part that no model reads (clocks, counts of units): what the other numbers were
    derived from.
    """

    name: Name
    description: str = Field(min_length=1)
    kind: Literal["cpu", "gpu", "fpga"]
    model: Literal["measured", "roofline", "overlay", "dataflow"]
    supported: tuple[tuple[Bits, Bits], ...] = Field(min_length=1)
    pattern: Literal["channel", "2:4", "block", "unstructured"] = "channel"
    channel_multiple: Count
    power_w: Positive
    memory_bytes: Count | None = None
    specs: Mapping[SpecName, Positive] = Field(default_factory=dict)
    roofline: Roofline | None = None
    resources: Resources | None = None
    overlay: Overlay | None = None
    dataflow: Dataflow | None = None
    power: Power | None = None
    space: Space | None = None
    sources: Mapping[str, Source]

    @field_validator("supported")
    @classmethod
    def _bits_in_range(cls, pairs: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        for index, (weight_bits, activation_bits) in enumerate(pairs):
            if (weight_bits, activation_bits) in pairs[:index]:
                raise ValueError(
                    f"weights of {weight_bits} with activations of {activation_bits} bits are listed twice;"
                    " list every pair once"
                )
            if weight_bits not in WEIGHT_BITS:
                raise ValueError(f"weight bits must be among {WEIGHT_BITS}, not {weight_bits}")
            if activation_bits not in ACTIVATION_BITS:
                raise ValueError(f"activation bits must be among {ACTIVATION_BITS}, not {activation_bits}")
        return pairs

    @model_validator(mode="after")
    def _complete(self) -> "HardwareProfile":
        if self.model == "roofline" and self.roofline is None:
            raise ValueError('model "roofline" needs a table [roofline]')
        if self.model != "roofline" and self.roofline is not None:
            raise ValueError(f'model "{self.model}" does not use the table [roofline]; take it out')
        if self.roofline is not None:
            for weight_bits, activation_bits in self.supported:
                if self.roofline.rate(max(weight_bits, activation_bits)) is None:
                    raise ValueError(
                        f"supported lists weights of {weight_bits} with activations of"
                        f" {activation_bits} bits, but roofline.macs_per_ms ends at"
                        f" {max(map(int, self.roofline.macs_per_ms))} bits"
                    )
        check_sections(self.model, self.supported, self.resources, self.overlay, self.dataflow, self.space)
        self._check_units()
        self._check_sources()
        return self

    def _check_units(self) -> None:
        for path in self.numbers:
            if unit_of(path) is None:
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
                near = difflib.get_close_matches(path, numbers, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(numbers)}"
                raise ValueError(f"sources names {path}, which is no number of this profile{hint}")

    @property
    def numbers(self) -> dict[str, Any]:
        """Every number of the profile by field path; the pairs of ``supported`` are one entry."""
        fields = self.model_dump(exclude={"name", "description", "kind", "model", "pattern", "sources"})
        return dict(_leaves(fields, ""))

    def source(self, path: str) -> Source | None:
        """The source of a number: its own entry, or else that of the table it stands in."""
        while path:
            if path in self.sources:
                return self.sources[path]
            path = path.rpartition(".")[0]
        return None

    @property
    def estimated(self) -> bool:
        """Whether any number is assumed: what is computed from this profile is then an estimate."""
        return any(source.status == "assumed" for source in self.sources.values())

    @property
    def estimate_sentence(self) -> str:
        """What to say beside latencies and energies that are computed from assumed numbers, or nothing.

        It begins with what is estimated. Of a measured part that is the energy, while its power is assumed.
        """
        assumed = [path for path in self.sources if self.sources[path].status == "assumed"]
        if self.model == "measured":
            if "power_w" not in assumed:
                return ""
            return f"Energy is estimated: power_w of profile {self.name!r} is assumed, {self.power_w:g} W"
        if not assumed:
            return ""
        named = ", ".join(assumed[:4]) + (f" and {len(assumed) - 4} more" if len(assumed) > 4 else "")
        return (
            f"Latency and energy are estimated: numbers of profile {self.name!r} are assumed"
            f" ({named}; `leanfront profile show {self.name}` has all sources)"
        )

    @property
    def digest(self) -> str:
        """Hash of all fields: two profiles with equal digests give equal answers."""
        return hashlib.sha256(self.model_dump_json(by_alias=True).encode()).hexdigest()[:16]

    def supports(self, weight_bits: int, activation_bits: int) -> bool:
        """Whether a layer can run with these bits (32: float32, 16: float16, 8 and fewer: integers)."""
        return (weight_bits, activation_bits) in self.supported

    @property
    def supported_sentence(self) -> str:
        """The supported pairs as one line, for error messages and tables."""
        weights: dict[int, list[int]] = {}
        for weight_bits, activation_bits in self.supported:
            weights.setdefault(activation_bits, []).append(weight_bits)
        return "; ".join(
            f"weights {', '.join(map(str, sorted(set(bits))))} with activations {activation_bits}"
            for activation_bits, bits in sorted(weights.items())
        )

    @staticmethod
    def of(fields: Mapping[str, Any], where: str) -> "HardwareProfile":
        """A profile from the tables of a TOML file; ``where`` names it in errors.

        Raises:
            ProfileError: a field is missing, unknown, impossible or without a source; the first is named.
        """
        try:
            return HardwareProfile.model_validate(dict(fields))
        except ValidationError as error:
            raise ProfileError(f"{where}: {_sentence(error)}") from error


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
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        return f"{path} is no field of a profile; {hint}"
    if first["type"] == "missing":
        return f"{path} is missing"
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        return f"{path}: {message}" if path else message
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{path}: {message}, not {first['input']!r}"


def _field_names(location: tuple[int | str, ...]) -> list[str]:
    if location[:1] == ("roofline",):
        return list(Roofline.model_fields)
    if location[:1] and location[0] in SECTIONS:
        return section_fields(location)
    if location[:1] == ("sources",):
        return ["status", "from"]
    return list(HardwareProfile.model_fields)
