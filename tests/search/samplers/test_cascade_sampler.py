"""The cascade sampler in a study: what it proposes, what it never proposes, and that it finds the front."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import optuna
import pytest

from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.space import Space
from leanfront.hw_profiles import load_profile
from leanfront.latency_models.cost import CostArrays
from leanfront.search.config import LimitsSection
from leanfront.search.samplers import Sampler
from leanfront.search.samplers.cascade.acquisition import _picture, _Start
from leanfront.search.samplers.cascade.encoding import Encoding, keys
from leanfront.search.samplers.cascade.sampler import CascadeSampler, scores_of
from leanfront.search.samplers.cascade.surrogate import (
    MOST_POINTS,
    SOFT,
    Observation,
    Surrogate,
    log_divergence,
    shortfall,
)
from leanfront.search.samplers.cascade.warm_start import Knowledge, too_few
from leanfront.search.trial.promotion import HOPELESS, IDLE, UNTRAINED
from tests.search.study.test_study import chain

BASELINE = {"accuracy": 0.95, "latency_ms": 1.0, "size_bytes": 1.0}
optuna.logging.set_verbosity(optuna.logging.WARNING)


class BitCost:
    """Latency counts MACs, size counts bits; the uncompressed network costs 1 of each."""

    def __init__(self, network):
        self._whole = self._of(
            PolicyBatch.one(
                network, Space(network, load_profile("toy"), [0.0], [32], [32]).uniform(0.0, (32, 32))
            )
        )

    def _of(self, batch):
        return batch.macs.sum(axis=0) + 2e5, (batch.weight_counts * batch.weight_bits).sum(axis=0)

    def costs(self, batch):
        latency, size = (found / whole for found, whole in zip(self._of(batch), self._whole, strict=True))
        nothing = np.zeros(batch.count)
        return CostArrays(latency, latency, size, nothing > 0, nothing)


@dataclass
class Toy:
    """A space with a made-up accuracy: harms add up, and two of them multiply."""

    space: Space
    encoding: Encoding
    harms: list

    @staticmethod
    def of(sparsity=(0.0, 0.25, 0.5, 0.75), weight_bits=(4, 8), seed=0):
        space = Space(chain(), load_profile("toy"), sparsity, weight_bits, (8,))
        encoding = Encoding(space)
        rng = np.random.default_rng(seed)
        harms = []
        for index, size in enumerate(encoding.sizes):
            if index < len(space.levels):
                harms.append(rng.uniform(0.005, 0.03) * np.linspace(0, 1, size) ** 2)
            else:
                harms.append(rng.uniform(0.001, 0.01) * np.linspace(1, 0, size) ** 2)
        return Toy(space, encoding, harms)

    def divergence(self, codes):
        alone = [values[row] for values, row in zip(self.harms, codes, strict=True)]
        return sum(alone) + 60.0 * alone[0] * alone[1] + 1e-4

    def accuracy(self, codes):
        return 0.95 - self.divergence(codes)

    def knowledge(self, objectives=("accuracy", "latency_ms", "size_bytes"), **changed):
        given = {
            "space": self.space,
            "cost_model": BitCost(self.space.network),
            "objectives": objectives,
            "limits": LimitsSection(),
            "baseline": BASELINE,
            "divergences": {n: tuple(h) for n, h in zip(self.encoding.names, self.harms, strict=True)},
            "images": (0,),
            "start": 0,
        }
        knowledge = Knowledge(**(given | changed))
        return replace(knowledge, archive=knowledge.cheap_front(20_000))

    def every(self):
        codes = np.array(list(itertools.product(*(range(size) for size in self.encoding.sizes)))).T
        return np.unique(self.encoding.canonical(codes), axis=1)


def study_of(knowledge, seed=0):
    directions = ["maximize" if name == "accuracy" else "minimize" for name in knowledge.objectives]
    return optuna.create_study(directions=directions, sampler=CascadeSampler(knowledge, seed))


def ask(toy, study):
    trial = study.ask()
    return trial, toy.encoding.of(toy.space.suggest(trial))


def tell(toy, study, trial, codes, knowledge):
    costs = np.exp(knowledge.log_costs(codes[:, None]))[0]
    accuracy = float(toy.accuracy(codes[:, None])[0])
    named = dict(zip(knowledge.costs, costs.tolist(), strict=True))
    trial.set_user_attr("result", {"state": "complete", "accuracy": accuracy, **named})
    study.tell(trial, [accuracy, *named.values()])
    return [accuracy, *named.values()]


def volume(values, floor=0.85):
    """Accuracy above the floor times log costs, by Optuna's function."""
    from optuna._hypervolume import compute_hypervolume

    values = np.array(values)
    points = np.hstack([0.95 - values[:, :1], np.log(values[:, 1:])])
    reference = np.array([0.95 - floor] + [0.0] * (values.shape[1] - 1))
    inside = points[(points <= reference).all(axis=1)]
    return compute_hypervolume(inside, reference) if len(inside) else 0.0


@pytest.mark.parametrize("objectives", [("accuracy", "latency_ms"), ("accuracy", "latency_ms", "size_bytes")])
def test_it_comes_near_the_whole_front_in_few_trials(objectives):
    """1,024 policies; 40 trials reach 97 % of what all of them reach, random ones do not."""
    toy = Toy.of()
    knowledge = toy.knowledge(objectives)
    every = toy.every()
    costs = np.exp(knowledge.log_costs(every))
    whole = volume(np.hstack([toy.accuracy(every)[:, None], costs]))
    study = study_of(knowledge)
    values = [tell(toy, study, *ask(toy, study), knowledge) for _ in range(40)]
    assert volume(values) >= 0.97 * whole
    rng = np.random.default_rng(0)
    drawn = rng.choice(every.shape[1], 40, replace=False)
    at_random = np.hstack([toy.accuracy(every)[drawn, None], costs[drawn]])
    assert volume(at_random) < 0.97 * whole


def test_no_policy_comes_twice_and_none_that_another_worker_is_at():
    toy = Toy.of(sparsity=(0.0, 0.5), weight_bits=(8,))
    knowledge = toy.knowledge(("accuracy", "latency_ms"))
    study = study_of(knowledge)
    running = [ask(toy, study) for _ in range(4)]  # nobody tells: four workers at once
    done = [tell(toy, study, *pair, knowledge) for pair in running[:2]]
    more = [ask(toy, study) for _ in range(4)]
    found = keys(np.stack([codes for _, codes in running + more], axis=1))
    assert len(done) == 2
    assert len(set(found)) == 8  # all that there are: 2 x 2 x 2 policies


def test_limits_are_kept():
    toy = Toy.of()
    knowledge = toy.knowledge(("accuracy", "latency_ms"), limits=LimitsSection(size_bytes=0.1))
    study = study_of(knowledge)
    for _ in range(12):
        trial, codes = ask(toy, study)
        tell(toy, study, trial, codes, knowledge)
        sizes = knowledge.cost_model.costs(toy.encoding.batch(codes[:, None])).size_bytes
        assert sizes[0] <= 0.1


class Tight(BitCost):
    """A part with room for a tenth of the uncompressed network."""

    def costs(self, batch):
        found = super().costs(batch)
        return replace(found, placed=found.size_bytes <= 0.1)


def test_what_does_not_fit_the_part_is_not_proposed():
    toy = Toy.of()
    knowledge = toy.knowledge(("accuracy", "latency_ms"), cost_model=Tight(toy.space.network))
    study = study_of(knowledge)
    for _ in range(8):
        trial, codes = ask(toy, study)
        tell(toy, study, trial, codes, knowledge)
        assert knowledge.cost_model.costs(toy.encoding.batch(codes[:, None])).fits.all()


def test_a_start_of_which_nothing_keeps_the_limits_is_left_behind():
    toy = Toy.of()
    knowledge = toy.knowledge(("accuracy", "latency_ms"), limits=LimitsSection(size_bytes=0.1))
    knowledge = replace(knowledge, archive=toy.encoding.uncompressed()[:, None])
    assert not np.isfinite(knowledge.archive_log_costs).any()
    study = study_of(knowledge)
    found = [tell(toy, study, *ask(toy, study), knowledge) for _ in range(30)]
    sizes = [trial.user_attrs["result"] for trial in study.trials]
    assert len(found) == len(sizes)
    codes = np.stack([study.sampler._codes(trial) for trial in study.trials], axis=1)
    assert (knowledge.cost_model.costs(toy.encoding.batch(codes)).size_bytes <= 0.1).mean() > 0.8


def test_a_start_that_wants_more_than_there_is_ends():
    """A start of 20 among 8 policies: the ninth proposal is one of them again, which then is trained."""
    toy = Toy.of(sparsity=(0.0, 0.5), weight_bits=(8,))
    knowledge = toy.knowledge(("accuracy", "latency_ms"), images=(0, 64), start=20)
    study = study_of(knowledge)
    proposed = []
    for _ in range(9):
        trial, codes = ask(toy, study)
        proposed += keys(codes[:, None])
        (cost,) = np.exp(knowledge.log_costs(codes[:, None]))[0]
        rung = {"rung": 0, "images": 0, "divergence": 0.1, "accuracy": 0.9}
        trial.set_user_attr("result", {"state": "pruned", "latency_ms": cost, "rungs": [rung]})
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    assert len(set(proposed[:8])) == 8
    assert proposed[8] in proposed[:8]
    policy = toy.encoding.batch(codes[:, None]).policy(0)
    assert study.sampler.expected_accuracy(policy) is not None  # it was meant for the last rung


def test_heirs_do_not_crowd_out_what_teaches():
    toy = Toy.of(weight_bits=(2, 3, 4, 5, 6, 7, 8))
    knowledge = toy.knowledge(images=(0, 64, 256), start=8)
    codes = np.unique(toy.encoding.canonical(toy.encoding.random(400, np.random.default_rng(0))), axis=1)
    costs = knowledge.log_costs(codes)
    teaches = 40
    seen = [
        Observation(codes[:, n], {0: -1.0, 1: -2.0, 2: -3.0}, costs[n])
        if n < teaches
        else Observation(codes[:, n], {}, costs[n], untrained=-4.0)
        for n in range(codes.shape[1])
    ]
    none = codes[:, :0]
    surrogate, start, surface = _picture(knowledge, seen, none, 2, None)
    assert len(seen) > MOST_POINTS + teaches
    assert [len(stage._features) for stage in surrogate._stages[1:]] == [teaches] * 2
    assert (surface.best == -4.0).any()  # and heirs are on the front
    assert start.reached.sum() == MOST_POINTS + teaches


def test_first_scores_untrained_networks_then_sends_the_best_on():
    """Two rungs, a start of 8: eight different policies at rung 0, and after them one of them goes on."""
    toy = Toy.of()
    knowledge = toy.knowledge(("accuracy", "latency_ms"), images=(0, 64), start=8)
    study = study_of(knowledge)
    started = []
    for _ in range(8):
        trial, codes = ask(toy, study)
        started.append(codes)
        (cost,) = np.exp(knowledge.log_costs(codes[:, None]))[0]
        rung = {
            "rung": 0,
            "images": 0,
            "divergence": float(toy.divergence(codes[:, None])[0]),
            "accuracy": 0.5,
        }
        trial.set_user_attr("result", {"state": "pruned", "latency_ms": cost, "rungs": [rung]})
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    assert len(set(keys(np.stack(started, axis=1)))) == 8
    following = [ask(toy, study)[1] for _ in range(6)]
    known = set(keys(np.stack(started, axis=1)))
    assert any(key in known for key in keys(np.stack(following, axis=1)))


def test_what_needs_no_training_counts_with_what_it_has_and_teaches_no_training():
    toy = Toy.of()
    knowledge = toy.knowledge(images=(0, 64, 256), start=4)
    study = study_of(knowledge)
    trial, codes = ask(toy, study)
    costs = np.exp(knowledge.log_costs(codes[:, None]))[0]
    rung = {"rung": 0, "images": 0, "accuracy": 0.94, "divergence": 0.01}
    named = dict(zip(knowledge.costs, costs.tolist(), strict=True))
    result = {"state": "complete", "reason": UNTRAINED, "accuracy": 0.94, "rungs": [rung], **named}
    trial.set_user_attr("result", result)
    study.tell(trial, [0.94, *named.values()])
    _, other = ask(toy, study)
    read = study.sampler._read
    ((key, seen),) = read.seen.items()
    assert key in read.final
    assert keys(other[:, None]) != [key]
    assert set(seen.scores) == {0}
    assert seen.untrained == pytest.approx(np.log(0.01 + SOFT))
    assert seen.standing == (np.inf, seen.untrained)
    searched = knowledge
    middle = np.argsort(searched.archive_log_costs[:, 0])[searched.archive.shape[1] // 2]
    seen = replace(seen, codes=searched.archive[:, middle], log_costs=searched.archive_log_costs[middle])
    none = np.zeros((len(codes), 0), dtype=np.int64)
    start = _Start.of(searched, Surrogate(knowledge.prior, [seen], 3), [seen], none, 2)
    surface = start.surface(searched)
    dominated = (surface.points >= seen.log_costs).all(axis=1)
    assert 0 < dominated.sum() < len(dominated)
    assert surface.best[dominated] == pytest.approx(seen.untrained)
    assert (surface.best[~dominated] == knowledge.floor).all()


def test_another_process_proposes_from_the_same_journal(tmp_path):
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    toy = Toy.of()
    knowledge = toy.knowledge(("accuracy", "latency_ms"))
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    named = {"storage": storage, "study_name": "s"}
    first = optuna.create_study(
        **named, directions=["maximize", "minimize"], sampler=CascadeSampler(knowledge, 1)
    )
    told = set()
    for _ in range(5):
        trial, codes = ask(toy, first)
        told.add(codes.tobytes())
        tell(toy, first, trial, codes, knowledge)
    second = optuna.load_study(**named, sampler=CascadeSampler(knowledge, 2))
    _, codes = ask(toy, second)
    assert codes.tobytes() not in told


def test_scores_of_a_trial_are_log_shortfalls():
    first = {"rung": 0, "images": 0, "divergence": 0.3, "accuracy": 0.6}
    result = {"rungs": [first, {"rung": 1, "images": 64, "divergence": 0.1, "accuracy": 0.8}]}
    assert scores_of(result, 0.9, (0, 64, 256)) == {0: log_divergence(0.3), 1: shortfall(0.8, 0.9)}
    assert scores_of({"accuracy": 0.7}, 0.9, (0, 64, 256)) == {2: shortfall(0.7, 0.9)}
    assert scores_of({}, 0.9, (0, 64, 256)) == {}


def test_trials_of_another_sampler_are_scores_of_the_last_rung():
    """They know one rung, the whole fine-tune, and call it their first."""
    result = {"accuracy": 0.8, "rungs": [{"rung": 0, "images": 256, "divergence": 0.1, "accuracy": 0.8}]}
    assert scores_of(result, 0.9, (0, 64, 256)) == {2: shortfall(0.8, 0.9)}
    assert scores_of(result, 0.9, (256,)) == {0: shortfall(0.8, 0.9)}
    assert scores_of(result, 0.9, (0, 64, 128)) == {}


def test_what_stands_far_below_the_floor_is_given_up_and_what_does_not_is_not():
    toy = Toy.of()
    knowledge = toy.knowledge(("accuracy", "latency_ms"), images=(0, 64), start=0)
    study = study_of(knowledge)
    policy = toy.space.seeds()[0]
    assert not study.sampler.given_up(policy, {"rung": 0, "images": 0, "divergence": 9.0, "accuracy": 0.1})
    ask(toy, study)
    for divergence, why in ((0.05, ""), (400.0, HOPELESS)):
        standing = {"rung": 0, "images": 0, "divergence": divergence, "accuracy": 0.1}
        assert study.sampler.given_up(policy, standing) == why
    assert Sampler().given_up(policy, standing) == ""


def test_a_trial_that_will_win_little_of_what_it_promised_does_not_go_on():
    """Of three rungs the middle one: as accurate as foretold, or so that another is as good for less."""
    toy = Toy.of()
    knowledge = toy.knowledge(("accuracy", "latency_ms"), images=(0, 64, 256), start=0)
    study = study_of(knowledge)
    known, codes = ask(toy, study)
    (cost,) = np.exp(knowledge.log_costs(codes[:, None]))[0]
    rungs = [
        {"rung": 0, "images": 0, "accuracy": 0.8, "divergence": 0.1},
        {"rung": 1, "images": 64, "accuracy": 0.9, "divergence": 0.05},
        {"rung": 2, "images": 256, "accuracy": 0.93, "divergence": 0.03},
    ]
    known.set_user_attr("result", {"state": "complete", "accuracy": 0.93, "latency_ms": cost, "rungs": rungs})
    study.tell(known, [0.93, cost])
    _, next_codes = ask(toy, study)
    policy = toy.encoding.batch(next_codes[:, None]).policy(0)
    expected = study.sampler.expected_accuracy(policy)
    reached = {"rung": 1, "images": 64, "divergence": 0.05, "accuracy": expected}
    assert study.sampler.given_up(policy, reached) == ""
    for accuracy in np.linspace(expected, 0.5, 50):
        why = study.sampler.given_up(policy, {**reached, "accuracy": accuracy})
        if why:
            break
    assert why == IDLE  # long before it is hopeless
    other = toy.encoding.batch(codes[:, None]).policy(0)  # not what was proposed: nothing was promised
    assert study.sampler.given_up(other, {**reached, "accuracy": accuracy}) == ""
    assert study.sampler.expected_accuracy(other) is None


def test_too_few_trials_to_learn_from_are_named():
    knowledge = Toy.of().knowledge(start=8, images=(0, 64))
    assert too_few(None, knowledge) == too_few(8, knowledge) == ""
    assert too_few(3, knowledge).startswith("3 trials are fewer than the 8")
