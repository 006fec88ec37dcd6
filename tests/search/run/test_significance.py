"""Timing beside programs that want the same cores: right, or said to be doubtful; never silently wrong."""

import subprocess
import time
from pathlib import Path

import pytest
from onnx import TensorProto, helper, numpy_helper

from leanfront.latency_models.benchmark.timing import Reference, noise, time_models


def model(channels: int) -> bytes:
    import numpy as np

    weight = np.ones((channels, channels, 3, 3), np.float32)
    shape = [1, channels, 32, 32]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
def test_two_busy_programs(known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path))
    models = {"small": model(16), "large": model(64)}
    quiet = time_models(models, reference=Reference(1))
    if noise(quiet):
        pytest.skip("this machine is noisy before anything was started on it")
    undisturbed_ms = quiet["small"].reference_ms if known else None
    busy = [subprocess.Popen(["yes"], stdout=subprocess.DEVNULL) for _ in range(2)]
    try:
        time.sleep(0.5)
        beside = time_models(models, reference=Reference(1, undisturbed_ms))
    finally:
        for process in busy:
            process.kill()
            process.wait()
    for name, timing in beside.items():
        doubtful = timing.disturbed or timing.stale(quiet[name].reference_ms)
        wrong = abs(timing.median_ms / quiet[name].median_ms - 1) > 0.10
        assert not wrong or doubtful or noise(beside), (name, timing, quiet[name])
