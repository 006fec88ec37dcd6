"""Goldens of exported files: graphs line by line, sizes, sums of their weights, and a hash of the bytes."""

import difflib
import hashlib
import json
import lzma
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper

from tests.goldens import networks, subjects

KEPT = subjects.FOLDER / "files.json.xz"
TOLERANCE = 1e-4
"""Of sums of weights: another processor rounds a folded float otherwise, and a code may be the one beside."""
TIMED = ("timed", "timed_export")
"""Written from shapes alone, and the graph of an export with random weights."""


def graph_lines(content: bytes) -> list[str]:
    """The file without its weights: nodes with attributes, tensors with types and shapes, in order."""
    model = onnx.load_model_from_string(content)
    graph = model.graph
    domains = [f"{own.domain or 'ai.onnx'} {own.version}" for own in model.opset_import]
    lines = [f"ir {model.ir_version}, opsets {domains}, producer {model.producer_name}, graph {graph.name}"]
    for what, values in (("in", graph.input), ("out", graph.output), ("value", graph.value_info)):
        lines += [f"{what} {value.name} {_type(value)}" for value in values]
    lines += [f"constant {t.name} {onnx.TensorProto.DataType.Name(t.data_type)}{list(t.dims)}"
              for t in graph.initializer]  # fmt: skip
    for node in graph.node:
        given = ", ".join(f"{own.name}={_value(own)}" for own in node.attribute)
        head = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
        lines.append(f"{head} {node.name!r} {list(node.input)} -> {list(node.output)} {given}".rstrip())
    return lines


def _type(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    shape = [size.dim_param or size.dim_value for size in kind.shape.dim]
    return f"{onnx.TensorProto.DataType.Name(kind.elem_type)}{shape}"


def _value(attribute: onnx.AttributeProto) -> str:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return f"{onnx.TensorProto.DataType.Name(value.data_type)}{list(value.dims)}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bytes):
        return value.decode()
    return str(list(value) if hasattr(value, "__len__") else value)


def weight_sums(content: bytes) -> list[list[float]]:
    """Of each constant: the root of its sum of squares, and its sum with random weights."""
    sums = []
    for place, tensor in enumerate(onnx.load_model_from_string(content).graph.initializer):
        values = numpy_helper.to_array(tensor).astype(np.float64).reshape(-1)
        values = np.clip(np.nan_to_num(values), -1e15, 1e15)
        weights = np.random.default_rng(place).standard_normal(values.size)
        sums.append([float(f"{np.linalg.norm(values):.9g}"), float(f"{weights @ values:.9g}")])
    return sums


def fingerprint() -> str:
    """What decides the last bit of a file."""
    model = ""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    software = [own.__version__ for own in (torch, onnx, onnxruntime, np)]
    return " ".join([platform.machine(), model, torch.backends.cpu.get_cpu_capability(), *software])


def _of(content: bytes) -> dict[str, Any]:
    return {
        "graph": graph_lines(content),
        "bytes": len(content),
        "sums": weight_sums(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def _written(name: str, kind: str, timed: str = "") -> bytes:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if timed:
            return subjects.file_to_be_timed(name, kind, exported=timed == TIMED[1])
        return subjects.exported_file(name, kind)
    finally:
        torch.set_num_threads(threads)


def make() -> None:
    """Write the goldens of all files."""
    kept: dict[str, Any] = {"fingerprint": fingerprint()}
    for name in networks.KINDS:
        for kind in subjects.FILES:
            kept[f"{name} {kind}"] = _of(_written(name, kind))
    for name, kind in subjects.BUILT_TO_BE_TIMED:
        for timed in TIMED:
            kept[f"{name} {kind} {timed}"] = _of(_written(name, kind, timed))
    KEPT.write_bytes(lzma.compress(json.dumps(kept, separators=(",", ":")).encode(), preset=9))


def read() -> dict[str, Any]:
    """What ``make`` wrote."""
    kept: dict[str, Any] = json.loads(lzma.decompress(KEPT.read_bytes()))
    return kept


def differences(kept: dict[str, Any], network: str) -> Iterator[str]:
    """A sentence for each file of a network that is another than it was."""
    for which in [key for key in kept if key.startswith(network + " ")]:
        name, kind, *timed = which.split()
        came = _of(_written(name, kind, *timed))
        yield from (f"{which}: {what}" for what in _different(kept[which], came, kept["fingerprint"]))


def _different(kept: dict[str, Any], came: dict[str, Any], where: str) -> Iterator[str]:
    if kept["graph"] != came["graph"]:
        lines = list(difflib.unified_diff(kept["graph"], came["graph"], "kept", "came", n=0, lineterm=""))
        yield f"the graph, in {len(lines) - 2} lines of its difference:\n" + "\n".join(lines[2:14])
        return
    names = [line.split()[1] for line in kept["graph"] if line.startswith("constant ")]
    other = [
        f"constant {constant}: norm and weighted sum {a} were kept, {b} came"
        for constant, a, b in zip(names, kept["sums"], came["sums"], strict=True)
        if max(abs(a[0] - b[0]), abs(a[1] - b[1])) > TOLERANCE * max(a[0], b[0])
    ]
    if other:
        yield f"{other[0]} (and {len(other) - 1} other constants)"
    if kept["bytes"] != came["bytes"]:
        yield f"{kept['bytes']} bytes were kept, {came['bytes']} came"
    elif not other and kept["sha256"] != came["sha256"] and where == fingerprint():
        yield (
            "other bytes in the same graph, on the processor and libraries that the golden was made with:"
            f" weights moved within {TOLERANCE}, or something that graph_lines does not show"
        )
