"""What scores rest on besides the weights, kept with a run for searches that start from it."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from leanfront.compression.capture.program import tensors_in
from leanfront.search.data import Data, as_data

if TYPE_CHECKING:
    from leanfront.compression.capture.trace import Traced
    from leanfront.hw_profiles import HardwareProfile
    from leanfront.search.task import Task

_LOOKED_AT = 64
"""Examples of a split, evenly spread, that stand for all of it."""


def basis(task: "Task", traced: "Traced", profile: "HardwareProfile") -> Mapping[str, Any]:
    """For a run's environment: the data, where the zeros of tensors' grids lie, and what channel counts are
    multiples of."""
    return {
        "data": data_digest(as_data(task.train), as_data(task.search)),
        "grids": traced.grids,
        "channel_multiple": profile.channel_multiple,
    }


def data_digest(*splits: Data) -> str:
    """Of what splits hold: how many examples, and what some are."""
    import torch

    digest = hashlib.sha256()
    for data in splits:
        places = np.unique(np.linspace(0, len(data) - 1, _LOOKED_AT).astype(int))
        digest.update(str(len(data)).encode())
        for tensor in tensors_in(data.batch(torch.from_numpy(places), None)):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
