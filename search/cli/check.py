"""``leanfront check``: everything that a search would use, tried out before the night."""

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanfront.latency_models.cost import unknown_sentence
from leanfront.search.cli.output import print_table
from leanfront.search.config import SearchConfig
from leanfront.search.objectives import objective
from leanfront.search.study.prepare import Judged, Loaded, judged, load, prepare, proved
from leanfront.search.study.threads import threads_of_workers, threads_put_back, use_threads

if TYPE_CHECKING:
    from leanfront.compression.graph import Network

_TIMED_BATCHES = 3
_NAMED = 6
_LOOKED_AT = 256
"""Training images that say how the inputs are scaled."""
_VERDICTS = {True: "proved", False: "FAILED", None: "not applicable"}


@threads_put_back()
def check_config(config: SearchConfig, measure: bool = False) -> dict[str, Any]:
    """Load, trace, prove the network and score the baseline as a search does; time a trial; price the space
    where that takes no measuring, or ``measure`` says so; write nothing but the caches of proofs and latency
    tables. Of a network that fails only what was proved.

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
    with tempfile.TemporaryDirectory(prefix="leanfront-") as decoded:
        known = judged(loaded, None, lambda text: None, decoded=Path(decoded))
        split = split_tells(loaded, known)
        seconds = _seconds_per_trial(loaded, Path(decoded))
        measuring = None if measure else _seconds_to_measure(loaded)
        costs = None
        if measuring is None:
            costs = prepare(loaded, None, lambda text: None, known=known).cost_model
    network, space = loaded.traced.network, loaded.space
    unknown = costs.unknown(network) if costs is not None else ()
    trials = None
    if settings.hours is not None:
        trials = int((settings.hours * 3600 - config.seconds_to_finish) / seconds * settings.workers)
    if settings.trials is not None:
        trials = settings.trials if trials is None else min(trials, settings.trials)
    return {
        "passed": True,
        "checks": checks,
        "profile": loaded.profile.name,
        "measured_on": None if costs is None else costs.measured_on,
        "seconds_to_measure": measuring,
        "metric": described(loaded.task.metric),
        "baseline_accuracy": known.baseline["accuracy"],
        "guessing": _guessing(known),
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
        "free": known.free,
        "kept_as_they_are": list(loaded.traced.notes),
        "channels_stay": list(stay := _channels_that_stay(network)),
        "channels_stay_because": stay,
        "inputs": _inputs_note(loaded),
        "priced_by_what_they_move": unknown_sentence(unknown) if unknown else None,
    }


def _guessing(known: Judged) -> dict[str, Any] | None:
    """The best score of an answer that is the same for every example; None where outputs have no such
    answers."""
    if known.scorer.guessing is None:
        return None
    value, answer = known.scorer.guessing
    return {"accuracy": value, "answer": answer}


def _seconds_to_measure(loaded: Loaded) -> float | None:
    """How long a search would measure before its first trial; None where all is known."""
    from leanfront.compression.export.walk import random_builder
    from leanfront.latency_models.measured.building import seconds_to_measure

    hardware = loaded.config.hardware
    builder = partial(random_builder, loaded.traced)
    return seconds_to_measure(loaded.space, builder, loaded.profile, hardware.threads, hardware.provider)


_OUTPUTS = "they are outputs of the network"
_APART = "in operations that keep channels apart (docs/your-own-task.md has them) they would be cut"


def _channels_that_stay(network: "Network") -> dict[str, str]:
    """Layers that keep all their output channels, each with what these reach: the outputs, or the first
    operation that mixes channels."""
    readers: dict[str, list[str]] = {node.name: [] for node in network.nodes}
    for node in network.nodes:
        for source in node.inputs:
            readers[source].append(node.name)
    layers = {layer.name for layer in network.layers if layer.group is None}
    starts = [node for node in network.nodes if node.layer in layers]
    return {str(node.layer): _reached(network, readers, node.name) for node in starts}


def _reached(network: "Network", readers: Mapping[str, Sequence[str]], start: str) -> str:
    from leanfront.compression.graph.operations import operation

    seen, waiting, outputs = {start}, [start], set(network.outputs)
    while waiting:
        name = waiting.pop(0)
        if name in outputs:
            return _OUTPUTS
        for reader in readers[name]:
            node = network.node[reader]
            if node.layer is not None or reader in seen:
                continue
            if not operation(node.op).channels:
                return f"{reader} ({node.op or 'an operation without a row'}) mixes them; {_APART}"
            seen.add(reader)
            waiting.append(reader)
    return "what is read of them is read at fixed places"


def _inputs_note(loaded: Loaded) -> str | None:
    """What is unusual of what the network gets."""
    import torch

    from leanfront.search.data import as_data, far_from_normal

    data = as_data(loaded.task.train)
    return far_from_normal(data.batch(torch.arange(min(len(data), _LOOKED_AT)), None)[0])


def check_table(answer: dict[str, Any]) -> None:
    """Print what ``check_config`` found."""
    if answer["passed"]:
        print_table(answer["layers"], title="layers")
    if answer.get("inputs"):
        print(answer["inputs"])
    if answer.get("priced_by_what_they_move"):
        print(answer["priced_by_what_they_move"])
    for check in answer["checks"]:
        print(f"{_VERDICTS[check['passed']]:<14} {check['sentence']}")
    if answer["passed"]:
        _print_space(answer)
    _print_untouched(answer)


def _print_untouched(answer: dict[str, Any]) -> None:
    """What a search leaves as it is, why, and what can be done about it."""
    notes, stay = answer["kept_as_they_are"], answer.get("channels_stay_because", {})
    if not notes and not stay:
        return
    print("\nwhat a search does not touch, and what could be done")
    for note in notes:
        print(f"- {note}")
    for why in dict.fromkeys(stay.values()):
        names = [name for name, reason in stay.items() if reason == why]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        shown = f"{', '.join(names[:_NAMED])}{more}"
        print(f"- output channels of {shown}: {why}; their bits are searched")


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
    if answer["seconds_to_measure"] is not None:
        minutes = max(1, round(answer["seconds_to_measure"] / 60))
        print(f"latency table      to be measured once, about {minutes} min: a search begins with it;")
        print("                   leanfront check --measure does it now")
    print(f"{f'baseline {row.label}':<18} {row.shown(answer['baseline_accuracy'])} on the search split")
    if guessing := answer["guessing"]:
        print(f"{'guessing':<18} {row.shown(guessing['accuracy'])}, always {guessing['answer']}")
    for entry in answer["free"]:
        print(f"{entry['name']:<18} {row.shown(entry['accuracy'])} there without a search")
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


def split_tells(loaded: Loaded, known: Judged) -> dict[str, Any]:
    """What difference of scores the search split tells, beside the limit of what may be lost, and how many
    examples would tell that; with a sentence where the split is too small for it.

    The difference is expected from the uncompressed network and the plainest compressed one, uncut in
    integers and not trained (``significance.told_apart``).
    """
    from leanfront.search.run.significance import examples_of, told_apart

    scorer, score = known.scorer, objective("accuracy")
    assert scorer.uncompressed is not None
    seeds = loaded.space.seeds()
    uncompressed = scorer.uncompressed.scores
    plain = scorer.without_training(seeds[min(1, len(seeds) - 1)]).scores
    given = loaded.config.limits.max_drop
    limit = score.usual_drop(known.baseline["accuracy"]) if given is None else given
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


def _seconds_per_trial(loaded: Loaded, decoded: Path) -> float:
    """Seconds of a trial: its fixed part, and a few batches scaled up to all; what they train is dropped."""
    from leanfront.search.trial.scorer import Scorer

    options = loaded.config.finetune
    policy = loaded.space.seeds()[-1]

    def timed(images: int) -> float:
        finetune = options.model_copy(update={"images": images})
        config = loaded.config.model_copy(update={"finetune": finetune})
        rungs = loaded.sampler.rungs(config.rung_images)
        scorer = Scorer(loaded.traced, loaded.task, config, rungs=rungs, folder=decoded)
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
