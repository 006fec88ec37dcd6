"""Memory of a worker that does not grow from trial to trial."""

import ctypes
import gc
from collections.abc import Callable
from functools import cache


def keep_what_is_there() -> None:
    """Call once before the trials: what lives now is not looked through again by ``give_back``."""
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """Give the memory of a finished trial back to the system; some milliseconds.

    A traced module and its graph refer to each other, so that only Python's garbage collection frees its
    weights, and among a hundred thousand lasting objects that comes every twenty trials or so. What is freed
    then lies scattered over the heap, which glibc keeps unless it is told to trim: on VGG-11 that was more
    than the weights.
    """
    gc.collect()
    _trim()(0)


@cache
def _trim() -> Callable[[int], int]:
    """glibc's malloc_trim; where there is none, nothing."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return lambda pad: 0
    return trim
