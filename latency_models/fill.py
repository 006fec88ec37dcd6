"""Measure what a latency table lacks."""

import fcntl
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from onnx import TensorProto

from latency_models.cost import TableError
from latency_models.fused_graph import FusedNode
from latency_models.measure import Reference, Timing, noise, time_models
from latency_models.micrographs import copies, micrograph
from latency_models.table import REFERENCE, Entry, LatencyTable, cache_folder, load_table

BATCH = 24
"""Nodes that are timed against each other; their sessions are open at the same time."""
SAVE_EVERY = 5
LEAST_MS = 1e-5  # a node that the clock cannot tell from none


@contextmanager
def measuring() -> Iterator[None]:
    """Hold the lock that keeps two processes of leanfront from measuring at the same time.

    Raises:
        TableError: the cache folder cannot be written.
    """
    path = cache_folder() / "measuring.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise TableError(
            f"cannot write the cache folder {path.parent}: {error.strerror}; set LEANFRONT_CACHE to another"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def known_reference(table: LatencyTable) -> float | None:
    """The undisturbed time of the reference model when the table was begun, ms."""
    return table[REFERENCE].median_ms if REFERENCE in table else None


def fill(
    table: LatencyTable,
    nodes: Mapping[str, FusedNode],
    path: Path | None,
    reference: Reference,
    log: Callable[[str], None] = lambda line: None,
) -> LatencyTable:
    """Time those of ``nodes`` (by key) that the table lacks; the table with them, saved to ``path``.

    Progress is saved on the way: an interrupted run goes on where it was.

    Raises:
        TableError: onnxruntime refuses a node, or the table cannot be written.
    """
    lacking = table.missing(nodes)
    if not lacking:
        return table
    timings: dict[str, Timing] = {}
    for start in range(0, len(lacking), BATCH):
        batch = {key: nodes[key] for key in lacking[start : start + BATCH]}
        entries = _measured(batch, table, reference, timings)
        entries[REFERENCE] = _reference_entry(reference, table)
        table = table.with_entries(entries)
        done = min(start + BATCH, len(lacking))
        if path is not None and (done == len(lacking) or (start // BATCH) % SAVE_EVERY == SAVE_EVERY - 1):
            on_disk = load_table(path, table.device, table.profile)
            table = on_disk.with_entries(table)
            table.save(path)
        log(f"latency table: {done} of {len(lacking)} kernels measured")
    if warning := noise(timings):
        log(f"warning: {warning}")
    return table


def _measured(
    batch: Mapping[str, FusedNode], table: LatencyTable, reference: Reference, timings: dict[str, Timing]
) -> dict[str, Entry]:
    device = table.device
    number = {key: copies(node) for key, node in batch.items()}
    models = {key: micrograph(node, number[key]) for key, node in batch.items()}
    bare: dict[int, str] = {}  # number of inputs -> a micrograph of nothing with so many
    for key, node in batch.items():
        bare.setdefault(_tensors(node), key)
    models |= {f"bare {count}": micrograph(batch[key], 0) for count, key in bare.items()}
    taken = time_models(
        models, device.threads, 5, device.provider, optimise=False, min_runs=10, block_ms=0.8, reference=reference
    )
    timings |= {key: taken[key] for key in batch}
    today = datetime.now(UTC).date().isoformat()
    entries = {}
    for key, node in batch.items():
        timing = taken[key]
        net_ms = (timing.median_ms - taken[f"bare {_tensors(node)}"].median_ms) / number[key]
        entries[key] = Entry(
            median_ms=max(net_ms, LEAST_MS),
            spread=timing.spread,
            runs=timing.runs,
            quiet=timing.quiet,
            resident_bytes=number[key] * constant_bytes(node),
            date=today,
        )
    return entries


def _tensors(node: FusedNode) -> int:
    return sum(not operand.constant for operand in node.operands)


def _reference_entry(reference: Reference, table: LatencyTable) -> Entry:
    known = known_reference(table)
    now = reference.undisturbed_ms
    today = datetime.now(UTC).date().isoformat()
    return Entry(min(known, now) if known else now, 0.0, 0, 1.0, 0, today)


_SIZES = {TensorProto.FLOAT: 4, TensorProto.INT32: 4, TensorProto.INT64: 8, TensorProto.DOUBLE: 8, TensorProto.FLOAT16: 2}


def constant_bytes(node: FusedNode) -> int:
    """Bytes of a node's weights and other constants."""
    return sum(
        math.prod(operand.shape) * _SIZES.get(operand.element_type, 1)
        for operand in node.operands
        if operand.constant and operand.element_type
    )
