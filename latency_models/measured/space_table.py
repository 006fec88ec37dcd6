"""Before a table can price a space: see what its kernels become, and time some whole networks of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from leanfront.compression.policy import Policy
from leanfront.latency_models.measured.policy_draws import Cover, alone, draw, spread_evenly

if TYPE_CHECKING:
    from leanfront.compression.graph import Network
    from leanfront.compression.policy.space import Space
    from leanfront.latency_models.benchmark.timing import Reference, Timing
    from leanfront.latency_models.measured.correction import Correction
    from leanfront.latency_models.measured.model import TableModel
    from leanfront.latency_models.measured.optimised_kernels import Structure

Log = Callable[[str], None]

SAMPLES = 64
"""Whole networks that are measured for the correction."""
DRAWS = 160
"""Policies from which these are chosen, spread evenly over the range of predicted latency."""
BATCH = 24
REPEATS = 3
"""Networks that are timed against each other, and how often those are timed again that were disturbed."""
SURPRISES = 30
SURE = 0.02
SURPRISE_SECONDS = 20.0
"""Networks are built until, of so many new ones, only this share of the kernels is not as expected,
for at most so long. What is left are transposes that land on one side of an addition or the other."""
SHALLOW = 40
"""Policies of one precision that are built besides, where branches can be left out."""
COVER_SECONDS = 40.0
"""How long to look for kernels that the space can reach; what is found later is estimated from these."""


def cover(structure: "Structure", space: "Space", log: Log) -> list[Policy]:
    """See what becomes of every kernel at every width and precision that the space offers.

    Returns policies spread over the space, for the calibration.
    """
    rng = np.random.default_rng(0)
    deadline = time.perf_counter() + COVER_SECONDS
    left = Cover(space)
    draws = [draw(space, rng) for _ in range(DRAWS)]
    drawn = list(dict.fromkeys([*space.seeds(), *draws]))
    # networks of one precision are what searches end at, and rare among mixes of bits and branches
    shallow = [draw(space, rng, mode) for mode in ("integer", "float") for _ in range(SHALLOW)]
    deep = [space.random(rng, depth=False) for _ in range(DRAWS)]  # every kernel at every mix of bits
    more = [*alone(space), *shallow, *deep] if space.branches else []
    for policy in dict.fromkeys([*drawn, *more]):
        structure.observe(space.resized(policy), policy)
        left.note(policy)
    while not left.complete and time.perf_counter() < deadline:
        policy = left.next(rng)
        structure.observe(space.resized(policy), policy)
        left.note(policy)
    if not left.complete:
        log(f"{left.left} combinations of widths and bits are left to be estimated from their neighbours")
    deadline = time.perf_counter() + SURPRISE_SECONDS
    while _surprises(structure, space, rng) > SURE and time.perf_counter() < deadline:
        pass
    return drawn


def _surprises(structure: "Structure", space: "Space", rng: np.random.Generator) -> float:
    """Share of the kernels of some new policies that became something else than expected; all are noted."""
    policies = [draw(space, rng) if i % 2 else space.random(rng) for i in range(SURPRISES)]
    networks = [space.resized(policy) for policy in policies]
    expected = [structure.foretold(n, policy) for n, policy in zip(networks, policies, strict=True)]
    found = [structure.observe(n, policy) for n, policy in zip(networks, policies, strict=True)]
    return float(
        np.mean([a != b for e, f in zip(expected, found, strict=True) for a, b in zip(e, f, strict=True)])
    )


def calibrated(
    plain: "TableModel", space: "Space", draws: Sequence[Policy], reference: "Reference", log: Log
) -> "Correction":
    """Measure some whole networks, spread evenly over what ``plain`` predicts, and fit the correction; none
    where the space has too few networks for a fit. The uncompressed network is among them: every ratio that
    a search shows is one to it."""
    from leanfront.latency_models.benchmark.timing import noise
    from leanfront.latency_models.measured.correction import LEAST_SAMPLES, Correction, Sample, fit

    if len(draws) < LEAST_SAMPLES:
        log(f"the space has {len(draws)} networks, too few for a correction: kernels are added up")
        return Correction()
    expected = [plain.latency_ms(space.resized(policy), policy) for policy in draws]
    spread = [draws[index] for index in spread_evenly(expected, SAMPLES)]
    chosen = list(dict.fromkeys([space.uniform(0.0, max(space.pairs)), *spread]))
    log(f"measuring {len(chosen)} whole networks for the correction")
    timings = measure_policies(plain, space, chosen, reference)
    if warning := noise(timings):
        log(f"warning: {warning}")
    samples = []
    for index, policy in enumerate(chosen):
        features = plain.features(space.resized(policy), policy)
        samples.append(Sample(features, timings[str(index)].median_ms))
    return fit(samples)


def measure_policies(
    model: "TableModel",
    space: "Space",
    policies: Sequence[Policy],
    reference: "Reference",
    blocks: int = 5,
) -> Mapping[str, "Timing"]:
    """Time the networks of policies against each other, as ``model`` has them stored; index (as text) ->
    timing."""
    from leanfront.latency_models.benchmark.timing import time_models

    structure = model.structure
    timings: dict[str, Timing] = {}
    waiting = [int(index) for index in np.random.default_rng(0).permutation(len(policies))]
    for _ in range(REPEATS):
        for start in range(0, len(waiting), BATCH):
            models = {
                str(index): built(model, space.resized(policies[index]), policies[index])
                for index in waiting[start : start + BATCH]
            }
            timings |= time_models(models, structure.threads, blocks, structure.provider, reference=reference)
        now = reference.undisturbed_ms
        waiting = [i for i in waiting if timings[str(i)].disturbed or timings[str(i)].stale(now)]
    return timings


def built(model: "TableModel", network: "Network", policy: Policy) -> bytes:
    """A policy's network with random weights, stored as runs fastest by the model's table."""
    from onnx import load_from_string

    from leanfront.latency_models.benchmark.shifted_weights import shifted
    from leanfront.latency_models.measured.optimised_kernels import canonical

    plain = model.structure.build(network, canonical(policy))
    layers = model.shifted(network, policy)
    return shifted(load_from_string(plain), layers).SerializeToString() if layers else plain
