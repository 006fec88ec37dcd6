"""A model of ONNX as a .tflite file."""

import json
from collections.abc import Collection

import onnx
from ai_edge_litert import schema_py_generated as schema

from leanfront.compression.export.litert import layers as layers
from leanfront.compression.export.litert import moving as moving
from leanfront.compression.export.litert import pieces as pieces
from leanfront.compression.export.litert import pools as pools
from leanfront.compression.export.litert import products as products
from leanfront.compression.export.litert.lowering import LAYOUTS, WRITTEN, attributes
from leanfront.compression.export.litert.lowering import Lowering as Lowering


def written(model: onnx.ModelProto, halves: Collection[str] = ()) -> bytes:
    """The file. ``halves``: names of the nodes whose weights are stored in float16."""
    return Lowering(model, halves).written()


def refusal(node: onnx.NodeProto) -> str:
    """Why a node of a graph in floats cannot be written; "" where it can."""
    if node.op_type not in WRITTEN:
        return f"no kernel for {node.op_type}"
    found = attributes(node)
    if len(found.get("strides", ())) > 2 or len(found.get("kernel_shape", ())) > 2:
        return f"no {node.op_type} of volumes"
    if node.op_type in ("MaxPool", "AveragePool") and any(one > 1 for one in found.get("dilations", ())):
        return f"no {node.op_type} with dilation"
    if node.op_type == "GatherND" and found.get("batch_dims", 0):
        return "no GatherND that counts within a batch"
    if node.op_type == "Resize" and (found.get("mode") == "cubic" or found.get("antialias", 0)):
        return "no Resize that is cubic or has antialias"
    return ""


def layouts(content: bytes) -> dict[str, list[int]]:
    """Input or output of a file -> the network's dimensions in the order in which the file has them."""
    model = schema.Model.GetRootAs(content)
    for place in range(model.MetadataLength()):
        entry = model.Metadata(place)
        if entry.Name().decode() == LAYOUTS:
            found: dict[str, list[int]] = json.loads(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes())
            return found
    return {}
