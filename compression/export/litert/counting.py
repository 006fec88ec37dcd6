"""How many weights of a .tflite file are 0, counted in it."""

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from leanfront.compression.export.zeros_in_file import Counted, added

_KINDS = {
    schema.TensorType.FLOAT32: np.float32, schema.TensorType.FLOAT16: np.float16,
    schema.TensorType.INT8: np.int8, schema.TensorType.UINT8: np.uint8,
}  # fmt: skip


def in_tflite(content: bytes) -> Counted:
    """Of constants with two dimensions or more; a code is 0 where it is its zero point."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    found = Counted(0, 0)
    for tensor in model.subgraphs[0].tensors:
        held = model.buffers[tensor.buffer].data
        if held is None or len(held) == 0 or tensor.shape is None or len(tensor.shape) < 2:
            continue
        codes = np.frombuffer(bytes(held), dtype=np.uint8)
        if tensor.type == schema.TensorType.INT4:  # two in a byte, the first in its lower half
            both = np.stack([codes & 15, codes >> 4], axis=1).reshape(-1)
            values: NDArray[Any] = ((both ^ 8).astype(np.int16) - 8)[: int(np.prod(tensor.shape))]
        elif tensor.type in _KINDS:
            values = codes.view(_KINDS[tensor.type])
        else:
            continue
        grid = tensor.quantization
        points = np.zeros(1) if grid is None or grid.zeroPoint is None else np.asarray(grid.zeroPoint)
        found = added(found, values, points)
    return found
