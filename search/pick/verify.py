"""Prove an exported network: load it in onnxruntime, and compare it with what the search said."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leanfront.compression.capture.program import tensors_in
from leanfront.compression.capture.trace import Traced
from leanfront.compression.export.dialects import QDQ, Dialect
from leanfront.compression.training.distillation import Comparison
from leanfront.hw_profiles import HardwareProfile
from leanfront.latency_models.benchmark.timing import noise, remembered_ms, time_models
from leanfront.latency_models.kit.installed_tables import device_of
from leanfront.latency_models.providers import PROVIDERS, provider_of
from leanfront.search.gate.files import OWN
from leanfront.search.gate.kernels import integer_layers as integer_layers
from leanfront.search.gate.kernels import kernel_report as kernel_report
from leanfront.search.gate.tensors import STEPS, at_share, difference, nudged
from leanfront.search.objectives import REACH, objective
from leanfront.search.pick.told import Told
from leanfront.search.run.significance import Evidence, interval_of, paired_interval, resamples_of, value_of
from leanfront.search.run.verified import broken_sentence
from leanfront.search.task import Data, Task
from leanfront.search.trial.batches import SCORING_BATCH
from leanfront.search.trial.in_task import AsFile, InTask, answer_spec, model_around, on
from leanfront.search.trial.scored import Scored, examples_in

LATENCY_TOLERANCE = 0.15
PATIENCE_S = 20.0
"""So long a disturbed machine is waited for before a latency is left untold."""
SLOW = 1.1
"""From how many times the undisturbed time of its table on a machine's milliseconds are not the table's."""


@dataclass(frozen=True)
class TestResult:
    """The test split, read once, by the torch network and by the exported file side by side.

    A file that cannot be run here has the torch network's accuracy, and None for what compares the two.
    largest_steps: the largest difference in quantization steps; steps: that at 99.9 % of the outputs of the
    batch where it is largest; own_steps: the same of the torch network from itself, with inputs a millionth
    off. drop: what is lost against the uncompressed network, with the paired 95 % interval of that. report,
    classes: what else is told of both networks (``Told``). also: files of further kinds, each with its
    accuracy, agreement and steps.
    """

    n: int
    torch_accuracy: float
    accuracy: float
    accuracy_ci: tuple[float, float]
    baseline_accuracy: float
    agreement: float | None
    largest_difference: float | None
    largest_steps: float | None = None
    steps: float | None = None
    own_steps: float | None = None
    drop: float | None = None
    drop_ci: tuple[float, float] | None = None
    report: dict[str, dict[str, Any]] = field(default_factory=dict)
    classes: list[dict[str, Any]] = field(default_factory=list)
    also: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """A file of the picked network. ``content``: None where it cannot be run here."""

    content: bytes | None
    dialect: Dialect = QDQ


@dataclass(frozen=True)
class Verification:
    """What was promised and what was found; ``failures`` says in sentences where the two differ, ``untold``
    what this machine could not tell.

    limit: ``max_drop``, the most that was allowed to be lost, and whether it is ``broken`` for sure; empty
    where nobody gave a limit. engine: whose file it is, what ran it here, and how long that took. also: files
    of further kinds, each with its size and what ran it.
    """

    trial: int
    search: dict[str, Any]
    test: dict[str, Any]
    latency: dict[str, Any]
    size: dict[str, Any]
    kernels: dict[str, Any]
    failures: list[str] = field(default_factory=list)
    untold: list[str] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    limit: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    also: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether everything that was promised was found."""
        return not self.failures


def test_once(
    made: Made,
    module: nn.Module,
    traced: Traced,
    task: Task,
    data: Data,
    threads: int,
    steps: Mapping[int, float],
    comparison: Comparison,
    also: Mapping[str, Made],
) -> TestResult:
    """Score file, torch network and uncompressed network in one pass over the test split, and files of
    further kinds (``also``). ``traced``: the uncompressed network. ``steps``: index of an output ->
    that of the grid that holds it; the others' are those of an 8-bit grid with the range that they have.
    ``comparison``: how answers are compared, as in the search."""
    around = model_around(task)
    device = next(module.parameters()).device
    networks = {"torch": InTask(task, module, around), "teacher": InTask(task, traced.module, around)}
    files = {name: each for name, each in {"": made, **also}.items() if each.content is not None}
    for name, each in files.items():
        assert each.content is not None
        opened = AsFile(each.content, traced, answer_spec(traced), threads, each.dialect)
        networks[f"file{name}"] = InTask(task, opened, around)
    scores, told = {name: Scored(task) for name in networks}, Told(task, comparison)
    names = {"teacher": "uncompressed", "file" if "file" in networks else "torch": "picked"}
    beside = {name: _Beside(comparison, steps) for name in files}
    for start in range(0, len(data), SCORING_BATCH):
        inputs, targets = data.batch(torch.arange(start, min(start + SCORING_BATCH, len(data))), None)
        answers = {}
        for name, network in networks.items():
            here = inputs if name.startswith("file") else on(device, inputs)
            outputs, answers[name] = _both(network, here)
            scores[name].add(outputs, targets, examples_in(inputs, targets))
            if name in names:
                told.add(names[name], outputs, targets)
        again = _both(networks["torch"], on(device, nudged(inputs)))[1] if start == 0 and files else None
        for name, found in beside.items():
            found.add(answers["torch"], answers[f"file{name}"], again)
    known: dict[str, Evidence] = {"teacher": scores["teacher"].evidence()}
    count = resamples_of(known["teacher"])
    known |= {name: each.evidence(count) for name, each in scores.items() if name not in known}
    further = {
        name: {"accuracy": value_of(known[f"file{name}"]), **beside[name].found()} for name in files if name
    }
    result = _result(known, beside.get(""), len(data))
    return replace(result, report=told.report(), classes=told.classes(), also=further)


def _result(scores: Mapping[str, Evidence], beside: "_Beside | None", count: int) -> TestResult:
    mean = {key: value_of(each) for key, each in scores.items()}
    picked = scores.get("file", scores["torch"])
    accuracy = value_of(picked)
    nothing = {"agreement": None, "largest_difference": None}
    return TestResult(
        n=count,
        torch_accuracy=mean["torch"],
        accuracy=accuracy,
        accuracy_ci=interval_of(picked),
        baseline_accuracy=mean["teacher"],
        drop=mean["teacher"] - accuracy,
        drop_ci=paired_interval(scores["teacher"], picked),
        **(nothing if beside is None else beside.found()),
    )


@torch.no_grad()
def _both(network: InTask, inputs: Any) -> tuple[Any, Any]:
    """A network's outputs and answers, for the score."""
    network.whole.eval()
    outputs, answers = network.both(inputs)
    return on("cpu", outputs), on("cpu", answers)


class _Beside:
    """A file's answers beside the torch network's, batch by batch."""

    def __init__(self, comparison: Comparison, steps: Mapping[int, float]) -> None:
        self._comparison, self._steps = comparison, steps
        self._same: list[NDArray[np.float32]] = []
        self._apart: list[_Apart] = []

    def add(self, ours: Any, theirs: Any, again: Any) -> None:
        """Answers of the torch network and of the file; ``again``: the torch network's once more, with inputs
        next to the same, or None."""
        agreed = self._comparison.agreement(ours, theirs)
        self._same += [] if agreed is None else [agreed.numpy()]
        tensors = tensors_in(ours)
        self._apart = self._apart or [_Apart(self._steps.get(index)) for index in range(len(tensors))]
        more: list[Any] = [None] * len(tensors) if again is None else tensors_in(again)
        for one, *each in zip(self._apart, tensors, tensors_in(theirs), more, strict=True):
            one.add(*each)

    def found(self) -> dict[str, Any]:
        """As ``TestResult`` has it."""
        worst = max(self._apart, key=lambda one: one.most / one.step)
        return {
            "agreement": float(np.concatenate(self._same).mean()) if self._same else None,
            "largest_difference": max(one.largest for one in self._apart),
            "largest_steps": max(one.largest / one.step for one in self._apart),
            "steps": worst.most / worst.step,
            "own_steps": worst.own / worst.step,
        }


class _Apart:
    """How far two lie apart in one of their outputs, batch by batch."""

    def __init__(self, step: float | None) -> None:
        self.largest = self.most = self.own = 0.0
        self.low = self.high = 0.0
        self._step = step

    def add(self, ours: Tensor, theirs: Tensor, again: Tensor | None) -> None:
        """``again``: the first once more, with inputs next to the same."""
        found = difference(ours, theirs)
        self.largest, self.most = max(self.largest, float(found.max())), max(self.most, at_share(found))
        if again is not None:
            self.own = at_share(difference(ours, again))
        low, high = torch.aminmax(ours)
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    @property
    def step(self) -> float:
        """Of the grid that holds the output; where there is none, of an 8-bit grid that would."""
        return self._step or max(self.high - self.low, 1e-12) / 255


def at_hand(
    profile: HardwareProfile, threads: int, provider: str, log: Callable[[str], None] = lambda line: None
) -> bool:
    """Whether latencies of a profile can be measured here: whether this machine is its device."""
    if not profile.measured:
        return False
    placed = device_of(profile, threads, PROVIDERS[provider])
    if not placed.is_this_machine:
        log(f"no latency is measured: {profile.name} is {placed.device}, and this is another machine")
    return placed.is_this_machine


def measured_latency(model: bytes, baseline: bytes, threads: int, provider: str = "cpu") -> dict[str, Any]:
    """Both models timed in one process, blocks rotated; ms, and a sentence where the machine is noisy.

    slowdown: how many times as long a small reference model takes as when the machine's table was measured.
    """
    timings = time_models(
        {"model": model, "baseline": baseline},
        threads,
        blocks=15,
        provider=provider_of(provider),
        patience_s=PATIENCE_S,
    )
    ours, theirs = timings["model"], timings["baseline"]
    before_ms = remembered_ms(threads, provider_of(provider))
    slowdown = ours.reference_ms / before_ms if before_ms is not None else 1.0
    slow = (
        f"this machine is {slowdown:.1f} times as slow as when its latency table was measured; stop what else"
        " runs on it and pick again for milliseconds that can be compared"
    )
    return {
        "measured_ms": ours.median_ms,
        "measured_spread": ours.spread,
        "baseline_ms": theirs.median_ms,
        "ratio": ours.median_ms / theirs.median_ms,
        "slowdown": slowdown,
        "noise": slow if slowdown > SLOW else noise(timings),
    }


def measured_memory(model: bytes, baseline: bytes, predicted_bytes: float | None) -> dict[str, Any]:
    """The peak memory of both models, counted, beside the live tensors that the search knew; nothing where
    this onnxruntime cannot be counted."""
    from leanfront.latency_models.benchmark.counted_memory import counted_bytes

    counted, uncompressed = counted_bytes(model), counted_bytes(baseline)
    if counted is None or uncompressed is None:
        return {}
    return {
        "peak_memory_bytes": counted,
        "baseline_peak_memory_bytes": uncompressed,
        "predicted_peak_memory_bytes": predicted_bytes,
    }


def verification(
    trial: int,
    promised: dict[str, float],
    search: dict[str, Any],
    test: TestResult,
    latency: dict[str, Any],
    size: dict[str, Any],
    kernels: dict[str, Any],
    memory: dict[str, Any],
    dialect: Dialect = QDQ,
    max_drop: float | None = None,
    engine: dict[str, Any] | None = None,
    also: dict[str, dict[str, Any]] | None = None,
) -> Verification:
    """Hold what was found against what was promised (``promised``: latency_ms, size_bytes, and
    baseline_latency_ms, the uncompressed network's).

    On a machine that is slower than when its table was measured, the latency as a share of the uncompressed
    network's is held against its promise, since both were timed side by side. What is not kept there, or
    while something disturbed the machine, is untold and not broken: not all kernels become slow alike.
    ``dialect``: the kind of the file, which says how close it has to come to the torch network. ``max_drop``:
    the most that may be lost on the test split, None where nobody said so; it is broken only by a drop whose
    95 % interval lies beyond it.
    """
    failures = []
    limit = held_drop(test, max_drop)
    if limit.get("broken"):
        failures.append(broken_sentence(asdict(test), limit))
    row = objective("accuracy")
    tolerance = dialect.accuracy_tolerance * row.reach(test.torch_accuracy) / REACH
    if abs(test.accuracy - test.torch_accuracy) > tolerance:
        failures.append(
            f"the file scores {row.shown(test.accuracy)} on the test split,"
            f" the torch network {row.shown(test.torch_accuracy)}"
        )
    if test.agreement is not None and test.agreement < dialect.agreement:
        failures.append(f"file and torch network agree on {test.agreement:.2%} of the test split only")
    if dialect.exact and test.steps is not None and test.steps > max(STEPS, OWN * (test.own_steps or 0.0)):
        failures.append(
            f"the file's outputs lie {test.steps:.1f} quantization steps from the torch network's at 99.9 %"
            f" of them ({test.largest_steps:.1f} at most)"
        )
    untold = []
    if latency:
        latency = _beside_promise(latency, promised)
        off = _off(latency)
        if off and latency["noise"] is not None:
            untold.append(f"{off}, but {latency['noise']}")
        elif off:
            failures.append(off)
    if kernels["not_fused"]:
        failures.append(f"layers not run as integer kernels: {', '.join(kernels['not_fused'])}")
    if kernels["not_wanted"]:
        failures.append(f"float layers run as integer kernels: {', '.join(kernels['not_wanted'])}")
    if size.get("promised_zeros", 0) > size.get("zeros", 0):
        failures.append(
            f"{size['zeros']} weights of the file are 0, and the policy has {size['promised_zeros']} at least"
        )
    kind = {} if dialect is QDQ else {"kind": dialect.name}
    size = {**size, "predicted_bytes": promised["size_bytes"], **kind}
    failures += [f"a rule of {dialect.engine}: {broken}" for broken in (engine or {}).get("broken", ())]
    tested = {"metric": row.label, **asdict(test)}
    return Verification(
        trial,
        search,
        tested,
        latency,
        size,
        kernels,
        failures,
        untold,
        memory,
        limit,
        engine or {},
        also or {},
    )


def _beside_promise(latency: dict[str, Any], promised: Mapping[str, float]) -> dict[str, Any]:
    """What was measured with what was predicted, and how far that is off."""
    ours_ms, theirs_ms = promised["latency_ms"], promised["baseline_latency_ms"]
    error = ours_ms / latency["measured_ms"] - 1
    return {**latency, "predicted_ms": ours_ms, "predicted_baseline_ms": theirs_ms, "error": error}


def _off(latency: Mapping[str, Any]) -> str | None:
    """A sentence where a latency is not the one that was predicted."""
    if latency["slowdown"] > SLOW:
        share = latency["predicted_ms"] / latency["predicted_baseline_ms"]
        if abs(share / latency["ratio"] - 1) <= LATENCY_TOLERANCE:
            return None
        return f"predicted latency {share:.3f} of the uncompressed network's, measured {latency['ratio']:.3f}"
    if abs(latency["error"]) <= LATENCY_TOLERANCE:
        return None
    return f"predicted latency {latency['predicted_ms']:.4f} ms, measured {latency['measured_ms']:.4f} ms"


def held_drop(test: TestResult, max_drop: float | None) -> dict[str, Any]:
    """The limit of a drop beside what was found on the test split, as ``Verification.limit`` has it."""
    if max_drop is None:
        return {}
    return {"max_drop": max_drop, "broken": test.drop_ci is not None and test.drop_ci[0] > max_drop}
