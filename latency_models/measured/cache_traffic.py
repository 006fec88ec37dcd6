"""Constants that a network reads from beyond the near cache.

Networks run in the same order again and again, the worst case of a least-recently-used cache: once the
working set is larger than the cache nothing of it is found there. Tensors take room, too, so it begins at
half the size.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def far_share(working_bytes: ArrayLike, near_cache_bytes: float) -> NDArray[np.float64]:
    """Share of the constants that a network with so many of them reads from beyond the near cache."""
    ramp = _ramp(np.asarray(working_bytes, dtype=np.float64), near_cache_bytes)
    return np.asarray(np.minimum(np.maximum(ramp, 0.0), 1.0))


def far_bytes(stored_bytes: float, far_alone_bytes: float, near_cache_bytes: float) -> float:
    """Constants of one network that come from there, but did not when kernels were timed alone."""
    share: float = min(1.0, max(0.0, _ramp(stored_bytes, near_cache_bytes)))
    return max(0.0, share * stored_bytes - far_alone_bytes)


def _ramp(working_bytes: Any, near_cache_bytes: float) -> Any:
    """From 0 to 1 where the cache begins to be too small; below and above it goes on."""
    begin, end = 0.45 * near_cache_bytes, 1.25 * near_cache_bytes
    return (working_bytes - begin) / (end - begin)
