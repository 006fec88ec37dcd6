"""An estimate for a kernel that the table lacks, from measured kernels of the same kind."""

import math
from collections.abc import Mapping

import numpy as np

from leanfront.latency_models.cost import TableError
from leanfront.latency_models.kernel_table.keys import computes_layer, read_bytes_of, sizes_of, without_sizes
from leanfront.latency_models.kernel_table.table import CALL, LatencyTable, how_to_measure

_NEIGHBOURS = 4


class Nearest:
    """Kernels of a table by kind: operation, attributes and element types, whatever their shapes."""

    def __init__(self, table: LatencyTable) -> None:
        self._profile = table.profile
        self._kinds: dict[str, dict[tuple[int, ...], float]] = {}
        moved: dict[tuple[int, ...], list[float]] = {}
        for key, entry in table.items():
            if key == CALL:
                continue
            self._kinds.setdefault(without_sizes(key), {})[_sizes(key)] = entry.median_ms
            if not computes_layer(key):
                moved.setdefault((max(1, read_bytes_of(key)),), []).append(entry.median_ms)
        self._moved = {size: float(np.mean(taken)) for size, taken in moved.items()}

    def estimate(self, key: str) -> float:
        """Latency in ms, from all shapes of the kind. Of what is no layer and of no kind that was measured,
        from what it reads, and all that was measured and is no layer.

        Raises:
            TableError: no layer of this kind was measured, or nothing at all.
        """
        sizes = _sizes(key)
        known = self._kinds.get(without_sizes(key), {})
        known = {other: taken_ms for other, taken_ms in known.items() if len(other) == len(sizes)}
        if not known and self._moved and not computes_layer(key):
            return between_widths(self._moved, (max(1, read_bytes_of(key)),))
        if not known:
            raise TableError(
                f"the latency table of profile {self._profile!r} has no entry for {key!r}, nor for any of its"
                f" kind; {how_to_measure(self._profile)}"
            )
        return between_widths(known, sizes)


def _sizes(key: str) -> tuple[int, ...]:
    return tuple(size for size in sizes_of(key) if size)


def between_widths(values: Mapping[tuple[int, ...], float], widths: tuple[int, ...]) -> float:
    """A kernel's number at widths that were not seen, from those that were.

    A plane through the logarithms of the widths (least squares, kept flat where little was seen), and of
    what it misses the mean of the nearest widths, the nearer the heavier. 0 where all values are.
    """
    seen = np.log(np.array(list(values), dtype=np.float64).reshape(len(values), -1))
    found = np.array(list(values.values()))
    if not (found > 0).all():
        return float(found.mean())
    here = np.log(np.array(widths, dtype=np.float64))
    centre, level = seen.mean(axis=0), float(np.log(found).mean())
    away, rest = seen - centre, np.log(found) - level
    slopes = np.linalg.solve(away.T @ away + 0.01 * np.eye(len(here)), away.T @ rest)
    missed = rest - away @ slopes
    weights = 1.0 / (np.abs(seen - here).sum(axis=1) + 1e-3) ** 2
    nearest = np.argsort(-weights)[:_NEIGHBOURS]
    missing = float(np.average(missed[nearest], weights=weights[nearest]))
    return math.exp(level + float((here - centre) @ slopes) + missing)
