"""The cost model of a search: the latency table filled, a correction fitted on whole networks, both kept.

Everything measured is kept in the user's cache folder: kernels in one table per device, and per network and
space the contexts of its kernels and the correction. A second search of the same space measures nothing.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compression.policy import Network, Policy
from hw_profiles import HardwareProfile
from search.policy_draws import Cover, draw, spread_evenly

if TYPE_CHECKING:
    from compression.trace import Traced
    from latency_models.calibrate import Correction
    from latency_models.cost import CostModel
    from latency_models.measure import Reference, Timing
    from latency_models.structure import Build, Structure
    from latency_models.table import Device, LatencyTable
    from latency_models.table_model import TableModel
    from search.space import Space

Log = Callable[[str], None]

SAMPLES = 48
"""Whole networks that are measured for the correction."""
DRAWS = 160
"""Policies from which these are chosen, spread evenly over the range of predicted latency."""
BATCH = 24
REPEATS = 3
"""Networks that are timed against each other, and how often those are timed again that were disturbed."""
COVER_SECONDS = 40.0
"""How long to look for kernels that the space can reach; what is found later is estimated from these."""


def cost_model(
    traced: "Traced", space: "Space", profile: HardwareProfile, threads: int, log: Log = lambda line: None
) -> "CostModel":
    """What prices the policies of a search.

    A profile of model "roofline" is computed. One of model "measured" is this machine's CPU: the kernels
    that the space can reach are timed unless the cache has them, then some whole networks, on which a
    correction is fitted. The result has an attribute ``validation`` (latency_models.calibrate.Accuracy):
    how well networks were predicted that the correction had not seen.

    Raises:
        TableError: the machine cannot measure (no onnxruntime, cache not writable, a network that
            onnxruntime refuses).
    """
    if profile.model == "roofline":
        from latency_models.roofline import RooflineModel

        return RooflineModel(profile)
    from latency_models.fill import measuring
    from latency_models.structure import Structure
    from latency_models.table import load_table, table_path, this_device

    device = this_device(threads)
    structure = Structure(traced.network, _builder(traced), threads)
    kept = _Kept.of(traced.network, space, device)
    ready = _ready(structure, kept, device, profile)
    if ready is not None:
        return ready
    with measuring():
        ready = _ready(structure, kept, device, profile)  # another process may have been faster
        if ready is not None:
            return ready
        from latency_models.measure import Reference

        started = time.perf_counter()
        log("building the latency table of this machine (once per network and space)")
        table = load_table(table_path(device), device, profile.name)
        reference = Reference(threads, table.reference_ms)
        draws = _cover(structure, space, log)
        structure.save(kept.contexts)
        table = _filled(table, structure, reference, log)
        correction = _calibrated(structure, space, profile, table, draws, reference, log)
        _write(kept.correction, correction.to_json())
        accuracy = correction.accuracy
        if accuracy is not None:
            log(
                f"latency table ready after {time.perf_counter() - started:.0f} s: networks that the fit had"
                f" not seen are predicted within {accuracy.mape:.1%} on average,"
                f" {accuracy.within_10_percent:.0%} of them within 10 %"
            )
        return _model(structure, table, profile, correction)


def _model(
    structure: "Structure", table: "LatencyTable", profile: HardwareProfile, correction: "Correction | None"
) -> "TableModel":
    from latency_models.table_model import TableModel

    return TableModel(structure, table, profile, correction)


class _Kept:
    """Where the cache keeps what belongs to one network, space and device."""

    def __init__(self, folder: Path, space_digest: str) -> None:
        self.contexts = folder / f"contexts-{space_digest}.jsonl"
        self.correction = folder / f"correction-{space_digest}.json"

    @staticmethod
    def of(network: Network, space: "Space", device: "Device") -> "_Kept":
        from latency_models.calibrate import PRIOR
        from latency_models.table import cache_folder

        which = hashlib.sha256(f"{network!r} {_exporter_digest()}".encode()).hexdigest()[:12]
        integer_pairs = sorted({max(pair) <= 8 for pair in space.pairs})
        offered = json.dumps([dict(space.levels), integer_pairs, SAMPLES, DRAWS, *PRIOR], sort_keys=True)
        digest = hashlib.sha256(offered.encode()).hexdigest()[:12]
        return _Kept(cache_folder() / "networks" / f"{which}-{device.digest}", digest)


@lru_cache
def _exporter_digest() -> str:
    """Hash of the code that decides what an export looks like: contexts are stale when it changes."""
    import compression

    folder = Path(compression.__file__).parent
    files = [folder / "export.py", folder / "template.py", *sorted((folder / "policy").glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _builder(traced: "Traced") -> "Build":
    """Exports with random weights. The template (seconds) is made now, not within a trial."""
    from compression.export import random_model
    from compression.template import template

    graph = template(traced)

    def build(network: Network, policy: Policy) -> bytes:
        return bytes(random_model(graph, network, policy).SerializeToString())

    return build


def _ready(
    structure: "Structure", kept: _Kept, device: "Device", profile: HardwareProfile
) -> "TableModel | None":
    """The model from what the cache has, or None."""
    from latency_models.calibrate import Correction
    from latency_models.cost import TableError
    from latency_models.table import load_table, table_path

    if not (kept.correction.exists() and kept.contexts.exists()):
        return None
    try:
        correction = Correction.from_json(kept.correction.read_text(encoding="utf-8"))
    except (OSError, TableError):
        return None
    table = load_table(table_path(device), device, profile.name)
    structure.load(kept.contexts)
    if not table or table.missing(structure.keys()):
        structure.forget()
        return None
    return _model(structure, table, profile, correction)


def _cover(structure: "Structure", space: "Space", log: Log) -> list[Policy]:
    """See what becomes of every kernel at every width and precision that the space offers.

    Returns policies spread over the space, for the calibration.
    """
    rng = np.random.default_rng(0)
    deadline = time.perf_counter() + COVER_SECONDS
    cover = Cover(space)
    draws = [draw(space, rng) for _ in range(DRAWS)]
    drawn = list(dict.fromkeys([*space.seeds(), *draws]))
    for policy in drawn:
        structure.parts(space.resized(policy), policy)
        cover.note(policy)
    while not cover.complete and time.perf_counter() < deadline:
        policy = cover.next(rng)
        structure.parts(space.resized(policy), policy)
        cover.note(policy)
    if not cover.complete:
        log(f"{cover.left} combinations of widths and bits are left to be estimated from their neighbours")
    return drawn


def _filled(
    table: "LatencyTable", structure: "Structure", reference: "Reference", log: Log
) -> "LatencyTable":
    from latency_models.fill import fill
    from latency_models.table import table_path

    return fill(table, structure.nodes, table_path(table.device), reference, log)


def _calibrated(
    structure: "Structure",
    space: "Space",
    profile: HardwareProfile,
    table: "LatencyTable",
    draws: Sequence[Policy],
    reference: "Reference",
    log: Log,
) -> "Correction":
    """Measure some whole networks and fit the correction."""
    from latency_models.calibrate import Sample, fit
    from latency_models.measure import noise

    plain = _model(structure, table, profile, None)
    expected = [plain.latency_ms(space.resized(policy), policy) for policy in draws]
    chosen = [draws[index] for index in spread_evenly(expected, SAMPLES)]
    log(f"measuring {len(chosen)} whole networks for the correction")
    timings = measure_policies(structure, space, chosen, reference)
    if warning := noise(timings):
        log(f"warning: {warning}")
    samples = []
    for index, policy in enumerate(chosen):
        features = plain.features(space.resized(policy), policy)
        samples.append(Sample(features, timings[str(index)].median_ms))
    return fit(samples)


def measure_policies(
    structure: "Structure",
    space: "Space",
    policies: Sequence[Policy],
    reference: "Reference",
    blocks: int = 5,
) -> Mapping[str, "Timing"]:
    """Time the networks of policies against each other; index (as text) -> timing."""
    from latency_models.measure import time_models
    from latency_models.structure import canonical

    timings: dict[str, Timing] = {}
    waiting = [int(index) for index in np.random.default_rng(0).permutation(len(policies))]
    for _ in range(REPEATS):
        for start in range(0, len(waiting), BATCH):
            models = {
                str(index): structure.build(space.resized(policies[index]), canonical(policies[index]))
                for index in waiting[start : start + BATCH]
            }
            timings |= time_models(models, structure.threads, blocks, reference=reference)
        now = reference.undisturbed_ms
        waiting = [i for i in waiting if timings[str(i)].disturbed or timings[str(i)].stale(now)]
    return timings


def file_cost_model(network: Network, policy: Policy, profile: HardwareProfile) -> "CostModel":
    """What prices one network of a file under one policy on this machine.

    It is built from its shapes, with random weights, and timed, as a whole and kernel by kernel. Kernels
    that the cache has are not timed again.

    Args:
        network: already resized to the policy.
        policy: bits of each layer.
        profile: of model "measured".

    Raises:
        TableError: an operation that cannot be built from its shape, or the machine cannot measure.
    """
    from latency_models.fill import fill, measuring
    from latency_models.measure import Reference, time_models
    from latency_models.network_model import network_model
    from latency_models.structure import Structure, canonical
    from latency_models.table import load_table, table_path, this_device
    from latency_models.table_model import TableModel

    device = this_device()
    structure = Structure(network, network_model)
    structure.observe(network, policy)
    with measuring():
        table = load_table(table_path(device), device, profile.name)
        reference = Reference(device.threads, table.reference_ms)
        table = fill(table, structure.nodes, table_path(device), reference)
        model = network_model(network, canonical(policy))
        whole_ms = time_models({"network": model}, device.threads, reference=reference)["network"].median_ms
    return TableModel(structure, table, profile).scaled_to(network, policy, whole_ms)


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
