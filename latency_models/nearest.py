"""An estimate for a kernel that the table lacks, from measured kernels of the same kind."""

import math
import re
from collections.abc import Iterable

from latency_models.cost import TableError
from latency_models.table import CALL, LatencyTable

_SHAPE = re.compile(r"\[([\dx]*)\]")
_NEIGHBOURS = 4


class Nearest:
    """Kernels of a table by kind: operation, attributes and element types, whatever their shapes."""

    def __init__(self, table: LatencyTable) -> None:
        self._profile = table.profile
        self._kinds: dict[str, list[tuple[tuple[float, ...], float]]] = {}
        for key, entry in table.items():
            if key != CALL:
                kind, sizes = _taken_apart(key)
                self._kinds.setdefault(kind, []).append((sizes, math.log(entry.median_ms)))

    def estimate(self, key: str) -> float:
        """Latency in ms, interpolated on logarithmic scales between the nearest shapes.

        Raises:
            TableError: no kernel of this kind was measured.
        """
        kind, sizes = _taken_apart(key)
        known = [(_distance(sizes, other), log_ms) for other, log_ms in self._kinds.get(kind, [])]
        if not known:
            raise TableError(
                f"the latency table of profile {self._profile!r} has no entry for {key!r}, nor for any of its"
                " kind; `leanfront check CONFIG` measures what a search needs"
            )
        known.sort()
        weights = [1.0 / (distance + 1e-3) ** 2 for distance, _ in known[:_NEIGHBOURS]]
        mean = sum(w * log_ms for w, (_, log_ms) in zip(weights, known, strict=False)) / sum(weights)
        return math.exp(mean)


def _taken_apart(key: str) -> tuple[str, tuple[float, ...]]:
    sizes = [math.log(float(n)) for shape in _SHAPE.findall(key) for n in shape.split("x") if n and n != "0"]
    kind = _SHAPE.sub(lambda match: f"[{match[1].count('x')}]", key)
    kind = re.sub(r" (channels|group)=\d+", "", kind)
    return kind, tuple(sizes)


def _distance(a: Iterable[float], b: Iterable[float]) -> float:
    return sum(abs(x - y) for x, y in zip(a, b, strict=False))
