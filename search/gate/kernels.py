"""Which kernels onnxruntime runs for a file, against what its dialect promises."""

import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from leanfront.compression.export.dialects import QDQ, Dialect
from leanfront.compression.graph import Layer, Network, kernels
from leanfront.compression.policy import Policy
from leanfront.compression.policy.dynamic import together
from leanfront.latency_models.benchmark.timing import session
from leanfront.latency_models.kernel_table.keys import INTEGER_OPS


def integer_layers(optimised: dict[str, str], layers: Iterable[str]) -> dict[str, str]:
    """Layer -> the operation that onnxruntime runs for it, "" where none bears its name.

    ``optimised``: node name -> operation of the optimised graph. onnxruntime keeps a layer's name and adds
    a suffix ("_token_3", "_nchwc", "/MatMulAddFusion").
    """
    found = {}
    for layer in layers:
        names = [
            name for name in optimised
            if name == layer or name.startswith((f"{layer}_token", f"{layer}_nchwc", f"{layer}/"))
        ]  # fmt: skip
        operations = [optimised[name] for name in names]
        found[layer] = next((op for op in operations if op in INTEGER_OPS), (operations or [""])[0])
    return found


def optimised_nodes(model: bytes, threads: int) -> dict[str, str]:
    """Node name -> operation of the graph that onnxruntime runs for a model."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        session(model, threads, save=str(path))
        graph = onnx.load_model(path, load_external_data=False).graph
    return {node.name or f"#{index}": node.op_type for index, node in enumerate(graph.node)}


def kernel_report(
    model: bytes, network: Network, policy: Policy, threads: int, dialect: Dialect = QDQ
) -> dict[str, Any]:
    """Which layers (each use of one by itself) run as fused integer kernels, which of them against what a
    dialect promises of its files, and the operations in all; of a file that is not onnxruntime's own the
    layers that its dialect promises. Of one that its engine does not run here "not_run" says so, and what was
    checked instead."""
    layers = _run(network)
    promised = [
        name for name, layer in layers.items() if dialect.promises_integers(layer, policy[layer.name])
    ]
    if not (dialect.fused and dialect.runs_here):
        not_run = _not_run(dialect)
        found = {"integer": promised, "not_fused": [], "not_wanted": [], "operations": {}}
        return found | ({"not_run": not_run} if not_run else {})
    nodes = optimised_nodes(model, threads)
    runs = integer_layers(nodes, layers)
    integer = [name for name, op in runs.items() if op in INTEGER_OPS]
    return {
        "integer": integer,
        "not_fused": [name for name in promised if name not in integer],
        "not_wanted": [name for name in integer if name not in promised],
        "operations": dict(Counter(nodes.values())),
    }


def _run(network: Network) -> dict[str, Layer]:
    """Layers by the names that their kernels bear; of the matrices of an LSTM the first stands for all."""
    behind = {name for layers in together(network) for name in layers[1:]}
    found = {}
    for kernel in kernels(network):
        layer = kernel.layer
        if layer is None or layer.name in behind:
            continue
        found[kernel.label] = layer
    return found


def _not_run(dialect: Dialect) -> str:
    """What was not run here, and what was checked of it; "" where its own engine ran the file."""
    if not dialect.runs_here:
        why = dialect.not_run or f"onnxruntime does not run files of kind {dialect.name!r}"
        return f"{why}: accuracy, answers and kernels of the file were not checked{_checked(dialect)}"
    if dialect.not_run:
        return f"{dialect.not_run}; its values were run in {dialect.ran}{_checked(dialect)}"
    return ""


def _checked(dialect: Dialect) -> str:
    rules = ", ".join(rule.says for rule in dialect.rules)
    return f"; rules checked: {rules}" if rules else ""
