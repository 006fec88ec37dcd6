"""Settings of the fine-tune, looked for before a long search: kept only where they win by more than noise."""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import optuna

from leanfront.compression.export.deployed_form import fold
from leanfront.compression.policy import Policy
from leanfront.compression.policy.space import Space
from leanfront.compression.techniques.compress import Compressed
from leanfront.compression.training.batch_norms import norms_of
from leanfront.compression.training.finetune import Diverged, FineTune
from leanfront.latency_models.benchmark.measuring_lock import training
from leanfront.search.objectives import objective
from leanfront.search.run.significance import Evidence, Resampled, paired_interval, value_of
from leanfront.search.trial.in_task import in_bfloat16
from leanfront.search.trial.scored import TrialFailed, explained
from leanfront.search.trial.scorer import Scorer

TRIED = 16
"""Settings, the configuration's own among them."""
MOST_IMAGES = 2048
"""Training images, where no rung is shorter."""
SHARE_OF_HOURS = 0.1
"""Of a search, after which no further setting is tried."""
WHAT = ("temperature", "distillation_weight", "learning_rate")
LENGTHS = (0.25, 0.5)
"""Shares of a trial's training images that are tried instead of all."""
MOST_LOST = 0.05
"""A shorter training loses at most this share of what counts in a score (``Objective.reach``)."""
_SEEN, _FRESH = 1000, 2000
"""Draws of training images: what settings are chosen on, and what the chosen ones are held against on."""


@dataclass(frozen=True)
class Tuned:
    """What was found. settings: the best; won: by how much they are better than the configuration's, mean of
    the policies on training images and search examples that they were not chosen on, with its 95 % interval;
    kept: whether that is more than noise. length: images that train a trial, where fewer than the
    configuration's do as well."""

    settings: Mapping[str, float]
    before: Mapping[str, float]
    won: float
    interval: tuple[float, float]
    kept: bool
    tried: int
    images: int
    length: int | None = None

    @property
    def sentence(self) -> str:
        """For whoever waits."""
        row = objective("accuracy")
        shown = ", ".join(f"{name} {self.settings[name]:.3g}" for name in WHAT)
        ends = f"{row.change(self.interval[0])} .. {row.change(self.interval[1])}"
        what = "kept" if self.kept else "not kept, that may be noise"
        shorter = "" if self.length is None else f"; {self.length:,} images train as well as more"
        return f"tuned on {self.tried} settings: {shown} win {row.change(self.won)} ({ends}): {what}{shorter}"

    def to_dict(self) -> dict[str, Any]:
        """For environment.json; None where one of the two could not be trained."""
        known = math.isfinite(self.won)
        return asdict(self) | ({} if known else {"won": None, "interval": None})


def tune(
    scorer: Scorer, space: Space, seed: int, note: Callable[[str], None], seconds: float = math.inf
) -> Tuned:
    """Look for temperature, distillation weight and learning rate with Optuna's TPE, on three policies, each
    trained to the shortest rung that trains; the best are then held against the configuration's own on other
    training images and other search examples. A weight of 0 or 1 stays: there one of the losses is not used.
    With what is kept the policies then train on all of a trial's images, and on shares of them.

    ``seconds``: after which nothing further is tried.
    """
    started = time.monotonic()
    bench = _Bench(scorer, policies(space))
    own = scorer.settings(scorer.config.finetune.learning_rate)
    note(f"looking for better settings of the fine-tune: {TRIED} on {len(bench.networks)} policies")
    weighed = 0.0 < own.distillation_weight < 1.0

    def asked(trial: optuna.Trial) -> float:
        weight = trial.suggest_float("distillation_weight", 0.3, 1.0 - 1e-3) if weighed else None
        settings = replace(
            own,
            temperature=trial.suggest_float("temperature", 1.0, 10.0, log=True),
            distillation_weight=own.distillation_weight if weight is None else weight,
            learning_rate=trial.suggest_float(
                "learning_rate", own.learning_rate / 5, own.learning_rate * 5, log=True
            ),
        )
        if time.monotonic() - started > seconds:
            trial.study.stop()
        found = bench.scores(settings, _SEEN)
        return -math.inf if found is None else float(np.mean([value_of(_half(one, True)) for one in found]))

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial({name: _within(name, getattr(own, name)) for name in WHAT})
    study.optimize(asked, n_trials=TRIED)
    best = replace(own, **{name: study.best_params[name] for name in WHAT if name in study.best_params})
    before, after = (
        None if found is None else [_half(one, False) for one in found]
        for found in (bench.scores(own, _FRESH), bench.scores(best, _FRESH))
    )
    won, interval = _won(before, after)
    late = time.monotonic() - started > seconds
    assert scorer.uncompressed is not None
    return Tuned(
        settings={name: float(getattr(best, name)) for name in WHAT},
        before={name: float(getattr(own, name)) for name in WHAT},
        won=won,
        interval=interval,
        kept=interval[0] > 0,
        tried=len(study.trials),
        images=bench.images,
        length=None
        if late
        else _length(bench, best if interval[0] > 0 else own, scorer.uncompressed.accuracy),
    )


def _length(bench: "_Bench", settings: FineTune, uncompressed: float) -> int | None:
    """The least images of ``LENGTHS`` after which networks are surely (95 %) at most ``MOST_LOST`` worse than
    after all; None where all are needed."""
    shorter = [round(share * bench.whole) for share in LENGTHS]
    shorter = [images for images in shorter if images >= bench.images]
    most = bench.scores(settings, _FRESH, bench.whole) if shorter else None
    if most is None:
        return None
    lost = MOST_LOST * objective("accuracy").reach(uncompressed)
    for images in shorter:
        found = bench.scores(settings, _FRESH, images)
        if found is not None and _won(most, found)[1][0] >= -lost:
            return images
    return None


def policies(space: Space) -> list[Policy]:
    """Three that have something to win back: a quarter and half of the channels cut, in 8 bits where there
    are such, and the fewest bits that the space has."""
    integers = [pair for pair in space.pairs if max(pair) <= 8] or list(space.pairs)
    eight = (8, 8) if (8, 8) in integers else max(integers)
    least = min(integers, key=lambda pair: pair[0] * pair[1])
    wanted = [space.uniform(0.25, least), space.uniform(0.5, eight), space.uniform(0.5, least)]
    return list(dict.fromkeys(wanted))


class _Bench:
    """Networks that are trained from the same start with one setting after the other. Of the search examples
    every other one says which setting is best, the rest whether it is better than the configuration's."""

    def __init__(self, scorer: Scorer, wanted: Sequence[Policy]) -> None:
        self.scorer = scorer
        trained = [images for images in scorer.rungs if images]
        self.whole = max(trained, default=0)
        self.images = min([*trained, MOST_IMAGES]) if trained else 0
        with training(scorer.note):
            self.networks = [scorer.prepared(policy, rough=True) for policy in wanted]

    def scores(self, settings: FineTune, seed: int, images: int | None = None) -> list[Evidence] | None:
        """Of each network after its training; None where one diverged, or has no score then. ``images``: of
        the shortest rung by default."""
        steps = max(1, (images or self.images) // self.scorer.config.finetune.batch)
        try:
            return [self._score(network, settings, seed, steps) for network in self.networks]
        except (Diverged, TrialFailed):
            return None

    def _score(self, network: Compressed, settings: FineTune, seed: int, steps: int) -> Evidence:
        scorer = self.scorer
        with training(scorer.note), explained():
            own = replace(network, module=copy.deepcopy(network.module))
            batches = scorer.batches.long(steps, seed)
            scorer.fine_tune(own, batches, steps, settings.learning_rate, settings)
            scorer.settling.settle_norms(own, frozenset(norms_of(own.module)), trained=True)
            with in_bfloat16(scorer.device):
                return scorer.scored(scorer.in_task(fold(own).module), 0.0, 0.0).scores


def _half(evidence: Evidence, first: bool) -> Evidence:
    """Of the scores of each example every other one; a metric of a whole split is not divided."""
    return evidence if isinstance(evidence, Resampled) else evidence[0 if first else 1 :: 2]


def _won(
    before: Sequence[Evidence] | None, after: Sequence[Evidence] | None
) -> tuple[float, tuple[float, float]]:
    """By how much the mean over networks is better, and the 95 % interval of that: of scores of each example
    that of all together, of metrics the widest of their own."""
    if after is None:
        return -math.inf, (-math.inf, -math.inf)
    if before is None:
        return math.inf, (math.inf, math.inf)
    won = float(np.mean([value_of(b) - value_of(a) for a, b in zip(before, after, strict=True)]))
    if any(isinstance(one, Resampled) for one in (*before, *after)):
        ends = [paired_interval(b, a) for a, b in zip(before, after, strict=True)]
        return won, (min(low for low, _ in ends), max(high for _, high in ends))
    # an example counts in each of the networks: its mean is one number, so that examples stay independent
    ours, theirs = (np.mean([np.asarray(one) for one in each], axis=0) for each in (after, before))
    return won, paired_interval(ours.astype(np.float32), theirs.astype(np.float32))


def _within(name: str, value: float) -> float:
    """The configuration's own value, at the edge of what is looked at where it lies beyond."""
    low, high = {"temperature": (1.0, 10.0), "distillation_weight": (0.3, 1.0)}.get(name, (0.0, math.inf))
    return min(max(value, low), high)
