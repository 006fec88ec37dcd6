"""Layers fitted to what they put out before something was cut or rounded."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from leanfront.compression.capture.program import Arguments, tensors_in
from leanfront.compression.capture.trace import Traced, trace
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.techniques.compress import Compressed, compress
from leanfront.compression.techniques.quantize import weight_quantizers
from leanfront.compression.training import reconstruction
from leanfront.compression.training.batch_norms import changed_nodes, re_estimate
from leanfront.compression.training.reconstruction import Reference, reconstruct
from leanfront.compression.training.weight_inheritance import inherit
from tests.networks import ALL, built, example, inputs
from tests.variants import some


@cache
def network(name: str) -> nn.Module:
    return built(name)


@cache
def captured(model: nn.Module) -> Traced:
    shape = next(name for name in ALL if isinstance(model, ALL[name])) if type(model) in ALL.values() else ""
    return trace(model, example(shape or "Chain"))


def fitted(model: nn.Module, policy: LayerPolicy, images: Tensor) -> tuple[Compressed, Compressed]:
    """As it was cut, and fitted."""
    traced = captured(model)
    wanted = Policy.uniform(traced.network, policy)
    reference = Reference.of(traced.module, traced.network, traced.classes, Arguments.of(images))
    made = compress(traced, wanted)
    reconstruct(made, reference, changed_nodes(traced.network, made))
    return compress(traced, wanted), made


def apart(model: nn.Module, made: nn.Module, images: Tensor) -> float:
    """Mean squared difference in shares of the model's variance."""
    with torch.no_grad():
        wanted, found = (
            torch.cat([tensor.flatten(1) for tensor in tensors_in(one.eval()(images))], dim=1)
            for one in (model, made)
        )
        return float(((found - wanted) ** 2).mean() / wanted.var())


@pytest.mark.parametrize("policy", [LayerPolicy(0.3), LayerPolicy(0.0, 3, 8)], ids=["cut", "rounded"])
@pytest.mark.parametrize("name", some(ALL, 5))
def test_every_kind_of_network_comes_nearer(name: str, policy: LayerPolicy) -> None:
    """On images that nothing was fitted on; beside batch norms that are estimated again."""
    model = network(name)
    as_cut, made = fitted(model, policy, inputs(name, 256, 0))
    images = inputs(name, 128, 1)
    before = apart(model, as_cut.module, images)
    re_estimate(as_cut.module, [inputs(name, 256, 0)])
    assert apart(model, made.module, images) < 0.9 * min(before, apart(model, as_cut.module, images))


def test_a_channel_that_another_knows_of_is_not_missed() -> None:
    """Two channels are the same; the first reads both, and takes all from the one that stays."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        model[0].weight[3], model[0].bias[3] = model[0].weight[2], model[0].bias[2]
        model[2].weight[:, 3] *= 0.1  # the one that goes
    images = torch.randn(64, 3, 8, 8, generator=generator)
    as_cut, made = fitted(model, LayerPolicy(0.25), images)
    assert apart(model, made.module, images) < 0.2 * apart(model, as_cut.module, images)


def test_a_layer_that_would_take_minutes_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 3)).eval()
    monkeypatch.setattr(reconstruction, "MOST_OPERATIONS", 40 * 16**2 * 4)  # the middle one takes more
    traced = trace(model, torch.zeros(1, 6))
    wanted = Policy.uniform(traced.network, LayerPolicy(0.0, 3, 32))
    as_cut, made = compress(traced, wanted), compress(traced, wanted)
    images = Arguments.of(torch.randn(64, 6, generator=generator))
    reference = Reference.of(traced.module, traced.network, traced.classes, images)
    reconstruct(made, reference, changed_nodes(traced.network, made))
    moved = {
        name: not torch.equal(
            as_cut.module.get_submodule(name).weight, made.module.get_submodule(name).weight
        )  # type: ignore[arg-type]
        for name in ("0", "2", "4")
    }
    assert moved == {"0": True, "2": False, "4": True}


@pytest.mark.parametrize("bits", [2, 4])
def test_weights_lie_on_the_grid_that_is_exported(bits: int) -> None:
    for name in ("Residual", "UNet"):
        _, made = fitted(network(name), LayerPolicy(0.25, bits, 8), inputs(name, 64, 0))
        for layer in made.network.layers:
            part = made.module.get_submodule(layer.name)
            held = part.parametrizations["weight"].original
            assert torch.allclose(part.weight, held, atol=1e-6), layer.name
            if name == "Residual":  # its layers have a scale for each row
                rows = (held.detach().flatten(1) * 1e4).round()
                assert all(len(row.unique()) <= 2**bits - 1 for row in rows)


def test_what_nothing_has_changed_stays() -> None:
    """A layer before all that is cut is the same to the last bit; of 8 bits alone none is changed."""
    traced = captured(network("Chain"))
    names = [layer.name for layer in traced.network.layers]
    policy = Policy.of({n: LayerPolicy(0.0, 4 if n == names[-1] else 8, 8) for n in names})
    made = compress(traced, policy)
    before = {name: value.clone() for name, value in made.module.state_dict().items()}
    images = Arguments.of(inputs("Chain", 64, 0))
    reference = Reference.of(traced.module, traced.network, traced.classes, images)
    reconstruct(made, reference, changed_nodes(traced.network, made))
    changed = {n for n, value in made.module.state_dict().items() if not torch.equal(value, before[n])}
    assert changed
    assert all(name.startswith(names[-1]) for name in changed)
    plain = compress(traced, Policy.uniform(traced.network, LayerPolicy(0.0, 8, 8)))
    assert not changed_nodes(traced.network, plain)


def test_a_left_out_branch_is_made_up_for() -> None:
    model = network("Residual")
    traced = captured(model)
    out = traced.network.branches[0].layers
    layers = {layer.name: LayerPolicy() for layer in traced.network.layers}
    images = inputs("Residual", 256, 0)
    reference = Reference.of(traced.module, traced.network, traced.classes, Arguments.of(images))
    made = compress(traced, Policy.of(layers, out))
    before = apart(model, made.module, inputs("Residual", 128, 1))
    reconstruct(made, reference, changed_nodes(traced.network, made))
    assert apart(model, made.module, inputs("Residual", 128, 1)) < 0.9 * before


class Embedded(nn.Module):
    """Linear layers whose outputs a constant of one example is added to, (1, places, channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)
        self.places = nn.Parameter(torch.randn(1, 5, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x) + self.places))


class Told(nn.Module):
    """A convolution whose outputs a number for each example and channel is added to, (examples, channels, 1,
    1), which is computed before it or behind it."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.before = before
        self.conv, self.told, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            told = self.told(x.mean((2, 3), keepdim=True))
            return self.last(torch.relu(self.conv(x) + told))
        made = self.conv(x)
        return self.last(torch.relu(made + self.told(x.mean((2, 3), keepdim=True))))


@pytest.mark.parametrize("policy", [LayerPolicy(0.0, 3, 8), LayerPolicy(0.25)], ids=["rounded", "cut"])
@pytest.mark.parametrize("name", ["embedded", "told before", "told behind"])
def test_what_is_added_to_a_layer_may_have_another_shape(name: str, policy: LayerPolicy) -> None:
    torch.manual_seed(0)
    model = (Embedded() if name == "embedded" else Told(name == "told before")).eval()
    images = torch.randn(64, 5, 8) if name == "embedded" else torch.randn(64, 3, 8, 8)
    traced = trace(model, images[:1])
    made = compress(traced, Policy.uniform(traced.network, policy))
    before = apart(model, made.module, images)
    reference = Reference.of(traced.module, traced.network, traced.classes, Arguments.of(images))
    reconstruct(made, reference, changed_nodes(traced.network, made))
    assert apart(model, made.module, images) < before


def test_learned_steps_of_an_heir_are_those_that_its_weights_were_rounded_to() -> None:
    traced = captured(network("Residual"))
    trained = compress(traced, Policy.uniform(traced.network, LayerPolicy(0.0, 3, 8)))
    for name, quantizer in weight_quantizers(trained.module).items():
        held = trained.module.get_submodule(name).parametrizations["weight"].original
        quantizer.learn(1.3 * quantizer.scales(held))
    heir = inherit(traced, trained, Policy.uniform(traced.network, LayerPolicy(0.25, 3, 8)))
    images = inputs("Residual", 64, 0)
    reference = Reference.of(trained.module, trained.network, trained.classes, Arguments.of(images))
    reconstruct(heir, reference, changed_nodes(trained.network, heir))
    for name, quantizer in weight_quantizers(heir.module).items():
        part = heir.module.get_submodule(name)
        assert quantizer.step is not None
        assert torch.allclose(part.weight, part.parametrizations["weight"].original, atol=1e-6), name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_of_values_that_are_none_nothing_is_learnt(value: float) -> None:
    """Nor does it fail: a network that has diverged is scored as such."""
    model = network("Chain")
    _, made = fitted(model, LayerPolicy(0.25, 4, 8), torch.full((8, 3, 8, 8), value))
    assert all(torch.isfinite(held).all() for held in made.module.parameters())
