"""Which channels a search cuts: the criterion that its configuration names, or the best of several."""

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from leanfront.search.config import ConfigError
from leanfront.search.run.run_folder import RunFolder, writable
from leanfront.search.study.prepare import Loaded, hashes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from leanfront.compression.policy import Policy
    from leanfront.compression.techniques.criteria import Scores
    from leanfront.search.trial.scorer import Scorer

USUAL = "l2"
"""The criterion of networks that say nothing of theirs: of the weights as they are when they are cut."""
_LEVELS = (0.25, 0.5, 0.75)
"""Shares of all groups that are cut to tell several criteria apart."""
_GRADIENT_IMAGES = 512


def judged_by(
    loaded: Loaded, run: RunFolder | None, note: "Callable[[str], None]", write: bool = True
) -> Loaded:
    """The same with the importance of channels in its traced network, as the criterion says.

    What was found stays with the run (environment.json, ``importance.npy``): all of its workers, and whoever
    picks from it, cut the same channels. ``write``: it may be found now; else it must be there. Without a run
    nothing stays.

    Raises:
        ConfigError: a criterion needs gradients of a loss that the task has not.
    """
    names = loaded.config.space.criterion
    if names == (USUAL,):
        if run is not None and write and not run.begun and run.environment().get("criterion"):
            run.update_environment(criterion=None)  # of a call that ended before its first trial
        return loaded
    if run is None:
        return replace(loaded, traced=replace(loaded.traced, importance=_chosen(loaded, names, note)[1]))
    file, known = run.importance_file, run.environment().get("criterion")
    basis = {"asked": list(names), "model": hashes_of(loaded)["model"]}
    if known is not None and write and not run.begun and any(known.get(k) != v for k, v in basis.items()):
        known = None
    if known is None and not write:
        raise ConfigError(
            f"{run.path} was not prepared: which channels its criterion cuts is not known; start the search"
        )
    if known is None:
        known, scores = _chosen(loaded, names, note)
        known |= basis
        with writable(run.path):
            if scores is not None:
                np.save(file, scores)
            run.update_environment(criterion=known)
    if known["name"] == USUAL:
        return loaded
    if not file.is_file():
        raise ConfigError(
            f"{file} must be there: which channels are cut is in it; copy it from the run's folder"
        )
    return replace(loaded, traced=replace(loaded.traced, importance=np.load(file, allow_pickle=False)))


def _chosen(
    loaded: Loaded, names: "Sequence[str]", note: "Callable[[str], None]"
) -> "tuple[dict[str, object], Scores | None]":
    """What environment.json says of the criterion, and what it says of the channels.

    Raises:
        ConfigError: one needs gradients of a loss that the task has not, or nni failed.
    """
    from leanfront.compression.techniques.criteria import criteria_of, importance
    from leanfront.compression.techniques.nni_pruners import NniError

    rows = criteria_of(names)
    try:
        if len(rows) == 1 and rows[0].needs == "weights":
            return {"name": rows[0].name}, importance(loaded.traced, rows[0].name)
        scorer = untrained_scorer(loaded, note)
        found = importances(scorer, names)
    except NniError as problem:
        raise ConfigError(f"space.criterion: {problem}; leanfront's own need no nni") from problem
    if len(rows) == 1:
        return {"name": rows[0].name}, found[rows[0].name]
    apart = {}
    for name, scores in found.items():
        apart[name] = divergence(scorer, scores, uniform_cuts(loaded))
        note(f"criterion {name}: divergence {apart[name]:.3g} nats")
    best = min(apart, key=lambda name: apart[name] if math.isfinite(apart[name]) else math.inf)
    note(f"channels are cut by criterion {best}")
    return {"name": best, "divergences": apart}, found[best]


def untrained_scorer(loaded: Loaded, note: "Callable[[str], None]") -> "Scorer":
    """One whose first rung is without training."""
    from leanfront.search.trial.scorer import Scorer

    return Scorer(loaded.traced, loaded.task, loaded.config, note, rungs=(0, 1))


def importances(scorer: "Scorer", names: "Sequence[str]") -> "dict[str, Scores | None]":
    """What criteria say of the channels of a scorer's network; None: the usual one.

    Raises:
        ConfigError: one needs gradients of a loss that the task has not.
    """
    from leanfront.compression.techniques.criteria import Evidence, criteria_of, importance
    from leanfront.search.trial.in_task import on

    rows = criteria_of(names)
    inputs = scorer.batches.fitted_inputs if any(row.needs == "inputs" for row in rows) else None
    by_gradients = [row.name for row in rows if row.needs == "gradients"]
    gradients = _gradients(scorer, by_gradients[0]) if by_gradients else ()
    evidence = Evidence(on("cpu", inputs), on("cpu", gradients))  # there the traced network is
    return {
        row.name: None if row.name == USUAL else importance(scorer.traced, row.name, evidence) for row in rows
    }


def divergence(scorer: "Scorer", scores: "Scores | None", policies: "Sequence[Policy]") -> float:
    """Of policies before any training, with the channels cut that are worth least: the geometric mean."""
    judge = copy.copy(scorer)  # with all that is computed once
    judge.traced = replace(scorer.traced, importance=scores)
    each = [judge.start(policy).score(0).divergence for policy in policies]
    return math.exp(sum(math.log(max(one, 1e-9)) for one in each) / len(each))


def uniform_cuts(loaded: Loaded) -> "list[Policy]":
    """What criteria are told apart by; all else is as in the uncompressed network."""
    pair = max(loaded.space.pairs)
    return list(dict.fromkeys(loaded.space.uniform(level, pair) for level in _LEVELS))


def _gradients(scorer: "Scorer", name: str) -> "list[dict[str, Tensor]]":
    """Of the task's loss, on some batches of training: parameter -> gradient.

    Raises:
        ConfigError: the loss is none of this network's outputs and the task's targets.
    """
    from leanfront.search.task import TaskError

    try:
        return scorer.gradients(_GRADIENT_IMAGES)
    except TaskError as problem:
        raise ConfigError(
            f"space.criterion {name!r} needs gradients of the task's loss, but {problem}; or take a criterion"
            f" of the weights, such as {USUAL!r}"
        ) from problem
