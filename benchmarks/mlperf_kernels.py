"""ResNet-50 as NVIDIA submitted it to MLPerf Inference: some layers of its first stage run in kernels written
for that stage, which TensorRT does not make of a file.

Which they are is said by closed/NVIDIA/code/resnet50/tensorrt/rn50_graphsurgeon.py (fuse_ops) of
github:mlcommons/inference_results_v2.0: on Orin (compute capability 8.7) the whole stage, on Xavier (7.2)
three pairs of layers. Later rounds have kernels of NVIDIA for the last layers of Orin's other blocks, too,
which do what TensorRT's do.
"""

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from benchmarks.calibrate_roofline import ORIN
from benchmarks.published_rows import BITS, Row, network, work
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.hw_profiles import Roofline
from leanfront.latency_models.roofline.model import times
from leanfront.latency_models.roofline.work import Work

WHOLE_STAGE = (("layer1.",),)
PAIRS = (
    ("layer1.0.conv3", "layer1.0.downsample.0"),
    ("layer1.1.conv2", "layer1.1.conv3"),
    ("layer1.2.conv2", "layer1.2.conv3"),
)


def submitted_ms(row: Row, roofline: Roofline) -> float:
    """Latency of a row of ResNet-50 with NVIDIA's kernels in it."""
    groups = WHOLE_STAGE if row.device in ORIN else PAIRS
    merged = work(row, roofline)
    for names in groups:
        merged = in_one_kernel(merged, row, names)
    return float(times(merged, roofline).latency_ms.sum())


def in_one_kernel(every: Work, row: Row, names: Sequence[str]) -> Work:
    """The work of a row's network with the kernels whose names begin with one of ``names`` started as one:
    what is made and read among them does not cross memory."""
    policy = Policy.uniform(network(row.network), LayerPolicy(0.0, BITS[row.precision], BITS[row.precision]))
    batch = PolicyBatch.one(network(row.network), policy)
    own = [i for i, kernel in enumerate(batch.kernels) if kernel.name.startswith(tuple(names))]
    inside = {batch.kernels[i].name for i in own}
    read = {name for i in own for name in batch.kernels[i].inputs} - inside
    crossing = [batch.kernel_index[name] for name in read] + own[-1:]
    values = {field.name: np.array(getattr(every, field.name)) for field in fields(every)}
    outer = sum(float(batch.element_rows[i].max()) for i in crossing) * BITS[row.precision] / 8
    values["moved_bytes"][own] -= values["layer_bytes"][own]
    values["layer_bytes"][own] = values["launches"][own] = values["gathered_bytes"][own] = 0.0
    values["moved_bytes"][own[-1]] += outer
    values["layer_bytes"][own[-1]] = outer
    values["launches"][own[-1]] = 1.0
    return replace(every, **values)
