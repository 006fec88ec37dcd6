"""Networks made from a trained one: what stays of its weights, and what cannot come back."""

import copy

import pytest
import torch
from torch import Tensor, nn

from leanfront.compression.capture.trace import Traced, trace
from leanfront.compression.policy import LayerPolicy, Policy, PolicyError
from leanfront.compression.techniques.compress import Compressed, compress
from leanfront.compression.techniques.quantize import calibrate
from leanfront.compression.training.batch_norms import re_estimate
from leanfront.compression.training.weight_inheritance import inherit
from tests import networks, residual_networks
from tests.compression.capture import test_network_kinds
from tests.variants import some


def traced(name: str) -> Traced:
    if name in test_network_kinds.SMALL:
        return test_network_kinds.prepared(name)[0]
    home = residual_networks if name in residual_networks.RESIDUAL else networks
    return trace(home.built(name), networks.example(name))


NAMES = [
    "Chain", "OptionA", "Depthwise",
    *(pytest.param(name, marks=pytest.mark.slow if name == "MobileNetV2" else ())
      for name in test_network_kinds.SMALL),
]  # fmt: skip
"""Of inverted bottlenecks "Depthwise" is a small one."""


def uniform(model: Traced, sparsity: float, weight_bits: int = 8, activation_bits: int = 8) -> Policy:
    return Policy.uniform(model.network, LayerPolicy(sparsity, weight_bits, activation_bits))


def with_group(model: Traced, group: str, sparsity: float) -> Policy:
    """Only the layers of one group are cut."""
    return Policy.of(
        {
            layer.name: LayerPolicy(sparsity if layer.group == group else 0.0, 8, 8)
            for layer in model.network.layers
        }
    )


def taught(model: Traced, policy: Policy, images: Tensor) -> Compressed:
    """As if trained: every weight is another than in the model."""
    compressed = compress(model, policy)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in compressed.module.parameters():
            parameter.mul_(1.0 + 0.1 * torch.rand(parameter.shape, generator=generator))
    re_estimate(compressed.module, [images])
    calibrate(compressed.module, [images])
    return compressed


def weights(module: nn.Module) -> dict[str, Tensor]:
    """By the names of a network without quantizers."""
    return {
        name.replace("parametrizations.weight.original", "weight"): value
        for name, value in module.state_dict().items()
        if not name.startswith("quantizer_") and not name.endswith(".clip")
    }


def data(name: str) -> Tensor:
    return test_network_kinds.data(name) if name in test_network_kinds.SMALL else networks.inputs(name, 8, 1)


@pytest.mark.parametrize("name", some(NAMES, 4))
def test_the_same_policy_gives_the_same_network(name: str) -> None:
    model, images = traced(name), data(name)
    policy = uniform(model, 0.5)
    parent = taught(model, policy, images)
    parent.module.eval()
    before = copy.deepcopy(parent.module.state_dict())
    with torch.no_grad():
        expected = parent.module(images)
    inherited = inherit(model, parent, policy)
    calibrate(inherited.module, [images])
    with torch.no_grad():
        assert torch.allclose(inherited.module.eval()(images), expected, atol=1e-5)
        assert torch.equal(parent.module(images), expected)
    assert all(torch.equal(value, before[key]) for key, value in parent.module.state_dict().items())


@pytest.mark.parametrize("name", some(NAMES, 4))
def test_cut_in_two_steps_as_in_one(name: str) -> None:
    """What stays of one group does not depend on the way, as long as no other group is cut."""
    model = traced(name)
    groups = list(model.network.groups)
    for group in groups[:: max(1, len(groups) // 6)]:  # of a large network six, from all over it
        once = compress(model, with_group(model, group, 0.5))
        twice = inherit(model, compress(model, with_group(model, group, 0.25)), once.policy)
        found, wanted = weights(twice.module), weights(once.module)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
        assert twice.network == once.network


@pytest.mark.parametrize("name", some(NAMES, 4))
def test_what_stays_are_the_trained_weights(name: str) -> None:
    """Each number of an heir's first layer stands in its parent's, not in the model's; any bits fit."""
    model, images = traced(name), data(name)
    parent = taught(model, uniform(model, 0.25), images)
    for policy in (uniform(model, 0.5), uniform(model, 0.25, 32, 32), uniform(model, 0.75, 4)):
        inherited = inherit(model, parent, policy)
        assert inherited.policy == policy
        assert inherited.network == policy.cut(model.network)
        theirs, own = weights(parent.module), weights(inherited.module)
        first = f"{model.network.layers[0].name}.weight"
        assert own[first].numel() <= theirs[first].numel()
        assert set(own[first].flatten().tolist()) <= set(theirs[first].flatten().tolist())
        re_estimate(inherited.module, [images])
        calibrate(inherited.module, [images])
        with torch.no_grad():
            assert torch.isfinite(inherited.module.eval()(images)).all()


def test_an_heir_can_be_without_a_branch_and_none_comes_back() -> None:
    name = sorted(residual_networks.RESIDUAL)[0]
    model, images = traced(name), networks.inputs(name, 8, 1)
    whole = uniform(model, 0.25)
    branch = model.network.branches[0]
    without = Policy.of(whole, branch.layers)
    inherited = inherit(model, taught(model, whole, images), without)
    assert inherited.network == without.cut(model.network)
    assert not {str(node.target) for node in inherited.module.graph.nodes} & set(branch.layers)
    with pytest.raises(PolicyError, match="does not come back"):
        inherit(model, taught(model, without, images), whole)
    again = inherit(model, taught(model, without, images), without)
    assert again.network == inherited.network


def test_cut_channels_do_not_come_back() -> None:
    model = traced("Chain")
    parent = taught(model, uniform(model, 0.5), networks.inputs("Chain", 8, 1))
    with pytest.raises(PolicyError, match=r"keep \d+ channels, but the trained network has \d+"):
        inherit(model, parent, uniform(model, 0.25))


class _Block(nn.Module):
    """A residual branch whose sum passes a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.b(torch.relu(self.norm(self.a(x)))))


def test_heirs_of_networks_without_consecutive_branches_lose_others() -> None:
    blocks = [_Block() for _ in range(4)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    model = trace(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *blocks, *head).eval(), torch.zeros(1, 3, 8, 8)
    )
    whole, branches = uniform(model, 0.0), model.network.branches
    assert len(branches) == 4
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for gone in range(16):
        chosen = [branch for place, branch in enumerate(branches) if gone >> place & 1]
        parent = compress(model, Policy.of(whole, {name for b in chosen for name in b.layers}))
        for branch in branches:
            names = {name for b in (*chosen, branch) for name in b.layers}
            policy = Policy.of(whole, names)
            heir, fresh = inherit(model, parent, policy), compress(model, policy)
            assert torch.equal(heir.module.eval()(images), fresh.module.eval()(images))
