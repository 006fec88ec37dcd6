"""``leanfront check``: everything that a search would use, tried out before the night."""

import math
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from leanfront.latency_models.cost import unknown_sentence
from leanfront.search.cli.output import print_table
from leanfront.search.config import SearchConfig
from leanfront.search.objectives import objective
from leanfront.search.study.prepare import Loaded, load, prepare, proved, threads_of_workers
from leanfront.search.study.run_search import use_threads

if TYPE_CHECKING:
    from leanfront.search.trial.trial import Problem

_TIMED_BATCHES = 3
_VERDICTS = {True: "proved", False: "FAILED", None: "not applicable"}


def check_config(config: SearchConfig) -> dict[str, Any]:
    """Load, trace, prove the network, score the baseline and price the space as a search does; time a trial;
    write nothing but the caches of proofs and latency tables. Of a network that fails only what was proved.

    Raises:
        What ``search.study.prepare.load`` and ``prepare`` raise.
    """
    from leanfront.search.scores import described

    settings = config.search
    use_threads(max(threads_of_workers(settings.workers)))
    loaded = load(config)
    proof = proved(loaded, lambda text: None)
    checks = [asdict(check) for check in proof.checks]
    if not proof.passed:
        return {"passed": False, "checks": checks, "kept_as_they_are": list(loaded.traced.notes)}
    problem = prepare(loaded, None, lambda text: None)
    split = split_tells(problem)
    seconds = _seconds_per_trial(loaded)
    network, space = loaded.traced.network, loaded.space
    unknown = problem.cost_model.unknown(network)
    trials = None
    if settings.hours is not None:
        trials = int((settings.hours * 3600 - config.seconds_to_finish) / seconds * settings.workers)
    if settings.trials is not None:
        trials = settings.trials if trials is None else min(trials, settings.trials)
    return {
        "passed": True,
        "checks": checks,
        "profile": loaded.profile.name,
        "measured_on": problem.cost_model.measured_on,
        "metric": described(loaded.task.metric),
        "baseline_accuracy": problem.baseline_accuracy,
        "macs": network.macs,
        "weights": network.weight_count,
        "split": split,
        "space_size": space.size,
        "bits": [list(pair) for pair in space.pairs],
        "bits_left_out": space.left_out,
        "seconds_per_trial": seconds,
        "workers": settings.workers,
        "hours": settings.hours,
        "trials": trials,
        "groups": [
            {
                "group": group,
                "channels": network.group_size(group),
                "kept": [round(network.group_size(group) * (1 - level)) for level in space.levels[group]],
                "layers": [layer.name for layer in layers],
            }
            for group, layers in network.groups.items()
        ],
        "branches": [{"branch": branch.name, "layers": list(branch.layers)} for branch in space.branches],
        "layers": [
            {"layer": layer.name, "shape": str(layer.shape), "group": layer.group or ""}
            for layer in network.layers
        ],
        "kept_as_they_are": list(loaded.traced.notes),
        "priced_by_what_they_move": unknown_sentence(unknown) if unknown else None,
    }


def check_table(answer: dict[str, Any]) -> None:
    """Print what ``check_config`` found."""
    if answer["passed"]:
        print_table(answer["layers"], title="layers")
    for note in answer["kept_as_they_are"]:
        print(note)
    if answer.get("priced_by_what_they_move"):
        print(answer["priced_by_what_they_move"])
    for check in answer["checks"]:
        print(f"{_VERDICTS[check['passed']]:<14} {check['sentence']}")
    if answer["passed"]:
        _print_space(answer)


def _print_space(answer: dict[str, Any]) -> None:
    """What a search would do."""
    groups = [
        {
            "group": entry["group"],
            "layers": len(entry["layers"]),
            "channels": entry["channels"],
            "may keep": " ".join(map(str, entry["kept"])),
        }
        for entry in answer["groups"]
    ]
    row = objective("accuracy")
    print_table(groups, title="groups of channels that are cut together")
    if branches := [{**entry, "layers": " ".join(entry["layers"])} for entry in answer["branches"]]:
        print_table(branches, title="residual branches that may be left out")
    print(f"profile            {answer['profile']}")
    if answer["measured_on"] is not None:
        print(f"measured on        {answer['measured_on']}")
    print(f"{f'baseline {row.label}':<18} {row.shown(answer['baseline_accuracy'])} on the search split")
    if answer["split"]["sentence"]:
        print(answer["split"]["sentence"])
    print(f"bits               {' '.join(f'w{weights}a{acts}' for weights, acts in answer['bits'])}")
    if answer["bits_left_out"]:
        print(f"bits left out      {answer['bits_left_out']}")
    print(f"space              {answer['space_size']:.3g} policies")
    print(f"a trial takes      about {answer['seconds_per_trial']:.1f} s")
    if answer["trials"] is not None:
        end = f"in {answer['hours']:g} h " if answer["hours"] is not None else ""
        print(f"trials             about {answer['trials']} {end}with {answer['workers']} worker(s)")
    else:
        print("trials             give --hours or --trials to say when it ends")


def split_tells(problem: "Problem") -> dict[str, Any]:
    """What difference of scores the search split tells, beside the limit of what may be lost, and how many
    examples would tell that; with a sentence where the split is too small for it.

    The difference is expected from the uncompressed network and the plainest compressed one, uncut in
    integers and not trained (``significance.told_apart``).
    """
    from leanfront.search.run.significance import examples_of, told_apart

    scorer, score = problem.scorer, objective("accuracy")
    assert scorer.uncompressed is not None
    seeds = problem.space.seeds()
    uncompressed = scorer.uncompressed.scores
    plain = scorer.without_training(seeds[min(1, len(seeds) - 1)]).scores
    given = problem.limits.max_drop
    limit = score.usual_drop(problem.baseline_accuracy) if given is None else given
    tells, examples = told_apart(uncompressed, plain, limit), examples_of(uncompressed)
    needed = math.ceil(examples * (tells / limit) ** 2) if limit > 0 else None
    sentence = ""
    if tells > limit:
        name = (
            f"limits.max_drop is {limit:g}"
            if given is not None
            else f"pick allows {limit:.2g} unless it is told"
        )
        more = "no number tells that" if needed is None else f"some {needed:,} examples would tell that"
        sentence = (
            f"the search split is small: {examples:,} examples tell drops of {score.label} to"
            f" {score.amount(tells)} (95 %), and {name}; {more}"
        )
    return {"examples": examples, "tells": tells, "max_drop": limit, "needed": needed, "sentence": sentence}


def _seconds_per_trial(loaded: Loaded) -> float:
    """Seconds of a trial: its fixed part, and a few batches scaled up to all; what they train is dropped."""
    from leanfront.search.trial.scorer import Scorer

    options = loaded.config.finetune
    policy = loaded.space.seeds()[-1]

    def timed(images: int) -> float:
        finetune = options.model_copy(update={"images": images})
        config = loaded.config.model_copy(update={"finetune": finetune})
        rungs = loaded.sampler.rungs(config.rung_images)
        scorer = Scorer(loaded.traced, loaded.task, config, rungs=rungs)
        last = len(rungs) - 1
        # the first is slower: it reads the images, the teacher looks at them
        scorer.start(policy).score(last)
        started = time.perf_counter()
        scorer.start(policy).score(last)
        return time.perf_counter() - started

    fixed = timed(0)
    batches = -(-options.images // options.batch)
    if batches == 0:
        return fixed
    few = min(batches, _TIMED_BATCHES)
    return fixed + max(0.0, timed(few * options.batch) - fixed) * batches / few
