"""How much each decision of a space hurts when it alone is taken, before any training."""

import csv
import hashlib
import io
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from leanfront.compression.policy import Policy
from leanfront.compression.policy.space import Space
from leanfront.latency_models.files import replace_file

if TYPE_CHECKING:
    from leanfront.search.trial.scorer import Scorer

Log = Callable[[str], None]
METHOD = "2"
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


@dataclass(frozen=True)
class Decision:
    """One decision: its name in the study; of each of its codes a text, and the policy with it alone."""

    name: str
    levels: tuple[str, ...]
    policies: tuple[Policy, ...]


def reference(space: Space) -> Policy:
    """The uncompressed network: nothing cut, floats or else the widest bits that the space has."""
    return _alone(space)


def decisions(space: Space) -> Iterator[Decision]:
    """Every decision of a space, in the order of its codes."""
    for group, levels in space.levels.items():
        policies = tuple(_alone(space, sparsity={group: level}) for level in levels)
        yield Decision(f"sparsity/{group}", tuple(f"{level:g}" for level in levels), policies)
    for branch in space.branches:
        gone = Policy.of(
            {
                name: replace(layer, sparsity=1.0) if name in branch.layers else layer
                for name, layer in reference(space).items()
            }
        )
        yield Decision(f"branch/{branch.name}", ("stays", "left out"), (reference(space), gone))
    for layer in space.network.layers:
        policies = tuple(_alone(space, bits={layer.name: pair}) for pair in space.pairs)
        texts = tuple(f"w{weights}a{activations}" for weights, activations in space.pairs)
        yield Decision(f"bits/{layer.name}", texts, policies)


def _alone(
    space: Space,
    sparsity: Mapping[str, float] | None = None,
    bits: Mapping[str, tuple[int, int]] | None = None,
) -> Policy:
    widest = (32, 32) if (32, 32) in space.pairs else max(space.pairs)
    return space.policy(
        dict.fromkeys(space.levels, 0.0) | dict(sparsity or {}),
        {layer.name: widest for layer in space.network.layers} | dict(bits or {}),
    )


def measure(scorer: "Scorer", space: Space, log: Log) -> Sensitivities:
    """The sensitivities, measured now or taken from the cache, where they lie under a hash of the network,
    the images and the space."""
    from leanfront.latency_models.kernel_table.table import cache_folder

    path = cache_folder() / "sensitivities" / f"{_key(scorer, space)}.json"
    if (kept := _read(path)) is not None:
        return kept
    found = _measured(scorer, space, log)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(asdict(found)) + "\n")
    return found


def write_csv(path: Path, space: Space, found: Sensitivities) -> None:
    """One line for each code of each decision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for decision in decisions(space):
        values = zip(
            decision.levels, found.divergence[decision.name], found.accuracy[decision.name], strict=True
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
    every = list(decisions(space))
    policies = dict.fromkeys([reference(space), *(policy for one in every for policy in one.policies)])
    log(f"measuring the sensitivity of {len(every)} decisions on {len(policies)} networks")
    scores = {policy: scorer.untrained(policy, IMAGES, NORM_IMAGES, RANGE_IMAGES) for policy in policies}
    seconds = time.perf_counter() - started
    log(f"sensitivities measured in {seconds:.0f} s")
    return Sensitivities(
        {one.name: tuple(scores[policy].divergence for policy in one.policies) for one in every},
        {one.name: tuple(scores[policy].accuracy for policy in one.policies) for one in every},
        scores[reference(space)].divergence,
        len(scores[reference(space)].scores),
        seconds,
    )


def _read(path: Path) -> Sensitivities | None:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        for name in ("divergence", "accuracy"):
            raw[name] = {decision: tuple(values) for decision, values in raw[name].items()}
        return Sensitivities(**raw)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _key(scorer: "Scorer", space: Space) -> str:
    """Hash of whatever the sensitivities depend on."""
    from leanfront.search.trial.scorer import SCORING_BATCH

    digest = hashlib.sha256(
        f"{METHOD} {IMAGES} {NORM_IMAGES} {RANGE_IMAGES} {scorer.traced.module.code}".encode()
    )
    for one in decisions(space):
        digest.update(f"{one.name} {[policy.digest for policy in one.policies]} {space.multiple}".encode())
    for name, tensor in sorted(scorer.traced.module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    seen = itertools.islice(scorer.search_batches, -(-IMAGES // SCORING_BATCH))
    for batch in (*scorer.calibration_batches, *(inputs for inputs, _, _ in seen)):
        digest.update(batch.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
