"""The cost model of a device that is not this machine, from what its kits measured there."""

from collections.abc import Callable, Mapping

from leanfront.compression.graph import Network
from leanfront.compression.policy import Policy
from leanfront.hw_profiles import HardwareProfile
from leanfront.latency_models.benchmark.optimised_graph import fused_nodes
from leanfront.latency_models.cost import Build, Cost
from leanfront.latency_models.errors import TableError
from leanfront.latency_models.kernel_table.table import LatencyTable
from leanfront.latency_models.kit.installed_tables import InstalledDevice, device_of
from leanfront.latency_models.measured.correction import LEAST_SAMPLES, Correction, Sample, accuracy, fit
from leanfront.latency_models.measured.kit_networks import exporter_digest, network_digest
from leanfront.latency_models.measured.model import TableModel, Timed
from leanfront.latency_models.measured.optimised_kernels import Structure, canonical
from leanfront.latency_models.providers import PROVIDERS

Log = Callable[[str], None]


class ImportedModel(TableModel):
    """The cost model of a device elsewhere."""

    imported = True

    def as_built(self, network: Network, policy: Policy) -> Cost:
        """As ``cost``: what onnxruntime makes of a network here, it need not make of it there."""
        return self.cost(network, policy)


def imported_cost_model(
    network: Network,
    builder: Callable[[], Build],
    profile: HardwareProfile,
    threads: int,
    provider: str,
    log: Log,
) -> ImportedModel | None:
    """The cost model of a search from imported tables; None where there are none, or where the device is the
    machine that this runs on and its kits were for other networks.

    Raises:
        TableError: the device is another machine, and no kit had this network in it.
    """
    installed = device_of(profile, threads, PROVIDERS[provider])
    if not installed.results:
        return None
    model = imported_model(network, builder(), profile, installed, log)
    if model is None and not installed.is_this_machine:
        raise TableError(
            f"profile {profile.name!r} was measured on {installed.device}, but without this network;"
            f" `leanfront profile kit {profile.name} --config CONFIG --out DIR` makes a kit that measures it"
            " there"
        )
    return model


def imported_model(
    network: Network,
    build: Build,
    profile: HardwareProfile,
    installed: InstalledDevice,
    log: Log = lambda line: None,
) -> ImportedModel | None:
    """The cost model of a search from what was imported; None when no kit had this network in it."""
    structure = Structure(network, build, installed.device.threads, installed.device.provider)
    table = installed.table(profile.name)
    timed = _noted(structure, network, profile, installed)
    if not structure.keys():
        return None
    digest = network_digest(network)
    if any(result.exporter != exporter_digest() for result in installed.results if digest in result.titles):
        log(
            f"warning: the kit of {profile.name} is of a leanfront that wrote networks in another way; where"
            " predictions matter, make a new kit"
        )
    plain = ImportedModel(structure, table, profile)
    held_out, samples = timed[::5], [one for index, one in enumerate(timed) if index % 5]
    if len(samples) < LEAST_SAMPLES:
        return plain
    fitted = fit([Sample(plain.features(one.cut, one.policy), one.measured_ms) for one in samples])
    model = ImportedModel(structure, table, profile, fitted)
    predicted = [model.latency_ms(one.cut, one.policy) for one in held_out]
    proven = accuracy(predicted, [one.measured_ms for one in held_out])
    log(
        f"{profile.name} was measured on {installed.device}: {proven.n} networks there that the fit had not"
        f" seen are predicted within {proven.mape:.1%} on average"
    )
    model.correction = Correction(fitted.weights, fitted.samples, proven)
    model.held_out = tuple(held_out)
    model.noise = next((result.noise for result in reversed(installed.results) if result.noise), None)
    return model


def _noted(
    structure: Structure, network: Network, profile: HardwareProfile, installed: InstalledDevice
) -> list[Timed]:
    """Note in a structure what its networks became on the device; those that were timed as a whole."""
    digest = network_digest(network)
    timed = []
    for seen in (one for result in installed.results for one in result.networks if one.set_digest == digest):
        policy = Policy.from_json(seen.policy)
        cut = policy.cut(network, profile.channel_multiple)
        _note(structure, cut, policy, seen.parts)
        if seen.whole is not None:
            timed.append(Timed(cut, policy, seen.whole.median_ms, seen.whole.spread))
    return timed


def _note(structure: Structure, cut: Network, policy: Policy, parts: Mapping[str, tuple[str, ...]]) -> None:
    """``parts``: kernel -> keys of its nodes; those of no kernel ("") count to the first."""
    first = structure.kernels[0].name
    all_parts = {**parts, first: (*parts.get("", ()), *parts.get(first, ()))}
    structure.note(structure.state(cut, policy), [all_parts.get(k.name, ()) for k in structure.kernels])


def imported_file_model(
    network: Network, policy: Policy, profile: HardwareProfile, installed: InstalledDevice, build: Build
) -> TableModel:
    """What prices a network of a file on a device that is not this machine: its nodes as this machine's
    onnxruntime makes them, with the layouts that the device has, priced by what was measured there.

    Raises:
        TableError: nothing of the kind of one of its layers was measured there; it is named.
    """
    table = installed.table(profile.name)
    structure = Structure(network, build, installed.device.threads)
    blocks = any("nchwc." in key for key in table)  # layouts in blocks of channels, which few processors have
    model_here = build(network, canonical(policy))
    found = fused_nodes(model_here, structure.owners, disabled=() if blocks else ("NchwcTransformer",))
    parts: dict[str, tuple[str, ...]] = {}
    for node in found:
        parts[node.owner] = (*parts.get(node.owner, ()), node.key)
    _note(structure, network, policy, parts)
    model = TableModel(structure, table, profile, correction_at_large(profile, installed, table, build))
    model.from_shapes = True
    try:
        model.cost(network, policy)
    except TableError as error:
        raise TableError(
            f"{error}; `leanfront profile kit {profile.name} --out DIR`, without --config, measures networks"
            " at large"
        ) from error
    return model


def correction_at_large(
    profile: HardwareProfile, installed: InstalledDevice, table: LatencyTable, build: Build
) -> Correction | None:
    """A correction from the reference networks that were timed on the device; None without them."""
    from leanfront.latency_models.measured.reference_networks import reference_networks

    samples = []
    for network in {network_digest(n): n for _, n, _ in reference_networks()}.values():
        structure = Structure(network, build)
        timed = _noted(structure, network, profile, installed)
        if timed:
            model = TableModel(structure, table, profile)
            samples += [Sample(model.features(one.cut, one.policy), one.measured_ms) for one in timed]
    return fit(samples) if len(samples) >= LEAST_SAMPLES else None
