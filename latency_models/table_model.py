"""The cost model of a measured part: kernels from its latency table, corrected by whole networks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compression.policy import Network, Policy
from compression.policy.batch import PolicyBatch
from compression.policy.size import FILE_BYTES, kernel_bytes
from hw_profiles import HardwareProfile
from latency_models.arena import Arena
from latency_models.calibrate import Accuracy, Correction
from latency_models.columns import Rows, encoded, gathered
from latency_models.cost import Cost, CostArrays, Kind, LayerCost
from latency_models.errors import TableError
from latency_models.footprint import footprint
from latency_models.kernel_keys import constant_bytes_of, kind_of
from latency_models.nearest import Nearest, between_widths
from latency_models.structure import Part, State, Structure
from latency_models.table import CALL, LatencyTable

MODELLED_SHARE = 0.05
"""A cost is called modelled when more of its latency than this is from kernels that were not measured at
their widths but interpolated. Each row of ``layers`` says it of its own kernel."""


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
    def row(self) -> tuple[float, float, float, float, float, float]:
        """The numbers that are summed over a network, and the number of the footprint."""
        return (
            self.corrected_ms,
            self.plain_ms,
            float(self.constant_bytes),
            self.far_alone_bytes,
            self.modelled_ms,
            float(self.footprint),
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
        self._widths = tuple(
            itemgetter(*columns, columns[0]) for columns in structure.width_columns
        )  # one more, so that even a single column makes a tuple
        self._entries: list[dict[tuple[int, ...], _Entry]] = [{} for _ in structure.kernels]
        self._stored: list[dict[tuple[object, ...], int]] = [{} for _ in structure.kernels]
        self._layers = tuple(k.layer.name if k.layer else None for k in structure.kernels)
        self._positions = np.array(structure.positions)

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
        state = self.structure.state(network, policy)
        entries = self._of(state, network, policy)
        latency_ms = self._latency_ms(entries)
        peak = self._arena.peak_bytes([entry.footprint for entry in entries])
        limit = self.profile.memory_bytes
        return Cost(
            latency_ms=latency_ms,
            energy_mj=latency_ms * self.profile.power_w,  # W x ms = mJ
            size_bytes=self._size_bytes(state, policy),
            peak_memory_bytes=peak,
            fits=limit is None or peak <= limit,
            kind="modelled" if self._mostly_modelled(entries) else self.kind,
            estimated=self.profile.estimated,
        )

    def costs(self, batch: PolicyBatch) -> CostArrays:
        """Many policies at once, the same numbers as ``cost`` gives for each.

        Raises:
            TableError: as ``cost`` does.
        """
        rows = Rows(lambda column: self.structure.column(batch, column))
        total = np.zeros((5, batch.count))
        footprints = np.zeros((len(self.structure.kernels), batch.count), dtype=np.int64)
        for index in range(len(self.structure.kernels)):
            forms = self._forms(index, rows)
            widths = [rows.encoded(column) for column in self.structure.width_columns[index]]
            *summed, footprints[index] = gathered([forms, *widths], self._row_of(index))
            total += summed
        corrected_ms, plain_ms, constants, far_alone, modelled_ms = total
        far = np.maximum(0.0, far_share(constants, self._near_cache_bytes) * constants - far_alone)
        latency_ms = self._call_ms() + corrected_ms + self.correction.weight("far_bytes") * far
        latency_ms = np.maximum(latency_ms, 0.5 * plain_ms)

        def memory() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
            peaks, limit = self._arena.peaks_bytes(footprints), self.profile.memory_bytes
            return peaks, np.asarray(peaks <= (np.inf if limit is None else limit))

        return CostArrays(
            latency_ms=latency_ms,
            energy_mj=latency_ms * self.profile.power_w,
            size_bytes=batch.size_bytes().astype(np.float64),
            modelled=modelled_ms > MODELLED_SHARE * plain_ms,
            memory=memory,
        )

    def latency_ms(self, network: Network, policy: Policy) -> float:
        """The latency alone; raises TableError as ``cost`` does."""
        return self._latency_ms(self._of(self.structure.state(network, policy), network, policy))

    def layers(self, network: Network, policy: Policy) -> tuple[LayerCost, ...]:
        """Each kernel, and the call itself; raises TableError as ``cost`` does."""
        entries = self._of(self.structure.state(network, policy), network, policy)
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
        entries = self._of(self.structure.state(network, policy), network, policy)
        total: dict[str, float] = {CALL: self.table[CALL].median_ms, "far_bytes": self._far_bytes(entries)}
        for entry in entries:
            for name, value in entry.features:
                total[name] = total.get(name, 0.0) + value
        return total

    def _row(self, name: str, latency_ms: float, modelled: bool) -> LayerCost:
        kind: Kind = "modelled" if modelled else self.kind
        return LayerCost(name, latency_ms, latency_ms * self.profile.power_w, kind)

    def _of(self, state: State, network: Network, policy: Policy) -> list[_Entry]:
        """The entry of each kernel. A kernel of a precision that was never seen costs one export."""
        entries = []
        for index, widths in enumerate(self._widths):
            form = self.structure.form(index, self.structure.rule(index).pick(state))
            if form is None:
                self.structure.observe(network, policy)
                return self._of(state, network, policy)
            here = widths(state)
            entries.append(self._entries[index].get((form, *here)) or self._entry(index, form, here[:-1]))
        return entries

    def _forms(self, index: int, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The form of a kernel under many policies, as (number, values that the numbers stand for)."""
        rule = self.structure.rule(index)

        def form(values: tuple[int, ...]) -> tuple[float]:
            found = self.structure.form(index, values)
            if found is None:
                name = self.structure.kernels[index].name
                raise TableError(
                    f"what onnxruntime makes of {name!r} at this precision was never seen; price such a"
                    " policy alone first"
                )
            return (float(found),)

        found = gathered([rows.encoded(column) for column in rule.columns], form)[0].astype(np.int64)
        return encoded(found)

    def _mostly_modelled(self, entries: Sequence[_Entry]) -> bool:
        modelled_ms = sum([entry.modelled_ms for entry in entries])
        return modelled_ms > MODELLED_SHARE * sum([entry.plain_ms for entry in entries])

    def _row_of(self, index: int) -> Callable[[tuple[int, ...]], tuple[float, ...]]:
        """(form, widths) of a kernel -> the numbers of its entry."""
        return lambda values: self._entry(index, values[0], values[1:]).row

    def _latency_ms(self, entries: Sequence[_Entry]) -> float:
        latency_ms = self._call_ms() + sum([entry.corrected_ms for entry in entries])
        latency_ms += self.correction.weight("far_bytes") * self._far_bytes(entries)
        return max(latency_ms, 0.5 * sum([entry.plain_ms for entry in entries]))

    def _call_ms(self) -> float:
        return self.correction.weight(CALL) * self.table[CALL].median_ms

    def _far_bytes(self, entries: Sequence[_Entry]) -> float:
        """Constants that come from beyond the near cache here, but did not when kernels were timed alone."""
        stored = sum([entry.constant_bytes for entry in entries])
        far_alone = sum([entry.far_alone_bytes for entry in entries])
        share: float = min(1.0, max(0.0, _ramp(stored, self._near_cache_bytes)))
        return max(0.0, share * stored - far_alone)

    def _entry(self, index: int, form: int, widths: tuple[int, ...]) -> _Entry:
        """The entry of a kernel in a form at its widths; between those seen where these were not."""
        known = self._entries[index].get((form, *widths, widths[0]))
        if known is not None:
            return known
        part = self.structure.part(index, widths, form)
        made = self._summed(index, widths, part) if part is not None else self._between(index, form, widths)
        self._entries[index][(form, *widths, widths[0])] = made
        return made

    def _between(self, index: int, form: int, widths: tuple[int, ...]) -> _Entry:
        """From the same kernel in the same form at other widths."""
        seen = self.structure.parts_of_form(index, form)
        others = {other: self._summed(index, other, part) for other, part in seen.items()}
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

    def _summed(self, index: int, widths: tuple[int, ...], part: Part) -> _Entry:
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
        if key in self.table:
            entry = self.table[key]
            return entry.median_ms, entry.resident_bytes, True
        if self._nearest is None:
            self._nearest = Nearest(self.table)
        return self._nearest.estimate(key), constant_bytes_of(key), False

    def _size_bytes(self, state: State, policy: Policy) -> int:
        """As ``compression.policy.size.size_bytes``, each kernel's share remembered."""
        count = len(self.structure.kernels)
        total = FILE_BYTES
        for index, widths in enumerate(self._widths):
            name = self._layers[index]
            own = policy[name] if name is not None else None
            held = state[2 * count + index]
            key = (widths(state), held, own and (own.weight_bits, own.integer))
            stored = self._stored[index].get(key)
            if stored is None:
                kernel = self.structure.kernels[index]
                stored = kernel_bytes(kernel, widths(state)[:-1], own, held)
                self._stored[index][key] = stored
            total += stored
        return total


def far_share(working_bytes: ArrayLike, near_cache_bytes: float) -> NDArray[np.float64]:
    """Share of the constants that a network with so many of them reads from beyond the near cache.

    Networks run in the same order again and again, the worst case of a least-recently-used cache: once the
    working set is larger than the cache nothing of it is found there. Tensors take room, too, so it begins
    at half the size.
    """
    ramp = _ramp(np.asarray(working_bytes, dtype=np.float64), near_cache_bytes)
    return np.asarray(np.clip(ramp, 0.0, 1.0))


def _ramp(working_bytes: Any, near_cache_bytes: float) -> Any:
    """From 0 to 1 where the cache begins to be too small; below and above it goes on."""
    begin, end = 0.45 * near_cache_bytes, 1.25 * near_cache_bytes
    return (working_bytes - begin) / (end - begin)
