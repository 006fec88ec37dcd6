"""A kit: a folder that measures another device, which needs python, numpy and onnxruntime and no more."""

import ast
import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from leanfront.latency_models.errors import TableError
from leanfront.latency_models.files import replace_file
from leanfront.latency_models.kernel_table.strip_weights import stripped

FORMAT = 1
START = "leanfront.latency_models.kit.device"
RESULT, NETWORKS, MANIFEST, SCRIPT = "measured.csv", "networks.zip", "manifest.json", "measure.py"


@dataclass(frozen=True)
class KitNetwork:
    """A network of a kit. ``policy``: under which it was built, as Policy.to_json has it. ``set_``: index of
    the network that it is a form of. ``whole``: whether it may be timed as a whole."""

    policy: str
    model: bytes
    whole: bool
    set_: int = 0


@dataclass(frozen=True)
class KitSet:
    """An uncut network. ``digest``: tells it from others; ``owners``: node of its models -> its kernel."""

    title: str
    digest: str
    owners: Mapping[str, str]


def write_kit(
    folder: Path,
    profile: str,
    sets: Sequence[KitSet],
    networks: Sequence[KitNetwork],
    wholes: int,
    threads: int,
    provider: str,
    exporter: str,
) -> dict[str, Any]:
    """Write script, manifest and networks to ``folder``; what the manifest says.

    Args:
        folder: made if it is not there.
        profile: name of the profile that the result is for.
        sets: the uncut networks.
        networks: what onnxruntime is given on the device.
        wholes: how many of them are timed as a whole.
        threads: of onnxruntime on the device.
        provider: as onnxruntime calls it.
        exporter: hash of the code that wrote the networks.

    Raises:
        TableError: the folder holds another kit, or cannot be written.
    """
    archive = _zipped(networks)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "profile": profile,
        "threads": threads,
        "provider": provider,
        "networks_sha256": hashlib.sha256(archive).hexdigest(),
        "wholes": wholes,
        "exporter": exporter,
        "sets": [{"title": s.title, "digest": s.digest, "owners": dict(s.owners)} for s in sets],
        "networks": [
            {"name": _name(number), "set": n.set_, "policy": json.loads(n.policy), "whole": n.whole}
            for number, n in enumerate(networks)
        ],
    }
    manifest["digest"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
    manifest["made"] = date.today().isoformat()
    before = _manifest_of(folder)
    if before is not None and before != manifest["digest"] and (folder / RESULT).exists():
        raise TableError(
            f"{folder} has the result of another kit in it; import its {RESULT} or move it away, or take"
            " another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / NETWORKS, archive)
        replace_file(folder / SCRIPT, script())
        replace_file(folder / MANIFEST, json.dumps(manifest, separators=(",", ":")))
    except OSError as error:
        raise TableError(f"cannot write the kit to {folder}: {error.strerror}") from error
    return manifest


def script() -> str:
    """The text of measure.py: the sources of the modules that measure, and a start.

    Raises:
        TableError: one of them needs something that a device may not have.
    """
    embedded = {}
    for name in modules():
        source = _source(name)
        if "'''" in source:
            raise TableError(f"{name} cannot be put into a kit: it holds three single quotes")
        embedded[name] = source
    parts = [f"SOURCES[{name!r}] = r'''{source}'''\n" for name, source in embedded.items()]
    return _SCRIPT.replace("#SOURCES#\n", "\n".join(parts))


def modules() -> list[str]:
    """The modules that the device's script is made of, each after those that it needs."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        for needed in _ours(_source(name)):
            visit(needed)
        order.append(name)

    visit(START)
    return order


def _ours(source: str) -> Iterable[str]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        if node.module.partition(".")[0] != "leanfront":
            continue
        if (Path(find_spec(node.module).origin or "")).name == "__init__.py":  # type: ignore[union-attr]
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield node.module


def _source(name: str) -> str:
    if not name.startswith("leanfront.latency_models."):
        raise TableError(f"a kit cannot hold {name}: a device has python, numpy and onnxruntime alone")
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def _zipped(networks: Sequence[KitNetwork]) -> bytes:
    written = BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, network in enumerate(networks):
            entry = zipfile.ZipInfo(f"{_name(number)}.onnx")  # without the time: equal kits are equal files
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, stripped(network.model))
    return written.getvalue()


def _name(number: int) -> str:
    return f"network{number:04}"


def _manifest_of(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


_SCRIPT = '''"""Measures this device for leanfront. Run it here: python measure.py

Needs python 3.9 or newer, numpy and onnxruntime. Writes measured.csv beside itself, and goes on where it was
when it was interrupted. Made of leanfront's own modules, which follow as text.
"""

import __future__

import os
import sys
import types
from pathlib import Path

SOURCES = {}

#SOURCES#

def load():
    """Make modules of the sources; each stands after those that it needs."""

    def module_of(name):
        made = types.ModuleType(name)
        sys.modules[name] = made
        above, _, own = name.rpartition(".")
        if above:
            package = sys.modules.get(above) or module_of(above)
            package.__path__ = []
            setattr(package, own, made)
        return made

    for name, source in SOURCES.items():
        module = module_of(name)
        flag = __future__.annotations.compiler_flag  # annotations are newer than the oldest python here
        exec(compile(source, name, "exec", flags=flag, dont_inherit=True), module.__dict__)


if __name__ == "__main__":
    if sys.version_info < (3, 9):
        sys.exit("measure.py needs python 3.9 or newer, this is " + sys.version.split()[0])
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime sends what it runs unless told not to
    try:
        import numpy, onnxruntime  # noqa: E401, F401
    except ImportError as error:
        sys.exit("measure.py needs numpy and onnxruntime: pip install numpy onnxruntime (" + str(error) + ")")
    load()
    sys.exit(sys.modules["leanfront.latency_models.kit.device"].main(Path(__file__).resolve().parent))
'''
