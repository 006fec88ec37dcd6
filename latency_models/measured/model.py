"""The cost model of a measured part: kernels from its latency table, corrected by whole networks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph import Network
from leanfront.compression.graph.absent_kernels import Missing
from leanfront.compression.policy import Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.file_size import FileSize
from leanfront.hw_profiles import HardwareProfile
from leanfront.latency_models.benchmark.zero_points import faster
from leanfront.latency_models.cost import Cost, CostArrays, Kind, LateCost, LayerCost
from leanfront.latency_models.errors import TableError
from leanfront.latency_models.kernel_table.keys import constant_bytes_of, kind_of
from leanfront.latency_models.kernel_table.table import CALL, LatencyTable
from leanfront.latency_models.measured.arena import Arena
from leanfront.latency_models.measured.cache_traffic import far_bytes, far_share
from leanfront.latency_models.measured.correction import Accuracy, Correction
from leanfront.latency_models.measured.footprint import footprint
from leanfront.latency_models.measured.fusion_rules import LEFT_OUT
from leanfront.latency_models.measured.lookup import Lookup, UnseenValues
from leanfront.latency_models.measured.nearest import Nearest, between_widths
from leanfront.latency_models.measured.optimised_kernels import ABSENT, Part, Structure

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
    footprint: int  # its number in the model's arena

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


class TableModel:
    """Costs of one network on a measured part; implements ``latency_models.cost.CostModel``.

    Energy is the profile's power times latency, and marked as estimated.
    """

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
        self._arena = Arena(structure.kernels, structure.outputs)
        self._near_cache_bytes = table.near_cache_bytes
        self._lookup: Lookup | None = None
        self._lookup_version = 0
        self._offered: Mapping[int, set[int]] = {}
        self._number: list[dict[tuple[int, ...], int]] = [{} for _ in structure.kernels]
        self._part_number: dict[Part, int] = {}
        self._entries = [_Entry((), 0.0, 0.0, 0, 0.0, 0.0, 0)]  # by number; 0 is none
        self._rows = np.zeros((1, 5))  # of the entries, with some room
        self._footprints = np.zeros(1, dtype=np.int64)  # the same
        self._file_size = FileSize(structure.kernels)
        layers = [(row, k.layer.name) for row, k in enumerate(structure.kernels) if k.layer is not None]
        self._layers = [name for _, name in layers]
        self._layer_rows = np.array([row for row, _ in layers], dtype=np.int64)

    def scaled_to(self, network: Network, policy: Policy, measured_ms: float) -> "TableModel":
        """This model with all kernels scaled so that a network that was measured comes out as measured."""
        factor = measured_ms / self.latency_ms(network, policy)
        weights = {name: factor * weight for name, weight in self.correction.weights.items()}
        return TableModel(self.structure, self.table, self.profile, Correction(weights))

    @property
    def kind(self) -> Kind:
        """ "calibrated" with a correction from whole networks, else "measured": kernels added up."""
        return "calibrated" if self.correction.samples else "measured"

    @property
    def validation(self) -> Accuracy | None:
        """How well latencies of networks that the correction had not seen were predicted."""
        return self.correction.accuracy

    def cost(self, network: Network, policy: Policy) -> Cost:
        """The whole network, already resized to the policy.

        Raises:
            TableError: a kernel has no entry and nothing of its kind is in the table.
        """
        return self._cost(policy, *self._numbers(network, policy))

    def as_built(self, network: Network, policy: Policy) -> Cost:
        """The same with the nodes that onnxruntime makes of this very network, which is built and optimised
        for it, but not run (25 to 60 ms): ``cost`` foretells them.

        Raises:
            TableError: as ``cost`` does, or onnxruntime cannot load the network.
        """
        numbers = [self._number_of(part) for part in self.structure.built(network, policy)]
        sources = self.structure.sources(network, policy)
        return self._cost(policy, sources, np.array(numbers, dtype=np.int64))

    def _cost(self, policy: Policy, sources: NDArray[np.int64], numbers: NDArray[np.int64]) -> Cost:
        missing = self.structure.missing(policy)
        latency_ms, modelled = self._latency_of_one(numbers)

        def peak_bytes() -> int:
            return self._arena.peak_bytes(self._footprints[numbers].tolist(), missing)

        return LateCost(
            latency_ms=latency_ms,
            energy_mj=latency_ms * self.profile.power_w,  # W x ms = mJ
            size_bytes=self._size_bytes(sources, policy, missing),
            memory=peak_bytes,
            limit_bytes=self.profile.memory_bytes,
            kind="modelled" if modelled else self.kind,
            estimated=self.profile.estimated,
        )

    def costs(self, batch: PolicyBatch) -> CostArrays:
        """Many policies at once, the same numbers as ``cost`` gives for each.

        Raises:
            TableError: as ``cost`` does.
        """
        latency_ms = np.empty(batch.count)
        size_bytes = np.empty(batch.count)
        modelled = np.empty(batch.count, dtype=np.bool_)
        for at, part in self._portions(batch):
            try:
                total = self._summed_rows(part)
            except TableError:
                self._see(part)
                total = self._summed_rows(part)
            latency_ms[at], modelled[at] = self._latency(total.T)
            size_bytes[at] = part.size_bytes()

        def memory() -> NDArray[np.float64]:
            peaks = np.empty(batch.count)
            for at, part in self._portions(batch):
                needed = np.array([self._footprints[numbers] for numbers in self._many(part)])
                for columns, left_out in part.depths():
                    missing = self.structure.without(left_out)
                    peaks[at][columns] = self._arena.peaks_bytes(needed[:, columns], missing)
            return peaks

        return CostArrays(
            latency_ms=latency_ms,
            energy_mj=latency_ms * self.profile.power_w,
            size_bytes=size_bytes,
            modelled=modelled,
            memory=memory,
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
        _, numbers = self._numbers(network, policy)
        return self._latency_of_one(numbers)[0]

    def layers(self, network: Network, policy: Policy) -> tuple[LayerCost, ...]:
        """Each kernel, and the call itself; raises TableError as ``cost`` does.

        Of a network whose nodes were seen, as ``as_built`` has it.
        """
        entries = self._of(network, policy)
        far_ms = self.correction.weight("far_bytes") * self._far_bytes(entries)
        stored = sum(entry.constant_bytes for entry in entries) or 1
        rows = [self._row("(call)", self._call_ms(), modelled=False)]
        for kernel, entry in zip(self.structure.kernels, entries, strict=True):
            latency_ms = entry.corrected_ms + far_ms * entry.constant_bytes / stored
            if entry.plain_ms > 0:
                name = kernel.layer.name if kernel.layer is not None else kernel.name
                rows.append(self._row(name, max(latency_ms, 0.0), entry.modelled_ms > 0))
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
        return [self._entries[number] for number in self._numbers(network, policy)[1].tolist()]

    def _numbers(self, network: Network, policy: Policy) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The sources of a policy, and the numbers of its kernels' entries. A kernel of a precision that was
        never seen costs one export."""
        sources = self.structure.sources(network, policy)
        while True:
            try:
                return sources, self._tables().one(sources)
            except UnseenValues as unseen:
                self._offered, self._lookup = unseen.values, None
            except _UnseenForm:
                self.structure.observe(network, policy)

    def _size_bytes(self, sources: NDArray[np.int64], policy: Policy, missing: Missing) -> int:
        widths, integer, bits = sources.reshape(3, -1)
        weight_bits = np.array([policy[name].weight_bits for name in self._layers])
        return self._file_size.one(widths, bits, weight_bits, integer[self._layer_rows] == 1, missing)

    def _portions(self, batch: PolicyBatch) -> Iterator[tuple[slice, PolicyBatch]]:
        for begin in range(0, batch.count, AT_ONCE):
            at = slice(begin, begin + AT_ONCE)
            yield at, batch.part(at)

    def _many(self, batch: PolicyBatch) -> Iterator[NDArray[Any]]:
        """The numbers of the entries of many policies, kernel by kernel."""
        integer = batch.integer.view(np.uint8)
        if batch.left_out is not None:
            integer = integer + np.uint8(LEFT_OUT) * (batch.widths == 0)
        fields = (batch.widths, integer, batch.bits)
        count = len(self.structure.kernels)
        while True:
            try:
                yield from self._tables().many(lambda row: fields[row // count][row % count])
                return
            except UnseenValues as unseen:  # said before anything else
                self._offered, self._lookup = unseen.values, None
            except _UnseenForm as unseen:
                raise TableError(
                    f"what onnxruntime makes of {unseen.kernel!r} at this precision was never seen; price"
                    " such a policy alone first"
                ) from None

    def _summed_rows(self, batch: PolicyBatch) -> NDArray[np.float64]:
        """(n, 5): what the kernels of each policy add up to."""
        total = np.zeros((batch.count, 5))
        for numbers in self._many(batch):
            total += self._rows.take(numbers, axis=0)
        return total

    def _see(self, batch: PolicyBatch) -> None:
        """Build the networks that are needed to know what the kernels of these policies become: mostly none.

        Raises:
            TableError: a kernel's form is not known although its network was built.
        """
        try:
            for _ in self._many(batch):
                pass
        except TableError:
            if batch.count > 1:
                half = batch.count // 2
                self._see(batch.part(slice(0, half)))
                self._see(batch.part(slice(half, batch.count)))
                return
            policy = batch.policy(0)
            self.structure.observe(policy.cut(batch.network), policy)
            for _ in self._many(batch):
                pass

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
            self._footprints = np.concatenate((self._footprints, np.zeros_like(self._footprints)))
        self._rows[number], self._footprints[number] = entry.row, entry.footprint
        return number

    def _latency(self, total: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Sums of the rows of entries, (5, n) -> latency in ms, and whether it is modelled."""
        corrected_ms, plain_ms, constants, far_alone, modelled_ms = total
        far = np.maximum(0.0, far_share(constants, self._near_cache_bytes) * constants - far_alone)
        latency_ms = self._call_ms() + corrected_ms + self.correction.weight("far_bytes") * far
        return np.maximum(latency_ms, 0.5 * plain_ms), modelled_ms > MODELLED_SHARE * plain_ms

    def _latency_of_one(self, numbers: NDArray[np.int64]) -> tuple[float, bool]:
        """The same of one policy, from the numbers of its entries."""
        corrected_ms, plain_ms, stored, far_alone, modelled_ms = self._rows[numbers].sum(axis=0).tolist()
        far = far_bytes(stored, far_alone, self._near_cache_bytes)
        latency_ms = self._call_ms() + corrected_ms + self.correction.weight("far_bytes") * far
        return max(latency_ms, 0.5 * plain_ms), modelled_ms > MODELLED_SHARE * plain_ms

    def _call_ms(self) -> float:
        return self.correction.weight(CALL) * self.table[CALL].median_ms

    def _far_bytes(self, entries: Sequence[_Entry]) -> float:
        """Of a network, see ``near_cache.far_bytes``."""
        stored = sum([entry.constant_bytes for entry in entries])
        return far_bytes(stored, sum([entry.far_alone_bytes for entry in entries]), self._near_cache_bytes)

    def _entry(self, index: int, form: int, widths: tuple[int, ...]) -> _Entry:
        """The entry of a kernel in a form at its widths; between those seen where these were not."""
        part = self.structure.part(index, widths, form)
        return self._summed(part) if part is not None else self._between(index, form, widths)

    def _between(self, index: int, form: int, widths: tuple[int, ...]) -> _Entry:
        """From the same kernel in the same form at other widths."""
        seen = self.structure.parts_of_form(index, form)
        others = {other: self._summed(part) for other, part in seen.items()}
        nearest = min(others, key=lambda other: sum(abs(a - b) for a, b in zip(other, widths, strict=True)))
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
            footprint=others[nearest].footprint,
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
        needed = self._arena.number(footprint(part))
        return _Entry(
            tuple(features.items()), plain_ms, corrected_ms, constants, far_alone, modelled_ms, needed
        )

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
