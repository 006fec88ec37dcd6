"""Options that several commands have."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How to print."""

    TABLE = "table"
    JSON = "json"


class Provider(StrEnum):
    """Execution providers of onnxruntime."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"


FormatOption = Annotated[Format, typer.Option("--format", help="A table to read, or JSON for programs.")]
NeedsOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="CONFIG", help="Measure what this search needs; its folder will do."),
]
