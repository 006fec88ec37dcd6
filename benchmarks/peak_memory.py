"""Predicted peak memory beside what onnxruntime allocates.

    python benchmarks/peak_memory.py [resnet20] [mobilenetv2] [vit] [unet] [digits] [vgg11] [--mixed 6]

For each network in float32, in int8 and under random cut and mixed policies: the most bytes that onnxruntime
has in use at once in its memory arena during a run, at its default settings (memory patterns on) and one
thread, from the third run on. They are counted by an allocator in the arena's place. These are the planned
block of tensors, the outputs, and the working buffers of single operations; not the weights, and not the
input, which is the caller's. The prediction is that of ``TableModel``, made from the optimised nodes of the
very network; no latency is measured.
"""

import argparse

import numpy as np
from counted_arena import CountedArena
from latency_accuracy import NETWORKS, traced_network

from leanfront.compression.export.template import template
from leanfront.compression.export.walk import random_model
from leanfront.compression.graph import Network
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.space import Space
from leanfront.hw_profiles import load_profile
from leanfront.latency_models.measured.arena import Arena
from leanfront.latency_models.measured.footprint import footprint
from leanfront.latency_models.measured.optimised_kernels import Structure
from leanfront.latency_models.measured.policy_draws import draw


def main() -> None:
    parser = argparse.ArgumentParser(description="Predicted peak memory beside what onnxruntime allocates.")
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=", ".join(NETWORKS))
    parser.add_argument("--mixed", type=int, default=6, help="random policies of each network")
    parser.add_argument("--seed", type=int, default=77)
    options = parser.parse_args()
    counted, profile = CountedArena(), load_profile("this-machine")
    ratios = []
    print("network      policy    predicted   allocated  ratio")
    for name in options.networks:
        traced = traced_network(name)
        graph = template(traced)

        def build(network: Network, policy: Policy) -> bytes:
            model: bytes = random_model(graph, network, policy).SerializeToString()  # noqa: B023
            return model

        structure = Structure(traced.network, build)
        arena = Arena(structure.kernels, structure.outputs)
        space = Space(traced.network, profile, [0.0, 0.25, 0.5, 0.75], [8, 32], [8, 32])
        rng = np.random.default_rng(options.seed)
        policies = {
            "float32": Policy.uniform(traced.network, LayerPolicy()),
            "int8": Policy.uniform(traced.network, LayerPolicy(0.0, 8, 8)),
            **{f"mixed {number}": draw(space, rng) for number in range(options.mixed)},
        }
        for kind, policy in policies.items():
            network = space.resized(policy)
            numbers = [arena.number(footprint(part)) for part in structure.observe(network, policy)]
            predicted = arena.peak_bytes(numbers, structure.without(policy.left_out(traced.network)))
            allocated = counted.run_bytes(build(network, policy))
            ratios.append(predicted / allocated)
            print(f"{name:12} {kind:8} {predicted:10,} {allocated:11,}   {ratios[-1]:.2f}", flush=True)
    within = np.mean(np.abs(np.array(ratios) - 1) <= 0.15)
    print(f"within 15 %: {within:.0%} of {len(ratios)}")


if __name__ == "__main__":
    main()
