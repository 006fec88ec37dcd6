"""Fill the latency table of this machine: for what a search needs, or for networks at large."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leanfront.hw_profiles import HardwareProfile, ProfileError

if TYPE_CHECKING:
    from leanfront.compression.policy.space import Space
    from leanfront.latency_models.benchmark.optimised_graph import FusedNode
    from leanfront.latency_models.cost import Build
    from leanfront.latency_models.kernel_table.table import Device, LatencyTable
    from leanfront.latency_models.measured.model import TableModel

Log = Callable[[str], None]

TOLD_APART = 0.05
MOST_DISTURBED = 0.2
"""What a machine must be able to tell, and the share of kernels that may be disturbed all the time."""


@dataclass(frozen=True)
class Measured:
    """What a measuring run did for one number of threads.

    measured, reused: kernels timed now, and those that the table had. networks: whole networks that the
    correction rests on (0 without a configuration); the three after it are of networks that the fit had not
    seen. spread: the median of the kernels' spreads (interquartile range of block medians, as a share).
    disturbed: kernels without enough undisturbed blocks, which are measured again the next time. noise: why
    the run is not to be believed, or None.
    """

    threads: int
    provider: str
    device: str
    table: str
    measured: int
    reused: int
    networks: int
    mape: float | None
    within_10_percent: float | None
    spearman: float | None
    spread: float
    disturbed: int
    noise: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def check_measured_here(profile: HardwareProfile) -> None:
    """Refuse a profile whose latencies are not those of the machine that this runs on.

    Raises:
        ProfileError: what to do instead.
    """
    from leanfront.latency_models.kit.installed_tables import elsewhere

    check_measured(profile)
    if (device := elsewhere(profile.name)) is not None:
        raise ProfileError(
            f"profile {profile.name!r} is {device}, whose table was imported, and this is another machine;"
            f" `leanfront profile kit {profile.name} --config CONFIG --out DIR` measures more there"
        )


def check_measured(profile: HardwareProfile) -> None:
    """Refuse a profile whose latencies are computed.

    Raises:
        ProfileError: what to do instead.
    """
    if not profile.measured:
        raise ProfileError(
            f"profile {profile.name!r} is not measured: its latencies are computed (model {profile.model!r});"
            " `leanfront profile new NAME --like this-machine` makes a profile that is measured here"
        )


def check_is_this_machine(profile: HardwareProfile, threads: int, provider: str) -> None:
    """Refuse a profile whose table was measured on another device and imported.

    Raises:
        ProfileError: which device, and what measures it.
        TableError: tables of several devices were imported into the profile, or one cannot be read.
    """
    from leanfront.latency_models.kit.installed_tables import device_of
    from leanfront.latency_models.providers import provider_of

    installed = device_of(profile, threads, provider_of(provider))
    if not installed.is_this_machine:
        raise ProfileError(
            f"profile {profile.name!r} was measured on {installed.device}, which is not this machine;"
            f" `leanfront profile kit {profile.name} --out DIR` makes a folder that measures more of it there"
        )


def measure_for(
    space: "Space",
    builder: "Callable[[], Build]",
    profile: HardwareProfile,
    threads: int,
    provider: str,
    again: bool = False,
    log: Log = lambda line: None,
) -> Measured:
    """Measure what the search of a configuration needs, and what was disturbed the last time; ``builder`` as
    ``cost_model`` has it.

    Raises:
        ProfileError: the profile is not measured on this machine.
        TableError: the machine cannot measure.
    """
    from leanfront.latency_models.benchmark.zero_points import with_shifted_keys
    from leanfront.latency_models.kernel_table.table import load_table, table_path, this_device
    from leanfront.latency_models.measured.building import cost_model, remembered_noise
    from leanfront.latency_models.measured.model import table_model
    from leanfront.latency_models.providers import provider_of

    check_measured_here(profile)
    device = this_device(threads, provider_of(provider))
    before = load_table(table_path(device), device, profile.name)
    model = table_model(cost_model(space, builder, profile, threads, log, provider, again, noisy_too=False))
    assert model is not None
    noise = remembered_noise(space, device)
    wanted = with_shifted_keys(model.structure.keys())
    return _summary(model.table, before, wanted, provider, noise, model)


def measure_general(
    profile: HardwareProfile,
    threads: int,
    provider: str,
    build: "Build",
    again: bool = False,
    log: Log = lambda line: None,
    nodes: "Mapping[str, FusedNode] | None" = None,
) -> Measured:
    """Measure the kernels of the reference networks (reference_networks.py), which ``build`` makes of shapes
    alone, or ``nodes``.

    Raises:
        ProfileError: the profile is not measured on this machine.
        TableError: the machine cannot measure.
    """
    from leanfront.latency_models.benchmark.fill import fill
    from leanfront.latency_models.benchmark.measuring_lock import measuring
    from leanfront.latency_models.benchmark.timing import Reference
    from leanfront.latency_models.kernel_table.table import load_table, table_path, this_device
    from leanfront.latency_models.providers import provider_of

    check_measured_here(profile)
    device = this_device(threads, provider_of(provider))
    wanted = nodes if nodes is not None else _reference_nodes(device, build)
    path = table_path(device)
    with measuring(log):
        before = load_table(path, device, profile.name)
        reference = Reference(threads, before.reference_ms)
        start = before.only(set(before) - set(wanted)) if again else before
        table = fill(start, wanted, path, reference, log)
    return _summary(table, before, wanted, provider)


def drop_disturbed(threads: int, provider: str) -> int:
    """Take the entries that were disturbed all the time out of this machine's table; how many there were."""
    from leanfront.latency_models.benchmark.fill import doubtful
    from leanfront.latency_models.benchmark.measuring_lock import measuring
    from leanfront.latency_models.kernel_table.table import load_table, table_path, this_device
    from leanfront.latency_models.providers import provider_of

    device = this_device(threads, provider_of(provider))
    path = table_path(device)
    with measuring():
        table = load_table(path, device)
        bad = doubtful(table, table)
        if bad:
            table.only(set(table) - set(bad)).save(path)
    return len(bad)


def _reference_nodes(device: "Device", build: "Build") -> "Mapping[str, FusedNode]":
    from leanfront.latency_models.measured.optimised_kernels import Structure
    from leanfront.latency_models.measured.reference_networks import reference_networks

    nodes: dict[str, FusedNode] = {}
    for _, network, policy in reference_networks():
        structure = Structure(network, build, device.threads, device.provider)
        structure.observe(network, policy)
        nodes |= structure.nodes
    return nodes


def _summary(
    table: "LatencyTable",
    before: "LatencyTable",
    wanted: Iterable[str],
    provider: str,
    noise: str | None = None,
    model: "TableModel | None" = None,
) -> Measured:
    from leanfront.latency_models.benchmark.fill import doubtful
    from leanfront.latency_models.kernel_table.table import table_path

    keys = [key for key in dict.fromkeys(wanted) if key in table]
    measured = [key for key in keys if key not in before or table[key] != before[key]]
    accuracy = model.validation if model is not None else None
    spread = float(np.median([table[key].spread for key in keys])) if keys else 0.0
    disturbed = len(doubtful(table, keys))
    if spread > TOLD_APART or disturbed > MOST_DISTURBED * len(keys):
        noise = (
            f"this machine is too noisy to tell {TOLD_APART:.0%}: blocks of the same kernel differ by"
            f" {spread:.0%}, and {disturbed} of {len(keys)} kernels were disturbed all the time; stop what"
            " else runs on it and give the same command again"
        )
    return Measured(
        threads=table.device.threads,
        provider=provider,
        device=str(table.device),
        table=str(Path(table_path(table.device))),
        measured=len(measured),
        reused=len(keys) - len(measured),
        networks=model.correction.samples if model is not None else 0,
        mape=accuracy.mape if accuracy else None,
        within_10_percent=accuracy.within_10_percent if accuracy else None,
        spearman=accuracy.spearman if accuracy else None,
        spread=spread,
        disturbed=disturbed,
        noise=noise,
    )
