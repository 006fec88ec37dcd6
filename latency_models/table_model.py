"""The cost model of a measured part: kernels from its latency table, corrected by whole networks."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from compression.policy import Network, Policy
from compression.policy.size import size_bytes
from hw_profiles import HardwareProfile
from latency_models.calibrate import Accuracy, Correction
from latency_models.cost import Cost, Kind, LayerCost
from latency_models.kernel_keys import constant_bytes_of, kind_of
from latency_models.memory import lifetimes, peak_bytes
from latency_models.nearest import Nearest
from latency_models.structure import Context, Structure
from latency_models.table import CALL, LatencyTable


@dataclass(frozen=True)
class _Part:
    """What one kernel in its context adds up to. ``near_bytes``: the share of its constants that was beyond
    the near cache already when it was timed alone."""

    features: tuple[tuple[str, float], ...]
    plain_ms: float
    corrected_ms: float
    constant_bytes: int
    far_alone_bytes: float
    modelled: bool


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
        self._alive = lifetimes(structure.kernels, structure.outputs)
        self._near_cache_bytes = near_cache_bytes()
        self._parts: dict[Context, _Part] = {}

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
        latency_ms, modelled = self._latency(network, policy)
        peak = peak_bytes(self._alive, self.structure.tensor_sizes(network, policy))
        limit = self.profile.memory_bytes
        return Cost(
            latency_ms=latency_ms,
            energy_mj=latency_ms * self.profile.power_w,  # W x ms = mJ
            size_bytes=size_bytes(network, policy),
            peak_memory_bytes=peak,
            fits=limit is None or peak <= limit,
            kind="modelled" if modelled else self.kind,
            estimated=True,
        )

    def latency_ms(self, network: Network, policy: Policy) -> float:
        """The latency alone; raises TableError as ``cost`` does."""
        return self._latency(network, policy)[0]

    def layers(self, network: Network, policy: Policy) -> tuple[LayerCost, ...]:
        """Each kernel, and the call itself; raises TableError as ``cost`` does."""
        parts = self._kernels(network, policy)
        far_ms = self._far_ms(parts)
        stored = sum(part.constant_bytes for part in parts) or 1
        rows = [self._row("(call)", self._call_ms(), modelled=False)]
        for kernel, part in zip(self.structure.kernels, parts, strict=True):
            latency_ms = part.corrected_ms + far_ms * part.constant_bytes / stored
            if part.plain_ms > 0:
                name = kernel.layer.name if kernel.layer is not None else kernel.name
                rows.append(self._row(name, max(latency_ms, 0.0), part.modelled))
        return tuple(rows)

    def features(self, network: Network, policy: Policy) -> dict[str, float]:
        """What a correction is fitted on; raises TableError as ``cost`` does."""
        parts = self._kernels(network, policy)
        total: dict[str, float] = {CALL: self.table[CALL].median_ms, "far_bytes": self._far_bytes(parts)}
        for part in parts:
            for name, value in part.features:
                total[name] = total.get(name, 0.0) + value
        return total

    def _row(self, name: str, latency_ms: float, modelled: bool) -> LayerCost:
        kind: Kind = "modelled" if modelled else self.kind
        return LayerCost(name, latency_ms, latency_ms * self.profile.power_w, kind)

    def _kernels(self, network: Network, policy: Policy) -> list[_Part]:
        contexts = self.structure.contexts(network, policy)
        parts = self._parts
        try:
            return [parts[context] for context in contexts]
        except KeyError:
            for context, keys in zip(contexts, self.structure.parts(network, policy), strict=True):
                self._note(context, keys)
        return [parts[context] for context in contexts]

    def _latency(self, network: Network, policy: Policy) -> tuple[float, bool]:
        parts = self._kernels(network, policy)
        latency_ms = self._call_ms() + sum([part.corrected_ms for part in parts]) + self._far_ms(parts)
        plain_ms = sum([part.plain_ms for part in parts])
        return max(latency_ms, 0.5 * plain_ms), any(part.modelled for part in parts)

    def _call_ms(self) -> float:
        return self.correction.weight(CALL) * self.table[CALL].median_ms

    def _far_ms(self, parts: Iterable[_Part]) -> float:
        return self.correction.weight("far_bytes") * self._far_bytes(parts)

    def _far_bytes(self, parts: Iterable[_Part]) -> float:
        """Constants that come from beyond the near cache here, but did not when kernels were timed alone."""
        stored, far_alone = 0, 0.0
        for part in parts:
            stored += part.constant_bytes
            far_alone += part.far_alone_bytes
        return max(0.0, far_share(stored, self._near_cache_bytes) * stored - far_alone)

    def _note(self, context: Context, keys: tuple[str, ...]) -> None:
        if context in self._parts:
            return
        features: dict[str, float] = {"nodes": float(len(keys))}
        plain_ms, constants, far_alone, modelled = 0.0, 0, 0.0, False
        for key in keys:
            taken_ms, resident, known = self._node(key)
            modelled |= not known
            kind = kind_of(key)
            features[kind] = features.get(kind, 0.0) + taken_ms
            plain_ms += taken_ms
            stored = constant_bytes_of(key)
            constants += stored
            far_alone += far_share(resident, self._near_cache_bytes) * stored
        features["constant_bytes"] = float(constants)
        corrected_ms = sum(self.correction.weight(name) * value for name, value in features.items())
        self._parts[context] = _Part(
            tuple(features.items()), plain_ms, corrected_ms, constants, far_alone, modelled
        )

    def _node(self, key: str) -> tuple[float, int, bool]:
        if key in self.table:
            entry = self.table[key]
            return entry.median_ms, entry.resident_bytes, True
        if self._nearest is None:
            self._nearest = Nearest(self.table)
        return self._nearest.estimate(key), constant_bytes_of(key), False


def far_share(working_bytes: float, near_cache_bytes: float) -> float:
    """Share of the constants that a network with so many of them reads from beyond the near cache.

    Networks run in the same order again and again, the worst case of a least-recently-used cache: once the
    working set is larger than the cache nothing of it is found there. Tensors take room, too, so it begins
    at half the size.
    """
    begin, end = 0.45 * near_cache_bytes, 1.25 * near_cache_bytes
    return min(1.0, max(0.0, (working_bytes - begin) / (end - begin)))


def near_cache_bytes() -> int:
    """Size of a core's own second-level cache; 1 MiB where the system does not say."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text(encoding="utf-8").strip()
    except OSError:
        return 1 << 20
    scale = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
    digits = text.rstrip("KM")
    return int(digits) * scale if digits.isdigit() else 1 << 20
