"""Thousands of numbers kept in a few, and the sentence that says which of them is another now."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FIRST = 16
"""Values that are kept as they are."""
PROJECTIONS = 6
"""Sums of all values with random weights that are kept beside them."""
TOLERANCE = 1e-9

Numbers = NDArray[np.float64]


def packed(values: NDArray[Any]) -> Numbers:
    """(n,) -> (PROJECTIONS + FIRST,): sums of all finite values with random weights, and the first values."""
    numbers = np.asarray(values, dtype=np.float64)
    return np.concatenate([_weights(len(numbers)) @ _finite(numbers), numbers[:FIRST]])


def _weights(count: int) -> Numbers:
    return np.random.default_rng(20).standard_normal((PROJECTIONS, count))


def _finite(values: Numbers) -> Numbers:
    return np.where(np.isfinite(values), values, 0.0)


def difference(kept: Numbers, values: NDArray[Any], tolerance: float = TOLERANCE) -> str | None:
    """What is another than it was, "12: 1.5 was kept, 1.25 came"; None where all is as kept."""
    numbers = np.asarray(values, dtype=np.float64)
    sums, first = kept[:PROJECTIONS], kept[PROJECTIONS:]
    if len(first) != min(len(numbers), FIRST):
        return f"{len(first)} first values were kept, {len(numbers)} values came"
    same = np.isclose(first, numbers[:FIRST], rtol=tolerance, atol=0.0, equal_nan=True)
    if not same.all():
        index = int(np.flatnonzero(~same)[0])
        others = f" (and {(~same).sum() - 1} others of the first {FIRST})" if (~same).sum() > 1 else ""
        return f"{index}: {float(first[index])!r} was kept, {float(numbers[index])!r} came{others}"
    weights, finite = _weights(len(numbers)), _finite(numbers)
    gap = sums - weights @ finite
    if (np.abs(gap) <= tolerance * (np.abs(weights) @ np.abs(finite))).all():
        return None
    # if one value alone is another, the gaps are in the proportions of its weights
    likeness = np.abs(gap @ weights) / (np.linalg.norm(gap) * np.linalg.norm(weights, axis=0))
    index = int(likeness.argmax())
    if likeness[index] > 1 - 1e-6:
        was = numbers[index] + gap @ weights[:, index] / (weights[:, index] @ weights[:, index])
        return f"{index} alone: about {float(was)!r} was kept, {float(numbers[index])!r} came"
    worst = (np.abs(gap) / (np.abs(weights) @ np.abs(finite))).max()
    return f"several beyond the first {FIRST}: their weighted sums differ by up to {worst:.2g} of all"


def flags_packed(flags: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Booleans, eight in a byte."""
    return np.packbits(np.asarray(flags, dtype=np.bool_).reshape(-1))


def flags_difference(kept: NDArray[np.uint8], flags: NDArray[np.bool_]) -> str | None:
    """As ``difference``, of booleans."""
    flat = np.asarray(flags, dtype=np.bool_).reshape(-1)
    before = np.unpackbits(kept, count=len(flat)).astype(np.bool_) if len(kept) * 8 >= len(flat) else None
    if before is None:
        return f"{len(kept) * 8} booleans were kept, {len(flat)} came"
    other = np.flatnonzero(before != flat)
    if not len(other):
        return None
    index = int(other[0])
    return f"{index}: {bool(before[index])} was kept, {bool(flat[index])} came (and {len(other) - 1} others)"


def json_difference(kept: Any, came: Any, tolerance: float = TOLERANCE, where: str = "") -> str | None:
    """The first place at which two JSON values differ, numbers by more than a tolerance."""
    if isinstance(kept, dict) and isinstance(came, dict):
        if list(kept) != list(came):
            gone, new = [k for k in kept if k not in came], [k for k in came if k not in kept]
            what = f"gone {gone}, new {new}" if gone or new else f"order {list(kept)} is {list(came)}"
            return f"{where or 'top'}: keys: {what}"
        pairs = [(f"{where}.{key}" if where else key, kept[key], came[key]) for key in kept]
    elif isinstance(kept, list) and isinstance(came, list):
        if len(kept) != len(came):
            return f"{where or 'top'}: {len(kept)} entries were kept, {len(came)} came: {came!r:.300}"
        pairs = [(f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip(kept, came, strict=True))]
    else:
        numbers = [isinstance(v, (int, float)) and not isinstance(v, bool) for v in (kept, came)]
        if all(numbers):
            same = bool(np.isclose(kept, came, rtol=tolerance, atol=0.0, equal_nan=True))
        else:
            same = type(kept) is type(came) and kept == came
        return None if same else f"{where or 'top'}: {kept!r} was kept, {came!r} came"
    return next((found for path, a, b in pairs if (found := json_difference(a, b, tolerance, path))), None)
