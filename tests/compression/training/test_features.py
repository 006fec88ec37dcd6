"""Distillation of inner features: distances known on paper, and students that learn from them alone."""

import pytest
import torch
from torch import Tensor, nn

from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.techniques.compress import compress
from leanfront.compression.training.features import LAYERS, heard, listened_to, unlike, with_features
from leanfront.compression.training.finetune import FineTune, fine_tune
from tests.networks import inputs, traced_network
from tests.variants import some


def test_a_distance_that_is_known_on_paper() -> None:
    """Two examples that one layer finds equal, the other orthogonal: (1/sqrt 2, 1/sqrt 2) against (1, 0)."""
    same, apart = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[2.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    # rows of the first: (1, 3) and (3, 9), both of direction (1, 3) / sqrt 10
    one, three = 1 / 10**0.5, 3 / 10**0.5
    expected = ((one - 1) ** 2 + three**2 + one**2 + (three - 1) ** 2) / 2
    assert float(unlike(same, apart)) == pytest.approx(expected, rel=1e-6)


def test_neither_channels_nor_scale_nor_rotation_count() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, 8, 3, 3, generator=generator)
    turned, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    rotated = torch.einsum("nchw,cd->ndhw", features, turned)
    assert float(unlike(7 * rotated, features)) == pytest.approx(0, abs=1e-9)
    padded = torch.cat([features, torch.zeros(6, 5, 3, 3)], dim=1)
    assert float(unlike(padded, features)) == pytest.approx(0, abs=1e-9)
    assert float(unlike(torch.randn(6, 4, generator=generator), features)) > 0.01
    assert float(unlike(torch.zeros(6, 4), features)) == pytest.approx(1)  # silence is like nothing


@pytest.mark.parametrize("name", some(["Residual", "Odd", "Sequence", "Depthwise", "UNet"], 2))
def test_a_cut_network_learns_from_the_inside_alone(name: str) -> None:
    made = traced_network(name)
    compressed = compress(made, Policy.uniform(made.network, LayerPolicy(0.5)))
    layers = listened_to(compressed.network, compressed.module)
    assert 1 <= len(layers) <= LAYERS
    assert len(set(layers)) == len(layers)
    images = inputs(name, 16, 0)
    nothing = lambda given, targets, answers: 0.0 * _sum(compressed.module(given))  # noqa: E731
    lesson = with_features(nothing, compressed.module, (made.module, made.module), layers, 10.0)
    compressed.module.train()  # batch norms as in training: their running means are not what is learned
    before = lesson(images, None, None).item()
    fine_tune(compressed.module, [(images, None, None)] * 20, 20, lesson, FineTune(0.02, weight_decay=0.0))
    compressed.module.train()
    assert 0 <= lesson(images, None, None).item() < 0.9 * before
    assert not [hook for part in made.module.modules() for hook in part._forward_hooks]


def _sum(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    return (
        outputs.sum() if isinstance(outputs, Tensor) else torch.stack([each.sum() for each in outputs]).sum()
    )


def test_calls_are_told_one_by_one() -> None:
    layer = nn.Linear(2, 2)
    whole = nn.Sequential(layer, layer)
    with heard(whole, ["0"]) as told:
        whole(torch.zeros(3, 2))
    assert [tuple(each.shape) for each in told["0"]] == [(3, 2), (3, 2)]
    whole(torch.zeros(3, 2))
    assert len(told["0"]) == 2
