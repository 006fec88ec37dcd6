"""Time ONNX models in onnxruntime so that the figures repeat, also on a machine that others use.

A block is a run of back-to-back calls of one model; blocks rotate among the models, so that a drift of the
machine meets them all alike. Before and after each block a small reference model is timed: a block counts
when the reference was at its undisturbed speed both times (a busy sibling hyperthread alone makes every
kernel 1.3 to 1.6 times as slow, by an amount that differs from kernel to kernel, so that scaling cannot
take it out again). What is reported is the median of the block medians, disturbed calls left out.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from latency_models.cost import TableError

CPU = "CPUExecutionProvider"
QUIET = 1.08
"""The reference may take this much longer than undisturbed while a block counts."""

_TYPES: Mapping[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}

Feed = dict[str, NDArray[Any]]
Block = NDArray[np.float64]


@dataclass(frozen=True)
class Timing:
    """How long one call takes.

    spread: interquartile range of the block medians, as a share of the median. quiet: share of the calls
    during which the machine was undisturbed; the figure rests on these.
    """

    median_ms: float
    spread: float
    runs: int
    blocks: int
    quiet: float


def session(
    model: bytes, threads: int = 1, provider: str = CPU, optimise: bool = True, save: str | None = None
) -> onnxruntime.InferenceSession:
    """An onnxruntime session as a user would open it.

    Raises:
        TableError: the provider is not in this onnxruntime, or it refuses the model.
    """
    if provider not in onnxruntime.get_available_providers():
        raise TableError(
            f"this onnxruntime has no {provider}; it has {', '.join(onnxruntime.get_available_providers())}"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if save is not None:
        options.optimized_model_filepath = save
    try:
        return onnxruntime.InferenceSession(model, options, providers=[provider])
    except Exception as error:  # onnxruntime raises classes of its own that have no common base
        raise TableError(f"onnxruntime cannot load the model: {str(error).splitlines()[0]}") from error


def random_feed(opened: onnxruntime.InferenceSession) -> Feed:
    """Random inputs, open dimensions taken as 1, aligned as onnxruntime aligns its own tensors."""
    generator = np.random.default_rng(0)
    feed: Feed = {}
    for value in opened.get_inputs():
        if value.type not in _TYPES:
            raise TableError(f"input {value.name!r} has type {value.type}, which cannot be timed")
        shape = [size if isinstance(size, int) and size > 0 else 1 for size in value.shape]
        kind = np.dtype(_TYPES[value.type])
        array = _aligned(shape, kind)
        if kind.kind == "f":
            array[...] = generator.standard_normal(shape)
        elif kind.kind == "b":
            array[...] = True
        else:
            array[...] = generator.integers(0, 100 if kind.itemsize == 1 else 2, shape)
        feed[value.name] = array
    return feed


def _aligned(shape: list[int], kind: np.dtype[Any], boundary: int = 64) -> NDArray[Any]:
    size = int(np.prod(shape)) * kind.itemsize
    raw = np.zeros(size + boundary, dtype=np.uint8)
    start = -raw.ctypes.data % boundary
    return raw[start : start + size].view(kind).reshape(shape)


@dataclass
class _Candidate:
    """A model that is being timed."""

    opened: onnxruntime.InferenceSession
    feed: Feed
    runs: int = 0
    good: list[Block] = field(default_factory=list)
    other: list[Block] = field(default_factory=list)

    def prepare(self, min_runs: int, block_ms: float) -> None:
        """Warm up, and find how many calls make a block."""
        self.block(3)
        once_ms = float(np.median(self.block(3)))
        self.runs = max(min_runs, int(block_ms / once_ms) + 1)
        self.runs = max(3, min(self.runs, int(20.0 / once_ms) + 1))  # slow models: shorter blocks

    def block(self, runs: int) -> Block:
        """Times of ``runs`` back-to-back calls, ms."""
        run, feed, clock = self.opened.run, self.feed, time.perf_counter_ns
        taken = []
        for _ in range(runs):
            start = clock()
            run(None, feed)
            taken.append(clock() - start)
        return np.array(taken) / 1e6


class Reference:
    """A small convolution whose speed shows whether anything disturbs the machine."""

    def __init__(self, threads: int = 1, undisturbed_ms: float | None = None) -> None:
        """``undisturbed_ms``: from an earlier session on this device, where it is known."""
        opened = session(_reference_model(), threads)
        self._candidate = _Candidate(opened, random_feed(opened))
        self._history: list[float] = []
        self._known_ms = undisturbed_ms
        self._looked = 0.0
        self._seen_ms, self._stale = 0.0, 0
        self._candidate.block(20)
        for _ in range(60):  # 60 looks, spread over 0.2 s
            self.look()
            time.sleep(0.003)

    def look(self) -> float:
        """The reference's time now, ms."""
        now_ms = float(np.median(self._candidate.block(3)))
        self._history.append(now_ms)
        self._looked = time.perf_counter()
        return now_ms

    @property
    def undisturbed_ms(self) -> float:
        """The reference's time when nothing disturbs it: a low quantile of all looks so far."""
        if self._stale <= 0:
            self._seen_ms, self._stale = float(np.quantile(self._history[-4000:], 0.05)), 50
        self._stale -= 1
        seen = self._seen_ms
        if self._known_ms is not None and abs(self._known_ms / seen - 1.0) < 0.15:
            return min(seen, self._known_ms)
        return seen

    def quiet(self, fresh_s: float = 0.0) -> bool:
        """Whether the machine is undisturbed now; a look not older than ``fresh_s`` will do."""
        if time.perf_counter() - self._looked > fresh_s:
            self.look()
        return self._history[-1] <= QUIET * self.undisturbed_ms

    def wait(self, seconds: float) -> bool:
        """Wait until the machine is undisturbed, at most ``seconds``."""
        deadline = time.perf_counter() + seconds
        while not self.quiet(fresh_s=0.0003):
            if time.perf_counter() > deadline:
                return False
            time.sleep(0.002)
        return True


def _reference_model() -> bytes:
    weight = numpy_helper.from_array(
        np.random.default_rng(0).standard_normal((32, 32, 3, 3)).astype(np.float32), "weight"
    )
    shape = [1, 32, 16, 16]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "weight"], ["y"], pads=[1, 1, 1, 1])],
        "reference",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def time_models(
    models: Mapping[str, bytes],
    threads: int = 1,
    blocks: int = 7,
    provider: str = CPU,
    *,
    optimise: bool = True,
    min_runs: int = 30,
    block_ms: float = 3.0,
    patience_s: float | None = None,
    reference: Reference | None = None,
) -> dict[str, Timing]:
    """Time models against each other: ``blocks`` blocks of at least ``min_runs`` warm calls each, rotated.

    Each model is called as a user would (``session.run`` with NumPy arrays, so the call's own overhead is in
    the figure). Disturbed blocks are repeated, for at most ``patience_s`` seconds beyond the time that the
    blocks themselves need (default: three times that, and at least 2).

    Raises:
        TableError: onnxruntime cannot load a model, or has not this provider.
    """
    reference = reference or Reference(threads)
    candidates = {}
    for name, model in models.items():
        opened = session(model, threads, provider, optimise)
        candidates[name] = _Candidate(opened, random_feed(opened))
    for candidate in candidates.values():
        candidate.prepare(min_runs, block_ms)
    started = time.perf_counter()
    deadline = None
    while pending := [c for c in candidates.values() if len(c.good) < blocks]:
        for candidate in pending:
            undisturbed = reference.wait(0.1)
            block = candidate.block(candidate.runs)
            undisturbed = reference.quiet() and undisturbed
            (candidate.good if undisturbed else candidate.other).append(block)
        if deadline is None:  # the first round says how long the work is
            needed_s = blocks * sum(float(np.sum(b)) for c in candidates.values() for b in c.good + c.other) / 1e3
            patience = max(2.0, 3.0 * needed_s) if patience_s is None else patience_s
            deadline = started + needed_s * 1.5 + patience
        least = min(len(c.good) + len(c.other) for c in candidates.values())
        if time.perf_counter() > deadline and least >= blocks:
            break
    return {name: _timing(candidate, blocks) for name, candidate in candidates.items()}


def _timing(candidate: _Candidate, blocks: int) -> Timing:
    good = candidate.good
    by_speed = sorted(candidate.other, key=lambda block: float(np.median(block)))
    used = good if len(good) >= min(3, blocks) else good + by_speed[: blocks - len(good)]
    # a disturbance that begins and ends within a block is not seen by the reference: calls that took longer
    # than the fastest by the factor that a busy sibling costs at least are left out
    limit = QUIET * float(np.quantile(np.concatenate(used), 0.05))
    medians = [float(np.median(kept)) for block in used if (kept := block[block <= limit]).size]
    low, median_ms, high = np.quantile(medians, [0.25, 0.5, 0.75])
    calm = float(np.mean(np.concatenate(good + candidate.other) <= limit))
    return Timing(
        median_ms=float(median_ms),
        spread=float((high - low) / median_ms),
        runs=sum(block.size for block in used),
        blocks=len(used),
        quiet=calm,
    )


def noise(timings: Mapping[str, Timing], limit: float = 0.05) -> str | None:
    """A sentence when the machine is too noisy for these timings to tell ``limit`` (a share); else None."""
    if not timings:
        return None
    spread = float(np.median([timing.spread for timing in timings.values()]))
    if spread <= limit:
        return None
    quiet = float(np.mean([timing.quiet for timing in timings.values()]))
    return (
        f"this machine is too noisy to tell {limit:.0%}: blocks of the same model differ by {spread:.0%}"
        f" (only {quiet:.0%} of them ran undisturbed); stop what else runs on it and measure again"
    )
