"""A kind of file of one's own: weights as float16, all else in floats.

What to write, in the task's file: a ``Dialect`` with a name, and ``register`` it; ``--to half``, or ``to =
"half"`` in [export], asks for it. Its methods write everything in floats until they are overridden:
``weight``, ``bias``, ``quantized`` ...; ``agreement``, ``accuracy_tolerance`` and ``promises_integers`` say
what ``pick`` holds the file to.
"""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from tests.extending.walk import walked

ADDED = '''
import numpy as np
from onnx import TensorProto

from leanfront.compression.export.dialects import Dialect, register


class Half(Dialect):
    """Weights as float16; everything is computed in floats."""

    name = "half"
    agreement = 0.98  # of its answers with the torch network's: tensors are not rounded to their grids

    def weight(self, out, call):
        stored = out.constant(call.weights.floats(call.axis).astype(np.float16))
        return out.add("Cast", [stored], to=TensorProto.FLOAT)


register(Half())
'''


@pytest.mark.slow  # for every change test_together.py
def test_what_is_picked_is_written_in_it(tmp_path: Path) -> None:
    walk = walked(tmp_path, ADDED, "export.to=half")
    graph = onnx.load(walk.exported / "model.onnx").graph
    assert [tensor.data_type for tensor in graph.initializer].count(TensorProto.FLOAT16) == 3
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in graph.node}
    size = (walk.exported / "model.onnx").stat().st_size
    whole = walk.verification["size"]["baseline_bytes"]
    assert f"| model file, kind half | {whole / 1000:.2f} kB | {size / 1000:.2f} kB" in walk.card
    assert "model file, kind half" in walk.picked
    assert "model file, kind half" in walk.page
    assert walk.verification["size"] | {"bytes": size, "kind": "half"} == walk.verification["size"]
    assert walk.verification["kernels"]["integer"] == []
    assert walk.verification["failures"] == []
    bits = {layer["weight_bits"] for point in walk.front["front"] for layer in point["policy"].values()}
    assert min(bits) < 16
