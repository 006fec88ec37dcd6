"""Files for LiteRT (TensorFlow Lite): the graph of ONNX as a flatbuffer, channels last."""

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from leanfront.compression.export.dialects import (
    Arithmetic,
    DialectError,
    LayerCall,
    Opened,
    Qdq,
    register,
)
from leanfront.compression.export.in_halves import nodes_in_halves
from leanfront.compression.export.onnx_writer import Writer
from leanfront.compression.export.template import Template
from leanfront.compression.export.weights import bias_codes, finer_steps
from leanfront.compression.export.zeros_in_file import Counted
from leanfront.compression.graph import Layer, Network, Spelling
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.flatbuffer_size import KIND, MANY, PACKED
from leanfront.compression.policy.layer_size import storage_bits
from leanfront.compression.policy.precision import computes_in_integers


class TFLite(Qdq):
    """Signed codes of 8 bits, weights with a scale for each output channel, biases of 32 bits; floats."""

    name = "tflite"
    engine = "tflite"
    suffix = ".tflite"
    modules = ("ai_edge_litert",)
    extra = "tflite"
    fused = False
    group_norms = True
    narrowest_tensor = 8  # its kernels have no narrower integers
    arithmetic = Arithmetic(rescales=True, rounds="multiplies", adds="fixed")
    spelling = Spelling(KIND, narrowest_weight=4)
    priced = False
    limited = True
    halves = True
    dynamic = False

    @property
    def ran(self) -> str:
        """LiteRT, with its version."""
        return f"LiteRT {version('ai-edge-litert')}"

    def cannot(self, node: onnx.NodeProto) -> str:
        """What there is nothing to write it with."""
        from leanfront.compression.export.litert.writing import refusal

        return refusal(node)

    def reads(self, out: Writer, call: LayerCall) -> str:
        """What there is: nothing is quantized that the file does not say."""
        return call.read

    def weight(self, out: Writer, call: LayerCall) -> str:
        """Codes, decoded: as they are where they are stored in 4 bits, in finer steps where in 8."""
        held = call.weights
        if held.codes is None or held.scales is None:
            return out.own(held.floats(call.axis).astype(np.float32))
        finer = self.finer(call.layer, call.policy)
        stored = out.packed(held.codes * np.int8(finer), self._stored(call.layer, call.policy))
        return out.add("DequantizeLinear", [stored, out.own(held.scales / np.float32(finer))], axis=call.axis)

    def bias(self, out: Writer, call: LayerCall) -> str:
        """Of an integer layer as codes of 32 bits, in steps of what is added up."""
        held = call.weights
        if not call.integer or held.scales is None or call.grid is None:
            return out.own(held.bias)
        codes, scales = bias_codes(held, self.finer(call.layer, call.policy), call.grid.scale)
        return out.add("DequantizeLinear", [out.own(codes), out.own(scales)], axis=0)

    def finer(self, layer: Layer, policy: LayerPolicy) -> int:
        """Steps of the kernel that make one weight code; a type of 4 bits has no room for finer ones."""
        wide = computes_in_integers(layer, policy) and self._stored(layer, policy) == 8
        return finer_steps(policy.weight_bits) if wide else 1

    def _stored(self, layer: Layer, policy: LayerPolicy) -> int:
        """Bits of the type that holds a weight's codes: 4 where the kernel reads that, and where so many
        values are added up that the steps of its biases are fine beside the sum."""
        shape = layer.shape
        added = math.prod(shape.kernel) * shape.in_channels // shape.groups
        packs = computes_in_integers(layer, policy) and shape.op in PACKED and added >= MANY
        return self.stored_bits(policy.weight_bits) if packs else 8

    def stored_bits(self, weight_bits: int) -> int:
        """Single bits as those of 4: nothing unpacks them."""
        return max(self.spelling.narrowest_weight, storage_bits(weight_bits))

    def finished(self, model: onnx.ModelProto, network: Network, policy: Policy) -> bytes:
        """The flatbuffer, with float16 weights where the policy wants them."""
        from leanfront.compression.export.litert.writing import written

        return written(model, nodes_in_halves(network, policy))

    def counted(self, content: bytes) -> Counted:
        """How many weights of a file are 0."""
        from leanfront.compression.export.litert.counting import in_tflite

        return in_tflite(content)

    def measured(self, graph: Template) -> Network | None:
        """What they take in a flatbuffer."""
        from leanfront.compression.export.litert.sizes import measured_in

        return measured_in(graph)

    def opened(self, content: bytes, threads: int = 1) -> Opened | None:
        """In LiteRT's interpreter, with XNNPACK's kernels where it has them."""
        return _Interpreted(content, threads)


class _Interpreted:
    """A file in LiteRT's interpreter."""

    def __init__(self, content: bytes, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        from leanfront.compression.export.litert.writing import layouts

        try:
            self._interpreter = Interpreter(model_content=content, num_threads=threads)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise DialectError(f"LiteRT refuses the file: {str(error).strip().splitlines()[0]}") from error
        self._layouts = layouts(content)
        self._inputs = {one["name"]: one["index"] for one in self._interpreter.get_input_details()}
        self._outputs = {one["name"]: one["index"] for one in self._interpreter.get_output_details()}
        self.inputs = list(self._inputs)
        self.outputs: Sequence[str] = list(self._outputs)

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Inputs by name, as the network has them -> outputs, in their order, the same."""
        for name, place in self._inputs.items():
            given = np.ascontiguousarray(feed[name].transpose(self._layouts[name]))
            self._interpreter.set_tensor(place, given)
        self._interpreter.invoke()
        found = []
        for name, place in self._outputs.items():
            layout = self._layouts[name]
            back = [layout.index(dimension) for dimension in range(len(layout))]
            found.append(self._interpreter.get_tensor(place).transpose(back))
        return found


register(TFLite())
