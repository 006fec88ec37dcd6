"""How well latencies were predicted, as JSON and as tables: the figures, and the worst networks' layers."""

from typing import TYPE_CHECKING, Any

import numpy as np

from leanfront.compression.graph import kernels
from leanfront.compression.policy import Policy
from leanfront.compression.policy.space import Space
from leanfront.search.cli.output import print_table
from leanfront.search.objectives import quantity

if TYPE_CHECKING:
    from leanfront.latency_models.measured.model import TableModel
    from leanfront.latency_models.measured.validation import Compared, Validation

WORST = 3


def as_json(found: "Validation") -> dict[str, Any]:
    """Fractions 0..1, times in ms; ``error`` is (predicted - measured) / measured."""
    numbers = ("predicted_ms", "measured_ms", "error", "spread")
    return {
        **{name: getattr(found.accuracy, name) for name in ("n", "mape", "within_10_percent", "spearman")},
        "noise": found.noise,
        "rows": [
            {"policy": row.policy.to_dict(), **{name: getattr(row, name) for name in numbers}}
            for row in found.rows
        ],
    }


def print_validation(found: "Validation", model: "TableModel", space: Space) -> None:
    """The figures, every network from fastest to slowest, and the layers of the worst."""
    rows = sorted(found.rows, key=lambda row: row.measured_ms)
    print_table([_network(number, row) for number, row in enumerate(rows, 1)], title="networks")
    worst = sorted(rows, key=lambda row: -abs(row.error))[:WORST]
    for row in worst:
        title = f"network {rows.index(row) + 1}, predicted {row.error:+.1%}"
        layers = layer_rows(row.policy, [other.policy for other in rows], model, space)
        print_table(layers, title=f"{title}: its layers (* unlike most of the others)")
    score = found.accuracy
    print(
        f"{score.n} networks that the table had not seen, {quantity('latency_ms', rows[0].measured_ms)} to"
        f" {quantity('latency_ms', rows[-1].measured_ms)}: mean absolute error {score.mape:.1%},"
        f" {score.within_10_percent:.0%} within 10 %, Spearman {score.spearman:.3f};"
        f" blocks of one network differ by {float(np.median([row.spread for row in rows])):.1%}"
    )


def _network(number: int, row: "Compared") -> dict[str, Any]:
    there = list(row.policy.there().values())
    integer = sum(layer.integer for layer in there) / max(len(there), 1)
    cut = float(np.mean([layer.sparsity for layer in there]))
    return {
        "network": number,
        "predicted": quantity("latency_ms", row.predicted_ms),
        "measured": quantity("latency_ms", row.measured_ms),
        "error": f"{row.error:+.1%}",
        "spread": f"{row.spread:.1%}",
        "cut": f"{cut:.0%}",
        "layers out": len(row.policy) - len(there),
        "integer layers": f"{integer:.0%}",
    }


def layer_rows(
    policy: Policy, others: list[Policy], model: "TableModel", space: Space
) -> list[dict[str, Any]]:
    """Each layer of one network: channels, bits, and its share of the predicted latency.

    A star marks what is unlike the mean of ``others``: a sparsity more than a standard deviation away, or
    a precision (integer or float) that fewer than a third of them have.
    """
    network = space.resized(policy)
    owners = {kernel.label: kernel.layer.name for kernel in kernels(network) if kernel.layer is not None}
    predicted: dict[str, float] = {}  # of all uses of a layer
    for row in model.layers(network, policy):
        name = owners.get(row.name, row.name)
        predicted[name] = predicted.get(name, 0.0) + row.latency_ms
    whole = sum(predicted.values()) or 1.0
    rows = []
    for layer in space.network.layers:
        own, all_ = policy[layer.name], [other[layer.name] for other in others]
        gone = [layer.name in other.absent for other in others]
        sparsities = np.where(gone, 1.0, [one.sparsity for one in all_])
        unlike = abs(own.sparsity - sparsities.mean()) > max(float(sparsities.std()), 1e-9)
        rare = np.mean([one.integer == own.integer for one in all_]) < 1 / 3
        if layer.name in policy.absent:
            rows.append({"layer": layer.name, "channels": "left out", "bits": "", "share of latency": ""})
            continue
        kept = network.layer[layer.name].shape.out_channels
        rows.append(
            {
                "layer": layer.name,
                "channels": f"{kept}/{layer.shape.out_channels}{'*' if unlike else ''}",
                "bits": f"w{own.weight_bits}a{own.activation_bits}{'*' if rare else ''}",
                "share of latency": f"{predicted.get(layer.name, 0.0) / whole:.1%}",
            }
        )
    return rows
