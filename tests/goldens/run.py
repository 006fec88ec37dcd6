"""Goldens of a run that version 0.1.0 wrote: its status, front and report, and what one file costs."""

import base64
import difflib
import gzip
import html
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.goldens import subjects
from tests.goldens.stored import json_difference

RUN = subjects.FOLDER / "run.tar.xz"
"""The folder as the search left it, without report.html and log.txt; its task was /tmp/golden/task.py."""
TASK = subjects.FOLDER / "task.py"
FILE = subjects.FOLDER / "mobilenet-mixed.onnx"
"""An exported file, as version 0.1.0 wrote it."""
KEPT = subjects.FOLDER / "run.json.gz"
COST_ON = {
    "toy": (),
    "raspberry-pi-4": ("--weight-bits", "8", "--activation-bits", "8"),
    "zynq-7020": ("--weight-bits", "8", "--activation-bits", "8"),
}
TOLERANCE = 1e-7
"""Of numbers in figures, which are kept with nine digits."""


def unpacked(folder: Path) -> Path:
    """The run folder within ``folder``, which also gets its task."""
    with tarfile.open(RUN) as archive:
        archive.extractall(folder, filter="data")
    task = folder / "task.py"
    task.write_text(TASK.read_text(encoding="utf-8"), encoding="utf-8")
    config = folder / "run" / "config.toml"
    config.write_text(config.read_text(encoding="utf-8").replace("/tmp/golden/task.py", str(task)))
    return folder / "run"


def status(run: Path) -> Any:
    """Of a search that does not run any more, so nothing in it depends on now; without the folder's name."""
    found = json.loads(subjects.command("status", str(run), "--format", "json"))
    del found["run"]
    return found


def front(run: Path) -> Any:
    """As a table, as CSV, and as the object for programs."""
    table, rows, text = (
        subjects.command("front", str(run), "--format", form) for form in ("table", "csv", "json")
    )
    return {"table": _lines(table, run), "csv": _lines(rows, run), "json": _without(json.loads(text), run)}


def report(run: Path) -> Any:
    """The visible text, line by line, and the figures' data and axes."""
    subjects.command("report", str(run))
    page = (run / "report.html").read_text(encoding="utf-8")
    drawn = {
        name: _rounded(json.loads(text))
        for name, text in re.findall(
            r'<script type="application/json" data-figure="(\w+)">(.*?)</script>', page, re.S
        )
    }
    for figure in drawn.values():
        figure["layout"].pop("template", None)
    seen = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S)
    seen = re.sub(r"\s+", " ", seen)
    seen = re.sub(r"</?(p|h\d|tr|li|div|section|table|pre|summary|title)\b[^>]*>", "\n", seen)
    text = html.unescape(re.sub(r"<[^>]+>", " ", seen))
    return {"text": _lines(text, run), "figures": drawn}


def _lines(text: str, run: Path) -> list[str]:
    """Without the names of folders and the version, which are others every time."""
    text = text.replace(str(run), "RUN").replace(str(run.parent), "FOLDER")
    text = re.sub(r"leanfront \d+\.\d+\.\d+", "leanfront VERSION", text)
    lines = [re.sub(r"[ \t]+", " ", line).strip() for line in text.splitlines()]
    return [line for line in lines if line]


def _without(found: Any, run: Path) -> Any:
    return json.loads(json.dumps(found).replace(str(run), "RUN").replace(str(run.parent), "FOLDER"))


def _rounded(value: Any) -> Any:
    """Numbers with nine digits; arrays that plotly packed, unpacked."""
    if isinstance(value, dict) and set(value) >= {"dtype", "bdata"}:
        array = np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])
        shape = [int(size) for size in str(value.get("shape", array.size)).split(",")]
        return _rounded(array.reshape(shape).tolist())
    if isinstance(value, dict):
        return {key: _rounded(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_rounded(own) for own in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def cost(run: Path) -> Any:
    """What the stored file costs on some parts; the run has no part in it."""
    found = {}
    for profile, more in COST_ON.items():
        words = ("cost", str(FILE), "--profile", profile, "--format", "json")
        text = subjects.command(*words, *more).replace(str(FILE.parent) + "/", "")
        found[profile] = json.loads(text)
    return found


PARTS: dict[str, Callable[[Path], Any]] = {"status": status, "front": front, "report": report, "cost": cost}


def make() -> None:
    """Write what the stored run and the stored file say now."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        run = unpacked(Path(folder))
        kept = {name: part(run) for name, part in PARTS.items()}
    KEPT.write_bytes(gzip.compress(json.dumps(kept, separators=(",", ":")).encode(), 9, mtime=0))


def differences(part: str, run: Path) -> Iterator[str]:
    """The first difference of a part, and of texts all lines."""
    kept = json.loads(gzip.decompress(KEPT.read_bytes()))[part]
    came = json.loads(json.dumps(PARTS[part](run)))
    for name in ("text", "table", "csv"):
        if isinstance(kept, dict) and isinstance(came, dict) and name in kept:
            before, after = kept.pop(name), came.pop(name)
            lines = difflib.unified_diff(before, after, "kept", "came", n=0, lineterm="")
            if before != after:
                yield f"{part}, {name}:\n" + "\n".join(list(lines)[2:22])
    if (what := json_difference(kept, came, TOLERANCE)) is not None:
        yield f"{part}: {what}"
