"""The Optuna study of a run: its samplers, its seeds, and trials whose worker died."""

import json
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from leanfront.compression.policy import Policy
from leanfront.compression.policy.space import Space
from leanfront.search.config import SearchSection
from leanfront.search.objectives import objective
from leanfront.search.run.run_folder import RunError, RunFolder, trained_to_the_end
from leanfront.search.run.run_lock import Watch, locked
from leanfront.search.samplers import sampler_named
from leanfront.search.storage_url import storage_url
from leanfront.search.study.optuna_adapter import handle
from leanfront.search.study.storage import Note, open_storage
from leanfront.search.trial.promotion import INTERRUPTED, UNKNOWN, was_hopeless
from leanfront.search.trial.trial import KNOWN_FROM, Result, Sampler, is_heir

NAME = "leanfront"
OVERDUE = "overdue"
"""Attribute of a trial that was ended for its time limit, in seconds."""
_SECONDS_TO_SAY_WHO = 60.0
_OPTUNA_STATES = {
    "complete": TrialState.COMPLETE,
    "infeasible": TrialState.PRUNED,  # with constraint values: samplers learn from it, no front shows it
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def open_study(
    run: RunFolder,
    settings: SearchSection,
    worker_seed: int = 0,
    sampler: Sampler | None = None,
    join: bool = False,
    wait: bool = False,
    note: Note | None = None,
) -> optuna.Study:
    """Make or load the study of a run; ``worker_seed`` makes workers draw different policies, ``sampler`` is
    what proposes them (a new one of the configuration's).

    ``join``: it must have been made already. ``wait``: if the server of a shared storage is away, wait for
    it; ``note`` hears of that, otherwise log.txt does.

    Raises:
        RunError: its storage cannot be opened, or has no such study although the run has begun.
        StorageLost: its storage was away for too long.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = [
        StudyDirection.MINIMIZE if objective(name).better == "lower" else StudyDirection.MAXIMIZE
        for name in settings.objectives
    ]
    url = storage_url(settings.storage)
    storage = open_storage(url, run.journal, note or run.log, wait=wait)
    name = NAME if url is None else run.study_name()
    if url is not None and (join or run.begun):
        try:
            storage.get_study_id_from_name(name)
        except KeyError:
            raise RunError(
                f"{url.text} has no study {name}, which {run.path} goes by;"
                " give the storage that the search was started with"
            ) from None
    study = optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)
    # a resumed search must not draw what it drew before: its seed depends on how far it got
    offset = 7919 * worker_seed + 104_729 * len(study.get_trials(deepcopy=False))
    sampler = sampler or sampler_named(settings.sampler)
    study.sampler = sampler.proposer((settings.seed + offset) % 2**32)
    if study.metric_names != list(settings.objectives):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(settings.objectives))
    return study


def enqueue(study: optuna.Study, space: Space, policy: Policy, origin: str) -> None:
    """Have a policy tried next; ``origin`` says in the journal where it comes from."""
    study.enqueue_trial(space.params_of(policy), user_attrs={"origin": origin, "seed": policy.digest})


def add(
    study: optuna.Study, space: Space, policy: Policy, worker: str, result: Result, started: datetime
) -> FrozenTrial:
    """Add a trial that is done, without asking the sampler: of a policy that inherited its weights.

    Whatever waits in the queue goes on waiting.
    """
    decided = optuna.trial.FixedTrial(space.params_of(policy))
    space.suggest(decided)
    values = _values_of(study, result.to_dict())
    done = optuna.trial.create_trial(
        state=_OPTUNA_STATES[result.state] if values is None else TrialState.COMPLETE,
        values=values,
        params=decided.params,
        distributions=decided.distributions,
        user_attrs={"worker": worker, **named(policy), "result": result.to_dict()},
        constraints=dict(result.constraints),
    )
    done.datetime_start = started
    study.add_trial(done)
    return next(  # its number, which add_trial does not say
        trial
        for trial in reversed(study.get_trials(deepcopy=False))
        if trial.user_attrs.get("digest") == policy.digest and trial.user_attrs.get("worker") == worker
    )


def named(policy: Policy) -> dict[str, str]:
    """Attributes of a trial that say its policy."""
    return {"policy": json.dumps(policy.to_dict(), separators=(",", ":")), "digest": policy.digest}


def enqueue_seeds(study: optuna.Study, space: Space, wanted: Sequence[Policy] | None = None) -> int:
    """Enqueue policies (the seeds of the space) that the study has not; their number. Safe to call again."""
    if study.user_attrs.get("seeded"):
        return 0
    there = {trial.user_attrs.get("seed") for trial in study.get_trials(deepcopy=False)}
    seeds = [policy for policy in (space.seeds() if wanted is None else wanted) if policy.digest not in there]
    for policy in seeds:
        enqueue(study, space, policy, "seed")
    study.set_user_attr("seeded", True)
    return len(seeds)


def tell(study: optuna.Study, trial: optuna.Trial, result: Result) -> FrozenTrial:
    """Finish a trial: constraints, then the result as one attribute, then the state.

    A worker killed in between loses nothing: ``recover`` finishes a trial that has its result.
    """
    for name, violation in result.constraints.items():
        trial.set_constraint(name, violation)
    trial.set_user_attr("result", result.to_dict())
    return _finish(study, trial.number, result.to_dict())


def _finish(study: optuna.Study, number: int, result: Mapping[str, Any]) -> FrozenTrial:
    values = _values_of(study, result)
    if values is not None:
        return study.tell(number, values=values)
    return study.tell(number, state=_OPTUNA_STATES[result["state"]])


def _values_of(study: optuna.Study, result: Mapping[str, Any]) -> list[float] | None:
    """What Optuna is told of a network that was scored, None of any other. One over max_drop is COMPLETE, its
    constraint violated."""
    if result["state"] == "complete" or (result["state"] == "infeasible" and "accuracy" in result):
        return [float(result[name]) for name in study.metric_names or []]
    return None


def recover(study: optuna.Study, run: RunFolder, watch: Watch | None = None) -> list[int]:
    """Take back the trials of workers that are lost; their numbers.

    A worker of this machine is lost when it let go of its lock; any other when ``watch``, which a caller
    keeps from call to call, has seen its lease run out. A trial that had its result is finished with it. Any
    other is enqueued again, once: a policy that loses its second worker, too, is set aside as failed.
    """
    watch = watch or Watch()
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    if not any(_abandoned(trial, run, watch) for trial in running):
        return []
    run.locks.mkdir(exist_ok=True)
    taken = []
    with locked(run.locks / "recover"):
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _abandoned(trial, run, watch):
                with suppress(UpdateFinishedTrialError):  # another machine was faster
                    _take_back(study, trial)
                taken.append(trial.number)
    return taken


def _abandoned(trial: FrozenTrial, run: RunFolder, watch: Watch) -> bool:
    worker = trial.user_attrs.get("worker")
    if worker is not None:
        run_out = watch.has_run_out(trial)
        return not run.is_live(str(worker)) and (run_out or run.is_dead(str(worker)))
    # Killed, or alive, in the milliseconds between asking for a trial and saying who works on it: some worker
    # that lives may have asked only if it was there by then, and not long ago. A worker that is misjudged, on
    # another machine, finds out when it says who it is, and has lost nothing.
    started = trial.datetime_start.timestamp() if trial.datetime_start is not None else 0.0
    long_ago = time.time() - started > _SECONDS_TO_SAY_WHO
    return long_ago or all(since > started for since in run.live_workers().values())


def _take_back(study: optuna.Study, trial: FrozenTrial) -> None:
    attributes = trial.user_attrs
    if "result" in attributes:
        _finish(study, trial.number, attributes["result"])
    elif attributes.get("again") is not None:
        what = "killed its worker"
        if OVERDUE in attributes:
            what = f"took longer than {attributes[OVERDUE] / 60:.3g} min"
        reason = f"{what} twice, here and as trial {attributes['again']}"
        tell(study, handle(study, trial), Result("failed", reason))
    else:
        _run_again(study, trial, again=trial.number)


def hand_back(study: optuna.Study, trial: optuna.Trial) -> None:
    """Give back a trial that this worker was told to leave: it is run again, and not held against it."""
    frozen = study.get_trials(deepcopy=False)[trial.number]
    if not frozen.state.is_finished() and "result" not in frozen.user_attrs:
        _run_again(study, frozen, again=frozen.user_attrs.get("again"))


def _run_again(study: optuna.Study, trial: FrozenTrial, again: int | None) -> None:
    """Enqueue the parameters of a running trial once more; then finish it as interrupted.

    ``again``: the number of the trial that lost its worker, which must not happen a second time.
    """
    if params := _all_params(trial):
        study.enqueue_trial(params, user_attrs={"again": again, "origin": f"trial {trial.number} again"})
    handle(study, trial).set_user_attr("result", Result("pruned", INTERRUPTED).to_dict())
    study.tell(trial.number, state=TrialState.FAIL)


def _all_params(trial: FrozenTrial) -> dict[str, object]:
    """The parameters so far, and those that were enqueued but not yet asked for."""
    fixed = trial.system_attrs.get("fixed_params") or {}
    return {**fixed, **trial.params}


def finished(trials: Iterable[FrozenTrial]) -> int:
    """Trials that count towards --trials: those that reached the last rung, or failed.

    Heirs do not count, nor policies that were refused for their cost, were there before or not promoted.
    """
    return sum(
        trial.state.is_finished() and reached_the_end(trial.user_attrs.get("result") or {})
        for trial in trials
    )


def reached_the_end(result: Mapping[str, Any]) -> bool:
    """Whether a trial was trained as long as trials are, or failed; heirs and what another run has scored are
    not trained here."""
    elsewhere = is_heir(result) or KNOWN_FROM in result
    return trained_to_the_end(str(result.get("state")), "accuracy" in result, elsewhere)


def digests(trials: Iterable[FrozenTrial], without: int | None = None) -> dict[str, int]:
    """Digest of each policy that was tried or is being tried -> its trial, but for trial ``without``.

    One that is held at the first rung may be tried again: it then goes on.
    """
    return {
        trial.user_attrs["digest"]: trial.number
        for trial in trials
        if "digest" in trial.user_attrs
        and trial.number != without
        and (result := trial.user_attrs.get("result") or {}).get("reason") not in UNKNOWN
        and not _is_held(result)
    }


def held(trials: Iterable[FrozenTrial]) -> dict[str, list[dict[str, Any]]]:
    """Digest of each policy that was scored at the first rung and not promoted -> that rung."""
    return {
        trial.user_attrs["digest"]: result["rungs"]
        for trial in trials
        if _is_held(result := trial.user_attrs.get("result") or {})
    }


def _is_held(result: Mapping[str, Any]) -> bool:
    given_up = was_hopeless(result.get("reason"))
    return result.get("state") == "pruned" and result.get("rung") == 0 and not given_up
