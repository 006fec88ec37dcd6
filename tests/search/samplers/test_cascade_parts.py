"""The pieces of the cascade sampler: what they say where the answer is known on paper or can be counted."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume
from torch import nn

from leanfront.compression.capture.trace import trace
from leanfront.compression.policy.space import Space
from leanfront.hw_profiles import load_profile
from leanfront.search.samplers.cascade.encoding import Encoding, keys
from leanfront.search.samplers.cascade.expected_hypervolume import FrontSurface, latin_hypercube
from leanfront.search.samplers.cascade.gaussian import (
    GaussianProcess,
    Hyperparameters,
    matern,
    squared_distances,
)
from leanfront.search.samplers.cascade.surrogate import (
    _SIGNAL,
    SOFT,
    Observation,
    Prior,
    Surrogate,
    _Step,
    log_divergence,
    shortfall,
)
from leanfront.search.samplers.cascade.warm_start import _read
from leanfront.search.samplers.cascade.zero_cost_front import Archive, cheap_front, children
from tests.residual_networks import traced_network
from tests.search.study.test_study import chain


def chain_space(sparsity=(0.0, 0.25, 0.5), weight_bits=(4, 8, 32)) -> Space:
    return Space(chain(), load_profile("toy"), sparsity, weight_bits, (8, 32) if 32 in weight_bits else (8,))


def test_gaussian_process_goes_through_what_it_was_shown():
    rng = np.random.default_rng(0)
    points = rng.random((30, 2))
    values = np.sin(5 * points[:, 0]) + points[:, 1]
    process = GaussianProcess(points, np.zeros((30, 0)), values)
    mean, variance = process.predict(points, np.zeros((30, 0)))
    assert np.abs(mean - values).max() < 0.02
    fresh = rng.random((200, 2))
    guessed, doubt = process.predict(fresh, np.zeros((200, 0)))
    truth = np.sin(5 * fresh[:, 0]) + fresh[:, 1]
    assert np.abs(guessed - truth).mean() < 0.05
    assert np.mean(np.abs(guessed - truth) < 2.5 * np.sqrt(doubt) + 1e-6) > 0.9
    assert variance.max() < doubt.max()


def test_gaussian_process_agrees_with_the_textbook_formula():
    """Mean and variance of Rasmussen and Williams (2.23), (2.24), solved by plain inversion."""
    rng = np.random.default_rng(1)
    points, fresh, values = rng.random((12, 3)), rng.random((5, 3)), rng.standard_normal(12)
    columns, fresh_columns = rng.standard_normal((12, 1)), rng.standard_normal((5, 1))
    known = Hyperparameters(0.7, 0.05)
    process = GaussianProcess(points, columns, values, known)
    mean, variance = process.predict(fresh, fresh_columns)

    def basis(raw):
        return np.hstack([np.ones((len(raw), 1)), (raw - columns.mean(0)) / (columns.std(0) + 1e-9)])

    def kernel(a, b, c, d):
        return matern(squared_distances(a, b), 0.7) + 25.0 * basis(c) @ basis(d).T

    inverse = np.linalg.inv(kernel(points, points, columns, columns) + (0.05 + 1e-8) * np.eye(12))
    target = (values - values.mean()) / values.std()
    cross = kernel(fresh, points, fresh_columns, columns)
    assert np.allclose(mean, values.mean() + values.std() * cross @ inverse @ target, atol=1e-6)
    signal = target @ inverse @ target / 12
    own = np.diag(kernel(fresh, fresh, fresh_columns, fresh_columns))
    expected = values.std() ** 2 * signal * (own - np.einsum("ij,jk,ik->i", cross, inverse, cross))
    assert np.allclose(variance, expected, rtol=1e-4)


def test_slopes_say_how_the_mean_moves_with_a_column():
    rng = np.random.default_rng(2)
    points, columns = rng.random((40, 1)), rng.standard_normal((40, 1))
    process = GaussianProcess(points, columns, 3.0 * columns[:, 0] + 0.1 * points[:, 0])
    assert process.slopes[0] == pytest.approx(3.0, abs=0.05)
    at, moved = (process.predict(points[:1], columns[:1] + step)[0][0] for step in (0.0, 0.5))
    assert moved - at == pytest.approx(0.5 * process.slopes[0])


def test_strewn_points_fill_the_box_evenly():
    points = latin_hypercube(np.array([-2.0, -1.0]), 100)
    assert points.min(axis=0) == pytest.approx([-2.0, -1.0], abs=0.03)
    assert (points <= 0).all()
    for column, low in enumerate((-2.0, -1.0)):
        counts, _ = np.histogram(points[:, column], bins=10, range=(low, 0.0))
        assert (counts == 10).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(0, 8), st.integers(0, 2**31))
def test_volume_is_the_hypervolume(costs, count, seed):
    """Against Optuna's own function: accuracy above the floor times log costs, as shares of the box."""
    rng = np.random.default_rng(seed)
    low = -1.0 - rng.random(costs)
    floor = np.log(0.1 + SOFT)
    log_costs, shortfalls = low * rng.random((count, costs)), np.log(SOFT + 0.12 * rng.random(count))
    surface = FrontSurface(latin_hypercube(low, 8192), floor, log_costs, shortfalls)
    values = np.hstack([log_costs / -low, np.exp(shortfalls)[:, None]])
    reference = np.array([0.0] * costs + [np.exp(floor)])
    inside = values[(values <= reference).all(axis=1)]
    exact = compute_hypervolume(inside, reference) if len(inside) else 0.0
    assert surface.volume() == pytest.approx(exact, abs=0.02 * np.exp(floor))


@pytest.mark.parametrize("lost", [np.inf, 0.06, 0.025])
def test_expected_gain_is_the_mean_of_what_is_gained(lost):
    """Against sampling: accuracies are drawn, and the volume is computed with and without the policy. Beyond
    the limit (``lost``) it wins nothing, though hypervolume counts from further down."""
    rng = np.random.default_rng(3)
    low, floor = np.array([-2.0]), np.log(0.1 + SOFT)
    points = latin_hypercube(low, 512)
    front_costs, front = np.array([[-0.5], [-1.2]]), np.log(np.array([0.03, 0.08]))
    limit = np.log(lost + SOFT)
    before = FrontSurface(points, floor, front_costs, front, limit)
    costs, mean, deviation = np.array([[-0.9]]), np.array([np.log(0.05)]), np.array([0.5])
    (expected,) = before.expected_hypervolume(costs, mean, deviation)
    gains = []
    for drawn in rng.normal(mean[0], deviation[0], 3000):
        after = FrontSurface(points, floor, np.vstack([front_costs, costs]), np.append(front, drawn), limit)
        gains.append(after.volume() - before.volume())
    assert expected == pytest.approx(np.mean(gains), rel=0.05)


def test_nothing_is_gained_where_the_front_is_certainly_better():
    surface = FrontSurface(latin_hypercube(np.array([-2.0])), -1.0, np.array([[-1.0]]), np.array([-4.0]))
    gain = surface.expected_hypervolume(np.array([[-0.5]]), np.array([-2.0]), np.array([0.1]))
    assert gain[0] == pytest.approx(0.0, abs=1e-9)
    assert surface.expected_hypervolume(np.array([[np.inf]]), np.array([-9.0]), np.array([0.1]))[0] == 0.0


def test_codes_and_policies_are_the_same_thing():
    space = chain_space()
    encoding = Encoding(space)
    rng = np.random.default_rng(0)
    for _ in range(50):
        policy = space.random(rng)
        codes = encoding.of(policy)
        assert encoding.params(codes) == space.params_of(policy)
        assert (encoding.canonical(codes[:, None])[:, 0] == codes).all()
    many = encoding.canonical(encoding.random(500, rng))
    assert (encoding.canonical(many) == many).all()
    assert len(set(keys(many))) == np.unique(many, axis=1).shape[1]


def test_children_stay_in_the_space_and_change_something():
    encoding = Encoding(chain_space())
    rng = np.random.default_rng(0)
    parents = encoding.random(5, rng)
    made = children(parents, encoding, 2000, rng)
    assert (made >= 0).all()
    assert (made < encoding.sizes[:, None]).all()
    distance = np.min([(made != parent[:, None]).sum(axis=0) for parent in parents.T], axis=0)
    assert np.mean(distance > 0) > 0.7
    assert np.median(distance) <= 4


def test_archive_keeps_the_best_for_every_budget():
    archive = Archive(np.array([[-2.0], [-1.0], [0.0]]), 1)
    archive.add(np.array([[1, 2, 3]]), np.array([[-1.5], [-0.5], [-2.5]]), np.array([-3.0, -5.0, -1.0]))
    assert archive.shortfalls.tolist() == [-1.0, -3.0, -5.0]
    assert archive.codes.tolist() == [[3, 1, 2]]
    archive.add(np.array([[4]]), np.array([[-3.0]]), np.array([-3.5]))
    assert archive.codes.tolist() == [[4, 4, 2]]


def test_cheap_front_finds_the_true_front_of_a_small_space():
    """All policies are counted: 4 sparsities in three groups, two bit widths in four layers."""
    encoding = Encoding(chain_space(sparsity=(0.0, 0.25, 0.5, 0.75), weight_bits=(4, 8)))
    rng = np.random.default_rng(0)
    harm = [np.sort(rng.random(size)) for size in encoding.sizes]

    def shortfalls(codes):
        return np.log(sum(values[row] for values, row in zip(harm, codes, strict=True)))

    def costs(codes):
        return -0.1 * codes[:3].sum(axis=0)[:, None] - 0.05 * (codes[3:] == 0).sum(axis=0)[:, None]

    every = np.array(list(itertools.product(*(range(size) for size in encoding.sizes)))).T
    low = costs(every).min(axis=0)
    truth = Archive(latin_hypercube(low, 64), len(encoding.sizes))
    truth.add(every, costs(every), shortfalls(every))
    found = cheap_front(encoding, costs, shortfalls, low, 30_000, rng, points=64)
    again = Archive(latin_hypercube(low, 64), len(encoding.sizes))
    again.add(found, costs(found), shortfalls(found))
    assert np.allclose(again.shortfalls, truth.shortfalls)


def test_cheap_front_looks_elsewhere_where_nothing_uniform_keeps_the_limits():
    """All that is allowed has the first decision at its least and the second at its most."""
    encoding = Encoding(chain_space())

    def costs(codes):
        allowed = (codes[0] == 0) & (codes[1] == encoding.sizes[1] - 1)
        return np.where(allowed, -0.1 * codes[2], np.inf)[:, None]

    low = np.array([-0.2])
    rng = np.random.default_rng(0)
    found = cheap_front(encoding, costs, lambda codes: codes[2] - 3.0, low, 20_000, rng, points=16)
    assert sorted(set(found[2])) == [1, 2]  # no point is at no cost less than the baseline
    assert np.isfinite(costs(found)).all()
    none = cheap_front(
        encoding, lambda codes: np.full((codes.shape[1], 1), np.inf), lambda codes: codes[2], low, 9_000, rng
    )
    assert none.shape == (len(encoding.sizes), 0)


def test_a_cheap_front_of_another_space_is_made_anew(tmp_path):
    encoding = Encoding(chain_space())
    kept = tmp_path / "cheap_front.npy"
    codes = encoding.random(20, np.random.default_rng(0))
    np.save(kept, codes)
    assert (_read(kept, encoding) == codes).all()
    assert _read(kept, Encoding(chain_space(sparsity=(0.0, 0.5)))) is None
    kept.write_bytes(b"damaged")
    assert _read(kept, encoding) is None
    assert _read(None, encoding) is None


class Projected(nn.Module):
    """A block whose shortcut is a layer, which reads what the first layer of the branch reads."""

    def __init__(self):
        super().__init__()
        self.stem, self.shortcut = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 1)
        self.one, self.two = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head((self.two(self.one(x).relu()) + self.shortcut(x)).mean((2, 3)))


def test_codes_keep_the_bits_of_a_shortcut_whose_branch_is_left_out():
    network = trace(Projected().eval(), torch.zeros(1, 3, 8, 8)).network
    space = Space(network, load_profile("toy"), (0.0, 0.5), (4, 8, 32), (8, 32))
    assert [branch.layers for branch in space.branches] == [("one", "two")]
    encoding = Encoding(space)
    codes = encoding.random(500, np.random.default_rng(0))
    batch, again = encoding.batch(codes), encoding.batch(encoding.canonical(codes))
    assert [batch.policy(n) for n in range(500)] == [again.policy(n) for n in range(500)]
    out = batch.left_out[0]
    assert (batch.activation_bits[batch.layer_index["shortcut"], out] == 8).any()
    canonical = encoding.canonical(codes)
    assert (encoding.canonical(canonical) == canonical).all()
    assert len(set(keys(canonical))) == len({batch.policy(n) for n in range(500)})


def test_a_cut_group_may_go_with_its_whole_branch():
    network = traced_network("Inverted").network
    space = Space(network, load_profile("toy"), (0.0, 0.25, 0.5), (8,), (8,), True)
    encoding = Encoding(space)
    branch = next(one for one in network.branches if one.layers)
    cut = encoding.of(space.uniform(0.25, (8, 8)))
    place = encoding.names.index(f"branch/{branch.name}")
    out = cut.copy()
    out[place] = 1
    out = encoding.canonical(out[:, None])
    assert (out[: len(space.levels), 0] < cut[: len(space.levels)]).any()  # a group that is gone has code 0
    more, less = encoding.of(space.uniform(0.5, (8, 8))), encoding.of(space.uniform(0.0, (8, 8)))
    several = np.hstack([out, cut[:, None], more[:, None], less[:, None]])
    assert encoding.keep_nothing_else(several, cut).tolist() == [True, True, True, False]
    assert not encoding.keep_nothing_else(cut[:, None], out[:, 0]).any()  # no branch comes back


def test_surrogate_learns_what_sums_of_sensitivities_miss():
    """Two decisions whose harm multiplies: sums alone cannot say so, trials can."""
    rng = np.random.default_rng(0)
    prior = Prior([np.linspace(0.0, 0.4, 6) ** 2] * 6)

    def divergence(codes):
        alone = prior.sensitivities(codes)
        return alone.sum(axis=1) + 40.0 * alone[:, 0] * alone[:, 1]

    shown, fresh = rng.integers(6, size=(6, 80)), rng.integers(6, size=(6, 400))
    truth = log_divergence(divergence(fresh))
    scores = log_divergence(divergence(shown))
    seen = [Observation(codes, {0: score}, np.zeros(1)) for codes, score in zip(shown.T, scores, strict=True)]
    taught, _ = Surrogate(prior, seen, 1).predict(fresh, 0)
    untaught, doubt = Surrogate(prior, (), 1).predict(fresh, 0)
    assert np.abs(taught - truth).mean() < 0.5 * np.abs(untaught - truth).mean()
    assert (doubt > 0.5).all()


def test_later_rungs_lean_on_the_first():
    """Twelve dear scores, eighty cheap ones: the last rung is predicted from both."""
    rng = np.random.default_rng(0)
    prior = Prior([np.linspace(0.0, 0.4, 6) ** 2] * 6)
    shown, fresh = rng.integers(6, size=(6, 80)), rng.integers(6, size=(6, 300))
    weights = rng.uniform(0.2, 3.0, 6)

    def first(codes):
        return np.log((prior.sensitivities(codes) * weights).sum(axis=1) + 1e-4)

    def last(codes):
        return 0.8 * first(codes) - 1.0

    scores = zip(shown.T, first(shown), last(shown), strict=True)
    seen = [
        Observation(codes, {0: low, 1: high} if i < 12 else {0: low}, np.zeros(1))
        for i, (codes, low, high) in enumerate(scores)
    ]
    both, _ = Surrogate(prior, seen, 2).predict(fresh, 1)
    alone = [Observation(s.codes, {1: s.scores[1]}, s.log_costs) for s in seen[:12]]
    few, _ = Surrogate(prior, alone, 2).predict(fresh, 1)
    truth = last(fresh)
    assert np.abs(both - truth).mean() < 0.5 * np.abs(few - truth).mean()


def test_shortfall_is_finite_and_monotone():
    accuracies = np.linspace(0.0, 1.0, 101)
    values = shortfall(accuracies, 0.9)
    assert np.isfinite(values).all()
    assert (np.diff(values) <= 0).all()
    assert shortfall(0.9, 0.9) == pytest.approx(np.log(SOFT))


def test_what_is_believed_of_a_step_gives_way_to_what_is_seen():
    """Without scores the belief itself; with many, their own line; in between, in between."""
    before = np.linspace(-4.0, 1.0, 200)
    alike, none, nowhere = np.zeros((200, 3)), np.zeros((0, 3)), np.zeros(0)
    step = ((-2.2, 1.1), (0.8, 0.2))
    believed = _Step(step, none, nowhere, nowhere)
    mean, variance = believed.predict(alike[:2], np.array([0.0, 1.0]), np.zeros(2))
    assert mean == pytest.approx([-2.2, -1.1])
    assert variance == pytest.approx([0.8**2 + _SIGNAL**2, 0.8**2 + 0.2**2 + _SIGNAL**2])
    seen = _Step(step, alike, before, 1.5 * before - 0.4)
    mean, variance = seen.predict(alike[:2], np.array([0.5, -1.0]), np.zeros(2))
    assert mean == pytest.approx([0.35, -1.9], abs=0.05)
    assert (variance < 0.01).all()
    one = _Step(step, alike[:1], np.array([0.9]), np.array([-0.3]))
    assert -2.2 + 0.99 < one.predict(alike[:1], np.array([0.9]), np.zeros(1))[0][0] < -0.3 + 0.1
    assert believed.predict(alike[:1], np.array([-5.0]), np.zeros(1))[0][0] == pytest.approx(np.log(SOFT))


def test_what_is_uncertain_before_a_step_is_uncertain_after_it():
    """By the slope of the line."""
    none, nowhere = np.zeros((0, 3)), np.zeros(0)
    step = _Step(((-1.0, 0.5), (0.1, 0.01)), none, nowhere, nowhere)
    _, sure = step.predict(np.zeros((1, 3)), np.array([1.0]), np.zeros(1))
    _, unsure = step.predict(np.zeros((1, 3)), np.array([1.0]), np.array([0.64]))
    assert unsure - sure == pytest.approx([0.25 * 0.64])


def test_what_loses_nearly_nothing_promises_no_gain():
    """Scores of variants of the uncompressed network differ by noise; to find the luckiest is no gain."""
    prior = Prior([[0.0, 0.2]] * 3)
    codes = np.array([[0, 0, 0], [1, 1, 1]]).T
    mean, deviation = Surrogate(prior, (), 3).predict(codes, 2)
    lost = np.exp(mean) - SOFT
    assert lost[0] == pytest.approx(0.0, abs=1e-3)
    assert lost[1] > 0.01
    assert deviation[0] < 0.2 * deviation[1]


def test_policies_unlike_those_that_were_trained_stay_uncertain():
    """Twenty trials that are alike say how training goes for them, and little of what is far from them."""
    rng = np.random.default_rng(0)
    before = rng.uniform(-1.5, 0.5, 20)
    features = rng.uniform(0.0, 0.05, (20, 4))
    step = _Step(((-2.0, 1.0), (0.35, 0.2)), features, before, 1.1 * before - 1.6)
    far = np.array([[1.5, 0.0, 0.0, 0.0]])
    for place, least, most in ((features[:1], 0.0, 0.05), (far, 0.9 * _SIGNAL, 2.0 * _SIGNAL)):
        mean, variance = step.predict(place, np.array([-0.5]), np.zeros(1))
        assert least < np.sqrt(variance[0]) < most
        assert mean[0] == pytest.approx(-2.15, abs=0.25)


def test_sums_saturate_where_networks_are_useless_anyway():
    prior = Prior([[0.0, 1.0, 2.0]] * 4)
    codes = np.array([[0, 0, 0, 1], [0, 1, 2, 2], [0, 0, 0, 0], [0, 0, 0, 2]]).T[:, [0, 1, 3]]
    small, large, single = np.exp(prior.sums(codes))
    assert small == pytest.approx(1.0, rel=0.3)
    assert large < 3.0
    assert small < single < large
