"""Heirs of a trained trial: networks of other policies made from its weights, scored and not trained."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

import optuna
from optuna.exceptions import UpdateFinishedTrialError

from leanfront.compression.policy import Policy
from leanfront.search.run.disk import is_full, when_there_is_space
from leanfront.search.run.results_tables import row_of
from leanfront.search.run.run_folder import RunFolder, TrialRow
from leanfront.search.run.run_lock import BEAT, leased
from leanfront.search.run.significance import save_scores
from leanfront.search.samplers import heirs
from leanfront.search.study.study import adopt, digests, hand_back, tell
from leanfront.search.trial.trial import ClimbLike, Problem, ScoreLike, inherited, priced


def keep(run: RunFolder, number: int, climb: ClimbLike, scores: Mapping[int, ScoreLike]) -> None:
    """Write the weights of a trial's network, and the scores of each example."""
    climb.keep(run.checkpoint(number))
    each = {images: score.scores for images, score in scores.items()}
    when_there_is_space(lambda: save_scores(run.scores_file(number), each), run.log)


def score_heirs(
    problem: Problem,
    study: optuna.Study,
    run: RunFolder,
    parent: TrialRow,
    policy: Policy,
    climb: ClimbLike,
    seconds: float,
    overdue: Callable[[optuna.Trial], None],
    stop: Callable[[], bool],
    on_trial: Callable[[TrialRow], None],
) -> None:
    """Score the heirs that the sampler wants of a trial that was just trained, until ``stop`` says so.

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
        asked = time.perf_counter()
        if chosen.digest in digests(study.get_trials(deepcopy=False)):
            continue
        price = priced(problem, chosen)
        if price.state == "infeasible":
            continue
        price = replace(price, values={**price.values, "seconds_pricing": time.perf_counter() - asked})
        trial = adopt(study, problem.space, chosen, parent.worker, parent.trial)
        number = trial.number
        try:
            with leased(partial(trial.set_user_attr, BEAT), seconds, partial(overdue, trial)):
                result = inherited(problem, parent.trial, climb, chosen, price, partial(keep, run, number))
                row = row_of(tell(study, trial, result))
        except UpdateFinishedTrialError:
            continue  # it was taken back while this worker did not answer
        except BaseException as error:
            with suppress(Exception):
                hand_back(study, trial)
            if not is_full(error):
                raise
            return  # the next trial waits for space
        on_trial(row)
