"""Criteria for what is cut, on networks whose answer is known on paper, and one by one on every kind."""

from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leanfront.compression.capture.program import Arguments
from leanfront.compression.capture.trace import Traced, trace
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.techniques.compress import compress
from leanfront.compression.techniques.criteria import (
    CRITERIA,
    CriterionError,
    Evidence,
    criteria_of,
    importance,
)
from leanfront.compression.techniques.nni_pruners import NniError, asked
from leanfront.compression.techniques.prune import victims
from leanfront.compression.techniques.rounding import DAMPING, damped
from tests.networks import inputs, traced_network
from tests.variants import some


@cache
def traced(name: str) -> Traced:
    return traced_network(name)


def evidence(made: Traced, images: Tensor) -> Evidence:
    """With gradients of the sum of all squares that come out, of two batches."""
    model, found = made.module, []
    model.requires_grad_(True)
    for part in images.chunk(2):
        outputs = model(part)
        outputs = outputs if isinstance(outputs, Tensor) else torch.cat([o.flatten(1) for o in outputs], 1)
        model.zero_grad()
        outputs.square().sum().backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    return Evidence(Arguments.of(images), found)


OURS = [name for name, row in CRITERIA.items() if not row.package]


@pytest.mark.parametrize(("name", "criterion"), some(product(["Residual", "Depthwise", "Odd"], OURS), 8))
def test_every_criterion_knows_every_network(name: str, criterion: str) -> None:
    made = traced(name)
    found = importance(made, criterion, evidence(made, inputs(name, 16, 0)))
    assert np.isfinite(found[made.blocks >= 0]).all()
    judged = replace(made, importance=found)
    compress(judged, Policy.uniform(made.network, LayerPolicy(0.5)))  # raises where shapes do not fit
    group = next(iter(made.network.groups))
    size = made.network.group_size(group)
    numbers = [number for key, number in made.block_numbers.items() if key[0] == group]
    own = found[np.isin(made.blocks, numbers)]
    gone = victims(judged, {group: size // 2})[group]
    assert len(numbers) > 1 or max(own[list(gone)]) <= min(np.delete(own, gone))


@pytest.mark.parametrize("name", ["Chain", "Residual", "Depthwise"])
def test_the_usual_criterion_is_the_usual_cut(name: str) -> None:
    made = traced(name)
    judged = replace(made, importance=importance(made, "l2"))
    for group in made.network.groups:
        wanted = {group: made.network.group_size(group) // 2}
        assert victims(judged, wanted) == victims(made, wanted)


def chain(rows: Tensor) -> nn.Sequential:
    """Two layers and a batch norm; those of the first have the given weights."""
    model = nn.Sequential(
        nn.Linear(3, len(rows)), nn.BatchNorm1d(len(rows)), nn.ReLU(), nn.Linear(len(rows), 2)
    )
    with torch.no_grad():
        model[0].weight.copy_(rows)
        model[3].weight.fill_(0.1)
    return model.eval()


def order(model: nn.Module, criterion: str, given: Evidence | None = None) -> list[int]:
    made = trace(model, torch.zeros(1, 3))
    return np.argsort(importance(made, criterion, given)[_first(made)]).tolist()


def _first(made: Traced) -> np.ndarray:
    node = next(node for node in made.network.nodes if node.layer is not None)
    return made.classes[node.name]


ROWS = torch.tensor([[3.0, 0.0, 0.0], [1.0, 1.0, 1.5], [0.1, 0.1, 0.1], [1.2, 1.2, 1.2]])


def test_sums_of_weights() -> None:
    """|3| against 3.5: as a sum of values the first row is less, as a sum of squares more."""
    assert order(chain(ROWS), "l1") == [2, 0, 1, 3]
    assert order(chain(ROWS), "l2") == [2, 1, 3, 0]


def test_gains_of_batch_norms() -> None:
    model = chain(ROWS)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 1.0, 0.1]))
    assert order(model, "batchnorm") == [3, 0, 2, 1]


def test_near_the_median_is_what_others_can_stand_for() -> None:
    """The distances of four points on a line: 0, 1, 2, 10."""
    rows = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [2.1, 0, 0], [10.0, 0, 0]])
    assert order(chain(rows), "median")[-1] == 3
    assert order(chain(rows), "median")[0] in (1, 2)


def test_gradients_times_values() -> None:
    """The gate of a channel is what its batch norm multiplies and adds: 2 * .1 + 1 * .2 = .4, squared."""
    model = chain(ROWS)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([2.0, 1.0, 1.0, 1.0]))
        model[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    made = trace(model, torch.zeros(1, 3))
    names = [name for name, _ in made.module.named_parameters()]
    weight, bias = (
        next(n for n in names if n.startswith("1.") and n.endswith(e)) for e in ("weight", "bias")
    )
    told = Evidence(
        None, [{weight: torch.tensor([0.1, 0.3, -0.5, 0.0]), bias: torch.tensor([0.2, 9.0, 0.0, 0.0])}]
    )
    found = importance(made, "taylor", told)[_first(made)]
    assert found.tolist() == pytest.approx([0.16, 0.09, 0.25, 0.0], abs=1e-6)


def test_what_is_lost_once_the_others_were_fitted_again() -> None:
    """Against least squares with the channel taken out, solved outright."""
    model = chain(ROWS)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model[3].weight.copy_(torch.randn(2, 4, generator=generator))
    made = trace(model, torch.zeros(1, 3))
    images = torch.randn(512, 3, generator=generator)
    found = importance(made, "second-order", Evidence(Arguments.of(images)))[_first(made)]
    with torch.no_grad():
        read = model[:3](images)
        moments = damped((read.T @ read / 512)[None], DAMPING)[0].double()
        weight = model[3].weight.double()
        whole = ((weight @ moments) * weight).sum()
        for channel in range(4):
            left = [other for other in range(4) if other != channel]
            fitted = torch.zeros_like(weight)
            fitted[:, left] = torch.linalg.solve(
                moments[left][:, left], moments[left] @ weight.T
            ).T  # fmt: skip
            lost = (((fitted - weight) @ moments) * (fitted - weight)).sum() / whole
            assert found[channel] == pytest.approx(float(lost), rel=1e-3)


def test_groups_of_which_a_criterion_knows_nothing_are_judged_as_usual() -> None:
    made = traced("Sequence")  # no batch norm anywhere
    assert np.array_equal(importance(made, "batchnorm"), importance(made, "l2"), equal_nan=True)


def test_unknown_names_are_told_apart() -> None:
    assert [row.name for row in criteria_of(("l2", "taylor"))] == ["l2", "taylor"]
    with pytest.raises(CriterionError, match=r"not 'nni.l3'; there are l2, l1, batchnorm, median"):
        criteria_of(("l2", "nni.l3"))


NEEDS_NNI = pytest.mark.skipif(find_spec("nni") is None, reason="nni is not installed")  # never imported here
BY_NNI = {
    "nni.l1": lambda rows, batches: rows.abs().sum(dim=1),
    "nni.l2": lambda rows, batches: rows.norm(dim=1),
    "nni.fpgm": lambda rows, batches: (rows[:, None] - rows).norm(dim=2).sum(dim=1),
    "nni.taylor": lambda rows, batches: (
        sum((rows * own).square().sum(dim=1) for own in batches) / len(batches)
    ),
}


@NEEDS_NNI
@pytest.mark.parametrize(
    "criterion",
    [
        "nni.taylor",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("nni.l1", "nni.l2", "nni.fpgm")),
    ],
)
def test_what_nni_says_is_what_its_papers_say(criterion: str) -> None:
    made = traced("Residual")
    told = evidence(made, inputs("Residual", 8, 0))
    found = importance(made, criterion, told if CRITERIA[criterion].needs == "gradients" else None)
    sums, counts = np.zeros(len(made.blocks)), np.zeros(len(made.blocks))
    for node in made.module.graph.nodes:
        part = made.module.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(part, nn.Conv2d | nn.Linear):
            rows = part.weight.detach().flatten(1)
            batches = [batch[f"{node.target}.weight"].flatten(1) for batch in told.gradients]
            worth = BY_NNI[criterion](rows, batches).double().numpy()
            line = made.classes[node.name]
            np.add.at(sums, line[line >= 0], (worth / worth.mean())[line >= 0])
            np.add.at(counts, line[line >= 0], 1)
    there = counts > 0
    assert np.allclose(found[there], sums[there] / counts[there], rtol=1e-4)
    assert np.isfinite(found[made.blocks >= 0]).all()


def test_nni_is_asked_for_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        CriterionError, match=r"'nni.l2' asks nni, which is not .*pip install 'leanfront\[nni\]'"
    ):
        criteria_of(("l2", "nni.l2"))
    assert criteria_of(("l2",))


@NEEDS_NNI
def test_a_failure_of_nni_is_said_in_a_sentence() -> None:
    with pytest.raises(NniError, match=r"nni's NoPruner failed on this network: \w+: .*NoPruner"):
        asked("NoPruner", [torch.ones(2, 2)])
