"""A technique of one's own: zeros in the weights, which only the size of the file rewards.

What to write, in the task's file: a ``Technique`` with a name and three methods, and ``register`` it.
``decisions`` offers values, 0 among them for what stays as it is; ``apply`` changes the traced model as a
policy wants it; ``size_change`` says by how many bytes the file is larger. Every space that is made from then
on has its decisions.
"""

from pathlib import Path

import onnx
import onnx.numpy_helper
import pytest

from leanfront.compression.policy import Policy
from tests.extending.walk import walked

ADDED = '''
from torch.nn.utils import parametrize

from leanfront.compression.policy.technique import Decision, Technique, register


class Mask(torch.nn.Module):
    """A parametrization: the smallest weights are 0, and stay so in training."""

    def __init__(self, weight, share):
        super().__init__()
        smallest = weight.detach().abs().flatten().argsort(stable=True)[: round(share * weight.numel())]
        self.register_buffer("mask", torch.ones(weight.numel()).index_fill(0, smallest, 0.0).view_as(weight))

    def forward(self, weight):
        return weight * self.mask


class Zeros(Technique):
    """Of each layer the share of its weights that are 0. They take no room in a file that is zipped."""

    name = "zeros"

    def decisions(self, network, profile, options):
        shares = (0.0, 0.5, 0.9)
        return tuple(
            Decision(f"zeros/{layer.name}", shares, tuple(map(str, shares)), 0.0, (layer.name,), "ordered")
            for layer in network.layers
        )

    def apply(self, traced, wanted, policy):
        for layer in wanted.layers:
            if share := policy[layer.name].value("zeros"):
                module = traced.module.get_submodule(layer.name)
                parametrize.register_parametrization(module, "weight", Mask(module.weight, share))
        return traced

    def size_change(self, batch, values):
        return -(values * batch.weight_counts * batch.weight_bits / 8).sum(axis=0).astype(int)


register(Zeros())
'''


def zeros_in(path: Path) -> int:
    """Zeros among the weights of a file: initializers with more than one dimension."""
    stored = [onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer]
    return sum(int((array == 0).sum()) for array in stored if array.ndim > 1)


@pytest.mark.slow  # for every change test_together.py
def test_it_is_searched_shown_and_picked(tmp_path: Path) -> None:
    settings = ["search.trials=6", 'search.objectives=["accuracy", "size_bytes"]']
    settings += ["space.sparsity=[0.0]", "space.weight_bits=[8]", "space.activation_bits=[8]"]
    walk = walked(tmp_path, ADDED, *settings, wish=("--prefer", "size_bytes"))
    shares = {
        point["trial"]: [layer.get("more", {}).get("zeros", 0.0) for layer in point["policy"].values()]
        for point in walk.front["front"]
    }
    smallest = min(walk.front["front"], key=lambda point: point["size_bytes"])
    assert max(shares[smallest["trial"]]) > 0
    assert "zeros" in walk.table
    assert "Zeros" in walk.page
    picked = int(walk.exported.name)
    assert Policy.from_json((walk.exported / "policy.json").read_text()).to_dict() == smallest["policy"]
    assert "| zeros |" in walk.card
    wanted = sum(int(share * count) for share, count in zip(shares[picked], (72, 576, 16), strict=True))
    assert zeros_in(walk.exported / "model.onnx") >= wanted > 50
    assert zeros_in(walk.exported / "baseline.onnx") == 0
