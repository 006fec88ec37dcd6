"""Size of a file after somebody has zipped it, without writing it: what an update over the air moves."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.policy.file_size import storage_bits
from leanfront.compression.policy.zeros import PATTERNS

if TYPE_CHECKING:
    from leanfront.compression.policy.batch import PolicyBatch

LEVEL = 6
"""Of zlib's deflate, which zip, gzip and most updaters use."""


def zipped_bytes(batch: "PolicyBatch") -> NDArray[np.float64]:
    """(n,): bytes of each policy's file after deflate, from what was measured of the network's own weights
    (``Layer.zipped``): of each layer its weights times what one takes at its bits and share of zeros, and the
    rest of the file times how well that is zipped. Between measured shares of zeros a line is drawn.

    Raises:
        ValueError: nothing was measured of a layer, or not at these bits.
    """
    layers, counts = batch.network.layers, batch.weight_counts.astype(np.float64)
    none = np.zeros(counts.shape)
    shares = np.maximum.reduce([none, *(batch.more[name] for name in PATTERNS if name in batch.more)])
    stored, found = np.zeros(batch.count), np.zeros(batch.count)
    rest = (1.0, 1.0)
    for row, layer in enumerate(layers):
        if layer.zipped is None:
            raise ValueError(
                "what a zipped file takes must be measured of the network's weights, and nothing was of layer"
                f" {layer.name!r}; search for zipped_bytes with a configuration"
            )
        rest, each = layer.zipped.rest, dict(layer.zipped.each)
        for bits in np.unique(batch.weight_bits[row]).tolist():
            if bits not in each:
                known = ", ".join(map(str, each))
                raise ValueError(
                    f"nothing was zipped with weights of {bits} bits; there are those of {known} bits"
                )
            here = batch.weight_bits[row] == bits
            one = np.interp(shares[row], layer.zipped.shares, each[bits])
            found += np.where(here, counts[row] * one, 0.0)
            stored += np.where(here, counts[row] * storage_bits(bits) / 8, 0.0)
    there = counts > 0
    integer = (batch.integer_layers & there).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    kept = rest[0] + (rest[1] - rest[0]) * integer
    return np.asarray(found + kept * np.maximum(batch.size_bytes() - stored, 0.0))
