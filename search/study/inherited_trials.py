"""Heirs of a trained trial: networks of other policies made from its weights, scored and not trained."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial

import optuna

from leanfront.compression.policy import Policy
from leanfront.search.run.disk import is_full, when_there_is_space
from leanfront.search.run.results_tables import row_of
from leanfront.search.run.run_folder import RunFolder, TrialRow
from leanfront.search.run.run_lock import leased
from leanfront.search.run.significance import save_scores
from leanfront.search.samplers import heirs
from leanfront.search.study.study import add, digests
from leanfront.search.trial.trial import ClimbLike, Problem, ScoreLike, inherited, priced


def keep(run: RunFolder, name: int | str, climb: ClimbLike, scores: Mapping[int, ScoreLike]) -> None:
    """Write the weights of a trial's network, and the scores of each example."""
    climb.keep(run.checkpoint(name))
    each = {images: score.scores for images, score in scores.items()}
    when_there_is_space(lambda: save_scores(run.scores_file(name), each), run.log)


def score_heirs(
    problem: Problem,
    study: optuna.Study,
    run: RunFolder,
    parent: TrialRow,
    policy: Policy,
    climb: ClimbLike,
    seconds: float,
    overdue: Callable[[], None],
    stop: Callable[[], bool],
    on_trial: Callable[[TrialRow], None],
) -> None:
    """Score the heirs that the sampler wants of a trial that was just trained, until ``stop`` says so.

    Each is made a trial once it is scored: a worker that is lost before leaves nothing to be taken back.

    Args:
        problem: what is searched.
        study: gets a trial for each.
        run: keeps their weights and scores.
        parent: the trial that was trained; its worker does this.
        policy: its policy.
        climb: its network.
        seconds: after which an heir is taken to hang, and ``overdue`` called.
        overdue: ends this process.
        stop: whether to leave the rest.
        on_trial: gets the line of each.
    """
    for chosen in heirs(study.sampler, study, policy, parent.accuracy or 0.0):
        if stop():
            return
        asked, started = time.perf_counter(), datetime.now()
        if chosen.digest in digests(study.get_trials(deepcopy=False)):
            continue
        price = priced(problem, chosen)
        if price.state == "infeasible":
            continue
        price = replace(price, values={**price.values, "seconds_pricing": time.perf_counter() - asked})
        name = f"inherited-{chosen.digest}"  # until it has a number
        try:
            with leased(lambda beat: None, seconds, overdue):
                result = inherited(problem, parent.trial, climb, chosen, price, partial(keep, run, name))
        except OSError as error:
            if not is_full(error):
                raise
            return  # the next trial waits for space
        files = run.checkpoint(name), run.scores_file(name)
        if chosen.digest in digests(study.get_trials(deepcopy=False)):  # another worker was faster
            for path in files:
                path.unlink(missing_ok=True)
            continue
        row = row_of(add(study, problem.space, chosen, parent.worker, result, started))
        for path in files:
            if path.exists():
                path.rename(path.with_name(f"{row.trial}{path.suffix}"))
        on_trial(row)
