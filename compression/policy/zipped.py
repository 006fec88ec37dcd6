"""Size of a file after somebody has zipped it, without writing it: what an update over the air moves."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from leanfront.compression.policy.batch import PolicyBatch

FLOAT, HALF = 32, 16
"""Bits of weights that are no codes."""
LEVEL = 6
"""Of zlib's deflate, which zip, gzip and most updaters use."""


def zipped_bytes(batch: "PolicyBatch") -> NDArray[np.float64]:
    """(n,): bytes of each policy's file after deflate, from what was measured of the network's own weights
    (``Layer.zipped``): of each layer its weights times what one takes at its bits and share of zeros (the
    least of several patterns), and the rest of the file times how well that is zipped. Between measured
    shares of zeros a line is drawn.

    Raises:
        ValueError: nothing was measured of a layer, or not at these bits.
    """
    layers, counts = batch.network.layers, batch.weight_counts.astype(np.float64)
    stored, found = np.zeros(batch.count), np.zeros(batch.count)
    rest = (1.0, 1.0)
    for row, layer in enumerate(layers):
        if layer.zipped is None:
            raise ValueError(
                "what a zipped file takes must be measured of the network's weights, and nothing was of layer"
                f" {layer.name!r}; search for zipped_bytes with a configuration"
            )
        rest, bits = layer.zipped.rest, batch.weight_bits[row]
        one, held = np.full(batch.count, np.inf), np.zeros(batch.count)
        for pattern, width, in_file, shares, sizes in layer.zipped.each:
            share = batch.more[pattern][row] if pattern in batch.more else np.zeros(batch.count)
            here = bits == width
            one = np.where(here, np.minimum(one, np.interp(share, shares, sizes)), one)
            held = np.where(here, in_file / 8, held)
        if not np.isfinite(one).all():
            known = ", ".join(sorted({str(width) for _, width, *_ in layer.zipped.each}))
            raise ValueError(f"weights of {known} bits were zipped, and a policy has others")
        found += counts[row] * one
        stored += counts[row] * held
    there = counts > 0
    integer = (batch.integer_layers & there).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    kept = rest[0] + (rest[1] - rest[0]) * integer
    return np.asarray(found + kept * np.maximum(batch.size_bytes() - stored, 0.0))
