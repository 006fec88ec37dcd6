"""Measure what a latency table lacks."""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from leanfront.latency_models.benchmark.micro_benchmark import benchmark_model, copies
from leanfront.latency_models.benchmark.optimised_graph import FusedNode, Operand
from leanfront.latency_models.benchmark.timing import DISTURBED, Reference, Timing, noise, time_models
from leanfront.latency_models.kernel_table.keys import constant_bytes_of
from leanfront.latency_models.kernel_table.onnx_protobuf import FLOAT, Node
from leanfront.latency_models.kernel_table.table import CALL, Entry, LatencyTable, load_table

BATCH = 24
"""Nodes that are timed against each other; their sessions are open at the same time."""
ROUNDS = 3
SAVE_EVERY = 5
LEAST_MS = 1e-5  # a node that the clock cannot tell from none


def fill(
    table: LatencyTable,
    nodes: Mapping[str, FusedNode],
    path: Path | None,
    reference: Reference,
    log: Callable[[str], None] = lambda line: None,
) -> LatencyTable:
    """Time those of ``nodes`` (by key) that the table lacks; the table with them, saved to ``path``.

    Entries that were measured while the machine was slower than it is known to be now are measured again, and
    so are those that were disturbed all the time (``doubtful``), of earlier sessions, too.
    Progress is saved on the way: an interrupted run goes on where it was.

    Raises:
        TableError: onnxruntime refuses a node, or the table cannot be written.
    """
    timings: dict[str, Timing] = {}
    for again in range(ROUNDS):
        before, table = table, measure_call(table, reference)
        if path is not None and table is not before:
            table = _saved(table, path)
        stale = table.stale() if again else table.missing(nodes)
        lacking = [key for key in dict.fromkeys([*stale, *doubtful(table, nodes)]) if key in nodes]
        for start in range(0, len(lacking), BATCH):
            batch = {key: nodes[key] for key in lacking[start : start + BATCH]}
            found = _measured(batch, table, reference, timings)
            table = table.with_entries({key: _better(table, key, entry) for key, entry in found.items()})
            done = min(start + BATCH, len(lacking))
            if path is not None and (done == len(lacking) or (start // BATCH) % SAVE_EVERY == SAVE_EVERY - 1):
                table = _saved(table, path)
            if done == len(lacking) or 10 * done // len(lacking) > 10 * start // len(lacking):
                log(f"latency table: {done} of {len(lacking)} kernels measured{' again' if again else ''}")
    if warning := noise(timings):
        log(f"warning: {warning}")
    return table


def doubtful(table: LatencyTable, keys: Iterable[str]) -> list[str]:
    """Those of ``keys`` whose entry was disturbed for nearly all of the time that it was measured."""
    return [key for key in keys if key in table and table[key].quiet < DISTURBED]


def _better(table: LatencyTable, key: str, entry: Entry) -> Entry:
    """The new entry, unless it was disturbed more than the one that it would replace."""
    if key not in table or key in table.stale() or entry.quiet >= min(DISTURBED, table[key].quiet):
        return entry
    return table[key]


def _saved(table: LatencyTable, path: Path) -> LatencyTable:
    """Write a table over what is on the disk, which may hold entries of other networks; both together."""
    table = load_table(path, table.device, table.profile).with_entries(table)
    table.save(path)
    return table


def measure_call(table: LatencyTable, reference: Reference) -> LatencyTable:
    """Add what a call of a model costs by itself, unless the table has it."""
    if CALL in table and CALL not in table.stale():
        return table
    tick = FusedNode(CALL, "", Node("Identity", ("x",), ("y",)), (
        Operand(FLOAT, (1, 8), constant=False),
    ))  # fmt: skip
    timing = time_models(
        {CALL: benchmark_model(tick, 0)}, table.device.threads, 9, table.device.provider, reference=reference
    )[CALL]
    return table.with_entries({CALL: _entry(timing.median_ms, timing, 0)})


def _measured(
    batch: Mapping[str, FusedNode], table: LatencyTable, reference: Reference, timings: dict[str, Timing]
) -> dict[str, Entry]:
    device = table.device
    number = {key: copies(node) for key, node in batch.items()}
    models = {key: benchmark_model(node, number[key]) for key, node in batch.items()}
    bare: dict[int, str] = {}  # number of inputs -> a micro-benchmark of nothing with so many
    for key, node in batch.items():
        bare.setdefault(_tensors(node), key)
    models |= {f"bare {count}": benchmark_model(batch[key], 0) for count, key in bare.items()}
    taken = time_models(
        models,
        device.threads,
        5,
        device.provider,
        optimise=False,
        min_runs=10,
        block_ms=0.8,
        reference=reference,
    )
    timings |= {key: taken[key] for key in batch}
    entries = {}
    for key, node in batch.items():
        timing = taken[key]
        net_ms = (timing.median_ms - taken[f"bare {_tensors(node)}"].median_ms) / number[key]
        resident_bytes = number[key] * constant_bytes_of(key)
        entries[key] = _entry(max(net_ms, LEAST_MS), taken[key], resident_bytes)
    return entries


def _tensors(node: FusedNode) -> int:
    return sum(not operand.constant for operand in node.operands)


def _entry(median_ms: float, timing: Timing, resident_bytes: int) -> Entry:
    """Rounded to what a table's file holds, so that a model does not depend on where its table is from."""
    return Entry(
        median_ms=float(f"{median_ms:.6g}"),
        spread=round(timing.spread, 4),
        runs=timing.runs,
        quiet=round(timing.quiet, 3),
        reference_ms=float(f"{timing.reference_ms:.6g}"),
        resident_bytes=resident_bytes,
        date=time.strftime("%Y-%m-%d", time.gmtime()),
    )
