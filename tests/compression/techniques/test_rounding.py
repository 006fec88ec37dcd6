"""Ranges and constants of a network that was rounded, against what is known on paper."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import leanfront as lf
from leanfront.compression.techniques import biases, ranges
from leanfront.compression.techniques.compress import compress
from leanfront.compression.techniques.quantize import calibrate, quantizers, unquantized
from leanfront.compression.techniques.ranges import RULES, Histogram
from tests.networks import captured_network, inputs


def histogram(values: np.ndarray, low: float, high: float, bits: int = 8) -> Histogram:
    counts, edges = np.histogram(values, 2048, (2 * low, 2 * high))
    return Histogram(low, high, bits, (edges[:-1] + edges[1:]) / 2, counts.astype(float))


def test_without_a_tail_every_rule_covers_all() -> None:
    even = histogram(np.linspace(0.0, 1.0, 100_001), 0.0, 1.0)
    for rule in RULES.values():
        low, high = rule(even)
        assert low == 1.0
        assert high == pytest.approx(1.0, abs=0.01)


def test_an_outlier_is_given_up_where_that_costs_less() -> None:
    """One value in a million at 100 times all others: a step of 100/15 is worse than losing it."""
    values = np.append(np.random.default_rng(0).uniform(0, 1, 1_000_000), 100.0)
    _low, high = RULES["least squares"](histogram(values, 0.0, 100.0, bits=4))
    assert high == 0.2  # the least that is tried
    assert RULES["percentile"](histogram(values, 0.0, 100.0))[1] == pytest.approx(0.1)
    assert RULES["extremes"](histogram(values, 0.0, 100.0)) == (1.0, 1.0)


def test_the_least_error_is_less_than_that_of_the_extremes() -> None:
    rng = np.random.default_rng(1)
    for bits in (4, 8):
        values = rng.laplace(0, 1, 200_000)
        found = histogram(values, float(values.min()), float(values.max()), bits)
        low, high = RULES["least squares"](found)
        assert 0.2 <= low < 1.0
        held = found.error(low * found.low, high * found.high)
        assert held < found.error(found.low, found.high) * (0.8 if bits == 4 else 1.0)


def rounded(name: str, bits: int = 3) -> tuple[nn.Module, list[Tensor]]:
    captured = captured_network(name)
    policy = lf.uniform(captured, weight_bits=bits, activation_bits=8)
    module = compress(captured.traced, policy).module
    batches = [inputs(name, 32, seed) for seed in range(2)]
    calibrate(module, batches)
    return module.eval(), batches


def test_clips_are_of_every_tensor_and_move_its_grid() -> None:
    module, batches = rounded("Residual")
    before = {name: one.grid() for name, one in quantizers(module).items()}
    found = ranges.candidates(module, batches)
    assert next(iter(found)) == "extremes"
    assert all(set(clips) == set(before) for clips in found.values())
    assert {name: one.grid() for name, one in quantizers(module).items()} == before
    ranges.set_clips(module, dict.fromkeys(before, (0.5, 0.5)))
    for name, one in quantizers(module).items():
        assert one.grid().scale == pytest.approx(before[name].scale / 2, rel=1e-5)
    calibrate(module, batches)  # begins anew
    assert {name: one.grid() for name, one in quantizers(module).items()} == before


@pytest.mark.parametrize("name", ["Residual", "UNet", "Depthwise"])
def test_corrected_layers_put_out_their_own_mean(name: str) -> None:
    """Each layer's mean in floats, behind whatever was corrected before it; the module itself stays."""
    module, (batch, _) = rounded(name)
    was = {key: value.clone() for key, value in module.state_dict().items()}
    found = biases.corrected(module, batch)
    assert found
    assert all(torch.equal(was[key], value) for key, value in module.state_dict().items())
    layers = {key.rpartition(".")[0]: key for key in found}
    means: dict[str, list[Tensor]] = {}
    handles = [
        module.get_submodule(owner).register_forward_hook(
            lambda part, given, made, owner=owner: means.setdefault(owner, []).append(
                made.transpose(1 if made.dim() == 4 else -1, 0).flatten(1).mean(1)
            )
        )
        for owner in layers
    ]
    with torch.no_grad():
        with unquantized(module, weights=True):
            module(batch)
        module(batch)
        biases.set_constants(module, found)
        module(batch)
    for handle in handles:
        handle.remove()
    for wanted, without, now in means.values():  # of a batch norm what it puts out, gains and all
        assert (now - wanted).abs().max() < 1e-4 * (1 + wanted.abs().max())
        assert (without - wanted).abs().max() > (now - wanted).abs().max()


def test_weights_kept_before_there_were_shares_are_read() -> None:
    module, _ = rounded("Residual")
    state = {
        key: value
        for key, value in module.state_dict().items()
        if not key.endswith(".clip") or "param" in key
    }
    assert len(state) < len(module.state_dict())
    ranges.set_clips(module, dict.fromkeys(quantizers(module), (0.5, 0.5)))
    module.load_state_dict(state)
    assert all(one.clip.tolist() == [1.0, 1.0] for one in quantizers(module).values())
