"""A search that starts from another run: what that knows still holds, or is tried again first."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna

from leanfront.compression.policy import Policy, PolicyError
from leanfront.compression.policy.space import Space
from leanfront.search.config import SearchConfig
from leanfront.search.run.front import front_rows
from leanfront.search.run.run_folder import RunError, RunFolder, TrialRow
from leanfront.search.run.significance import Evidence, Resampled, load_scores
from leanfront.search.study.bequests import announce, trained_there
from leanfront.search.study.study import add, enqueue
from leanfront.search.trial.promotion import UNTRAINED
from leanfront.search.trial.trial import KNOWN_FROM, WEIGHTS_FROM, WEIGHTS_OF, Problem, known

if TYPE_CHECKING:
    from leanfront.search.study.prepare import Loaded

Log = Any
TRIED_AGAIN = 12
"""Networks of a front whose scores no longer hold: so many are tried first."""
_DONE = "another_run"


@dataclass(frozen=True)
class Start:
    """What came of another run: trials that are taken over, networks of its front that this space has not and
    that leave their weights to what is nearest, policies that are tried again, and what no longer holds of
    it, in words."""

    run: str
    taken_over: int
    bequests: int
    tried_again: int
    differs: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """For whoever waits."""
        if not self.differs:
            more = f"; of its front, in another space, {self.bequests} leave their weights"
            said = f"taken over from {self.run}, priced anew: {self.taken_over} of its trials"
            return f"{said}{more if self.bequests else ''}"
        return (
            f"the scores of {self.run} no longer hold ({', '.join(self.differs)}); of its front"
            f" {self.tried_again} are scored again first"
        )


def start_from(
    other: RunFolder,
    loaded: "Loaded",
    problem: Problem,
    study: optuna.Study,
    run: RunFolder,
    note: Log,
) -> Start | None:
    """Give a study what another run knows; None where it was given that before.

    Where scores still hold (the same weights, data, training and grids) its trials become trials of this
    study, at this search's costs and limits, with their weights where those were kept, and from those heirs
    are made first (``bequests``). Where they do not, the policies of its front are tried first.

    Raises:
        RunError: the other run is of another network; the first layer that differs is named.
    """
    if study.user_attrs.get(_DONE):
        return None
    _check_network(other, run)
    rows, config = other.trials(), other.tuned(other.settings())
    differs = differences(other, config, run, loaded)
    front = front_rows(rows, config.search.objectives)
    name = other.path.name
    if differs:
        again = _enqueued(front, problem.space, study, name)
        found = Start(name, 0, 0, again, differs)
    else:
        taken_over = _taken_over(rows, other, loaded, problem, study, run)
        multiple = other.environment().get("channel_multiple", 1)
        strange = [row for row in front if row.policy and _fitting(row, problem.space, multiple) is None]
        found = Start(name, taken_over, announce(study, other, strange), 0, ())
    run.update_environment(
        started_from={
            "run": str(other.path.resolve()),
            "taken_over": found.taken_over,
            "bequests": found.bequests,
            "tried_again": found.tried_again,
            "differs": list(differs),
        }
    )
    study.set_user_attr(_DONE, name)
    note(found.sentence)
    return found


def check_start(other: RunFolder, run: Path) -> None:
    """Before anything is measured: raise RunError where nobody can start from a run, which is this one or has
    no complete trial."""
    if other.path.resolve() == run.resolve():
        raise RunError(
            f"a search starts from another run, but {run} is its own; leave --from out to go on with it"
        )
    if not any(row.state == "complete" for row in other.trials()):
        raise RunError(f"no trial of {other.path} is complete: there is nothing to start from")


def take_tuned(other: RunFolder | None, run: RunFolder, config: SearchConfig) -> None:
    """Let a run that has not begun train with what another has found better, where both are told to train
    alike; else forget what an earlier call has found."""
    found = None
    if other is not None:
        theirs = other.settings().finetune.model_copy(update={"tune": config.finetune.tune})
        found = other.environment().get("tuned") if theirs == config.finetune else None
    useful = found and (found.get("kept") or found.get("length"))
    run.update_environment(tuned=found if useful else None)


def _check_network(other: RunFolder, run: RunFolder) -> None:
    then, now = (
        {layer["name"]: layer["shape"] for layer in each.environment()["layers"]} for each in (other, run)
    )
    for name in dict.fromkeys((*now, *then)):
        if then.get(name) != now.get(name):
            was, is_ = (shape or "not there" for shape in (then.get(name), now.get(name)))
            raise RunError(
                f"{other.path} is a run of another network: layer {name!r} is {was} there and {is_} here"
            )


def differences(other: RunFolder, config: SearchConfig, run: RunFolder, loaded: "Loaded") -> tuple[str, ...]:
    """What scores depend on and is not as it was, in words. ``config``: of the other run."""
    then, now = other.environment(), run.environment()
    found = []
    if (then.get("metric") or {}).get("name") != (now.get("metric") or {}).get("name"):
        found.append("networks are scored otherwise")
    if (then.get("hashes") or {}).get("model") != (now.get("hashes") or {}).get("model"):
        found.append("the weights of the model are others")
    elif not _same(load_scores(other.scores_file("baseline")), load_scores(run.scores_file("baseline"))):
        found.append("the uncompressed network scores otherwise on the search split")
    if then.get("data") is not None and then["data"] != now.get("data"):
        found.append("the data are others")
    ours, theirs = loaded.config.finetune.model_dump(), config.finetune.model_dump()
    found += [
        f"finetune.{key} is {ours[key]}, not {theirs[key]}"
        for key in ours
        if ours[key] != theirs[key] and key != "tune"  # what it found is compared
    ]
    was, is_ = ((each.get("criterion") or {}).get("name", "l2") for each in (then, now))
    if was != is_:
        found.append(f"channels are cut by criterion {is_}, not {was}")
    if then.get("grids", "affine") != now.get("grids", "affine"):
        found.append(f"tensors have {now.get('grids')} grids, not {then.get('grids', 'affine')} ones")
    return tuple(found)


def _same(one: Evidence | None, other: Evidence | None) -> bool:
    """Whether both are known and alike, example by example."""
    if one is None or other is None or isinstance(one, Resampled) != isinstance(other, Resampled):
        return False
    if isinstance(one, Resampled) and isinstance(other, Resampled):
        return one.examples == other.examples and one.value == other.value
    return np.array_equal(np.asarray(one), np.asarray(other))


def _enqueued(front: Sequence[TrialRow], space: Space, study: optuna.Study, name: str) -> int:
    """Have policies of a front tried, or what this space has that is nearest; how many. The first ones are
    spread over the whole front, too, for there may be no time for all."""
    places = np.unique(np.linspace(0, len(front) - 1, min(TRIED_AGAIN, len(front))).astype(int))
    places = np.concatenate([places[::2], places[1::2]])
    there = {trial.user_attrs.get("seed") for trial in study.get_trials(deepcopy=False)}
    count = 0
    for row in (front[place] for place in places):
        with suppress(ValueError, PolicyError):
            policy = space.nearest(Policy.from_json(row.policy))
            if policy.digest not in there:  # from a call that was interrupted, or of a neighbour
                enqueue(study, space, policy, f"trial {row.trial} of {name}")
                there.add(policy.digest)
            count += 1
    return count


def _taken_over(
    rows: Sequence[TrialRow],
    other: RunFolder,
    loaded: "Loaded",
    problem: Problem,
    study: optuna.Study,
    run: RunFolder,
) -> int:
    """Make trials of another run trials of this one; how many."""
    numbers = {  # those that were taken over before this was interrupted
        int(result[KNOWN_FROM]): trial.number
        for trial in study.get_trials(deepcopy=False)
        if KNOWN_FROM in (result := trial.user_attrs.get("result") or {})
    }
    multiple = other.environment().get("channel_multiple", 1)
    for row in rows:
        policy = None if row.trial in numbers else _fitting(row, problem.space, multiple)
        if policy is None:
            continue
        result = known(problem, policy, row.trial, _score(row), _reason(row), json.loads(row.rungs or "[]"))
        if result is None:
            continue
        result = replace(result, values={**result.values, **_inherited(row, numbers)})
        trial = add(study, problem.space, policy, f"run-{other.path.name}", result, datetime.now())
        numbers[row.trial] = trial.number
        if result.state == "complete":
            _take(other.checkpoint(row.trial), run.checkpoint(trial.number))
            _take(other.scores_file(row.trial), run.scores_file(trial.number))
    return len(numbers)


def _inherited(row: TrialRow, numbers: Mapping[int, int]) -> dict[str, float]:
    """Whose weights a trial of another run took over, as it is called here; nothing of one that did not.
    ``numbers``: of the trials that were taken over."""
    if not row.is_heir:
        return {}
    here = None if row.weights_of is None else numbers.get(int(row.weights_of))
    return {WEIGHTS_FROM: trained_there(row)} if here is None else {WEIGHTS_OF: float(here)}


def _fitting(row: TrialRow, space: Space, multiple: int) -> Policy | None:
    """The policy of a trial that was scored, if it is one of this space and cuts the same here."""
    if row.divergence is None or not row.policy or row.state not in ("complete", "infeasible", "pruned"):
        return None
    with suppress(ValueError, PolicyError):
        policy = Policy.from_json(row.policy)
        space.params_of(policy)
        if policy.channels(space.network, multiple) == space.channels(policy):
            return policy
    return None


def _score(row: TrialRow) -> dict[str, float]:
    """What a trial that reached the end found; nothing of one that did not."""
    if row.state == "pruned":
        return {}
    named = ("accuracy", "accuracy_low", "accuracy_high", "divergence", "rung")
    return {name: float(value) for name in named if (value := row.value(name)) is not None}


def _reason(row: TrialRow) -> str:
    return UNTRAINED if row.reason == UNTRAINED else ""


def _take(source: Path, target: Path) -> None:
    """A file of another run, shared where the two are on one disk: neither is changed in place."""
    target.parent.mkdir(exist_ok=True)
    with suppress(FileNotFoundError):
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
