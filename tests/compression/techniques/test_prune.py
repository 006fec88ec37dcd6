"""The cut network computes what the uncut one computes with those channels silenced."""

import copy
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanfront.compression.capture.trace import Traced, trace
from leanfront.compression.graph import kernels
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.techniques.compress import compress
from leanfront.compression.techniques.prune import CutError, check_shapes, cut, victims
from leanfront.compression.techniques.quantize import calibrate
from leanfront.compression.training.distillation import Comparison
from leanfront.compression.training.finetune import FineTune, fine_tune, lesson
from tests.networks import ALL, inputs, traced_network
from tests.variants import some


def test_the_smallest_channels_go_and_the_rest_is_the_slice() -> None:
    """conv1 has channels of known norm; its batch norm and the reader are alike for all channels."""
    first, norm, second = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([3.0, 0.1, 2.0, 0.2]).view(4, 1, 1, 1) * torch.ones(4, 2, 3, 3))
        second.weight[:] = second.weight[:, :1]
        norm.running_mean.copy_(torch.arange(4.0))
    traced = trace(nn.Sequential(first, norm, nn.ReLU(), second).eval(), torch.zeros(1, 2, 6, 6))
    assert victims(traced, {"0": 2}) == {"0": (1, 3)}
    module = cut(traced, traced.network.resized({"0": 2})).module
    kept = [0, 2]
    assert torch.equal(module.get_submodule("0").weight, first.weight[kept])
    assert torch.equal(module.get_submodule("0").bias, first.bias[kept])
    assert torch.equal(module.get_submodule("1").running_mean, norm.running_mean[kept])
    assert torch.equal(module.get_submodule("3").weight, second.weight[:, kept])
    sliced = nn.Sequential(
        nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 3, 3)
    ).eval()
    state = traced.module.state_dict()
    sliced.load_state_dict(
        {
            key: value[:, kept]
            if key == "3.weight"
            else value[kept]
            if key[0] in "01" and value.dim()
            else value
            for key, value in state.items()
        }
    )
    x = torch.randn(5, 2, 6, 6)
    torch.testing.assert_close(module(x), sliced(x))


def silenced(traced: Traced, removed: dict[str, tuple[int, ...]]) -> fx.GraphModule:
    """The uncut network with the removed channels at 0 wherever they are put out or normalised."""
    module = copy.deepcopy(traced.module)
    gone_classes: list[int] = []
    for group, gone in removed.items():
        numbers = [number for key, number in traced.block_numbers.items() if key[0] == group]
        own = np.flatnonzero(np.isin(traced.blocks, numbers))
        gone_classes += own[list(gone)].tolist()
    with torch.no_grad():
        for kernel in kernels(traced.network):
            for node in kernel.nodes:
                target = next(n.target for n in module.graph.nodes if n.name == node.name)
                zeros = np.flatnonzero(np.isin(traced.classes[node.name], gone_classes)).tolist()
                if not zeros or node.op not in ("conv2d", "conv_transpose2d", "linear", "batchnorm"):
                    continue
                part = module.get_submodule(str(target))
                assert isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | _BatchNorm)
                if isinstance(part, nn.ConvTranspose2d):
                    part.weight[:, zeros] = 0
                else:
                    part.weight[zeros] = 0
                if part.bias is not None:
                    part.bias[zeros] = 0
    return module


@pytest.mark.parametrize(
    ("name", "keep"), some(product([name for name in ALL if name != "Sequence"], [0.75, 0.4]), 6)
)
def test_a_cut_is_the_same_as_silence(name: str, keep: float) -> None:
    traced = traced_network(name)
    channels = {g: max(1, round(keep * traced.network.group_size(g))) for g in traced.network.groups}
    module, removed = cut(traced, traced.network.resized(channels)).module, victims(traced, channels)
    assert {g: traced.network.group_size(g) - len(gone) for g, gone in removed.items()} == channels
    x = inputs(name, 4, 0)
    with torch.no_grad():
        torch.testing.assert_close(module(x), silenced(traced, removed)(x), rtol=1e-4, atol=1e-5)
    check_shapes(module, traced.network.resized(channels))


@pytest.mark.parametrize("name", ["Chain", "Residual", "UNet"])
def test_one_group_alone(name: str) -> None:
    traced = traced_network(name)
    for group in traced.network.groups:
        module = cut(traced, traced.network.resized({group: 3})).module
        assert module.get_submodule(group).weight.shape[1 if group == "up" else 0] == 3
        assert list(victims(traced, {group: 3})) == [group]


def test_nothing_cut_is_nothing_changed_and_cuts_repeat() -> None:
    traced = traced_network("Residual")
    same = cut(traced, traced.network.resized({})).module
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), traced.module.parameters(), strict=True))
    assert victims(traced, {"stem.0": 3}) == victims(traced, {"stem.0": 3})


def test_a_module_of_another_shape_is_found() -> None:
    traced = traced_network("Chain")
    with pytest.raises(CutError, match=r"'0.0' was to have 3->4 channels, the cut gave 3->8"):
        check_shapes(traced.module, traced.network.resized({"0.0": 4}))


def test_the_cut_says_nothing_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """torch.export warns and logs; what matters is in its errors."""
    for name in ("Dense", "Residual"):
        traced = traced_network(name)
        cut(traced, traced.network.resized({next(iter(traced.network.groups)): 2}))
    assert capfd.readouterr() == ("", "")


def test_the_teacher_is_never_touched() -> None:
    traced = traced_network("Residual")
    before = {key: value.clone() for key, value in traced.module.state_dict().items()}
    modules = {name: id(module) for name, module in traced.module.named_modules()}
    parameters = {name: (id(p), p.requires_grad, p.grad) for name, p in traced.module.named_parameters()}
    code = traced.module.code

    compressed = compress(traced, Policy.uniform(traced.network, LayerPolicy(0.5, 4, 8)))
    x = inputs("Residual", 8, 0)
    calibrate(compressed.module, [x])
    batch = (x, torch.zeros(8, dtype=torch.int64), traced.module(x).detach())
    student, options = compressed.module, FineTune()

    def both(inputs: Tensor) -> tuple[Tensor, Tensor]:
        outputs = student(inputs).float()
        return outputs, outputs

    loss = lesson(both, nn.functional.cross_entropy, Comparison(), options)
    fine_tune(student, [batch] * 3, 3, loss, options)

    assert all(torch.equal(traced.module.state_dict()[key], value) for key, value in before.items())
    assert {name: id(module) for name, module in traced.module.named_modules()} == modules
    after = {name: (id(p), p.requires_grad, p.grad) for name, p in traced.module.named_parameters()}
    assert after == parameters
    assert traced.module.code == code
    own = {t.data_ptr() for t in compressed.module.state_dict().values() if isinstance(t, Tensor)}
    assert not own & {t.data_ptr() for t in before.values()}
    assert not own & {t.data_ptr() for t in traced.module.state_dict().values()}
