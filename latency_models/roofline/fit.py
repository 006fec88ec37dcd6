"""Fit the numbers of a roofline to measurements of whole networks on the part itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph import Network
from leanfront.compression.policy import Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.hw_profiles import HardwareProfile, Roofline
from leanfront.latency_models.registry import section_of
from leanfront.latency_models.roofline.model import Times, times
from leanfront.latency_models.roofline.work import Work, work_of

FEWEST = 3
"""Networks, from which on some can be left out to see how well the others foretell them."""
_PULLS = (0.03, 0.1, 0.3, 1.0)
"""How strongly a number is held where it was, per factor e; the one that foretells best is taken."""
_LARGE = 0.1
"""Relative errors beyond this weigh less (soft l1): one odd measurement does not bend all numbers."""
_SHARES = ("efficiency", "depthwise_efficiency", "bandwidth_efficiency")
_PLAIN = (
    "overhead_ms", "value_ns", "sum_byte_ns", "im2col_passes", "tensor_passes", "gathered_passes",
    "joined_value_ns",
)  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """One inference of a batch of one on the part. ``network`` is cut as ``policy`` wants it."""

    name: str
    precision: str
    network: Network
    policy: Policy
    latency_ms: float
    energy_mj: float | None = None


@dataclass(frozen=True)
class Fit:
    """numbers: path in the profile -> its new value. By row, (n,), ms: before, after, and ``left_out``, what
    the numbers fitted to the other networks say of it; None with fewer than ``FEWEST`` networks."""

    numbers: Mapping[str, float]
    before_ms: NDArray[np.float64]
    after_ms: NDArray[np.float64]
    left_out_ms: NDArray[np.float64] | None


def fit(profile: HardwareProfile, rows: Sequence[Measurement]) -> Fit:
    """The numbers of a profile's roofline with which it foretells the rows best.

    Least squares of log(predicted / measured), with a pull towards the numbers that are there, so that what
    no row tells about stays. How strong that pull is, is decided by networks left out. Peaks that were
    published stay; what networks reach of them is fitted. With energies, power while computing and while
    waiting for memory are fitted by non-negative least squares.

    Raises:
        TableError: the profile is no roofline, or a row has bits that the part cannot run.
    """
    roofline = section_of(profile, Roofline)
    works = [work_of(PolicyBatch.one(row.network, row.policy), profile, roofline) for row in rows]
    measured = np.array([row.latency_ms for row in rows])
    names = [row.name for row in rows]
    problem = _Problem(roofline, works, np.log(measured), _tunable(roofline, rows))
    groups = [[i for i, each in enumerate(names) if each == name] for name in dict.fromkeys(names)]
    left_out = None
    pull = _PULLS[-2]
    if len(groups) >= FEWEST:
        tried = {each: problem.left_out(groups, each) for each in _PULLS}
        pull = min(tried, key=lambda each: float(np.abs(np.log(tried[each] / measured)).mean()))
        left_out = tried[pull]
    numbers = problem.solved(range(len(rows)), pull)
    fitted = with_numbers(roofline, numbers)
    found = {f"roofline.{name}": value for name, value in _all(roofline, numbers).items()}
    found |= _power(profile, rows, [times(work, fitted) for work in works])
    return Fit(found, problem.predicted_ms(roofline), problem.predicted_ms(fitted), left_out)


def with_numbers(roofline: Roofline, numbers: Mapping[str, float]) -> Roofline:
    """The roofline with some numbers replaced: "overhead_ms", or "efficiency.8" in a table by bits."""
    update: dict[str, Any] = {}
    for path, value in _all(roofline, numbers).items():
        name, _, bits = path.partition(".")
        if bits:
            update.setdefault(name, dict(getattr(roofline, name)))[bits] = float(value)
        else:
            update[name] = float(value)
    return roofline.model_copy(update=update)


def _all(roofline: Roofline, numbers: Mapping[str, float]) -> dict[str, float]:
    """With what goes with them: a change of precision that takes as long as any kernel goes on doing so."""
    found = dict(numbers)
    if "overhead_ms" in found and roofline.conversion_overhead_ms == roofline.overhead_ms:
        found["conversion_overhead_ms"] = found["overhead_ms"]
    return found


def _tunable(roofline: Roofline, rows: Sequence[Measurement]) -> dict[str, float]:
    """Numbers that are fitted, with where they are now: what is reached of peaks, not the peaks where they
    stand beside it; of units that no row uses, none."""
    wide = {
        max(layer.weight_bits, layer.activation_bits) for row in rows for layer in row.policy.there().values()
    }
    units = {str(roofline.unit(bits)) for bits in wide}
    found: dict[str, float] = {}
    for bits, peak in roofline.macs_per_ms.items():
        if bits not in units:
            continue
        reached = roofline.efficiency.get(bits)
        found |= {f"efficiency.{bits}": reached} if reached else {f"macs_per_ms.{bits}": peak}
        if share := roofline.depthwise_efficiency.get(bits):
            found[f"depthwise_efficiency.{bits}"] = share
        if value := roofline.image_value_ns.get(bits):
            found[f"image_value_ns.{bits}"] = value
    if share := roofline.bandwidth_efficiency:
        found["bandwidth_efficiency"] = share
    else:
        found["bandwidth_bytes_per_ms"] = roofline.bandwidth_bytes_per_ms
    return found | {name: value for name in _PLAIN if (value := getattr(roofline, name))}


class _Problem:
    """Rows as what they ask of the part, and the numbers that are sought."""

    def __init__(
        self,
        roofline: Roofline,
        works: Sequence[Work],
        measured: NDArray[np.float64],
        start: Mapping[str, float],
    ) -> None:
        self._roofline, self._works, self._measured = roofline, works, measured
        self._names, self._first = list(start), np.log(list(start.values()))

    def predicted_ms(self, roofline: Roofline) -> NDArray[np.float64]:
        """(n,)."""
        return np.array([float(times(work, roofline).latency_ms.sum()) for work in self._works])

    def solved(self, rows: Sequence[int] | range, pull: float) -> dict[str, float]:
        """The numbers that foretell these rows best."""
        from scipy.optimize import least_squares

        chosen = list(rows)
        part = _Problem(self._roofline, [self._works[i] for i in chosen], self._measured[chosen], {})

        def residuals(logs: NDArray[np.float64]) -> NDArray[np.float64]:
            there = with_numbers(self._roofline, dict(zip(self._names, np.exp(logs), strict=True)))
            off = np.log(part.predicted_ms(there)) - part._measured
            return np.concatenate([off, pull * (logs - self._first)])

        most = [0.0 if name.partition(".")[0] in _SHARES else np.inf for name in self._names]
        start = np.minimum(self._first, np.array(most) - 1e-9)  # a share is at most 1
        found = least_squares(
            residuals, start, bounds=(-np.inf, most), loss="soft_l1", f_scale=_LARGE, xtol=1e-5, ftol=1e-5
        )
        return dict(zip(self._names, map(float, np.exp(found.x)), strict=True))

    def left_out(self, groups: Sequence[Sequence[int]], pull: float) -> NDArray[np.float64]:
        """(n,): of each row what is foretold by numbers fitted to the other groups."""
        found = np.zeros(len(self._works))
        for group in groups:
            others = [index for index in range(len(self._works)) if index not in group]
            there = with_numbers(self._roofline, self.solved(others, pull))
            for index in group:
                found[index] = float(times(self._works[index], there).latency_ms.sum())
        return found


def _power(profile: HardwareProfile, rows: Sequence[Measurement], timed: Sequence[Times]) -> dict[str, float]:
    """Watts while computing and while waiting for memory; nothing without energies. Energies are of the
    measured time: parts of it are taken as the model shares it out."""
    from scipy.optimize import nnls

    known = [(row, each) for row, each in zip(rows, timed, strict=True) if row.energy_mj]
    if not known:
        return {}
    energies = np.array([row.energy_mj or 0.0 for row, _ in known])
    took = np.array([row.latency_ms for row, _ in known])
    usual = float(np.median(energies / took))
    if section_of(profile, Roofline).memory_power_w is None:
        return {"power_w": usual}
    same = {"power_w": usual, "roofline.memory_power_w": usual}
    if len(known) < FEWEST:
        return same
    parts = np.array([[t.compute_ms.sum(), t.other_ms.sum()] for _, t in known])
    parts *= (took / parts.sum(axis=1))[:, None]
    busy, waiting = (float(watts) for watts in nnls(parts / energies[:, None], np.ones(len(known)))[0])
    if min(busy, waiting) <= 0.0:
        return same  # the rows do not tell them apart
    return {"power_w": busy, "roofline.memory_power_w": waiting}
