"""How well the latency table of this machine predicts whole networks.

    python benchmarks/latency_accuracy.py [digits] [cifar10_resnet20] [cifar10_vgg11] [--policies 40]

For each example network: fills the table for a space of eight sparsities and {8, 32} bits, fits the
correction, draws policies that the fit has not seen, spread evenly over the range of latency, measures them,
and compares. Needs no data set.
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType

import torch

from compression.trace import trace
from hw_profiles import load_profile
from search.latency import cost_model
from search.space import Space
from search.validation import validate

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NETWORKS = {
    "digits": ("DigitsNet", (1, 1, 16, 16)),
    "cifar10_resnet20": ("ResNet20", (1, 3, 32, 32)),
    "cifar10_vgg11": ("Vgg11", (1, 3, 32, 32)),
}
SPARSITY = [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]


def main() -> None:
    parser = argparse.ArgumentParser(description="How well the latency table predicts whole networks.")
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=", ".join(NETWORKS))
    parser.add_argument("--policies", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    profile = load_profile("this-machine")
    print("network            table_s   n   MAPE  within 10 %  Spearman  range_us       us per policy")
    for name in options.networks:
        if name not in NETWORKS:
            parser.error(f"no network {name!r}; there are {', '.join(NETWORKS)}")
        class_name, shape = NETWORKS[name]
        traced = trace(getattr(_example(name), class_name)().eval(), torch.zeros(shape))
        space = Space(traced.network, profile, SPARSITY, [8, 32], [8, 32])
        started = time.perf_counter()
        model = cost_model(traced, space, profile, options.threads, _note)
        table_s = time.perf_counter() - started
        found = validate(model, space, options.policies, log=_note)
        policies = [(space.resized(row.policy), row.policy) for row in found.rows]
        started = time.perf_counter()
        for network, policy in policies:
            model.cost(network, policy)
        each_us = (time.perf_counter() - started) / len(policies) * 1e6
        measured = sorted(row.measured_ms * 1e3 for row in found.rows)
        score = found.accuracy
        print(
            f"{name:18} {table_s:7.1f} {score.n:3} {score.mape:6.1%} {score.within_10_percent:12.1%}"
            f" {score.spearman:9.4f}  {measured[0]:.0f} .. {measured[-1]:.0f}      {each_us:.0f}"
        )
        worst = max(found.rows, key=lambda row: abs(row.error))
        _note(f"worst: {worst.predicted_ms:.4f} ms predicted, {worst.measured_ms:.4f} measured")
        if found.noise:
            _note(found.noise)


def _example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / name / "task.py")
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
