"""What operations take in a file, remembered: every process of a search asks for it."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from leanfront.compression.graph import Network, Spelling, Written, Zipped
from leanfront.latency_models.remembered import remembered, source_digest

if TYPE_CHECKING:
    from leanfront.compression.capture.trace import Traced
    from leanfront.compression.export.dialects import Dialect


def sized(traced: "Traced", dialect: "Dialect") -> Network:
    """``measured_sizes.measured``, which takes seconds, once for each network and kind of file."""
    from leanfront.compression.export.measured_sizes import measured

    return remembered(
        "sizes",
        _key(traced, dialect),
        lambda: measured(traced, dialect),
        _plain,
        lambda raw: _read(raw, traced.network),
    )


def zipped(
    traced: "Traced", network: Network, dialect: "Dialect", bits: Sequence[int], shares: Sequence[float]
) -> Network:
    """``zipped_sizes.zipped``, once for each network, its weights and kind of file."""
    from leanfront.compression.export.zipped_sizes import zipped

    digest = hashlib.blake2b(
        f"{_key(traced, dialect)} {sorted(bits)} {sorted(shares)}".encode(), digest_size=16
    )
    for name, tensor in sorted(traced.module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return remembered(
        "zipped",
        digest.hexdigest(),
        lambda: zipped(traced, network, dialect, bits, shares),
        lambda found: {layer.name: asdict(layer.zipped) for layer in found.layers if layer.zipped},
        lambda raw: _with_zipped(raw, network),
    )


def _with_zipped(raw: dict[str, dict[str, Any]], network: Network) -> Network:
    layers = []
    for layer in network.layers:
        known = raw[layer.name]
        each = tuple((str(n), int(b), int(h), tuple(s), tuple(z)) for n, b, h, s, z in known["each"])
        first, second = known["rest"]
        found = Zipped(each, (float(first), float(second)))
        layers.append(replace(layer, zipped=found))
    return Network(network.nodes, tuple(layers), network.outputs)


def _plain(network: Network) -> dict[str, Any] | None:
    written = {node.name: asdict(node.written) for node in network.nodes if node.written is not None}
    return written if len(written) == len(network.nodes) else None


def _read(raw: dict[str, dict[str, Any]], network: Network) -> Network:
    nodes = []
    for node in network.nodes:
        known = raw[node.name]
        shared = tuple((str(name), int(size)) for name, size in known.pop("shared"))
        spelling = Spelling(**known.pop("spelling"))
        nodes.append(replace(node, written=Written(**known, shared=shared, spelling=spelling)))
    return Network(tuple(nodes), network.layers, network.outputs)


def _key(traced: "Traced", dialect: "Dialect") -> str:
    """Of whatever the sizes depend on: kind of file, graph, layers, shapes of what they hold, and what writes
    files."""
    module, state = traced.module, traced.module.state_dict()
    held = sorted((name, str(tensor.dtype), tuple(tensor.shape)) for name, tensor in state.items())
    made_by = f"{source_digest('compression')} {version('torch')} {version('onnx')} {dialect.name}"
    text = f"{made_by} {module.code} {module} {held} {sorted(traced.shapes.items())} {traced.network}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
