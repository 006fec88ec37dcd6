"""The small validation before a search's night: are predicted latencies those that networks really have?"""

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from leanfront.compression.policy.space import Space

if TYPE_CHECKING:
    from leanfront.latency_models.measured.model import TableModel
    from leanfront.latency_models.measured.validation import Validation

POLICIES = 8
SEED = 2
"""Neither that of the calibration nor that of ``leanfront profile validate``."""
MOST_ERROR = 0.10
"""With a larger mean error the search and its report say that latencies are not to be trusted."""


def first_validation(model: "TableModel", space: Space, log: Callable[[str], None]) -> dict[str, Any] | None:
    """What environment.json and the report say; once for a table and a space, the cache has it after that.
    None where another device was measured, which timed too few whole networks.

    ``n``, ``mape``, ``within_10_percent``, ``spearman``; ``noise``, a sentence or None; ``rows`` of
    ``predicted_ms``, ``measured_ms``, ``spread``; ``held_out``, the first four for the networks that the
    correction was fitted on, each left out in turn.

    Raises:
        TableError: onnxruntime refuses a network, or the cache cannot be written.
    """
    from leanfront.latency_models.kit.installed_tables import elsewhere
    from leanfront.latency_models.measured.building import validation_path
    from leanfront.latency_models.measured.validation import LEAST_HELD_OUT, validate

    path = validation_path(space, model.table.device)
    if model.imported and elsewhere(model.profile.name):  # measured there, not here
        if len(model.held_out) < LEAST_HELD_OUT:
            log(f"warning: {model.table.device} timed too few whole networks to say how good predictions are")
            return None
        return _facts(validate(model, space, POLICIES, seed=SEED), model)
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        math.isfinite(known["mape"])  # damaged: measured anew
    except (OSError, ValueError, TypeError, KeyError):
        log(f"measuring {POLICIES} networks to see how well their latency is predicted")
        known = _facts(validate(model, space, POLICIES, seed=SEED), model)
        _keep(known, path)
        log(f"predicted within {known['mape']:.1%} on average, {known['within_10_percent']:.0%} within 10 %")
    if known["mape"] > MOST_ERROR:
        log(
            f"warning: predicted latencies are {known['mape']:.0%} off on average: do not trust the order of"
            " the front; stop what else runs here and measure again (`leanfront profile measure --again`)"
        )
    return known


def _facts(found: "Validation", model: "TableModel") -> dict[str, Any]:
    score, held_out = found.accuracy, model.validation
    return {
        "n": score.n,
        "mape": score.mape,
        "within_10_percent": score.within_10_percent,
        "spearman": score.spearman,
        "noise": found.noise,
        "rows": [
            {"predicted_ms": row.predicted_ms, "measured_ms": row.measured_ms, "spread": row.spread}
            for row in sorted(found.rows, key=lambda row: row.measured_ms)
        ],
        "held_out": vars(held_out) if held_out is not None else None,
    }


def _keep(facts: dict[str, Any], path: Any) -> None:
    from leanfront.latency_models.cost import TableError
    from leanfront.latency_models.files import replace_file

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(facts, indent=1) + "\n")
    except OSError as error:
        raise TableError(f"cannot write {path}: {error.strerror}") from error
