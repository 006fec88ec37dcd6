"""Policies as arrays say the same as one by one."""

import numpy as np
import pytest

from leanfront.compression.graph import Network, kernels
from leanfront.compression.policy import LayerPolicy, Policy, integer_kernels, tensor_bits
from leanfront.compression.policy.batch import PolicyBatch, size_bytes
from leanfront.compression.policy.space import Space
from leanfront.hw_profiles import load_profile
from tests.networks import ALL, traced_network


def random_policies(network: Network, count: int, seed: int = 0) -> list[Policy]:
    """Policies of any sparsity and any bits; layers that read one tensor share its activation bits."""
    rng = np.random.default_rng(seed)
    source = {node.layer: node.inputs[0] for node in network.nodes if node.layer is not None}
    policies = []
    for _ in range(count):
        cut = {group: float(rng.choice([0.0, 0.25, 0.5])) for group in network.groups}
        read = {name: int(rng.choice([4, 8, 8, 32])) for name in dict.fromkeys(source.values())}
        policies.append(
            Policy.of(
                {
                    layer.name: LayerPolicy(
                        cut.get(layer.group or "", 0.0),
                        int(rng.choice([2, 3, 4, 8, 32])),
                        read[source[layer.name]],
                    )
                    for layer in network.layers
                }
            )
        )
    return policies


@pytest.mark.parametrize("name", ALL)
def test_arrays_agree_with_each_policy(name: str) -> None:
    network = traced_network(name).network
    policies = random_policies(network, 25)
    batch = PolicyBatch.of(network, policies)
    assert batch.count == 25
    sizes = batch.size_bytes()
    for column, policy in enumerate(policies):
        cut = network.resized(policy.channels(network))
        fused = kernels(cut)
        bits, integer = tensor_bits(fused, policy), integer_kernels(fused, policy)
        assert [kernel.output.width for kernel in fused] == batch.widths[:, column].tolist()
        assert [kernel.output.elements for kernel in fused] == batch.elements[:, column].tolist()
        assert [bits[kernel.name] for kernel in fused] == batch.bits[:, column].tolist()
        assert [kernel.name in integer for kernel in fused] == batch.integer[:, column].tolist()
        assert [layer.shape.macs for layer in cut.layers] == batch.macs[:, column].tolist()
        assert [layer.shape.weight_count for layer in cut.layers] == batch.weight_counts[:, column].tolist()
        assert sizes[column] == size_bytes(cut, policy)


def test_a_part_holds_the_chosen_columns() -> None:
    network = traced_network("Chain").network
    batch = PolicyBatch.of(network, random_policies(network, 9))
    chosen = batch.part(np.array([7, 2]))
    assert chosen.size_bytes().tolist() == batch.size_bytes()[[7, 2]].tolist()


@pytest.mark.parametrize("name", ALL)
def test_one_policy_of_a_cut_network_is_not_cut_again(name: str) -> None:
    network = traced_network(name).network
    (policy,) = random_policies(network, 1, seed=3)
    cut = network.resized(policy.channels(network))
    one = PolicyBatch.one(cut, policy)
    assert one.count == 1
    assert one.size_bytes().tolist() == [size_bytes(cut, policy)]
    assert one.macs[:, 0].tolist() == [layer.shape.macs for layer in cut.layers]


@pytest.mark.parametrize("name", ["Residual", "Chain"])
def test_one_policy_of_a_batch_is_that_policy(name: str) -> None:
    network = traced_network(name).network
    space = Space(network, load_profile("toy"), (0.0, 0.25, 0.5), (4, 8, 32), (8, 32))
    rng = np.random.default_rng(0)
    policies = [space.random(rng) for _ in range(40)]
    batch = PolicyBatch.of(network, policies)
    assert [batch.policy(column).digest for column in range(40)] == [policy.digest for policy in policies]
