"""Time ONNX models in onnxruntime so that the figures repeat, also on a machine that others use.

A block is a run of back-to-back calls of one model; blocks rotate among the models, so that a drift of the
machine meets them all alike. Before and after each block a small reference model is timed: a block counts
when the reference was at its undisturbed speed both times (a busy sibling hyperthread alone makes every
kernel 1.3 to 1.6 times as slow, by an amount that differs from kernel to kernel, so that scaling cannot
take it out again). What is reported is the median of the block medians, disturbed calls left out.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from leanfront.latency_models.errors import TableError
from leanfront.latency_models.kernel_table import onnx_protobuf
from leanfront.latency_models.kernel_table.table import STALE, load_table, table_path, this_device

CPU = "CPUExecutionProvider"
QUIET = 1.08
"""The reference may take this much longer than undisturbed while a block counts."""
FRESH_S = 0.0003
"""A look at the reference that is not older than this is one of now."""
DISTURBED = 0.4
"""With a smaller share of undisturbed blocks a timing is not to be believed."""
CALM_S = 10.0
"""So long a machine is waited for that is slower than it is known to be."""
FASTEST = 10
"""The fastest so many calls of a model that was hardly ever undisturbed are taken to have been so."""

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

    spread: interquartile range of the block medians, as a share of the median. quiet: undisturbed blocks
    found, as a share of those wanted; the figure rests on them where there are at least three.
    reference_ms: what was taken as the undisturbed time of the reference model; when that turns out to have
    been too slow, the machine was disturbed all along and the timing is stale.
    """

    median_ms: float
    spread: float
    runs: int
    quiet: float
    reference_ms: float

    @property
    def disturbed(self) -> bool:
        """Whether too little of it was undisturbed to be believed."""
        return self.quiet < DISTURBED

    def stale(self, undisturbed_ms: float) -> bool:
        """Whether the machine has been seen much faster since."""
        return self.reference_ms > STALE * undisturbed_ms


def session(
    model: bytes,
    threads: int = 1,
    provider: str = CPU,
    optimise: bool = True,
    save: str | None = None,
    disabled: Sequence[str] = (),
) -> onnxruntime.InferenceSession:
    """An onnxruntime session as a user would open it, without the optimisers in ``disabled``.

    Raises:
        TableError: the provider is not in this onnxruntime, it refuses the model, or there are fewer cores
            than threads.
    """
    cores = os.cpu_count() or threads
    if threads > cores:
        raise TableError(f"this machine has {cores} cores, take no more than {cores} threads, not {threads}")
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
        return onnxruntime.InferenceSession(
            model, options, providers=[provider], disabled_optimizers=list(disabled)
        )
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
    """What is being timed, one call of it."""

    call: Callable[[], object]
    runs: int = 0
    blocks: list[tuple[Block, float]] = field(default_factory=list)  # with the reference beside it, ms

    def good(self, undisturbed_ms: float) -> list[Block]:
        """The blocks beside which the reference was at its undisturbed speed."""
        return [block for block, beside_ms in self.blocks if beside_ms <= QUIET * undisturbed_ms]

    def prepare(self, min_runs: int, block_ms: float) -> None:
        """Warm up, and find how many calls make a block."""
        self.block(3)
        once_ms = float(np.median(self.block(3)))
        self.runs = max(min_runs, int(block_ms / once_ms) + 1)
        self.runs = max(3, min(self.runs, int(20.0 / once_ms) + 1))  # slow models: shorter blocks

    def block(self, runs: int) -> Block:
        """Times of ``runs`` back-to-back calls, ms."""
        call, clock = self.call, time.perf_counter_ns
        taken = []
        for _ in range(runs):
            start = clock()
            call()
            taken.append(clock() - start)
        return np.array(taken) / 1e6


def remembered_ms(threads: int, provider: str) -> float | None:
    """The reference's undisturbed time as the device's latency table has it; None without a good one."""
    device = this_device(threads, provider)
    try:
        return load_table(table_path(device), device).reference_ms
    except TableError:
        return None


class Reference:
    """A small convolution whose speed shows whether anything disturbs the machine."""

    def __init__(self, threads: int = 1, undisturbed_ms: float | None = None) -> None:
        """``undisturbed_ms``: from an earlier session on this device, where it is known; the machine is
        waited for, at most ``CALM_S``, until it is seen as fast as that."""
        self._candidate = _Candidate(_called(session(_reference_model(), threads)))
        self._history: list[float] = []
        self._known_ms = undisturbed_ms
        self._looked = self._now_ms = self._seen_ms = 0.0
        self._changed = False  # whether hardly any look was as fast as the machine is known to be
        self._candidate.block(20)
        self._look_around()
        calm = time.perf_counter() + CALM_S
        while self._changed and time.perf_counter() < calm:
            self._look_around()

    def _look_around(self) -> None:
        for _ in range(100):  # spread over half a second
            self.look()
            time.sleep(0.005)

    def look(self) -> float:
        """The reference's time now, ms."""
        self._now_ms = float(np.median(self._candidate.block(3)))
        self._looked = time.perf_counter()
        self._history.append(self._now_ms)
        if len(self._history) % 64 == 0 or len(self._history) < 64:
            window = np.array(self._history[-4096:])
            self._seen_ms = float(np.quantile(window, 0.05))
            self._changed = self._known_ms is not None and (0.85 * window < self._known_ms).sum() < 5
        return self._now_ms

    @property
    def undisturbed_ms(self) -> float:
        """The reference's time when nothing disturbs it: a low quantile of all looks so far."""
        if self._known_ms is None or self._changed:
            return self._seen_ms
        return min(self._seen_ms, self._known_ms)

    def wait(self, seconds: float) -> float:
        """Wait until the machine is undisturbed, at most ``seconds``; the reference's time then, ms."""
        start = time.perf_counter()
        if start - self._looked > FRESH_S:
            self.look()
        while self._now_ms > QUIET * self.undisturbed_ms:
            if time.perf_counter() - start > seconds:
                break
            time.sleep(0.002)
            self.look()
        return self._now_ms


def _called(opened: onnxruntime.InferenceSession) -> Callable[[], object]:
    """One call of a model, with random inputs."""
    return partial(opened.run, None, random_feed(opened))


def _reference_model() -> bytes:
    weight = np.random.default_rng(0).standard_normal((32, 32, 3, 3)).astype(np.float32)
    pads = onnx_protobuf.Attribute.read(
        onnx_protobuf.field(1, "pads")
        + b"".join(onnx_protobuf.field(8, 1) for _ in range(4))
        + onnx_protobuf.field(20, 7)
    )
    image = (1, 32, 16, 16)
    return onnx_protobuf.model(
        [onnx_protobuf.Node("Conv", ("x", "weight"), ("y",), attribute=(pads,))],
        [onnx_protobuf.value_info("x", onnx_protobuf.FLOAT, image)],
        [onnx_protobuf.value_info("y", onnx_protobuf.FLOAT, image)],
        [onnx_protobuf.tensor(weight, "weight")],
        [("", 17)],
        "reference",
        ir_version=8,
    )


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
    blocks themselves need (default: three times that, and at least 1;
    three times as many while a model has not been seen undisturbed).

    Raises:
        TableError: onnxruntime cannot load a model, or has not this provider.
    """
    reference = reference or Reference(threads, remembered_ms(threads, provider))
    calls = {name: _called(session(model, threads, provider, optimise)) for name, model in models.items()}
    return time_calls(calls, reference, blocks, min_runs=min_runs, block_ms=block_ms, patience_s=patience_s)


def time_calls(
    calls: Mapping[str, Callable[[], object]],
    reference: Reference,
    blocks: int = 7,
    *,
    min_runs: int = 30,
    block_ms: float = 3.0,
    patience_s: float | None = None,
) -> dict[str, Timing]:
    """The same of whatever can be called: a network in another engine."""
    candidates = {name: _Candidate(call) for name, call in calls.items()}
    for candidate in candidates.values():
        candidate.prepare(min_runs, block_ms)
    started = time.perf_counter()
    deadline, patience = None, 0.0
    while pending := [c for c in candidates.values() if len(c.good(reference.undisturbed_ms)) < blocks]:
        for candidate in pending:
            before_ms = reference.wait(0.1)
            block = candidate.block(candidate.runs)
            candidate.blocks.append((block, max(before_ms, reference.look())))
        if deadline is None:  # the first round says how long the work is
            needed_s = blocks * sum(float(b.sum()) for c in candidates.values() for b, _ in c.blocks) / 1e3
            patience = max(1.0, 3.0 * needed_s) if patience_s is None else patience_s
            deadline = started + needed_s * 1.5 + patience
        late = time.perf_counter() - deadline
        found = min(len(c.good(reference.undisturbed_ms)) for c in candidates.values())
        least = min(len(c.blocks) for c in candidates.values())
        if least >= blocks and (late > 2.0 * patience or (late > 0.0 and found >= DISTURBED * blocks)):
            break
    return {
        name: _timing(candidate, blocks, reference.undisturbed_ms) for name, candidate in candidates.items()
    }


def _timing(candidate: _Candidate, blocks: int, undisturbed_ms: float) -> Timing:
    good = candidate.good(undisturbed_ms)
    # a disturbance that begins and ends within a block is not seen by the reference: calls that took longer
    # than the fastest by the factor that a busy sibling costs at least are left out
    if len(good) >= min(3, blocks):
        used, fast_ms = good, float(np.quantile(np.concatenate(good), 0.05))
    else:  # one that hardly ever ends leaves single calls alone
        used = [block for block, _ in candidate.blocks]
        calls = np.sort(np.concatenate(used))
        fast_ms = float(calls[min(FASTEST, calls.size) - 1])
    limit = QUIET * fast_ms
    medians = [float(np.median(kept)) for block in used if (kept := block[block <= limit]).size]
    low, median_ms, high = np.quantile(medians, [0.25, 0.5, 0.75])
    return Timing(
        median_ms=float(median_ms),
        spread=float((high - low) / median_ms),
        runs=sum(block.size for block in used),
        quiet=min(1.0, len(good) / blocks),
        reference_ms=undisturbed_ms,
    )


def noise(timings: Mapping[str, Timing], limit: float = 0.05) -> str | None:
    """A sentence when the machine is too noisy for these timings to tell ``limit`` (a share); else None."""
    if not timings:
        return None
    spread = float(np.median([timing.spread for timing in timings.values()]))
    disturbed = sum(timing.disturbed for timing in timings.values())
    if spread <= limit and disturbed <= 0.2 * len(timings):
        return None
    return (
        f"this machine is too noisy to tell {limit:.0%}: blocks of the same model differ by {spread:.0%}"
        f" ({disturbed} of {len(timings)} timings were disturbed all the time); stop what else runs on it and"
        " measure again"
    )
