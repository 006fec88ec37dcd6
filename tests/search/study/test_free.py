"""What is had without a search: of which policies, and that no trial of the same policy ends below it."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

import leanfront as lf
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.hw_profiles import load_profile
from leanfront.search.study.free import KINDS, free_policies
from leanfront.search.trial.trial import priced, scored
from tests.search.study.test_study import Score, Scorer, configuration, problem_of


@pytest.mark.parametrize(
    ("profile", "names"),
    [("toy", ["int8", "float16"]), ("raspberry-pi-4", ["int8"]), ("jetson-orin-nano", ["int8", "float16"])],
)
def test_of_the_kinds_that_the_part_runs(profile: str, names: list[str]) -> None:
    network = problem_of(configuration(), Scorer()).space.network
    found = free_policies(network, load_profile(profile))
    assert list(found) == names
    for name, policy in found.items():
        assert {(one.weight_bits, one.activation_bits, one.sparsity) for one in policy.values()} == {
            (*KINDS[name], 0.0)
        }


@pytest.mark.parametrize(("profile", "bits"), [("this-machine", 8), ("raspberry-pi-4", 32)])
def test_a_table_has_the_bits_that_a_search_could_give_it(profile: str, bits: int) -> None:
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 4))
    network = lf.capture(model, torch.zeros(1, 5, dtype=torch.int64)).network
    policy = free_policies(network, load_profile(profile))["int8"]
    assert {name: (one.weight_bits, one.activation_bits) for name, one in policy.items()} == {
        "0": (bits, 32), "1": (8, 8),
    }  # fmt: skip


@dataclass
class Trained:
    """Untrained .94, and less or more after training."""

    accuracy: float
    untrained: float = 0.94

    def score(self, rung: int) -> Score:
        return Score(self.accuracy, (0.8, 1.0), 0.5, np.zeros(10, dtype=np.float32), 1.0)

    def as_it_is(self) -> Score:
        return replace(self.score(0), accuracy=self.untrained)

    def keep(self, checkpoint: object) -> None:
        raise AssertionError


@pytest.mark.parametrize(("accuracy", "ends"), [(0.91, 0.94), (0.95, 0.95)])
def test_training_that_loses_is_not_kept(accuracy: float, ends: float) -> None:
    problem = problem_of(configuration(), Scorer())
    policy = Policy.uniform(problem.space.network, LayerPolicy(weight_bits=8, activation_bits=8))
    made: list[Trained] = []

    class Starting(Scorer):
        def start(self, policy: Policy) -> Trained:
            made.append(Trained(accuracy))
            return made[-1]

    problem = replace(problem, scorer=Starting(), free={policy.digest: 0.94})
    kept: list[object] = []
    price = priced(problem, policy)
    result = scored(
        problem, policy, price, lambda rung, score: "", lambda candidate, scores: kept.append(candidate)
    )
    assert (result.state, result.values["accuracy"]) == ("complete", ends)
    assert kept == [made[-1]]
    other = replace(problem, free={"another": 0.99})
    result = scored(other, policy, price, lambda rung, score: "", lambda candidate, scores: None)
    assert result.values["accuracy"] == accuracy
