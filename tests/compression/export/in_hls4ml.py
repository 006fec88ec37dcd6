"""Convert a QONNX file with hls4ml, compile it with g++, and compare its answers with qonnx's.

Run by an interpreter that has hls4ml: its arguments are the file, the inputs (.npy) and a folder. The last
line that it prints is JSON.
"""

import json
import sys
from functools import partial

import hls4ml
import numpy as np
from onnx import TensorProto, helper
from qonnx.core import onnx_exec
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.transformation.extract_conv_bias import ExtractBiasFromConv
from qonnx.util.cleanup import cleanup_model

onnx_exec.qonnx_make_model = partial(onnx_exec.qonnx_make_model, ir_version=10)  # what onnxruntime reads
FILE, INPUTS, FOLDER = sys.argv[1:4]


def scales_behind(model: ModelWrapper) -> ModelWrapper:
    """Weights as their codes, with the scale of each output channel behind the product.

    hls4ml 1.3 cannot do this itself where the tensor has a scale as well: move_scales.py multiplies the two
    with @, which fails for a scale of one number (Conv), or wants one scale for all channels (MatMul).
    """
    for node in list(model.graph.node):
        quant = model.find_producer(node.input[1]) if node.op_type in ("Conv", "MatMul") else None
        if quant is None or quant.op_type != "Quant":
            continue
        scale = model.get_initializer(quant.input[1])
        weight = model.get_initializer(quant.input[0])
        model.set_initializer(quant.input[0], np.round(weight / scale).astype(np.float32))
        one = model.make_new_valueinfo_name()
        model.set_initializer(one, np.float32(1.0).reshape(()))
        quant.input[1] = one
        axis = (1, -1, *[1] * (scale.ndim - 2)) if node.op_type == "Conv" else (1, -1)
        made, shape = node.output[0], model.get_tensor_shape(node.output[0])
        before, factor = f"{made}_codes", f"{made}_scale"
        model.graph.value_info.append(helper.make_tensor_value_info(before, TensorProto.FLOAT, shape))
        model.set_initializer(factor, scale.reshape(axis))
        node.output[0] = before
        place = list(model.graph.node).index(node)
        model.graph.node.insert(place + 1, helper.make_node("Mul", [before, factor], [made]))
    return model


def without_batch(model: ModelWrapper) -> ModelWrapper:
    """Constants that are added or multiplied as hls4ml wants them: a value for each channel."""
    for node in model.graph.node:
        for name in node.input if node.op_type in ("Add", "Mul") else ():
            value = model.get_initializer(name)
            if value is not None and value.ndim > 1:
                model.set_initializer(name, value.reshape(-1))
    return model


def main() -> None:
    x = np.load(INPUTS)
    ours = ModelWrapper(FILE)
    name, out = ours.graph.input[0].name, ours.graph.output[0].name
    wanted = np.concatenate([onnx_exec.execute_onnx(ours, {name: one[None]})[out] for one in x])
    model = cleanup_model(cleanup_model(ModelWrapper(FILE)).transform(ExtractBiasFromConv()))
    model = scales_behind(model)
    if any(node.op_type == "Conv" for node in model.graph.node):
        model = model.transform(ConvertToChannelsLastAndClean())
    model = without_batch(cleanup_model(model))
    settings = hls4ml.utils.config.config_from_onnx_model(
        model, granularity="name", backend="Vitis", default_precision="fixed<56,12>"
    )  # with fewer bits behind the point scales are rounded, and values to another code here and there
    built = hls4ml.converters.convert_from_onnx_model(
        model, output_dir=FOLDER, io_type="io_parallel", backend="Vitis", hls_config=settings
    )
    built.compile()
    found = built.predict(np.ascontiguousarray(x)).reshape(len(x), -1)
    apart = float(np.abs(found - wanted.reshape(len(x), -1)).max())
    same = float((found.argmax(1) == wanted.reshape(len(x), -1).argmax(1)).mean())
    print(json.dumps({"apart": apart, "range": float(np.ptp(wanted)), "same": same}))


if __name__ == "__main__":
    main()
