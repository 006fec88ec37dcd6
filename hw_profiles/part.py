"""What is known of a part, whatever prices it: the fields that all profiles have."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator

from leanfront.hw_profiles.fpga import Power, Resources, Space
from leanfront.hw_profiles.units import ACTIVATION_BITS, WEIGHT_BITS, Count, Frozen, Positive

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
Bits = Annotated[int, Field(strict=True)]
SpecName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]


class Source(Frozen):
    """Where a number is from. ``assumed``: nobody measured or published it for this part."""

    status: Literal["measured", "published", "calibrated", "assumed"]
    from_: str = Field(alias="from")

    @field_validator("from_")
    @classmethod
    def _says_something(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("a source names where the number is from and must not be blank")
        return text


class Part(Frozen):
    """The facts of one part. hw_profiles/README.md lists the fields.

    ``engine``: what runs networks there: the numbers are of it, and the file that is handed over is its.
    ``specs`` are facts that no model reads (clocks, counts of units): what the other numbers were derived
    from.
    """

    name: Name
    description: str = Field(min_length=1)
    kind: Literal["cpu", "gpu", "npu", "fpga"]
    engine: Literal["onnxruntime", "tflite", "tensorrt", "qonnx", "openvino"] = "onnxruntime"
    model: str
    supported: tuple[tuple[Bits, Bits], ...] = Field(min_length=1)
    pattern: Literal["channel", "2:4", "block", "unstructured"] = "channel"
    channel_multiple: Count
    power_w: Positive
    memory_bytes: Count | None = None
    specs: Mapping[SpecName, Positive] = Field(default_factory=dict)
    resources: Resources | None = None
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

    def check_blocks(self, where: str, blocks: Iterable[str]) -> None:
        """Raise ValueError for a kind of block that the part has not."""
        known = list(self.resources.limits) if self.resources else []
        if unknown := [block for block in blocks if block not in known]:
            raise ValueError(f"{where} names {unknown[0]}, but [resources] has {', '.join(known) or 'none'}")

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

    def supports(self, weight_bits: int, activation_bits: int) -> bool:
        """Whether a layer can run with these bits (32: float32, 16: float16, 8 and fewer: integers)."""
        return (weight_bits, activation_bits) in self.supported

    @property
    def supported_sentence(self) -> str:
        """The supported pairs as one line, for error messages and tables."""
        weights: dict[int, list[int]] = {}
        for weight_bits, activation_bits in sorted(self.supported):
            weights.setdefault(activation_bits, []).append(weight_bits)
        alike: dict[tuple[int, ...], list[int]] = {}  # activations with which the same weights go
        for activation_bits, bits in sorted(weights.items()):
            alike.setdefault(tuple(bits), []).append(activation_bits)
        return "; ".join(
            f"weights {', '.join(map(str, bits))} with activations {', '.join(map(str, activations))}"
            for bits, activations in alike.items()
        )
