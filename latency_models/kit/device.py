"""What a kit does on the device that it was copied to: ``python measure.py`` there runs ``main``.

First every network of the kit is given to the device's own onnxruntime, to see what it becomes there; then
each of the optimised nodes is timed alone, then some whole networks. Whatever was found is in measured.csv at
once: an interrupted run goes on where it was. Needs python 3.9, numpy and onnxruntime, and nothing else.
"""

import hashlib
import json
import os
import platform
import sys
import time
import zipfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from leanfront.latency_models.benchmark.fill import BATCH, fill
from leanfront.latency_models.benchmark.optimised_graph import FusedNode, fused_nodes
from leanfront.latency_models.benchmark.timing import Reference, Timing, noise, time_models
from leanfront.latency_models.errors import TableError
from leanfront.latency_models.evenly_spaced import spread_evenly
from leanfront.latency_models.kernel_table.strip_weights import filled
from leanfront.latency_models.kernel_table.table import (
    CALL,
    Device,
    Entry,
    LatencyTable,
    near_cache_bytes,
    this_device,
)
from leanfront.latency_models.kit.rows import ResultFile, Row

RESULT, NETWORKS, MANIFEST = "measured.csv", "networks.zip", "manifest.json"
IDENTITY = ("kit", "profile", "cpu", "cores", "threads", "provider", "onnxruntime")
"""What must not change from one start of the script to the next."""
BLOCKS = 5
REPEATS = 3


def main(folder: Path) -> int:
    """Measure, or go on measuring; the exit code."""
    started = time.monotonic()
    try:
        kit = Kit(folder)
        kit.structures()
        kit.kernels()
        kit.wholes()
        kit.end()
    except TableError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:  # the disk is full
        print(f"failed: {error}; what is measured is kept, start measure.py again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what is measured is kept, `python measure.py` goes on from here", file=sys.stderr)
        return 130
    print(
        f"done after {_duration(time.monotonic() - started)}: copy {kit.file.path.name} back and run there:"
    )
    print(f"  leanfront profile import {kit.file.path.name} --profile {kit.manifest['profile']}")
    return 0


class Kit:
    """One kit on its device."""

    def __init__(self, folder: Path) -> None:
        """Raises TableError: files are missing or damaged, another device's result, no such provider."""
        self.manifest = _manifest(folder)
        self.zip = _archive(folder / NETWORKS, self.manifest)
        threads, provider = int(self.manifest["threads"]), str(self.manifest["provider"])
        there = onnxruntime.get_available_providers()
        if provider not in there:
            raise TableError(
                f"this kit measures {provider}, which the onnxruntime {onnxruntime.__version__} here does not"
                f" have; it has {', '.join(there)}: install a build with it, or make a kit with another"
                " --provider"
            )
        self.device = this_device(threads, provider)
        self.lock = _alone(folder / RESULT)  # before half a line of it is taken for a leftover
        self.file = ResultFile(folder / RESULT)
        self.nodes: dict[str, FusedNode] = {}
        self._introduce()
        self.table = LatencyTable(
            self.device,
            {name: row.entry for name, row in self.file.of("kernel").items() if row.entry},
            self.manifest["profile"],
        )
        self._reference: Reference | None = None

    def _introduce(self) -> None:
        """Write what this device is, or hold it against what the result says already."""
        about = about_device(self.device) | {
            "kit": str(self.manifest["digest"]), "profile": str(self.manifest["profile"]),
            "networks": str(len(self.manifest["networks"])), "exporter": str(self.manifest["exporter"]),
            "sets": json.dumps([{n: one[n] for n in ("title", "digest")} for one in self.manifest["sets"]]),
        }  # fmt: skip
        before = {name: row.text for name, row in self.file.of("about").items()}
        for name in IDENTITY:
            if name in before and before[name] != about[name]:
                raise TableError(
                    f"{self.file.path.name} was begun with {name} {before[name]!r}, here it is"
                    f" {about[name]!r}; move the file away to measure anew"
                )
        if "end" in {row.kind for row in self.file.rows}:
            return
        if before:
            done = sum(row.kind in ("network", "kernel", "whole") for row in self.file.rows)
            print(f"going on with {self.file.path.name}: {done} results are there already", flush=True)
        self.file.add(Row("about", name, text) for name, text in about.items() if before.get(name) != text)

    @property
    def reference(self) -> Reference:
        """What shows whether anything disturbs the device."""
        if self._reference is None:
            self._reference = Reference(self.device.threads, self.table.reference_ms)
        return self._reference

    def model(self, name: str) -> bytes:
        """A network of the kit, with random weights."""
        return filled(self.zip.read(f"{name}.onnx"))

    def structures(self) -> None:
        """See what each network becomes here."""
        known = self.file.of("network")
        keys = set(self.table)
        progress = Progress("networks read", len(self.manifest["networks"]))
        for network in self.manifest["networks"]:
            row = known.get(network["name"])
            if row is None or not keys.issuperset(_keys(row)):
                nodes = self._optimised(network)
                for node in nodes:
                    self.nodes.setdefault(node.key, node)
                if row is None:
                    self.file.add([_structure(network, nodes)])
            progress.step()

    def _optimised(self, network: Mapping[str, Any]) -> tuple[FusedNode, ...]:
        owners = self.manifest["sets"][network["set"]]["owners"]
        model = self.model(network["name"])
        return fused_nodes(model, owners, self.device.threads, self.device.provider)

    def kernels(self) -> None:
        """Time the nodes that were not timed yet, and those again that a faster moment makes doubtful."""
        lacking = self.table.missing(self.nodes)
        progress = Progress("kernels measured", len(lacking))
        for start in range(0, len(lacking), BATCH):
            self._time({key: self.nodes[key] for key in lacking[start : start + BATCH]})
            progress.step(min(BATCH, len(lacking) - start))
        again = {key: self.nodes[key] for key in self.table.stale() if key in self.nodes}
        if again:
            print(f"measuring {len(again)} kernels again: the device was slower at first than it is now")
            self._time(again)

    def _time(self, nodes: Mapping[str, FusedNode]) -> None:
        before = dict(self.table)
        self.table = fill(self.table, nodes, None, self.reference)
        self.file.add(
            Row("kernel", key, entry=entry) for key, entry in self.table.items() if before.get(key) != entry
        )

    def wholes(self) -> None:
        """Time whole networks that lie evenly over the range of latency."""
        structures = self.file.of("network")
        names = [network["name"] for network in self.manifest["networks"] if network["whole"]]
        plain = [self._plain_ms(structures[name]) for name in names]
        chosen = [names[index] for index in spread_evenly(plain, int(self.manifest["wholes"]))]
        known = self.file.of("whole")
        waiting = [name for name in chosen if name not in known]
        order = [waiting[i] for i in np.random.default_rng(0).permutation(len(waiting))]
        progress = Progress("whole networks measured", len(order))
        for start in range(0, len(order), BATCH):
            names = order[start : start + BATCH]
            entries: dict[str, Entry] = {}
            for _ in range(REPEATS):
                left = [name for name in names if name not in entries or self._doubtful(entries[name])]
                models = {name: self.model(name) for name in left}
                timings = time_models(
                    models, self.device.threads, BLOCKS, self.device.provider, reference=self.reference
                ) if left else {}  # fmt: skip
                entries.update({name: _entry(timing) for name, timing in timings.items()})
            self.file.add(Row("whole", name, entry=entry) for name, entry in entries.items())
            progress.step(len(names))

    def _doubtful(self, entry: Entry) -> bool:
        timing = _timing(entry)
        return timing.disturbed or timing.stale(self.reference.undisturbed_ms)

    def _plain_ms(self, row: Row) -> float:
        return self.table[CALL].median_ms + sum(self.table[key].median_ms for key in _keys(row))

    def end(self) -> None:
        """Say how noisy it was, and close the file."""
        if self.file.of("end"):
            return
        timings = {row.kind + row.name: _timing(row.entry) for row in self.file.rows if row.entry}
        warning = noise(timings)
        if warning:
            print(f"warning: {warning}", file=sys.stderr)
            self.file.add([Row("noise", "", warning)])
        self.file.add([Row("about", "finished", _now()), Row("end", "", str(len(self.file.rows) + 1))])


class Progress:
    """How many of something are done, and how long the rest takes."""

    def __init__(self, what: str, count: int) -> None:
        self.what, self.count, self.done = what, count, 0
        self.started = self.said = time.monotonic()

    def step(self, number: int = 1) -> None:
        """So many more are done; said at most every five seconds, and at the end."""
        self.done += number
        now = time.monotonic()
        if self.done >= self.count or now - self.said > 5.0:
            self.said = now
            left = (now - self.started) / self.done * (self.count - self.done)
            rest = f", about {_duration(left)} left" if self.done < self.count else ""
            print(f"{self.done} of {self.count} {self.what}{rest}", flush=True)


def about_device(device: Device) -> dict[str, str]:
    """Everything that a reader of the figures may want to know of the device; "" where it does not say."""
    cpufreq = Path("/sys/devices/system/cpu/cpu0/cpufreq")
    return {
        **{
            name: str(getattr(device, name))
            for name in ("cpu", "cores", "threads", "provider", "onnxruntime")
        },
        "numpy": str(np.__version__),
        "python": platform.python_version(),
        "system": platform.platform(),
        "board": _first_line(Path("/proc/device-tree/model")).strip("\0"),
        "governor": _first_line(cpufreq / "scaling_governor"),
        "clock_now_khz": _first_line(cpufreq / "scaling_cur_freq"),
        "clock_max_khz": _first_line(cpufreq / "cpuinfo_max_freq"),
        "near_cache_bytes": str(near_cache_bytes()),
        "started": _now(),
    }


def _structure(network: Mapping[str, Any], nodes: tuple[FusedNode, ...]) -> Row:
    parts: dict[str, list[str]] = {}
    for node in nodes:
        parts.setdefault(node.owner, []).append(node.key)
    text = json.dumps(
        {"set": network["set"], "policy": network["policy"], "parts": parts}, separators=(",", ":")
    )
    return Row("network", network["name"], text)


def _keys(row: Row) -> list[str]:
    return [key for part in json.loads(row.text)["parts"].values() for key in part]


def _entry(timing: Timing) -> Entry:
    return Entry(
        timing.median_ms, timing.spread, timing.runs, timing.quiet, timing.reference_ms, 0, _now()[:10]
    )


def _timing(entry: Entry) -> Timing:
    return Timing(entry.median_ms, entry.spread, entry.runs, entry.quiet, entry.reference_ms)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TableError(f"cannot read {folder / MANIFEST}: {error}; copy the whole kit again") from error


def _archive(path: Path, manifest: Mapping[str, Any]) -> zipfile.ZipFile:
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != manifest["networks_sha256"]:
            raise TableError(f"{path} is not the one that this kit was made with; copy the whole kit again")
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise TableError(f"cannot read {path}: {error}; copy the whole kit again") from error


def _alone(path: Path) -> int | None:
    """A lock on the result: two scripts that measure at the same time would disturb each other."""
    try:
        import fcntl
    except ImportError:  # not on this system
        return None
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise TableError(f"cannot write {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise TableError(f"another measure.py is writing {path}; wait for it, or stop it") from None
    return descriptor


def _first_line(path: Path) -> str:
    try:
        return (path.read_text(encoding="utf-8").splitlines() or [""])[0].strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
