"""Predicted peak of live tensors beside the memory that onnxruntime needs.

    python benchmarks/peak_memory.py [resnet20] [mobilenetv2] [vit] [unet] [--mixed 2]

For each network in float32, in int8 and under random policies: the smallest arena in which onnxruntime runs
it, less the smallest in which it only loads it, found by bisection, each try in a process of its own. That is
what a run allocates: tensors between operations, the outputs, and what single operations need
while they run; not the weights, some of which are packed into the arena when the file is loaded, and not the
input, which is the caller's. Memory patterns are off: they allocate the same at once.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from latency_accuracy import NETWORKS, traced_network

from compression.export import random_model
from compression.policy import LayerPolicy, Policy
from compression.template import template
from hw_profiles import load_profile
from latency_models.memory import peak_memory_bytes
from search.policy_draws import draw
from search.space import Space

TRY = """
import sys
import numpy as np
import onnxruntime as ort

path, limit, reserved, loads = sys.argv[1], *map(int, sys.argv[2:])
if not limit:  # say what the weights take
    ort.set_default_logger_severity(0)
    ort.set_default_logger_verbosity(5)
memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
ort.create_and_register_allocator(memory, ort.OrtArenaCfg(limit and limit + reserved, 0, limit or -1, 256))
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 4
options.enable_mem_pattern = False
options.add_session_config_entry("session.use_env_allocators", "1")
try:
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for _ in range(0 if loads else 2):
        session.run(None, {i.name: np.zeros([s if isinstance(s, int) else 1 for s in i.shape], np.float32)
                           for i in session.get_inputs()})
except Exception:
    print("too small")
else:
    print("fits")
"""


def _try(path: Path, limit: int, reserved: int, loads: bool) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", TRY, str(path), str(limit), str(reserved), str(int(loads))]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def arena_bytes(path: Path, loads: bool = False) -> int:
    """The smallest arena for a model (``loads``: to load it alone), to half a percent or 512 bytes."""
    told = _try(path, 0, 0, loads=True).stderr
    reserved = sum(
        int(size) for size in re.findall(r"Reserving memory in BFCArena for Cpu size: (\d+)", told)
    )
    low, high = 0, 1 << 26
    while high - low > max(512, high // 200):
        middle = (low + high) // 512 * 256
        if _try(path, middle, reserved, loads).stdout.strip() == "fits":
            high = middle
        else:
            low = middle
    return high


def main() -> None:
    parser = argparse.ArgumentParser(description="Predicted peak memory beside what onnxruntime needs.")
    parser.add_argument("networks", nargs="*", default=list(NETWORKS)[:4], help=", ".join(NETWORKS))
    parser.add_argument("--mixed", type=int, default=2, help="random policies of each network")
    options = parser.parse_args()
    profile = load_profile("this-machine")
    print("network            policy    predicted    measured   ratio")
    for name in options.networks:
        traced = traced_network(name)
        graph = template(traced)
        space = Space(traced.network, profile, [0.0, 0.25, 0.5, 0.75], [8, 32], [8, 32])
        rng = np.random.default_rng(5)
        policies = {
            "float32": Policy.uniform(traced.network, LayerPolicy()),
            "int8": Policy.uniform(traced.network, LayerPolicy(0.0, 8, 8)),
            **{f"mixed {number}": draw(space, rng) for number in range(options.mixed)},
        }
        for kind, policy in policies.items():
            network = space.resized(policy)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "network.onnx"
                path.write_bytes(random_model(graph, network, policy).SerializeToString())
                measured = arena_bytes(path) - arena_bytes(path, loads=True)
            predicted = peak_memory_bytes(network, policy)
            print(
                f"{name:18} {kind:8} {predicted:10,} {measured:11,}   {predicted / measured:.2f}", flush=True
            )


if __name__ == "__main__":
    main()
