"""How well the latency table of this machine predicts whole networks, and how fast.

    python benchmarks/latency_accuracy.py [--speed] [resnet20] [mobilenetv2] [vit] [unet] [digits] [vgg11]

For each network: fills the table for a space of eight sparsities and {8, 32} bits, fits the correction, draws
policies that the fit has not seen, spread evenly over the range of latency, measures them, and compares. Then
it times the scoring of policies. With --speed nothing is measured but that: the times in the table are made
up, which takes seconds instead of minutes. Needs no data set.
"""

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

from leanfront.compression.capture.trace import Traced, trace
from leanfront.compression.export.template import template
from leanfront.compression.export.walk import random_builder, random_model
from leanfront.compression.graph import Network
from leanfront.compression.policy import Policy
from leanfront.compression.policy.space import Space
from leanfront.hw_profiles import HardwareProfile, load_profile
from leanfront.latency_models.kernel_table.table import CALL, Entry, LatencyTable, this_device
from leanfront.latency_models.measured.building import cost_model
from leanfront.latency_models.measured.model import TableModel
from leanfront.latency_models.measured.optimised_kernels import Structure
from leanfront.latency_models.measured.policy_draws import draw
from leanfront.latency_models.measured.validation import validate

HERE = Path(__file__).resolve().parent
Shape = tuple[int, int, int, int]
NETWORKS: dict[str, tuple[str, str, Shape]] = {  # file, class, input
    "resnet20": ("../examples/cifar10_resnet20/task.py", "ResNet20", (1, 3, 32, 32)),
    "mobilenetv2": ("networks.py", "MobileNetV2", (1, 3, 96, 96)),
    "vit": ("networks.py", "VisionTransformer", (1, 3, 32, 32)),
    "unet": ("networks.py", "UNet", (1, 3, 64, 64)),
    "digits": ("../examples/digits/task.py", "DigitsNet", (1, 1, 16, 16)),
    "vgg11": ("../examples/cifar10_vgg11/task.py", "Vgg11", (1, 3, 32, 32)),
}
SPARSITY = [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]
MANY, FEW = 100_000, 300
DRAWS = 160  # networks that --speed has a look at


def main() -> None:
    parser = argparse.ArgumentParser(description="How well the latency table predicts whole networks.")
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=", ".join(NETWORKS))
    parser.add_argument("--policies", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--speed", action="store_true", help="only how fast policies are scored")
    options = parser.parse_args()
    for name in options.networks:
        if name not in NETWORKS:
            parser.error(f"no network {name!r}; there are {', '.join(NETWORKS)}")
    torch.set_num_threads(1)
    profile = load_profile("this-machine")
    if options.speed:
        print("network      kernels   policies/s  us each  with memory  built")
        for name in options.networks:
            model, space = _made_up(name, profile)
            speed = _scoring_speed(model, space)
            kernels = len(model.structure.kernels)
            print(f"{name:12} {kernels:7}  {speed}  {speed.built:5}", flush=True)
        return
    print(
        "network      table_s   n   MAPE  within 10 %  Spearman     range_us   policies/s  us each"
        "  with memory"
    )
    for name in options.networks:
        traced = traced_network(name)
        space = Space(traced.network, profile, SPARSITY, [8, 32], [8, 32])
        started = time.perf_counter()
        model = cost_model(space, partial(random_builder, traced), profile, options.threads, _note)
        table_s = time.perf_counter() - started
        assert isinstance(model, TableModel)
        found = validate(model, space, options.policies, log=_note)
        speed = _scoring_speed(model, space)
        measured = sorted(row.measured_ms * 1e3 for row in found.rows)
        score = found.accuracy
        print(
            f"{name:12} {table_s:7.1f} {score.n:3} {score.mape:6.1%} {score.within_10_percent:12.1%}"
            f" {score.spearman:9.4f}  {measured[0]:4.0f} .. {measured[-1]:4.0f}  {speed}",
            flush=True,
        )
        for row in sorted(found.rows, key=lambda row: -abs(row.error))[:3]:
            integer = sum(layer.integer for layer in row.policy.values()) / len(row.policy)
            _note(
                f"{row.error:+.1%}: {row.predicted_ms:.4f} ms predicted, {row.measured_ms:.4f} measured,"
                f" {integer:.0%} of the layers in integers"
            )
        if found.noise:
            _note(found.noise)


def traced_network(name: str) -> Traced:
    """One of NETWORKS with random weights."""
    file, class_name, shape = NETWORKS[name]
    build: Callable[[], nn.Module] = getattr(_loaded(HERE / file), class_name)
    return trace(build().eval(), torch.zeros(shape))


def _made_up(name: str, profile: HardwareProfile) -> tuple[TableModel, Space]:
    """A model of a network whose kernels were seen, but never timed: each takes a microsecond."""
    traced = traced_network(name)
    space = Space(traced.network, profile, SPARSITY, [8, 32], [8, 32])
    graph = template(traced)

    def build(network: Network, policy: Policy) -> bytes:
        return bytes(random_model(graph, network, policy).SerializeToString())

    structure = Structure(traced.network, build)
    rng = np.random.default_rng(0)
    for policy in [*space.seeds(), *(draw(space, rng) for _ in range(DRAWS))]:
        structure.observe(space.resized(policy), policy)
    entry = Entry(0.001, 0.0, 1, 1.0, 0.05, 0, "")
    table = LatencyTable(this_device(), dict.fromkeys([CALL, *structure.keys()], entry))
    return TableModel(structure, table, profile), space


@dataclass(frozen=True)
class Speed:
    """How fast policies are priced: in a batch without their peak memory, and one by one.

    one_us: latency, energy and size of a policy, its network cut to size included; with_memory_us: and its
    peak memory. Medians over policies that were not priced before. built: how many of the policies were left
    out of these, because a kernel had a precision that was never seen, which costs an export.
    """

    policies_per_s: float
    one_us: float
    with_memory_us: float
    built: int

    def __str__(self) -> str:
        return f"{self.policies_per_s:11,.0f} {self.one_us:8.0f} {self.with_memory_us:12.0f}"


def _scoring_speed(model: TableModel, space: Space) -> Speed:
    """Of random policies, which leave every branch out in half of the cases, where some others were priced
    before: two batches, and FEW alone."""
    rng = np.random.default_rng(0)
    sizes = np.array([[len(decision.values)] for decision in space.decisions])
    model.costs(space.batch(rng.integers(sizes, size=(len(sizes), MANY))))
    batch = space.batch(rng.integers(sizes, size=(len(sizes), MANY)))
    started = time.perf_counter()
    model.costs(batch)
    many = MANY / (time.perf_counter() - started)
    taken = []
    for policy in [space.random(rng) for _ in range(2 * FEW)]:
        seen = model.structure.version
        started = time.perf_counter()
        cost = model.cost(space.resized(policy), policy)
        priced = time.perf_counter()
        if cost.peak_memory_bytes and seen == model.structure.version:
            taken.append((priced - started, time.perf_counter() - started))
        else:
            taken.append((math.nan, math.nan))
    one, with_memory = np.nanmedian(taken[FEW:], axis=0) * 1e6
    return Speed(many, float(one), float(with_memory), int(np.isnan(taken[FEW:]).sum()) // 2)


def _loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _note(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
