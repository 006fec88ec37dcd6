"""``leanfront profile fit``: a profile's numbers, calibrated on networks measured on the part itself."""

import csv
import difflib
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from leanfront.compression.policy import PolicyError
from leanfront.hw_profiles import HardwareProfile, ProfileError, load_profile, to_toml, user_folder
from leanfront.latency_models.errors import TableError
from leanfront.latency_models.files import replace_file, writing
from leanfront.search.cli.hardware import read_network, uniform
from leanfront.search.cli.output import Format, FormatOption, print_table, say, show

if TYPE_CHECKING:
    from leanfront.latency_models.roofline.fit import Fit, Measurement

BITS = {"fp32": 32, "fp16": 16, "int8": 8}
"""Precision of a row -> bits of all layers; left empty, a file's own count."""
NEEDED = ("network", "latency_ms")
_OTHER_UNITS = 200.0
"""Times by which all rows are off at once: no profile is, so that the unit must be another."""


def fit(
    profile: Annotated[str, typer.Argument(metavar="PROFILE", help="Name of a profile, or its file.")],
    rows: Annotated[
        Path, typer.Option("--rows", metavar="FILE", help="Measured networks: network,precision,latency_ms.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Of the new profile; default: PROFILE-fitted.")
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Calibrate a computed profile on networks that were measured on the part itself."""
    from leanfront.latency_models.roofline.fit import fit as fitted

    hardware = load_profile(profile)
    measured = read_rows(rows, hardware)
    found = fitted(hardware, measured)
    check_units(found.before_ms, measured, rows)
    made = with_fit(hardware, found, len(measured), rows, name or f"{hardware.name}-fitted")
    target = user_folder() / f"{made.name}.toml"
    if target.exists() and "fitted to" not in load_profile(made.name).description:
        raise ProfileError(f"there is a profile {made.name!r} already, {target}; take another --name")
    with writing(target, ProfileError):
        replace_file(target, to_toml(made))
    told = _told(measured, found)
    numbers = {path: {"before": _at(hardware, path), "after": value} for path, value in found.numbers.items()}

    def people() -> None:
        print_table(told)
        print_table([{"number": path, **pair} for path, pair in numbers.items()])
        print(_errors(measured, found))
        print(f"wrote {target}: profile {made.name!r}")

    answer = {"profile": made.name, "file": str(target), "rows": told, "numbers": numbers}
    show(format_, lambda: answer, lambda: told, people)
    if found.left_out_ms is None:
        say("too few networks to leave one out: how well it foretells others is not known; measure three")


def read_rows(path: Path, profile: HardwareProfile) -> "list[Measurement]":
    """The rows of a CSV file of measurements; networks are files beside it.

    Columns: network (an .onnx file or a layer table), precision (fp32, fp16, int8; empty: as in the file),
    latency_ms, and, if known, energy_mj; ``profile`` and ``board`` of a kit. Others are not read.

    Raises:
        TableError: a column is missing or has another unit, a row cannot be, or is of another board; the
            row is named.
    """
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines)
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(
            f"cannot read the rows {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    for column in NEEDED:
        if column not in columns:
            raise TableError(_missing(path, column, columns))
    if unit := next((c for c in columns if c.startswith("energy_") and c != "energy_mj"), None):
        raise TableError(f"{path}: column {unit} has another unit; give energy_mj, millijoules")
    if not rows:
        raise TableError(f"{path} has no rows; it needs one for each measured network")
    boards = {row["board"] for row in rows if row.get("board")}
    if len(boards) > 1:
        raise TableError(f"{path} has rows of several boards ({', '.join(sorted(boards))}); keep one board's")
    return [_measurement(path, number, row, profile) for number, row in enumerate(rows, 2)]


def _missing(path: Path, column: str, columns: Sequence[str]) -> str:
    stem = column.rpartition("_")[0] or column
    other = next((c for c in columns if c.startswith(stem)), None) or next(
        iter(difflib.get_close_matches(column, columns, n=1)), None
    )
    hint = f", but {other}" if other else f"; there are {', '.join(columns) or 'none'}"
    unit = "; latencies are in milliseconds" if column == "latency_ms" else ""
    return f"{path} has no column {column}{hint}{unit}"


def _measurement(path: Path, number: int, row: dict[str, str], profile: HardwareProfile) -> "Measurement":
    from leanfront.latency_models.roofline.fit import Measurement

    where = f"{path}, line {number}"
    if row.get("profile") and row["profile"] not in (profile.name, profile.name.removesuffix("-fitted")):
        raise TableError(
            f"{where}: measured by a kit for profile {row['profile']!r}, not {profile.name!r}; fit that one"
        )
    precision = (row.get("precision") or "").strip()
    if precision not in ("", *BITS):
        raise TableError(f"{where}: precision is fp32, fp16, int8 or empty, not {precision!r}")
    file = Path(row["network"] or "")
    network, own = _network(path.parent / file, where)
    policy = own
    if precision:
        policy = uniform(network, own, BITS[precision], BITS[precision], None)
    energy_mj = _positive(row, "energy_mj", where) if row.get("energy_mj") else None
    latency_ms = _positive(row, "latency_ms", where)
    return Measurement(file.as_posix(), precision or "own", network, policy, latency_ms, energy_mj)


def _network(file: Path, where: str) -> Any:
    try:
        return read_network(file)
    except (PolicyError, TableError) as error:
        raise TableError(f"{where}: {error}") from error


def _positive(row: dict[str, str], column: str, where: str) -> float:
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = float("nan")
    if not 0.0 < value < float("inf"):
        raise TableError(f"{where}: {column} must be a positive number, not {row[column]!r}")
    return value


def check_units(before_ms: Any, rows: "Sequence[Measurement]", path: Path) -> None:
    """Raise TableError where all rows are off by so much that they must be in another unit."""
    ratios = np.array([row.latency_ms for row in rows]) / before_ms
    middle = float(np.median(ratios))
    if max(middle, 1.0 / middle) > _OTHER_UNITS:
        raise TableError(
            f"{path}: latencies are {middle:.3g} times what the profile says; latency_ms is in milliseconds,"
            " of one inference of a batch of one"
        )


def with_fit(profile: HardwareProfile, found: "Fit", rows: int, file: Path, name: str) -> HardwareProfile:
    """The profile with fitted numbers, each of which says what it was fitted to.

    Raises:
        ProfileError: the name is none.
    """
    fields = profile.model_dump(by_alias=True)
    made = f"leanfront profile fit {profile.name} --rows {file.name}"
    source = {"status": "calibrated", "from": f"{rows} rows, {date.today().isoformat()}: {made}"}
    sources = {path: dict(profile.sources[path].model_dump(by_alias=True)) for path in profile.sources}
    for path, value in found.numbers.items():
        *tables, last = path.split(".")
        place = fields
        for table in tables:
            place[table] = dict(place[table])
            place = place[table]
        place[last] = float(f"{value:.6g}")
        sources[path] = source
    first = profile.description.partition("; fitted to")[0]
    fields |= {"name": name, "description": f"{first}; fitted to {rows} measured rows", "sources": sources}
    return HardwareProfile.of(fields, where=f"profile {name!r}")


def _at(profile: HardwareProfile, path: str) -> float | None:
    value = profile.numbers.get(path)
    return float(value) if value is not None else None


def _told(rows: "Sequence[Measurement]", found: "Fit") -> list[dict[str, Any]]:
    told = []
    for index, row in enumerate(rows):
        left = None if found.left_out_ms is None else found.left_out_ms[index]
        told.append(
            {
                "network": row.name,
                "precision": row.precision,
                "measured_ms": row.latency_ms,
                "before": _off(found.before_ms[index], row),
                "fitted": _off(found.after_ms[index], row),
                "left out": _off(left, row) if left is not None else None,
            }
        )
    return told


def _off(predicted_ms: float, row: "Measurement") -> str:
    return f"{100 * (predicted_ms / row.latency_ms - 1):+.1f} %"


def _errors(rows: "Sequence[Measurement]", found: "Fit") -> str:
    measured = np.array([row.latency_ms for row in rows])
    parts = []
    for what, predicted in (
        ("before", found.before_ms),
        ("fitted", found.after_ms),
        ("on networks left out", found.left_out_ms),
    ):
        if predicted is not None:
            off = np.abs(predicted / measured - 1)
            parts.append(f"{what} {100 * off.mean():.1f} % ({100 * off.max():.1f} % at most)")
    return "errors: " + ", ".join(parts)
