"""Live tensors beside the memory that onnxruntime takes.

    python benchmarks/peak_memory.py [resnet20] [mobilenetv2] [vit] [unet] [digits] [vgg11] ... [--mixed 6]

For each network in float32, in int8 and under random cut and mixed policies: the peak of tensors that live
at the same time with what kernels work in, which is what a search knows (``latency_models.memory``), and the
most bytes that an inference takes at once (counted_memory): inputs, tensors, outputs and
working buffers of operations, not the weights. No latency is measured.
"""

import argparse

import numpy as np

from benchmarks.latency_accuracy import NETWORKS, traced_network
from leanfront.compression.export.template import template
from leanfront.compression.export.walk import random_model
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.space import Space
from leanfront.hw_profiles import load_profile
from leanfront.latency_models.benchmark.counted_memory import counted_bytes
from leanfront.latency_models.measured.policy_draws import draw
from leanfront.latency_models.memory import peak_bytes, tensor_bytes, working_bytes

MORE = {
    "dense": ("../tests/networks.py", "Dense", (1, 3, 8, 8)),
    "inverted": ("../tests/residual_networks.py", "Inverted", (1, 3, 16, 16)),
}


def main() -> None:
    NETWORKS.update(MORE)
    parser = argparse.ArgumentParser(description="Live tensors beside the memory that onnxruntime takes.")
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=", ".join(NETWORKS))
    parser.add_argument("--mixed", type=int, default=6, help="random policies of each network")
    parser.add_argument("--seed", type=int, default=77)
    options = parser.parse_args()
    profile, ratios = load_profile("this-machine"), []
    print("network      policy    predicted     counted  ratio")
    for name in options.networks:
        traced = traced_network(name)
        graph = template(traced)
        space = Space(traced.network, profile, [0.0, 0.25, 0.5, 0.75], [8, 32], [8, 32])
        rng = np.random.default_rng(options.seed)
        policies = {
            "float32": Policy.uniform(traced.network, LayerPolicy()),
            "int8": Policy.uniform(traced.network, LayerPolicy(0.0, 8, 8)),
            **{f"mixed {number}": draw(space, rng) for number in range(options.mixed)},
        }
        batch = PolicyBatch.of(traced.network, [*policies.values()], space.multiple)
        peaks = peak_bytes(batch, tensor_bytes(batch), working_bytes(batch))
        predicted = dict(zip(policies, peaks, strict=True))
        for kind, policy in policies.items():
            model = random_model(graph, space.resized(policy), policy).SerializeToString()
            counted = counted_bytes(model)
            assert counted is not None, (name, kind)
            ratios.append(predicted[kind] / counted)
            print(f"{name:12} {kind:8} {predicted[kind]:10,.0f} {counted:11,}   {ratios[-1]:.2f}", flush=True)
    found = np.array(ratios)
    print(f"predicted over counted, {len(found)} files: {found.min():.2f} to {found.max():.2f},", end=" ")
    print(f"median {np.median(found):.2f}, {np.mean(np.abs(found - 1) <= 0.25):.0%} within 25 %")


if __name__ == "__main__":
    main()
