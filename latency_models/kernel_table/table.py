"""Latency tables: what each kernel of a device takes, with where every number is from.

One table holds one device: a CPU model with its number of cores, one onnxruntime version, one provider and
one number of threads. Tables live as CSV files in the user's cache folder and are shared by all networks and
searches; a network only adds the keys that are missing.
"""

import csv
import hashlib
import io
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from leanfront.latency_models.errors import TableError
from leanfront.latency_models.files import replace_file

STALE = 1.05
"""How much slower the reference model may have been when an entry was measured than it ever was."""

CALL = "call"
"""Key of the entry that holds what a call of a model costs by itself."""

CELLS = ("median_ms", "spread", "runs", "quiet", "reference_ms", "resident_bytes", "date")
"""Columns of what was measured, in a table and in what a kit writes."""
COLUMNS = ("key", *CELLS, "device", "versions", "source")


@dataclass(frozen=True)
class Device:
    """What a table is of. Two devices with equal digests may share a table."""

    cpu: str
    cores: int
    threads: int
    provider: str
    onnxruntime: str

    @cached_property
    def digest(self) -> str:
        """Hash of all fields."""
        return hashlib.sha256(repr(sorted(asdict(self).items())).encode()).hexdigest()[:12]

    @property
    def versions(self) -> str:
        """What an entry says of the software."""
        return f"onnxruntime {self.onnxruntime} {self.provider}, {self.threads} thread(s)"

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} cores"


def this_device(threads: int = 1, provider: str = "CPUExecutionProvider") -> Device:
    """The machine that this runs on."""
    import onnxruntime

    return Device(_cpu_model(), os.cpu_count() or 1, threads, provider, str(onnxruntime.__version__))


def _cpu_model() -> str:
    """Model name and the widest vector and matrix extensions: virtual machines often hide the model."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    family = ""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            field, _, value = line.partition(":")
            field = field.strip()
            if field == "model name":
                name = value.strip()
            elif field in ("cpu family", "model", "CPU part"):
                family += f" {value.strip()}"
            elif field in ("flags", "Features"):
                flags = set(value.split())
            elif not line.strip():
                break  # the first core is enough
    except OSError:
        pass
    shown = [
        f for f in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm") if f in flags
    ]
    return " ".join([name + family, *shown])


@dataclass(frozen=True)
class Entry:
    """What one kernel takes. ``resident_bytes``: constants that its micro-benchmark cycled through, which
    decides whether its weights came from a near cache. The others as in latency_models.benchmark.timing.
    Timing."""

    median_ms: float
    spread: float
    runs: int
    quiet: float
    reference_ms: float
    resident_bytes: int
    date: str
    source: str = "measured"

    def cells(self) -> list[str]:
        """As a CSV file holds it, in the order of ``CELLS``."""
        return [
            f"{self.median_ms:.7g}", f"{self.spread:.4f}", str(self.runs), f"{self.quiet:.3f}",
            f"{self.reference_ms:.7g}", str(self.resident_bytes), self.date,
        ]  # fmt: skip

    @staticmethod
    def read(cells: Mapping[str, str], where: str, remedy: str) -> "Entry":
        """From the cells of a line, by their column; raises TableError for a bad one, which is named."""
        try:
            entry = Entry(
                median_ms=float(cells["median_ms"]),
                spread=float(cells["spread"]),
                runs=int(cells["runs"]),
                quiet=float(cells["quiet"]),
                reference_ms=float(cells["reference_ms"]),
                resident_bytes=int(cells["resident_bytes"]),
                date=cells["date"],
                source=cells.get("source", "measured"),
            )
        except ValueError as error:
            raise TableError(f"{where}: {error}; {remedy}") from error
        for column, value in (("median_ms", entry.median_ms), ("reference_ms", entry.reference_ms)):
            if not (math.isfinite(value) and value > 0):
                raise TableError(f"{where}: {column} must be above 0, not {cells[column]}; {remedy}")
        return entry


class LatencyTable(Mapping[str, Entry]):
    """Key -> Entry of one device. Nothing in it changes: ``with_entries`` makes a new one."""

    def __init__(
        self,
        device: Device,
        entries: Mapping[str, Entry],
        profile: str = "this-machine",
        near_cache_bytes: int | None = None,
    ) -> None:
        """``near_cache_bytes``: the device's, where it is not the machine that this runs on."""
        self.device = device
        self.profile = profile
        self._entries = dict(entries)
        self._near_cache_bytes = near_cache_bytes

    def __getitem__(self, key: str) -> Entry:
        """Raises TableError where there is none: an unknown cost is never 0."""
        entry = self._entries.get(key)
        if entry is None:
            raise TableError(
                f"the latency table of profile {self.profile!r} has no entry for {key!r};"
                f" {how_to_measure(self.profile)}"
            )
        return entry

    @property
    def near_cache_bytes(self) -> int:
        """Size of the second-level cache that the device's core has for itself."""
        return self._near_cache_bytes or near_cache_bytes()

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of ``keys`` that have no entry, each once, in order."""
        return [key for key in dict.fromkeys(keys) if key not in self._entries]

    @property
    def reference_ms(self) -> float | None:
        """The fastest undisturbed time of the reference model that any measuring session has seen."""
        return min((entry.reference_ms for entry in self._entries.values()), default=None)

    def stale(self) -> list[str]:
        """Keys that were measured while the machine was slower than it is known to be, undisturbed."""
        fastest = self.reference_ms
        return [
            key for key, entry in self._entries.items() if fastest and entry.reference_ms > STALE * fastest
        ]

    def with_entries(self, entries: Mapping[str, Entry]) -> "LatencyTable":
        """This table with more entries, the new ones first in doubt."""
        merged = {**self._entries, **entries}
        return LatencyTable(self.device, merged, self.profile, self._near_cache_bytes)

    def only(self, keys: Iterable[str]) -> "LatencyTable":
        """The entries of these keys, in order of key; those that the table lacks are left out."""
        kept = {key: self._entries[key] for key in sorted(set(keys)) if key in self._entries}
        return LatencyTable(self.device, kept, self.profile, self._near_cache_bytes)

    def save(self, path: Path) -> None:
        """Write as CSV: beside it first, then renamed, so that no half table is ever seen.

        Raises:
            TableError: it cannot be written.
        """
        written = io.StringIO()
        writer = csv.writer(written)
        writer.writerow(COLUMNS)
        for key, entry in self._entries.items():
            writer.writerow([key, *entry.cells(), str(self.device), self.device.versions, entry.source])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, written.getvalue())
        except OSError as error:
            raise TableError(f"cannot write the latency table {path}: {error.strerror}") from error


def load_table(path: Path, device: Device, profile: str = "this-machine") -> LatencyTable:
    """Read a table of ``device``; an empty one when there is no file.

    Raises:
        TableError: it cannot be read, is cut short, has a bad value, or is of another device or version.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            header = tuple(reader.fieldnames or ())
            check_columns(path, header, COLUMNS, "delete it and measure again")
            entries = {}
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                entry = _entry(row, where)
                _check_device(row, device, where)
                entries[str(row["key"])] = entry
    except FileNotFoundError:
        return LatencyTable(device, {}, profile)
    except OSError as error:
        raise TableError(f"cannot read the latency table {path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise TableError(f"{path} is not a CSV file: {error}; delete it and measure again") from error
    return LatencyTable(device, entries, profile)


def _entry(row: Mapping[str, str | None], where: str) -> Entry:
    if None in row.values() or None in row:
        raise TableError(f"{where}: the line is cut short or too long; delete the table and measure again")
    cells = {name: str(row[name]) for name in COLUMNS}
    return Entry.read(cells, where, "delete the table and measure again")


def check_columns(path: Path, header: Sequence[str], wanted: Sequence[str], remedy: str) -> None:
    """Raise TableError for the first column that a file lacks; times in another unit are named."""
    for column in wanted:
        if column in header:
            continue
        stem, _, unit = column.rpartition("_")
        other = next((name for name in header if unit == "ms" and name.startswith(f"{stem}_")), None)
        if other is not None:
            raise TableError(
                f"{path} has no column {column!r}, its times are in column {other!r}, but must be in"
                f" milliseconds; {remedy}"
            )
        raise TableError(f"{path} has no column {column!r}; it needs {', '.join(wanted)}; {remedy}")


def _check_device(row: Mapping[str, str | None], device: Device, where: str) -> None:
    if (row["device"], row["versions"]) != (str(device), device.versions):
        raise TableError(
            f"{where}: this table is of {row['device']} with {row['versions']}, but this is {device} with"
            f" {device.versions}; a table of another device or version says nothing here: delete it and give"
            " `leanfront profile measure PROFILE`, or bring the other device's by `leanfront profile kit`"
        )


def how_to_measure(profile: str) -> str:
    """What a user does about a kernel that the table of a profile lacks."""
    return (
        f"`leanfront profile measure {profile} --config CONFIG` measures what a search needs on this machine,"
        f" `leanfront profile kit {profile} --config CONFIG --out DIR` makes a kit that does on another"
    )


def near_cache_bytes() -> int:
    """Size of the second-level cache of this machine's cores; 1 MiB where the system does not say."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text(encoding="utf-8").strip()
    except OSError:
        return 1 << 20
    scale = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
    digits = text.rstrip("KM")
    return int(digits) * scale if digits.isdigit() else 1 << 20


def cache_folder() -> Path:
    """Where tables are kept: $LEANFRONT_CACHE, else $XDG_CACHE_HOME/leanfront, else ~/.cache/leanfront."""
    if own := os.environ.get("LEANFRONT_CACHE"):
        return Path(own)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "leanfront"
    return Path.home() / ".cache" / "leanfront"


def table_path(device: Device) -> Path:
    """The device's table in the cache folder."""
    return cache_folder() / "tables" / f"{device.digest}.csv"
