"""Files for OpenVINO: the same graph as onnxruntime's, which it reads and compiles for this processor."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from leanfront.compression.export.dialects import Arithmetic, DialectError, Opened, Qdq, register
from leanfront.compression.graph import Spelling


class OpenVino(Qdq):
    """QDQ, as OpenVINO's compiler takes it.

    It makes a sum, and the rounding behind it, part of the convolution before, and leaves out the rounding
    between: with that in the file 14.6 % of ResNet-20's first sums were one step off, without it 0.004 %.

    Sources: docs.openvino.ai, "Supported Operations: ONNX" (QuantizeLinear, DequantizeLinear, and Clip).
    """

    name = "openvino"
    engine = "openvino"
    modules = ("openvino",)
    extra = "openvino"
    fused = False
    group_norms = True
    drops_dimensions = False  # it makes what is behind a part of it, with the channels where they were
    pads_means = False  # it takes code 0 for zero, wherever the grid has it
    rounds_summands = False
    narrowest_tensor = 8  # its kernels have no narrower integers
    arithmetic = Arithmetic(rounds="spread", adds="in steps")
    spelling = Spelling(narrowest_weight=4, clips=False)  # its reader of ONNX knows no type of 2 bits
    priced = False

    @property
    def ran(self) -> str:
        """OpenVINO, with its version."""
        return f"OpenVINO {version('openvino')}"

    def opened(self, content: bytes, threads: int = 1) -> Opened | None:
        """Compiled for this processor, for latency, in floats of 32 bits where it is not integers."""
        return _Compiled(content, threads)


class _Compiled:
    """A file that OpenVINO has compiled."""

    def __init__(self, content: bytes, threads: int) -> None:
        import openvino

        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16, where the processor has it
            "NUM_STREAMS": 1,
        }
        try:
            model = openvino.Core().read_model(content)
            self._compiled = openvino.Core().compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise DialectError(f"OpenVINO refuses the file: {_first_line(error)}") from error
        self._request = self._compiled.create_infer_request()
        # not OpenVINO's names: what is multiplied by ones is an input by another name there
        graph = onnx.load_from_string(content).graph
        self.inputs = [value.name for value in graph.input]
        self.outputs: Sequence[str] = [value.name for value in graph.output]

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Inputs by name -> outputs, in their order."""
        found = self._request.infer([feed[name] for name in self.inputs])
        return [np.array(found[place]) for place in range(len(self.outputs))]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith("Exception from")), type(error).__name__)


register(OpenVino())
