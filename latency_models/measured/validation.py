"""How well a search's cost model predicts networks that are really run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from leanfront.compression.policy import Policy
from leanfront.latency_models.errors import TableError
from leanfront.latency_models.measured.policy_draws import draw, spread_evenly

if TYPE_CHECKING:
    from leanfront.compression.policy.space import Space
    from leanfront.latency_models.measured.correction import Accuracy
    from leanfront.latency_models.measured.model import TableModel

DRAWS_PER_POLICY = 6
LEAST_HELD_OUT = 2
"""Networks that another device must have timed and the fit not seen."""


@dataclass(frozen=True)
class Compared:
    """One network: predicted and measured latency, and the spread of the measurement."""

    policy: Policy
    predicted_ms: float
    measured_ms: float
    spread: float

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted_ms / self.measured_ms - 1.0


@dataclass(frozen=True)
class Validation:
    """Networks spread evenly over a space's range of latency. ``noise``: a sentence where the machine was."""

    accuracy: "Accuracy"
    rows: tuple[Compared, ...]
    noise: str | None


def validate(
    model: "TableModel",
    space: "Space",
    count: int = 40,
    seed: int = 1,
    log: Callable[[str], None] = lambda line: None,
) -> Validation:
    """Draw policies, build their networks with random weights, time them, and compare with what a search's
    trials are priced at (``TableModel.as_built``).

    Where the table is another device's, networks that it timed and the fit has not seen are compared.

    ``seed`` must not be 0, with which the calibration drew its own.

    Raises:
        TableError: onnxruntime refuses a network.
    """
    from leanfront.latency_models.benchmark.measuring_lock import measuring
    from leanfront.latency_models.benchmark.timing import Reference, noise
    from leanfront.latency_models.measured.correction import accuracy
    from leanfront.latency_models.measured.space_table import measure_policies

    if there := _timed_there(model):
        return there
    rng = np.random.default_rng(seed)
    drawn = list(dict.fromkeys(draw(space, rng) for _ in range(DRAWS_PER_POLICY * count)))
    expected = [model.latency_ms(space.resized(policy), policy) for policy in drawn]
    chosen = [drawn[index] for index in spread_evenly(expected, count)]
    log(f"measuring {len(chosen)} networks")
    with measuring(log):
        reference = Reference(model.table.device.threads, model.table.reference_ms)
        timings = measure_policies(model, space, chosen, reference)
    rows = []
    for index, policy in enumerate(chosen):
        timing = timings[str(index)]
        predicted_ms = model.as_built(space.resized(policy), policy).latency_ms
        rows.append(Compared(policy, predicted_ms, timing.median_ms, timing.spread))
    compared = accuracy([row.predicted_ms for row in rows], [row.measured_ms for row in rows])
    return Validation(compared, tuple(rows), noise(timings))


def _timed_there(model: "TableModel") -> Validation | None:
    """The networks that another device timed and the fit has not seen; None where it is this machine."""
    from leanfront.latency_models.kernel_table.table import this_device
    from leanfront.latency_models.measured.correction import accuracy

    device = model.table.device
    if not model.imported or device == this_device(device.threads, device.provider):
        return None
    if len(model.held_out) < LEAST_HELD_OUT:
        raise TableError(
            f"profile {model.profile.name!r} was measured on {device}, which timed too few whole networks to"
            f" validate it; `leanfront profile kit {model.profile.name} --config CONFIG --out DIR` does"
        )
    rows = tuple(
        Compared(one.policy, model.latency_ms(one.cut, one.policy), one.measured_ms, one.spread)
        for one in model.held_out
    )
    compared = accuracy([row.predicted_ms for row in rows], [row.measured_ms for row in rows])
    return Validation(compared, rows, model.noise)
