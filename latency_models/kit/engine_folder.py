"""A kit for an engine that times whole networks: their files, a script, and what it is for."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from leanfront.latency_models.errors import TableError
from leanfront.latency_models.files import replace_file

SCRIPTS = {"tensorrt": "trtexec.py"}
"""Engine -> the module of this room that is its kit's script."""


@dataclass(frozen=True)
class EngineNetwork:
    """A network of a kit. ``precisions``: in which it is built: "fp32" and "fp16" of one in floats, "" of one
    that says itself what is held in integers."""

    policy: str
    model: bytes
    precisions: tuple[str, ...]


def write_engine_kit(
    folder: Path, profile: str, engine: str, networks: Sequence[EngineNetwork], suffix: str
) -> dict[str, Any]:
    """Write networks, manifest.json and measure.py to ``folder``; what the manifest says.

    Raises:
        TableError: there is no script for this engine, the folder holds another kit's result, or cannot be
            written.
    """
    if engine not in SCRIPTS:
        raise TableError(f"there is no kit for {engine}; there is one for {', '.join(SCRIPTS)}")
    files = {f"networks/network{number:02}{suffix}": one for number, one in enumerate(networks)}
    manifest: dict[str, Any] = {
        "format": 1,
        "profile": profile,
        "engine": engine,
        "networks": [
            {"file": name, "policy": json.loads(one.policy), "precisions": one.precisions,
             "sha256": hashlib.sha256(one.model).hexdigest()}
            for name, one in files.items()
        ],
    }  # fmt: skip
    manifest["digest"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
    manifest["made"] = date.today().isoformat()
    result = folder / "measured.csv"
    if result.exists() and manifest["digest"] not in result.read_text(encoding="utf-8"):
        raise TableError(f"{folder} has the result of another kit in it; move measured.csv away first")
    script = Path(__file__).with_name(SCRIPTS[engine]).read_text(encoding="utf-8")
    try:
        (folder / "networks").mkdir(parents=True, exist_ok=True)
        for name, one in files.items():
            replace_file(folder / name, one.model)
        replace_file(folder / "measure.py", script)
        replace_file(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    except OSError as error:
        raise TableError(f"cannot write the kit to {folder}: {error.strerror}") from error
    return manifest
