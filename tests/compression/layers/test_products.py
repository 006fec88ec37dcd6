"""A layer as a matrix product, against the layer."""

import pytest
import torch
from torch import nn

from leanfront.compression.layers import kind_of
from leanfront.compression.layers.products import (
    matrices,
    number_of_places,
    some_places,
    values_at,
    values_read,
    weight_of,
)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, bias=False), (2, 6, 9, 7)),
        (nn.Conv2d(6, 6, 3, padding="same", groups=6, dilation=2, bias=False), (2, 6, 9, 7)),
        (nn.Conv1d(4, 6, 5, padding=2, padding_mode="reflect", bias=False), (3, 4, 11)),
        (nn.Conv3d(2, 4, (1, 2, 3), bias=False), (2, 2, 4, 5, 6)),
        (
            nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False),
            (2, 6, 5, 4),
        ),
        (nn.ConvTranspose1d(4, 6, 4, stride=3, padding=4, dilation=2, bias=False), (2, 4, 7)),
        (nn.Linear(5, 7, bias=False), (2, 3, 5)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_values_times_weights_are_what_a_layer_makes(layer: nn.Module, shape: tuple[int, ...]) -> None:
    kind = kind_of(layer)
    assert kind is not None
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        made = layer(given)
        places = torch.randperm(number_of_places(kind, made))[:20]
        matrix = matrices(kind, layer, layer.weight)
        assert torch.equal(weight_of(kind, layer, matrix, layer.weight), layer.weight)
        products = torch.einsum("gpd,god->pgo", values_read(kind, layer, given, places), matrix).flatten(1)
    assert torch.allclose(products, values_at(kind, made, places), atol=1e-5)


def test_the_same_places_are_drawn_whenever_there_are_as_many() -> None:
    kind = kind_of(nn.Conv2d(1, 1, 1))
    assert kind is not None
    one = some_places(kind, torch.zeros(10, 3, 40, 20))
    assert torch.equal(one, some_places(kind, torch.zeros(20, 5, 20, 20)))
    assert len(one) == len(set(one.tolist())) == 4096
    assert int(one.max()) < 8000
