"""Goldens of prices: 1,000 policies of each network on each profile, and some one by one."""

import gzip
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.goldens import networks, subjects
from tests.goldens.stored import (
    FIRST,
    PROJECTIONS,
    difference,
    flags_difference,
    flags_packed,
    json_difference,
    packed,
)

ARRAYS, SINGLES = subjects.FOLDER / "costs.npz", subjects.FOLDER / "costs.json.gz"
NUMBERS, FLAGS = subjects.COSTS, ("fits", "modelled")
POLICY = ("channels", "weight_bits", "activation_bits", "left_out")
SINGLE_TOLERANCE = 1e-8
"""Times of kernels are kept with ten digits."""


def _of(profile: str, network: str) -> tuple[dict[str, NDArray[Any]], Any]:
    """Arrays by name, and what was priced one by one; the second is a text where the part does not know."""
    part = subjects.profiles()[profile]
    batch = subjects.policies(subjects.traced(network).network, part)
    arrays = {name: packed(rows.reshape(-1)) for name, rows in subjects.policy_arrays(batch).items()}
    try:
        model = subjects.model(network, part)
        found = subjects.prices(model, batch)
        arrays |= {name: packed(found[name]) for name in NUMBERS}
        arrays |= {name: flags_packed(found[name]) for name in FLAGS}
        return arrays, list(subjects.single_prices(model, part, batch))
    except subjects.NotKnown as error:
        return arrays, str(error)


def make() -> None:
    """Write both files."""
    singles: dict[str, dict[str, Any]] = {}
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in (*POLICY, *NUMBERS, *FLAGS)}
    unknown = np.full(PROJECTIONS + FIRST, np.nan)
    for profile in subjects.profiles():
        singles[profile] = {}
        for network in networks.KINDS:
            arrays, singles[profile][network] = _of(profile, network)
            for name, rows in columns.items():
                nothing = np.zeros(subjects.POLICIES // 8, np.uint8) if name in FLAGS else unknown
                rows.append(_padded(arrays.get(name, nothing), len(nothing)))
    np.savez_compressed(ARRAYS, **{name: np.array(rows) for name, rows in columns.items()})
    text = json.dumps(singles, separators=(",", ":"))
    SINGLES.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def _padded(values: NDArray[Any], length: int) -> NDArray[Any]:
    """Of a network without branches there are no first values of ``left_out``."""
    return np.concatenate([values, np.zeros(length - len(values), dtype=values.dtype)])


class Kept:
    """The goldens, read."""

    def __init__(self) -> None:
        with np.load(ARRAYS) as arrays:
            self._arrays = dict(arrays)
        self._singles: dict[str, dict[str, Any]] = json.loads(gzip.decompress(SINGLES.read_bytes()))
        self.profiles = list(self._singles)

    def differences(self, profile: str) -> Iterator[str]:
        """A sentence for each column of each network that is another than it was."""
        for place, network in enumerate(networks.KINDS):
            row = self.profiles.index(profile) * len(networks.KINDS) + place
            yield from (f"{profile}, {network}, {what}" for what in self._of_network(profile, network, row))

    def _of_network(self, profile: str, network: str, row: int) -> Iterator[str]:
        part = subjects.profiles()[profile]
        batch = subjects.policies(subjects.traced(network).network, part)
        for name, rows in subjects.policy_arrays(batch).items():
            kept = self._arrays[name][row][: PROJECTIONS + min(FIRST, rows.size)]
            if (what := difference(kept, rows.reshape(-1))) is not None:
                yield f"the policies themselves: {name} of policy (row * {batch.count} + policy) {what}"
        singles = self._singles[profile][network]
        try:
            model = subjects.model(network, part)
            found = subjects.prices(model, batch)
        except subjects.NotKnown as error:
            if not isinstance(singles, str):
                yield f"all columns: prices were kept, now they are not known: {error}"
            return
        if isinstance(singles, str):
            yield f"all columns: it was kept that prices are not known ({singles}), now there are some"
            return
        for name in NUMBERS:
            if (what := difference(self._arrays[name][row], found[name])) is not None:
                yield f"{name} of policy {what}"
        for name in FLAGS:
            if (what := flags_difference(self._arrays[name][row], found[name])) is not None:
                yield f"{name} of policy {what}"
        came = json.loads(json.dumps(list(subjects.single_prices(model, part, batch))))
        if (what := json_difference(singles, came, SINGLE_TOLERANCE)) is not None:
            yield f"one by one: {what}"
