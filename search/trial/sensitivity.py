"""How much each decision of a space hurts when it alone is taken, before any training."""

import csv
import hashlib
import io
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanfront.compression.policy.space import Space
from leanfront.latency_models.files import replace_file
from leanfront.search.run.significance import examples_of

if TYPE_CHECKING:
    from leanfront.search.trial.scorer import Scorer

Log = Callable[[str], None]
METHOD = "3"
"""Part of the cache's key: another number whenever something here changes what is measured."""
IMAGES = 500
NORM_IMAGES = 256
RANGE_IMAGES = 128
"""Images on which the divergence is taken, batch norms are estimated, and ranges are calibrated. On ResNet-20
these rank the 108 networks as 1000, 1024 and 512 images do (Spearman .997) in half of the time."""
COLUMNS = ("decision", "code", "level", "divergence", "accuracy")


@dataclass(frozen=True)
class Sensitivities:
    """What each code of each decision costs alone, all others as in the uncompressed network.

    divergence: name of the decision as in the study -> one mean KL(teacher || network), in nats, for each of
    its codes; accuracy: likewise. baseline_divergence: of the uncompressed network at the widest bits of the
    space, 0 where it has floats. images: scored on so many; seconds: that the pass took when it was measured.
    """

    divergence: Mapping[str, tuple[float, ...]]
    accuracy: Mapping[str, tuple[float, ...]]
    baseline_divergence: float
    images: int
    seconds: float


def measure(scorer: "Scorer", space: Space, log: Log) -> Sensitivities:
    """The sensitivities, measured now or taken from the cache, where they lie under a hash of the network,
    the images and the space."""
    from leanfront.latency_models.remembered import remembered

    key = _key(scorer, space)
    return remembered("sensitivities", key, lambda: _measured(scorer, space, log), asdict, _read)


def write_csv(path: Path, space: Space, found: Sensitivities) -> None:
    """One line for each code of each decision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for decision in space.decisions:
        values = zip(
            decision.texts, found.divergence[decision.name], found.accuracy[decision.name], strict=True
        )
        writer.writerows((decision.name, code, *value) for code, value in enumerate(values))
    replace_file(path, text.getvalue())


def summary(found: Sensitivities) -> dict[str, float]:
    """What environment.json says of the pass, beside the table."""
    return {
        "images": found.images,
        "seconds": found.seconds,
        "baseline_divergence": found.baseline_divergence,
    }


def _measured(scorer: "Scorer", space: Space, log: Log) -> Sensitivities:
    started = time.perf_counter()
    every = {decision.name: space.alone(decision) for decision in space.decisions}
    policies = dict.fromkeys([space.reference, *itertools.chain(*every.values())])
    log(f"measuring the sensitivity of {len(every)} decisions on {len(policies)} networks")
    scores = {policy: scorer.untrained(policy, IMAGES, NORM_IMAGES, RANGE_IMAGES) for policy in policies}
    seconds = time.perf_counter() - started
    log(f"sensitivities measured in {seconds:.0f} s")
    return Sensitivities(
        {name: tuple(scores[policy].divergence for policy in alone) for name, alone in every.items()},
        {name: tuple(scores[policy].accuracy for policy in alone) for name, alone in every.items()},
        scores[space.reference].divergence,
        examples_of(scores[space.reference].scores),
        seconds,
    )


def _read(raw: dict[str, Any]) -> Sensitivities:
    for name in ("divergence", "accuracy"):
        raw[name] = {decision: tuple(values) for decision, values in raw[name].items()}
    return Sensitivities(**raw)


def _key(scorer: "Scorer", space: Space) -> str:
    """Hash of whatever the sensitivities depend on."""
    from leanfront.compression.capture.program import tensors_in
    from leanfront.search.trial.batches import SCORING_BATCH

    digest = hashlib.sha256(
        f"{METHOD} {IMAGES} {NORM_IMAGES} {RANGE_IMAGES} {scorer.traced.module.code}".encode()
    )
    if scorer.traced.importance is not None:
        digest.update(scorer.traced.importance.tobytes())
    for one in space.decisions:
        digest.update(f"{one.name} {[p.digest for p in space.alone(one)]} {space.multiple}".encode())
    for name, tensor in sorted(scorer.traced.module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    seen = itertools.islice(scorer.batches.searched, -(-IMAGES // SCORING_BATCH))
    for tensor in tensors_in([*scorer.batches.calibration, *(inputs for inputs, _, _ in seen)]):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
