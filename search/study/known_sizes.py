"""What operations take in a file, kept in the cache folder: every process of a search asks for it."""

import hashlib
import json
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import leanfront
from leanfront.compression.graph import Network, Written
from leanfront.latency_models.files import replace_file
from leanfront.latency_models.kernel_table.table import cache_folder

if TYPE_CHECKING:
    from leanfront.compression.capture.trace import Traced


def sized(traced: "Traced") -> Network:
    """``measured_sizes.measured``, which takes seconds, once for each network."""
    from leanfront.compression.export.measured_sizes import measured

    path = cache_folder() / "sizes" / f"{_key(traced)}.json"
    if (kept := _read(path, traced.network)) is not None:
        return kept
    found = measured(traced)
    written = {node.name: asdict(node.written) for node in found.nodes if node.written is not None}
    if len(written) == len(found.nodes):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, json.dumps(written) + "\n")
        except OSError:
            pass  # without a cache it is measured again
    return found


def _read(path: Path, network: Network) -> Network | None:
    try:
        raw: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        nodes = []
        for node in network.nodes:
            known = raw[node.name]
            shared = tuple((str(name), int(size)) for name, size in known.pop("shared"))
            nodes.append(replace(node, written=Written(**known, shared=shared)))
        return Network(tuple(nodes), network.layers, network.outputs)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _key(traced: "Traced") -> str:
    """Of whatever the sizes depend on: graph, layers, shapes of what they hold, and what writes files."""
    module, state = traced.module, traced.module.state_dict()
    held = sorted((name, str(tensor.dtype), tuple(tensor.shape)) for name, tensor in state.items())
    text = f"{_versions()} {module.code} {module} {held} {sorted(traced.shapes.items())} {traced.network}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@cache
def _versions() -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted((Path(leanfront.__file__).parent / "compression").rglob("*.py")):
        digest.update(path.read_bytes())
    return f"{digest.hexdigest()} {version('torch')} {version('onnx')}"
