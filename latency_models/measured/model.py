"""The cost model of a measured part: kernels from its latency table, corrected by whole networks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph import Kernel, Network
from leanfront.compression.policy import Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.hw_profiles import HardwareProfile
from leanfront.latency_models.benchmark.zero_points import faster
from leanfront.latency_models.cost import Cost, CostArrays, CostModel, Kind, LayerCost
from leanfront.latency_models.errors import TableError
from leanfront.latency_models.kernel_table.keys import constant_bytes_of, kind_of
from leanfront.latency_models.kernel_table.table import CALL, LatencyTable
from leanfront.latency_models.measured.correction import Accuracy, Correction, far_bytes, far_share
from leanfront.latency_models.measured.lookup import Lookup, UnseenValues
from leanfront.latency_models.measured.nearest import Nearest, between_widths
from leanfront.latency_models.measured.optimised_kernels import ABSENT, Part, Structure
from leanfront.latency_models.memory import peak_bytes, tensor_bytes, working_bytes

MODELLED_SHARE = 0.05
"""A cost is called modelled when more of its latency than this is from kernels that were not measured at
their widths but interpolated. Each row of ``layers`` says it of its own kernel."""
AT_ONCE = 8192
"""Policies whose arrays fit a processor's near cache."""


@dataclass(frozen=True)
class _Entry:
    """What one kernel in one form and at its widths adds up to. ``far_alone_bytes``: constants that were
    beyond the near cache already when it was timed alone. ``modelled_ms``: what of its time was not measured
    at its widths."""

    features: tuple[tuple[str, float], ...]
    plain_ms: float
    corrected_ms: float
    constant_bytes: int
    far_alone_bytes: float
    modelled_ms: float

    @property
    def row(self) -> tuple[float, float, float, float, float]:
        """The numbers that are summed over a network."""
        return (
            self.corrected_ms,
            self.plain_ms,
            float(self.constant_bytes),
            self.far_alone_bytes,
            self.modelled_ms,
        )


@dataclass(frozen=True)
class Timed:
    """A network that a device timed as a whole: cut as its policy says."""

    cut: Network
    policy: Policy
    measured_ms: float
    spread: float


class TableModel(CostModel):
    """Costs of one network on a measured part.

    Energy is the profile's power times latency, and marked as estimated.

    from_shapes: what it prices was built from shapes, with stand-ins for what they do not describe.
    imported: the table is of another machine. held_out: networks timed there that the fit has not seen.
    noise: what was said of that machine when it was too noisy.
    """

    from_shapes: bool = False
    imported: bool = False
    held_out: "tuple[Timed, ...]" = ()
    noise: str | None = None

    def __init__(
        self,
        structure: Structure,
        table: LatencyTable,
        profile: HardwareProfile,
        correction: Correction | None = None,
    ) -> None:
        self.structure = structure
        self.table = table
        self.profile = profile
        self.correction = correction or Correction()
        self._nearest: Nearest | None = None
        self._near_cache_bytes = table.near_cache_bytes
        self._lookup: Lookup | None = None
        self._lookup_version = 0
        self._offered: Mapping[int, set[int]] = {}
        self._number: list[dict[tuple[int, ...], int]] = [{} for _ in structure.kernels]
        self._part_number: dict[Part, int] = {}
        self._entries = [_Entry((), 0.0, 0.0, 0, 0.0, 0.0)]  # by number; 0 is none
        self._rows = np.zeros((1, 5))  # of the entries, with some room

    def scaled_to(self, network: Network, policy: Policy, measured_ms: float) -> "TableModel":
        """This model with all kernels scaled so that a network that was measured comes out as measured."""
        factor = measured_ms / self.latency_ms(network, policy)
        weights = {name: factor * weight for name, weight in self.correction.weights.items()}
        scaled = TableModel(self.structure, self.table, self.profile, Correction(weights))
        scaled.from_shapes = self.from_shapes
        return scaled

    def unknown(self, network: Network) -> tuple[Kernel, ...]:
        """The kernels that have stand-ins: all others are timed as they are."""
        return super().unknown(network) if self.from_shapes else ()

    @property
    def kind(self) -> Kind:
        """ "calibrated" with a correction from whole networks, else "measured": kernels added up."""
        return "calibrated" if self.correction.samples else "measured"

    @property
    def measured_on(self) -> str:
        """The device that the table is of, with its software."""
        return f"{self.table.device} ({self.table.device.versions})"

    @property
    def validation(self) -> Accuracy | None:
        """How well latencies of networks that the correction had not seen were predicted."""
        return self.correction.accuracy

    def cost(self, network: Network, policy: Policy) -> Cost:
        """The whole network, already resized to the policy: a batch of one.

        Raises:
            TableError: a kernel has no entry and nothing of its kind is in the table.
        """
        return self._first(self.costs(self._batch(network, policy)))

    def as_built(self, network: Network, policy: Policy) -> Cost:
        """The same with the nodes that onnxruntime makes of this very network, which is built and optimised
        for it, but not run (25 to 60 ms): ``cost`` foretells them.

        Raises:
            TableError: as ``cost`` does, or onnxruntime cannot load the network.
        """
        numbers = [self._number_of(part) for part in self.structure.built(network, policy)]
        total = self._rows[numbers].sum(axis=0, keepdims=True)
        return self._first(self._arrays(self._batch(network, policy), total))

    def _batch(self, network: Network, policy: Policy) -> PolicyBatch:
        return PolicyBatch.of_cut(self.structure.network, network, policy)

    def _first(self, found: CostArrays) -> Cost:
        modelled = found.modelled[0] or self.unknown(self.structure.network)
        return found.first("modelled" if modelled else self.kind, self.profile.estimated, {})

    def costs(self, batch: PolicyBatch) -> CostArrays:
        """Many policies at once; what was never seen of their kernels is built first, mostly nothing.

        Raises:
            TableError: as ``cost`` does.
        """
        found = []
        for part in self._portions(batch):
            try:
                total = self._summed_rows(part)
            except _UnseenForm:
                self._see(part)
                total = self._summed_rows(part)
            found.append(self._arrays(part, total))
        ends = np.cumsum([len(part.latency_ms) for part in found])
        return CostArrays.joined(found, np.split(np.arange(batch.count), ends[:-1]))

    def _arrays(self, batch: PolicyBatch, total: NDArray[np.float64]) -> CostArrays:
        """Costs of policies, from the sums of the rows of their entries, (n, 5)."""
        corrected_ms, plain_ms, stored, far_alone, modelled_ms = total.T
        far = far_bytes(stored, far_alone, self._near_cache_bytes)
        latency_ms = self._call_ms() + corrected_ms + self.correction.weight("far_bytes") * far
        latency_ms = np.maximum(latency_ms, 0.5 * plain_ms)
        return CostArrays(
            latency_ms=latency_ms,
            energy_mj=latency_ms * self.profile.power_w,  # W x ms = mJ
            size_bytes=batch.size_bytes().astype(np.float64),
            modelled=modelled_ms > MODELLED_SHARE * plain_ms,
            peak_memory_bytes=peak_bytes(batch, tensor_bytes(batch), working_bytes(batch)),
            memory_bytes=self.profile.memory_bytes,
        )

    def shifted(self, network: Network, policy: Policy) -> frozenset[str]:
        """The layers whose weights must be stored around another zero point for ``as_built`` to be true."""
        return frozenset(
            kernel.layer.name
            for kernel, part in zip(
                self.structure.kernels, self.structure.built(network, policy), strict=True
            )
            if kernel.layer is not None and any(faster(key, self.table) != key for key in part)
        )

    def latency_ms(self, network: Network, policy: Policy) -> float:
        """The latency alone; raises TableError as ``cost`` does."""
        return float(self.costs(self._batch(network, policy)).latency_ms[0])

    def layers(self, network: Network, policy: Policy) -> tuple[LayerCost, ...]:
        """Each kernel, and the call itself; raises TableError as ``cost`` does.

        Of a network whose nodes were seen, as ``as_built`` has it.
        """
        entries = self._of(network, policy)
        far_ms = self.correction.weight("far_bytes") * self._far_bytes(entries)
        stored = sum(entry.constant_bytes for entry in entries) or 1
        rows = [self._row("(call)", self._call_ms(), modelled=False)]
        unknown = {kernel.name for kernel in self.unknown(network)}
        for kernel, entry in zip(self.structure.kernels, entries, strict=True):
            latency_ms = entry.corrected_ms + far_ms * entry.constant_bytes / stored
            if entry.plain_ms > 0:
                name = kernel.label
                modelled = entry.modelled_ms > 0 or kernel.name in unknown
                rows.append(self._row(name, max(latency_ms, 0.0), modelled))
        return tuple(rows)

    def features(self, network: Network, policy: Policy) -> dict[str, float]:
        """What a correction is fitted on; raises TableError as ``cost`` does."""
        entries = self._of(network, policy)
        total: dict[str, float] = {CALL: self.table[CALL].median_ms, "far_bytes": self._far_bytes(entries)}
        for entry in entries:
            for name, value in entry.features:
                total[name] = total.get(name, 0.0) + value
        return total

    def _row(self, name: str, latency_ms: float, modelled: bool) -> LayerCost:
        kind: Kind = "modelled" if modelled else self.kind
        return LayerCost(name, latency_ms, latency_ms * self.profile.power_w, kind)

    def _of(self, network: Network, policy: Policy) -> list[_Entry]:
        """The entry of each kernel: of the nodes that were seen in this very network, else as foretold."""
        if (parts := self.structure.noted(network, policy)) is not None:
            return [self._entries[self._number_of(part)] for part in parts]
        batch = self._batch(network, policy)
        self._see(batch)
        return [self._entries[numbers[0]] for numbers in self._numbers(batch)]

    def _portions(self, batch: PolicyBatch) -> Iterator[PolicyBatch]:
        for begin in range(0, batch.count, AT_ONCE):
            yield batch.part(slice(begin, begin + AT_ONCE))

    def _numbers(self, batch: PolicyBatch) -> Iterator[NDArray[Any]]:
        """The numbers of the entries of many policies, (n,), kernel by kernel."""
        fields = (batch.widths, self.structure.modes(batch), batch.bits)
        count = len(self.structure.kernels)
        while True:
            try:
                yield from self._tables().many(lambda row: fields[row // count][row % count])
                return
            except UnseenValues as unseen:  # said before anything else
                self._offered, self._lookup = unseen.values, None

    def _summed_rows(self, batch: PolicyBatch) -> NDArray[np.float64]:
        """(n, 5): what the kernels of each policy add up to."""
        total = np.zeros((batch.count, 5))
        for numbers in self._numbers(batch):
            total += self._rows.take(numbers, axis=0)
        return total

    def _see(self, batch: PolicyBatch) -> None:
        """Build the networks that are needed to know what the kernels of these policies become: mostly none.

        Raises:
            TableError: a kernel's form is not known although its network was built.
        """
        try:
            for _ in self._numbers(batch):
                pass
        except _UnseenForm as unseen:
            if batch.count > 1:
                half = batch.count // 2
                self._see(batch.part(slice(0, half)))
                self._see(batch.part(slice(half, batch.count)))
                return
            policy = batch.policy(0)
            network = policy.cut(batch.network)
            if self.structure.noted(network, policy) is not None:
                raise TableError(f"what onnxruntime makes of {unseen.kernel!r} does not follow") from None
            self.structure.observe(network, policy)
            self._see(batch)

    def _tables(self) -> Lookup:
        if self._lookup is None or self._lookup_version != self.structure.version:
            self._lookup = Lookup(self.structure, self._offered, self._asked)
            self._lookup_version = self.structure.version
        return self._lookup

    def _asked(self, index: int, form: int | None, widths: tuple[int, ...]) -> int:
        """The number of the entry of a kernel in a form at its widths."""
        if 0 in widths:
            form = ABSENT
        if form is None:
            raise _UnseenForm(self.structure.kernels[index].name)
        number = self._number[index].get((form, *widths))
        if number is None:
            number = self._number[index][form, *widths] = self._kept(self._entry(index, form, widths))
        return number

    def _number_of(self, part: Part) -> int:
        """The number of the entry of some nodes."""
        if part not in self._part_number:
            self._part_number[part] = self._kept(self._summed(part))
        return self._part_number[part]

    def _kept(self, entry: _Entry) -> int:
        """A number for an entry."""
        number = len(self._entries)
        self._entries.append(entry)
        if number >= len(self._rows):
            self._rows = np.concatenate((self._rows, np.zeros_like(self._rows)))
        self._rows[number] = entry.row
        return number

    def _call_ms(self) -> float:
        return self.correction.weight(CALL) * self.table[CALL].median_ms

    def _far_bytes(self, entries: Sequence[_Entry]) -> float:
        stored = sum(entry.constant_bytes for entry in entries)
        far_alone = sum(entry.far_alone_bytes for entry in entries)
        return float(far_bytes(stored, far_alone, self._near_cache_bytes))

    def _entry(self, index: int, form: int, widths: tuple[int, ...]) -> _Entry:
        """The entry of a kernel in a form at its widths; between those seen where these were not."""
        part = self.structure.part(index, widths, form)
        return self._summed(part) if part is not None else self._between(index, form, widths)

    def _between(self, index: int, form: int, widths: tuple[int, ...]) -> _Entry:
        """From the same kernel in the same form at other widths."""
        seen = self.structure.parts_of_form(index, form)
        others = {other: self._summed(part) for other, part in seen.items()}
        names = dict.fromkeys(name for entry in others.values() for name, _ in entry.features)

        def at_widths(values: Mapping[tuple[int, ...], float]) -> float:
            return between_widths(values, widths)

        features = {
            name: at_widths({w: dict(e.features).get(name, 0.0) for w, e in others.items()}) for name in names
        }
        plain_ms = at_widths({w: entry.plain_ms for w, entry in others.items()})
        return _Entry(
            tuple(features.items()),
            plain_ms,
            sum(self.correction.weight(name) * value for name, value in features.items()),
            round(at_widths({w: float(entry.constant_bytes) for w, entry in others.items()})),
            at_widths({w: entry.far_alone_bytes for w, entry in others.items()}),
            modelled_ms=plain_ms,
        )

    def _summed(self, part: Part) -> _Entry:
        features: dict[str, float] = {"nodes": float(len(part))}
        plain_ms, constants, far_alone, modelled_ms = 0.0, 0, 0.0, 0.0
        for key in part:
            taken_ms, resident, known = self._node(key)
            modelled_ms += 0.0 if known else taken_ms
            kind = kind_of(key)
            features[kind] = features.get(kind, 0.0) + taken_ms
            plain_ms += taken_ms
            stored = constant_bytes_of(key)
            constants += stored
            far_alone += float(far_share(resident, self._near_cache_bytes)) * stored
        features["constant_bytes"] = float(constants)
        corrected_ms = sum(self.correction.weight(name) * value for name, value in features.items())
        return _Entry(tuple(features.items()), plain_ms, corrected_ms, constants, far_alone, modelled_ms)

    def _node(self, key: str) -> tuple[float, int, bool]:
        key = faster(key, self.table)
        if key in self.table:
            entry = self.table[key]
            return entry.median_ms, entry.resident_bytes, True
        if self._nearest is None:
            self._nearest = Nearest(self.table)
        return self._nearest.estimate(key), constant_bytes_of(key), False


class _UnseenForm(Exception):
    """A kernel at a precision that was never seen."""

    def __init__(self, kernel: str) -> None:
        super().__init__(kernel)
        self.kernel = kernel


def table_model(costs: CostModel) -> TableModel | None:
    """``costs``, where its times are from a latency table: what can be kept beside a run, and validated."""
    return costs if isinstance(costs, TableModel) else None
