"""Build and time whole networks with TensorRT's trtexec: ``python3 measure.py`` in a kit's folder runs this.

Needs Python 3.8 and trtexec, and nothing else: this file is the kit's measure.py as it stands. Each network
is built once and timed several times, in processes of their own; the board, its clocks and, where the board
has sensors, its power are noted. Every row is in measured.csv at once: what was interrupted goes on where it
was.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

REPEATS = 3
SECONDS = 3
COLUMNS = (
    "network", "precision", "latency_ms", "energy_mj", "spread", "gpu_mhz", "power_w", "board", "tensorrt",
    "profile", "kit",
)  # fmt: skip
PLACES = ("/usr/src/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")
_MEDIAN = re.compile(r"GPU Compute Time:.*?median = ([0-9.]+) ms")
_VERSION = re.compile(r"TensorRT version: ([0-9.]+)|TensorRT\.trtexec \[TensorRT v([0-9]+)\]")
_UNKNOWN = re.compile(r"[Uu]nknown option|unrecognized", re.MULTILINE)


def main(folder: Path) -> int:
    """Measure, or go on measuring; the exit code."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        tool = trtexec()
        board = board_name()
        known = known_rows(folder / "measured.csv", manifest, board)
        for entry in manifest["networks"]:
            for precision in entry["precisions"]:
                if (entry["file"], precision) in known:
                    continue
                row = measured(tool, folder, entry["file"], precision)
                row.update(board=board, profile=manifest["profile"], kit=manifest["digest"])
                append(folder / "measured.csv", row)
                print(f"{entry['file']} {precision or 'as it is'}: {row['latency_ms']} ms", flush=True)
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"failed: {error}; what is measured is kept, start measure.py again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what is measured is kept, python3 measure.py goes on from here", file=sys.stderr)
        return 130
    print("done: copy measured.csv back into the kit's folder and run there:")
    print(f"  leanfront profile fit {manifest['profile']} --rows {folder.name}/measured.csv")
    return 0


class Failed(Exception):
    """What was asked cannot be done here."""


def trtexec() -> str:
    """TensorRT's own command."""
    found = os.environ.get("TRTEXEC") or shutil.which("trtexec")
    found = found or next((place for place in PLACES if Path(place).exists()), None)
    if found is None:
        raise Failed(
            f"there is no trtexec here (looked for it in PATH, {', '.join(PLACES)}); install TensorRT, or"
            " name it: TRTEXEC=/path/to/trtexec python3 measure.py"
        )
    return found


def board_name() -> str:
    """The board as it calls itself."""
    return text(Path("/proc/device-tree/model")).strip("\0") or f"{os.uname().nodename} {os.uname().machine}"


def known_rows(path: Path, manifest: dict[str, Any], board: str) -> set[tuple[str, str]]:
    """What measured.csv has already."""
    if not path.exists():
        return set()
    with path.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    for row in rows:
        if row.get("kit") != manifest["digest"]:
            raise Failed(f"{path.name} is of another kit ({row.get('kit')}); move it away first")
        if row.get("board") != board:
            raise Failed(
                f"{path.name} was begun on another board ({row.get('board')}), this is {board}; move it away"
            )
    return {(row["network"], row["precision"]) for row in rows}


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row; the file is there whole before the next network begins."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        if new:
            writer.writeheader()
        writer.writerow(row)
        file.flush()
        os.fsync(file.fileno())


def flags(precision: str) -> list[str]:
    """What trtexec is told of precisions. Networks with integers say themselves where these are."""
    return {"fp32": [], "fp16": ["--fp16"], "": ["--int8", "--fp16"]}[precision]


def measured(tool: str, folder: Path, file: str, precision: str) -> dict[str, Any]:
    """Build once, time several times: the median of the medians, their spread, clocks and power."""
    plan = folder / "engine.plan"
    told = built(tool, folder / file, plan, flags(precision))
    medians, clocks, watts = [], [], []
    for _ in range(REPEATS):
        sensors = Sensors()
        sensors.start()
        said = run(
            [tool, f"--loadEngine={plan}", f"--duration={SECONDS}", "--warmUp=500", "--noDataTransfers",
             "--useSpinWait", "--useCudaGraph"]
        )  # fmt: skip
        sensors.stop()
        medians.append(median_ms(said))
        clocks += sensors.mhz
        watts += sensors.watts
    plan.unlink()
    latency_ms = statistics.median(medians)
    power_w = statistics.median(watts) if watts else None
    version = _VERSION.search(told)
    return {
        "network": file, "precision": precision, "latency_ms": f"{latency_ms:.6g}",
        "energy_mj": f"{power_w * latency_ms:.6g}" if power_w else "",
        "spread": f"{(max(medians) - min(medians)) / latency_ms:.4f}",
        "gpu_mhz": f"{statistics.median(clocks):.0f}" if clocks else "",
        "power_w": f"{power_w:.4g}" if power_w else "",
        "tensorrt": next((part for part in version.groups() if part), "") if version else "",
    }  # fmt: skip


def built(tool: str, model: Path, plan: Path, wanted: list[str]) -> str:
    """Build an engine; what trtexec said. A version without flags for precisions takes the file as it is."""
    common = [tool, f"--onnx={model}", f"--saveEngine={plan}", "--skipInference"]
    try:
        return run(common + wanted)
    except Failed as error:
        if not (wanted and _UNKNOWN.search(str(error))):
            raise
        return run([*common, "--stronglyTyped"])


def run(command: list[str]) -> str:
    """What a command said; Failed with its last lines where it did not end well."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        last = " ".join(done.stdout.strip().splitlines()[-3:])
        raise Failed(f"{' '.join(command)} ended with {done.returncode}: {last}")
    return done.stdout


def median_ms(said: str) -> float:
    """Of the GPU's own time, without what it takes to hand data over."""
    found = _MEDIAN.search(said)
    if found is None:
        raise Failed('trtexec said no "GPU Compute Time"; this version is not known')
    return float(found.group(1))


class Sensors(threading.Thread):
    """Clock and power of the board while something runs, where it has them."""

    CLOCKS = ("class/devfreq/*gpu*/cur_freq", "class/devfreq/*.g*b*/cur_freq")
    RAILS = "class/hwmon/hwmon*/in*_label"

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mhz: list[float] = []
        self.watts: list[float] = []
        self._ended = threading.Event()
        root = Path("/sys")
        self._clock = next((path for each in self.CLOCKS for path in root.glob(each)), None)
        self._rail = next((path for path in root.glob(self.RAILS) if "VDD_IN" in text(path)), None)

    def run(self) -> None:
        """Look ten times a second."""
        while not self._ended.wait(0.1):
            if self._clock:
                self.mhz.append(float(text(self._clock) or 0) / 1e6)
            if self._rail:
                number = self._rail.name[len("in") : -len("_label")]
                volts = text(self._rail.with_name(f"in{number}_input"))  # in thousandths, both
                amperes = text(self._rail.with_name(f"curr{number}_input"))
                if volts and amperes:
                    self.watts.append(float(volts) * float(amperes) / 1e6)

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self.join()


def text(path: Path) -> str:
    """A small file's text, "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


if __name__ == "__main__":
    began = time.monotonic()
    code = main(Path(__file__).resolve().parent)
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(code)
