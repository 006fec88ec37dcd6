"""The cost model of a search: the latency table filled, a correction fitted on whole networks, both kept.

Everything measured is kept in the user's cache folder: kernels in one table per device, and per network and
space the contexts of its kernels and the correction. A second search of the same space measures nothing.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from leanfront.compression.graph import Network
from leanfront.compression.policy import Policy
from leanfront.hw_profiles import HardwareProfile
from leanfront.latency_models.measured import space_table
from leanfront.latency_models.measured.kit_networks import exporter_digest
from leanfront.latency_models.measured.space_table import calibrated, cover

if TYPE_CHECKING:
    from leanfront.compression.policy.space import Space
    from leanfront.latency_models.cost import Build, CostModel
    from leanfront.latency_models.kernel_table.table import Device, LatencyTable
    from leanfront.latency_models.measured.correction import Correction
    from leanfront.latency_models.measured.model import TableModel
    from leanfront.latency_models.measured.optimised_kernels import Structure

Log = Callable[[str], None]

METHOD = 9
"""To be raised when the same measurements would be used in another way."""
_TRIED = 4
_BUILT = 600
_TIMED_SECONDS = 30.0
"""While a table is made about as many networks are built, and kernels and whole networks are timed for so
long. Of the digits example and of ResNet-20 it says 37 and 50 s, which took 10 and 41."""
ENERGY_SAMPLES = 8
"""Whole networks whose energy is measured, where the machine has counters."""


def cost_model(
    space: "Space",
    builder: "Callable[[], Build]",
    profile: HardwareProfile,
    threads: int,
    log: Log = lambda line: None,
    provider: str = "cpu",
    again: bool = False,
    noisy_too: bool = True,
) -> "CostModel":
    """What prices the policies of a search.

    A profile of another model than "measured" is computed. One of model "measured" is this machine's CPU:
    the kernels that the space can reach are timed unless the cache has them, then some whole networks, on
    which a correction is fitted. The result has an attribute ``validation``
    (correction.Accuracy): how well networks were predicted that the correction had not seen.
    ``builder`` makes what exports networks with random weights; it is called only where something is timed.
    ``again`` measures all of that anew, whatever the cache has; without ``noisy_too`` what the machine was
    too noisy for the last time.

    Raises:
        TableError: the machine cannot measure (no such provider, no onnxruntime, cache not writable, a
            network that onnxruntime refuses).
    """
    if not profile.measured:
        from leanfront.latency_models.registry import model_of

        return model_of(profile)
    from leanfront.latency_models.measured.imported import imported_cost_model

    imported = imported_cost_model(space.network, builder, profile, threads, provider, log)
    if imported is not None:
        return imported
    from leanfront.latency_models.benchmark.measuring_lock import measuring
    from leanfront.latency_models.kernel_table.table import load_table, table_path, this_device
    from leanfront.latency_models.measured.optimised_kernels import Structure
    from leanfront.latency_models.providers import provider_of

    device = this_device(threads, provider_of(provider))
    structure = Structure(space.network, builder(), threads, device.provider)
    kept = _CachePaths.of(space, device)

    def from_cache() -> "TableModel | None":
        return None if again else _ready(structure, kept, device, profile, noisy_too)

    if (ready := from_cache()) is not None:
        return ready
    with measuring(log):
        if (ready := from_cache()) is not None:  # another process may have been faster
            return ready
        from leanfront.latency_models.benchmark.fill import fill
        from leanfront.latency_models.benchmark.timing import Reference
        from leanfront.latency_models.benchmark.zero_points import with_shifted, with_shifted_keys

        started = time.perf_counter()
        log("building the latency table of this machine (once per network and space)")
        table = load_table(table_path(device), device, profile.name)
        reference = Reference(threads, table.reference_ms)
        draws = cover(structure, space, log)
        structure.save(kept.contexts)
        if again:
            table = table.only(set(table) - with_shifted_keys(structure.keys()))
        table = fill(table, with_shifted(structure.nodes), table_path(device), reference, log)
        heard, warnings = _overheard(log)
        plain = _model(structure, table, profile, None)
        correction = calibrated(plain, space, draws, reference, heard)
        profile = _with_power(structure, space, profile, draws, kept, log)
        kept.validation.unlink(missing_ok=True)
        kept.noise.unlink(missing_ok=True)
        if warnings:
            _write(kept.noise, "\n".join(warnings))
        _write(kept.correction, correction.to_json())
        accuracy = correction.accuracy
        if accuracy is not None:
            log(
                f"latency table ready after {time.perf_counter() - started:.0f} s: networks that the fit had"
                f" not seen are predicted within {accuracy.mape:.1%} on average,"
                f" {accuracy.within_10_percent:.0%} of them within 10 %"
            )
        return _model(structure, table, profile, correction)


def seconds_to_measure(
    space: "Space",
    builder: "Callable[[], Build]",
    profile: HardwareProfile,
    threads: int,
    provider: str = "cpu",
) -> float | None:
    """About how long ``cost_model`` would measure, told from a few networks of the space; None where it would
    not. Nothing is measured that is kept.

    Raises:
        TableError: the machine cannot measure.
    """
    if not profile.measured:
        return None
    from leanfront.latency_models.kernel_table.table import this_device
    from leanfront.latency_models.kit.installed_tables import device_of
    from leanfront.latency_models.measured.optimised_kernels import Structure
    from leanfront.latency_models.providers import provider_of

    device = this_device(threads, provider_of(provider))
    if device_of(profile, threads, device.provider).results:
        return None
    structure = Structure(space.network, builder(), threads, device.provider)
    if _ready(structure, _CachePaths.of(space, device), device, profile) is not None:
        return None
    started, tried = time.perf_counter(), space.seeds()[:_TRIED]
    for policy in tried:
        structure.observe(space.resized(policy), policy)
    each = (time.perf_counter() - started) / len(tried)
    return _BUILT * each + _TIMED_SECONDS


def _model(
    structure: "Structure", table: "LatencyTable", profile: HardwareProfile, correction: "Correction | None"
) -> "TableModel":
    from leanfront.latency_models.measured.model import TableModel

    return TableModel(structure, table, profile, correction)


class _CachePaths:
    """Where the cache keeps what belongs to one network, space and device."""

    def __init__(self, folder: Path, space_digest: str) -> None:
        self.contexts = folder / f"contexts-{space_digest}.jsonl"
        self.correction = folder / f"correction-{space_digest}.json"
        self.validation = folder / f"validation-{space_digest}.json"
        self.energy = folder / f"energy-{space_digest}.json"  # only where the machine has counters
        self.noise = folder / f"noise-{space_digest}.txt"  # only where the machine was too noisy

    @staticmethod
    def of(space: "Space", device: "Device") -> "_CachePaths":
        from leanfront.latency_models.kernel_table.table import cache_folder
        from leanfront.latency_models.measured.correction import PRIOR

        which = hashlib.sha256(f"{space.network!r} {exporter_digest()}".encode()).hexdigest()[:12]
        integer_pairs = sorted({max(pair) <= 8 for pair in space.pairs})
        offered = json.dumps(
            [
                METHOD,
                dict(space.levels),
                [branch.name for branch in space.branches],
                integer_pairs,
                space_table.SAMPLES,
                space_table.DRAWS,
                *PRIOR,
            ],
            sort_keys=True,
        )
        digest = hashlib.sha256(offered.encode()).hexdigest()[:12]
        return _CachePaths(cache_folder() / "networks" / f"{which}-{device.digest}", digest)


def validation_path(space: "Space", device: "Device") -> Path:
    """Where the cache keeps how well a space was predicted; gone when its networks are measured anew."""
    return _CachePaths.of(space, device).validation


def remembered_noise(space: "Space", device: "Device") -> str | None:
    """What was said when the machine was too noisy to measure a space's networks well; None if it was not."""
    try:
        return _CachePaths.of(space, device).noise.read_text(encoding="utf-8") or None
    except OSError:
        return None


def _overheard(log: Log) -> tuple[Log, list[str]]:
    """A log that also collects its warnings."""
    warnings: list[str] = []

    def heard(line: str) -> None:
        if line.startswith("warning: "):
            warnings.append(line.removeprefix("warning: "))
        log(line)

    return heard, warnings


def _ready(
    structure: "Structure",
    kept: _CachePaths,
    device: "Device",
    profile: HardwareProfile,
    noisy_too: bool = True,
) -> "TableModel | None":
    """The model from what the cache has, or None."""
    from leanfront.latency_models.cost import TableError
    from leanfront.latency_models.kernel_table.table import CALL, load_table, table_path
    from leanfront.latency_models.measured.correction import Correction

    if not (kept.correction.exists() and kept.contexts.exists()) or (kept.noise.exists() and not noisy_too):
        return None
    try:
        correction = Correction.from_json(kept.correction.read_text(encoding="utf-8"))
    except (OSError, TableError):
        return None
    table = load_table(table_path(device), device, profile.name)
    structure.load(kept.contexts)
    known = structure.keys()  # none: the file is damaged, or another version wrote it
    if not known or table.missing([CALL, *known]) or (not noisy_too and _doubts(table, structure)):
        structure.forget()
        return None
    return _model(structure, table, _remembered_power(profile, kept), correction)


def _with_power(
    structure: "Structure",
    space: "Space",
    profile: HardwareProfile,
    policies: Sequence[Policy],
    kept: _CachePaths,
    log: Log,
) -> HardwareProfile:
    """The profile with the power that the machine's counters show while some of the networks run."""
    from leanfront.latency_models.benchmark.energy import Meter, fit_power
    from leanfront.latency_models.benchmark.timing import random_feed, session
    from leanfront.latency_models.cost import TableError
    from leanfront.latency_models.measured.optimised_kernels import canonical

    kept.energy.unlink(missing_ok=True)
    meter = Meter.find()
    if isinstance(meter, str):
        log(f"energy is estimated from the profile's power_w: {meter}")
        return profile
    found = []
    try:
        for policy in policies[:ENERGY_SAMPLES]:
            model = structure.build(space.resized(policy), canonical(policy))
            opened = session(model, structure.threads, structure.provider)
            feed = random_feed(opened)
            found.append(meter.measure(lambda run=opened.run, feed=feed: run(None, feed)))  # type: ignore[misc]
        energy = fit_power([energy_mj for energy_mj, _ in found], [taken_ms for _, taken_ms in found])
    except (OSError, TableError) as error:  # counters that stand still, or may not be read any more
        log(f"energy is estimated from the profile's power_w: {error}")
        return profile
    _write(kept.energy, energy.to_json())
    return energy.of(profile)


def _remembered_power(profile: HardwareProfile, kept: _CachePaths) -> HardwareProfile:
    from leanfront.latency_models.benchmark.energy import Energy
    from leanfront.latency_models.cost import TableError

    try:
        return Energy.from_json(kept.energy.read_text(encoding="utf-8")).of(profile)
    except (OSError, TableError):
        return profile


def _doubts(table: "LatencyTable", structure: "Structure") -> bool:
    from leanfront.latency_models.benchmark.fill import doubtful
    from leanfront.latency_models.benchmark.zero_points import with_shifted_keys

    return bool(doubtful(table, with_shifted_keys(structure.keys())))


def file_cost_model(
    network: Network,
    policy: Policy,
    profile: HardwareProfile,
    build: "Build",
    log: Log = lambda line: None,
) -> "CostModel":
    """What prices one network of a file under one policy on this machine.

    It is built from its shapes, with random weights, stored as an export of it would be (zero points of
    weights), and timed, as a whole and kernel by kernel. Kernels that the cache has are not timed again.

    Args:
        network: already resized to the policy.
        policy: bits of each layer.
        profile: of model "measured".
        build: from shapes alone.

    Raises:
        TableError: the machine cannot measure.
    """
    from onnx import load_from_string

    from leanfront.latency_models.benchmark.fill import fill
    from leanfront.latency_models.benchmark.measuring_lock import measuring
    from leanfront.latency_models.benchmark.shifted_weights import shifted
    from leanfront.latency_models.benchmark.timing import Reference, noise, time_models
    from leanfront.latency_models.benchmark.zero_points import with_shifted
    from leanfront.latency_models.kernel_table.table import load_table, table_path, this_device
    from leanfront.latency_models.kit.installed_tables import device_of
    from leanfront.latency_models.measured.imported import imported_file_model
    from leanfront.latency_models.measured.model import TableModel
    from leanfront.latency_models.measured.optimised_kernels import Structure, canonical

    installed = device_of(profile)
    if not installed.is_this_machine:
        return imported_file_model(network, policy, profile, installed, build)
    device = this_device()
    structure = Structure(network, build)
    structure.observe(network, policy)
    with measuring(log):
        table = load_table(table_path(device), device, profile.name)
        reference = Reference(device.threads, table.reference_ms)
        table = fill(table, with_shifted(structure.nodes), table_path(device), reference, log)
        model = TableModel(structure, table, profile)
        model.from_shapes = True
        layers = model.shifted(network, policy)
        stored = shifted(load_from_string(build(network, canonical(policy))), layers)
        whole = time_models({"network": stored.SerializeToString()}, device.threads, reference=reference)
    if warning := noise(whole):
        log(f"warning: {warning}")
    return model.scaled_to(network, policy, whole["network"].median_ms)


def _write(path: Path, text: str) -> None:
    from leanfront.latency_models.cost import TableError
    from leanfront.latency_models.files import replace_file

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text)
    except OSError as error:
        raise TableError(f"cannot write {path}: {error.strerror}") from error
