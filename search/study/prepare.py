"""Before the first trial: load, trace, score the baseline, price the space. What cannot work stops here."""

import hashlib
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.space import Space
from leanfront.compression.policy.technique import SpaceError
from leanfront.hw_profiles import HardwareProfile, find_profile, read_profile
from leanfront.search.config import ConfigError, SearchConfig, check_names
from leanfront.search.objectives import (
    check_drop,
    costs_among,
    costs_of,
    objective,
    quantity,
    registered,
    scored_by,
)
from leanfront.search.run.run_folder import RunFolder, now
from leanfront.search.run.significance import resamples_of, save_scores
from leanfront.search.samplers import sampler_named
from leanfront.search.study.basis import basis
from leanfront.search.study.free import free_policies, scored_free
from leanfront.search.trial.trial import Problem, Sampler, foretold

if TYPE_CHECKING:
    from leanfront.compression.capture.trace import Traced
    from leanfront.compression.export.dialects import Dialect
    from leanfront.latency_models.cost import Cost, CostModel
    from leanfront.search.gate.prove import Proof
    from leanfront.search.task import Task
    from leanfront.search.trial.scorer import Scorer

Log = Callable[[str], None]
_PACKAGES = ("leanfront", "torch", "optuna", "onnx", "onnxruntime", "numpy", "pandas")
_SAMPLES = 200
_PROVED_BATCH = 16


@dataclass(frozen=True)
class Loaded:
    """What a configuration names, loaded. The network of the ``space`` knows what it takes in a file."""

    config: SearchConfig
    profile: HardwareProfile
    task: "Task"
    traced: "Traced"
    space: Space
    sampler: Sampler
    dialect: "Dialect"


def load(config: SearchConfig, to: str | None = None) -> Loaded:
    """Load the task, what it may have brought (sampler, kind of file, profile), the network and the space, in
    this order; trains and measures nothing. ``to``: the kind of file, the configuration's by default.

    Raises:
        ProfileError, TaskError, DialectError, TraceError, ConfigError: what is wrong with them, in one
            sentence.
    """
    from leanfront.compression.capture.part import trace_part
    from leanfront.compression.export.dialects import check_holds, check_operations, dialect_for
    from leanfront.compression.export.template import TENSOR, template
    from leanfront.compression.techniques.criteria import CriterionError, criteria_of
    from leanfront.search.scores import described
    from leanfront.search.study.known_sizes import sized, zipped
    from leanfront.search.task import load_task

    file = find_profile(config.hardware.profile)
    task = load_task(config.task.file, config.task.options)
    scored_by(described(task.metric))
    check_drop(config.limits.max_drop)
    check_names(config)
    try:
        criteria_of(config.space.criterion)
    except CriterionError as error:
        raise ConfigError(f"space.{error}") from error
    sampler = sampler_named(config.search.sampler)  # which the task's file may have registered
    profile = read_profile(file)  # only now: a task may bring a section and a cost model of its own
    dialect = dialect_for(to or config.export.to, profile.engine)
    traced = trace_part(task.model, task.example_input, task.part)
    traced = traced if dialect.grids == traced.grids else replace(traced, grids=dialect.grids)
    spaces, network = config.space, sized(traced, dialect)
    if config.zipped:
        # those of the space, of the uncompressed network, and of what is free
        bits = {*spaces.weight_bits, max(profile.supported)[0], 8, 16, 32}
        network = zipped(traced, network, dialect, sorted(bits), spaces.zeros or ())
    try:
        space = Space(
            network, profile, spaces.sparsity, spaces.weight_bits, spaces.activation_bits, spaces.depth,
            spaces.zeros, config.zipped, spaces.dynamic,
        )  # fmt: skip
    except SpaceError as error:
        raise ConfigError(str(error)) from error
    if spaces.dynamic and not dialect.dynamic:
        raise ConfigError(
            f"space.dynamic needs a file whose engine quantizes tensors while it runs, but {dialect.engine}"
            " does not: leave it out, or set export.to to onnx, on a profile that is measured here"
        )
    if dialect.limited:
        check_operations(dialect, template(traced).model().graph, TENSOR)
    if to is None:  # else whoever asks has one policy
        check_holds(dialect, network, space.bits)
    return Loaded(config, profile, task, traced, space, sampler, dialect)


def proved(loaded: Loaded, log: Log) -> "Proof":
    """What holds of the network and of what is made of it, before anything is measured or trained."""
    import torch

    from leanfront.search.gate.prove import prove_task
    from leanfront.search.task import as_data
    from leanfront.search.trial.in_task import inputs_of_inner

    task = loaded.task
    data = as_data(loaded.task.train)
    count = min(len(data), 2 * _PROVED_BATCH)
    starts = range(0, count, _PROVED_BATCH)
    batches = [
        data.batch(torch.arange(start, min(start + _PROVED_BATCH, count)), None)[0] for start in starts
    ]
    inner = task.model if task.part is None else task.model.get_submodule(task.part)
    around = None if task.part is None else task.model
    calls = [call for batch in batches for call in inputs_of_inner(task, around, batch)]
    _writable(loaded)
    plain = loaded.traced  # files for onnxruntime, whatever the engine: its kernels want such grids
    plain = plain if plain.grids == "affine" else replace(plain, grids="affine")
    return prove_task(inner, plain, calls, log)


def _writable(loaded: Loaded) -> None:
    """Write the space's first policies for an engine that has not all operations, with random weights: some
    things are known to be lacking only when a file is written.

    Raises:
        DialectError: one cannot be written.
    """
    from leanfront.compression.export.walk import random_builder

    if loaded.dialect.limited:
        build = random_builder(loaded.traced, loaded.dialect)
        for policy in loaded.space.seeds()[:2]:
            build(loaded.space.resized(policy), policy)


@dataclass(frozen=True)
class Judged:
    """What is known before anything is priced: scores of the uncompressed network (accuracy, its interval)
    and of what is free, each with its policy. environment: what the run has said so far."""

    scorer: "Scorer"
    baseline: dict[str, Any]
    free: list[dict[str, Any]]
    policies: Mapping[str, Policy]
    hashes: Mapping[str, str]
    environment: Mapping[str, Any]


def scorer_of(loaded: Loaded, log: Log, decoded: Path | None) -> "Scorer":
    """What scores policies of a task, in the rungs of its sampler. ``decoded``: as of ``prepare``."""
    from leanfront.search.trial.scorer import Scorer

    rungs = loaded.sampler.rungs(loaded.config.rung_images)
    return Scorer(loaded.traced, loaded.task, loaded.config, log, rungs, decoded)


def judged(
    loaded: Loaded, run: RunFolder | None, log: Log, write: bool = True, decoded: Path | None = None
) -> Judged:
    """Score the baseline and what is free, or take both from an earlier call. Arguments as of ``prepare``.

    Raises:
        TaskError: the network scores no better than chance.
    """
    written = run if write else None
    scorer = scorer_of(loaded, log, decoded if run is None else run.decoded)
    hashes = hashes_of(loaded)
    environment = run.environment() if run is not None else {}
    _check_metric(loaded, environment, run)
    known = environment.get("baseline") if environment.get("hashes") == hashes else None
    baseline: dict[str, Any] = known or _scored_baseline(scorer, written, log)
    scorer.resamples = baseline.get("resamples")
    policies = free_policies(loaded.space.network, loaded.profile)
    free = environment.get("free") if known else None
    free = scored_free(scorer, policies, written, log) if free is None else free
    return Judged(scorer, baseline, free, policies, hashes, environment)


def prepare(
    loaded: Loaded,
    run: RunFolder | None,
    log: Log,
    write: bool = True,
    decoded: Path | None = None,
    known: Judged | None = None,
) -> Problem:
    """Score the baseline and price the space, or take both from an earlier call; write environment.json.

    Without a run folder nothing is remembered; without ``write`` it is only read. ``decoded``: where images
    are kept that memory has no room for; the run's own by default. ``known``: what was scored already.

    Raises:
        TaskError: the network scores no better than chance.
        ConfigError: no policy meets the limits; the nearest is named.
        TableError: a cost is not known.
    """
    from leanfront.compression.export.walk import random_builder
    from leanfront.latency_models.measured.building import cost_model

    started = time.monotonic()
    config, hardware = loaded.config, loaded.config.hardware
    written = run if write else None
    scores = known or judged(loaded, run, log, write, decoded)
    baseline, environment = scores.baseline, scores.environment
    builder = partial(random_builder, loaded.traced)
    costs = cost_model(loaded.space, builder, loaded.profile, hardware.threads, log, hardware.provider)
    if written is not None:
        _write_table(costs, written)
    reference = _uncompressed(loaded)
    cost = costs.as_built(loaded.space.network, reference)
    _say_what_is_special(loaded, costs, reference, cost, log)
    baseline_costs = _priced(loaded, costs, reference)
    baseline |= baseline_costs
    if (pair := _pair(reference)) != (32, 32):
        baseline |= {"weight_bits": pair[0], "activation_bits": pair[1]}
    for entry in scores.free:
        entry |= _priced(loaded, costs, scores.policies[entry["name"]])
    problem = Problem(
        space=loaded.space,
        cost_model=costs,
        scorer=scores.scorer,
        objectives=config.search.objectives,
        limits=config.limits,
        baseline_accuracy=baseline["accuracy"],
        baseline_costs={name: float(value) for name, value in baseline_costs.items()},
        free={entry["policy_digest"]: entry["accuracy"] for entry in scores.free},
        rungs=scores.scorer.rungs,
        sampler=loaded.sampler,
    )
    prices = _prices(problem)
    _check_prices(prices, environment.get("prices"), run)
    check_limits(problem)
    check_objectives(problem)
    told: dict[str, Any] = {"sensitivities": None}
    if run is not None:
        told |= loaded.sampler.before_search(problem, run, write, log)
    if written is not None:
        log(f"uncompressed: {_in_words(baseline)}")
        for entry in scores.free:
            log(f"without a search, {entry['name']}: {_in_words(entry)}")
        written.update_environment(
            **_described(loaded, costs, cost, log),
            **basis(loaded.task, loaded.traced, loaded.profile),
            **told,
            baseline=baseline,
            free=scores.free,
            hashes=scores.hashes,
            prices=prices,
            made=environment.get("made", now()),
            seconds_preparing=environment.get("seconds_preparing", round(time.monotonic() - started, 1)),
        )
    return problem


def _priced(loaded: Loaded, costs: "CostModel", policy: Policy) -> dict[str, Any]:
    """What a policy of the uncut network costs, of all that is searched for or shown."""
    network = loaded.space.network
    cost = costs.as_built(network, policy)
    return dict(costs_of(loaded.config.search.objectives, lambda: network, policy, cost))


def _in_words(entry: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{objective(name).label} {quantity(name, entry[name])}"
        for name in ("accuracy", "latency_ms", "size_bytes")
    )


def _scored_baseline(scorer: "Scorer", run: RunFolder | None, log: Log) -> dict[str, Any]:
    """The accuracy of the uncompressed network; ``run`` keeps its score of each example."""
    log("scoring the uncompressed network on the search split")
    score = scorer.baseline()
    if run is not None:
        save_scores(run.scores_file("baseline"), {scorer.rungs[-1]: score.scores})
    count = resamples_of(score.scores)
    return {
        "accuracy": float(score.accuracy),
        "accuracy_ci": [float(x) for x in score.accuracy_ci],
        **({} if count is None else {"resamples": count}),
    }


def _write_table(costs: "CostModel", run: RunFolder) -> None:
    """What priced this search, beside it: the cache may be measured anew later."""
    from leanfront.latency_models.benchmark.zero_points import with_shifted_keys
    from leanfront.latency_models.measured.model import table_model

    if (measured := table_model(costs)) is not None:
        measured.table.only(with_shifted_keys(measured.structure.keys())).save(run.path / "latency_table.csv")


def _say_what_is_special(
    loaded: Loaded, costs: "CostModel", reference: Policy, cost: "Cost", log: Log
) -> None:
    """What is left out of the space, that the part has no floats, that the uncut network does not fit it."""
    if loaded.space.left_out:
        log(loaded.space.left_out)
    if (pair := _pair(reference)) != (32, 32):
        log(
            f"{loaded.profile.name} has no floats: the reference point has the accuracy of the float network,"
            f" and the costs of the uncut network with weights of {pair[0]} and activations of {pair[1]} bits"
        )
    if not cost.fits:
        _check_fit(loaded, costs, reference, cost, log)


def _described(loaded: Loaded, costs: "CostModel", cost: "Cost", log: Log) -> dict[str, Any]:
    """What environment.json says of the network, the part, its costs (a first validation of measured ones)
    and what this runs on."""
    from leanfront.latency_models.measured.first_validation import first_validation
    from leanfront.latency_models.measured.model import table_model
    from leanfront.search.scores import described

    config, network = loaded.config, loaded.traced.network
    # a measured part's power may have been measured, too
    priced_with = costs.profile
    if priced_with.estimate_sentence:
        log(priced_with.estimate_sentence)
    measured = table_model(costs)
    validation = None if measured is None else first_validation(measured, loaded.space, log)
    layers = [
        {"name": layer.name, "shape": str(layer.shape), "group": layer.group} for layer in network.layers
    ]
    return {
        "profile": loaded.profile.name,
        "estimated": cost.estimated,
        "estimates": priced_with.estimate_sentence,
        "objectives": list(config.search.objectives),
        "metric": described(loaded.task.metric),
        **({"registered_objectives": own} if (own := registered(config.search.objectives)) else {}),
        "layers": layers,
        "space_size": str(loaded.space.size),
        "latency_validation": validation,
        "measured_on": costs.measured_on,
        "seeds": {"search": config.search.seed},
        "versions": _versions(),
        "machine": _machine(),
        "git": _git(config.task.file.parent),
    }


def _check_fit(loaded: Loaded, costs: "CostModel", reference: Policy, cost: "Cost", log: Log) -> None:
    """Say that the uncut network does not fit the part; raise ConfigError when no policy of a sample does."""
    from leanfront.compression.policy.batch import PolicyBatch
    from leanfront.latency_models.fpga.fit import misfit

    space = loaded.space
    said = misfit(loaded.profile, loaded.traced.network, reference, cost)
    log(f"uncompressed, {said}")
    sample = _sample(space)
    if not costs.costs(PolicyBatch.of(space.network, sample, space.multiple)).fits.any():
        raise ConfigError(f"no policy of {len(sample)} tried fits: uncompressed, {said}; or widen the space")


def _sample(space: Space, count: int = _SAMPLES) -> list[Policy]:
    """The most cut uniform policies, the same with the most zeros, the seeds and random ones."""
    most = max((level for levels in space.levels.values() for level in levels), default=0.0)
    rng = np.random.default_rng(0)
    zeros = (0.0, 1.0) if space.zeros else (0.0,)
    uniform = [space.uniform(most, pair, zeros=share) for share in zeros for pair in space.pairs]
    return [*uniform, *space.seeds(), *(space.random(rng) for _ in range(count))]


def check_limits(problem: Problem) -> None:
    """Raise ConfigError when no policy of a sample meets the limits on costs; the nearest is named."""
    if not problem.limits.costs:
        return
    space = problem.space
    sample = _sample(space)
    nearest: dict[str, float] = {}
    least_excess = float("inf")
    for policy in sample:
        price = foretold(problem, policy)
        if price.state == "running":
            return
        excess = max(price.constraints.values())
        if excess < least_excess:
            least_excess = excess
            nearest = {name: price.values[name] for name in problem.limits.costs}
    wanted = ", ".join(f"{name} = {value:.4g}" for name, value in problem.limits.costs.items())
    found = ", ".join(f"{name} {value:.4g}" for name, value in nearest.items())
    raise ConfigError(
        f"no policy of {len(sample)} tried meets the limits {wanted}; the nearest has {found};"
        " raise the limits or widen the space"
    )


def _check_metric(loaded: Loaded, environment: Mapping[str, Any], run: RunFolder | None) -> None:
    """Raise ConfigError when a run's trials were scored by something else."""
    from leanfront.search.scores import described

    before, now_by = environment.get("metric"), described(loaded.task.metric)
    if run is not None and before is not None and before != now_by and run.trials():
        raise ConfigError(
            f"the trials of {run.path} were scored by {before['name']}, and the task now has"
            f" {now_by['name']}: old and new trials cannot be compared; start anew with another --run folder"
        )


def _prices(problem: Problem) -> dict[str, list[float]]:
    """Costs of some policies, as a fingerprint of whatever prices a search."""
    found = [problem.cost(policy) for policy in problem.space.seeds()]
    return {name: [float(getattr(cost, name)) for cost in found] for name in ("latency_ms", "energy_mj")}


def _check_prices(prices: dict[str, list[float]], before: Any, run: RunFolder | None) -> None:
    """Raise ConfigError when a run's policies have other prices than when it began: old and new trials would
    not stand on one front."""
    if run is None or not before or not run.trials():
        return
    for name, values in prices.items():
        known = before.get(name)
        if known is not None and (len(known) != len(values) or not np.allclose(known, values, rtol=1e-4)):
            moved = f"{name} of its first policies {known[:2]} then, {values[:2]} now"
            raise ConfigError(
                f"the table or profile that prices {run.path} has changed since its first trial ({moved}):"
                " old and new trials cannot be compared; start anew with another --run folder"
            )


def check_objectives(problem: Problem) -> None:
    """Raise ConfigError when a cost objective is the same for every policy of a sample: it orders nothing."""
    sample = _sample(problem.space, 8)
    found = [foretold(problem, policy).values for policy in sample]
    for name in costs_among(problem.objectives):
        values = [known[name] for known in found]
        if problem.space.size > 1 and max(values) - min(values) <= 1e-9 * max(values):
            raise ConfigError(
                f"search.objectives has {name}, which is {values[0]:.4g} for all {len(values)} policies tried"
                ", so it cannot tell them apart; leave it out, or widen the space"
            )


def _uncompressed(loaded: Loaded) -> Policy:
    """Float everywhere; on a part without floats, its widest bits."""
    pairs: Sequence[tuple[int, int]] = loaded.profile.supported
    weights, activations = (32, 32) if (32, 32) in pairs else max(pairs)
    return Policy.uniform(
        loaded.traced.network, LayerPolicy(weight_bits=weights, activation_bits=activations)
    )


def _pair(policy: Policy) -> tuple[int, int]:
    """The bits of a uniform policy."""
    first = next(iter(policy.values()))
    return first.weight_bits, first.activation_bits


def hashes_of(loaded: Loaded) -> dict[str, str]:
    """What the baseline's accuracy depends on."""
    weights = hashlib.sha256()
    for name, tensor in sorted(loaded.traced.module.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return {
        "config": loaded.config.digest,
        "task": hashlib.sha256(loaded.config.task.file.read_bytes()).hexdigest()[:16],
        "model": weights.hexdigest()[:16],
        "profile": loaded.profile.digest,
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, Any]:
    return {
        "node": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git(folder: Path) -> str | None:
    """The commit that the task file's folder is at, with "-dirty" if it was changed since; None: no git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
