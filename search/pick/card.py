"""The card of an exported network: what it is, what was measured, and where each figure is from."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from leanfront.search.objectives import objective, quantity

if TYPE_CHECKING:  # the report reads verifications without torch
    from leanfront.compression.graph import Network
    from leanfront.compression.policy import Policy
    from leanfront.search.pick.verify import Verification


class Row(NamedTuple):
    """A figure of a verified network, as text."""

    what: str
    uncompressed: str
    picked: str
    gain: str


def card(
    verification: "Verification", policy: "Policy", network: "Network", profile: str, task: str, made: str
) -> str:
    """Markdown. ``network`` is the one after the cut."""
    rows = [
        *verified(asdict(verification)),
        Row("multiply-accumulates", "", f"{network.macs / 1e6:.1f} M", ""),
    ]
    not_run = verification.kernels.get("not_run")
    verdict = f"Not verified: {not_run}." if not_run else "Verified."
    if not verification.passed:
        verdict = "NOT as promised: " + "; ".join(verification.failures)
    others = sorted({name for layer in policy.values() for name, _ in layer.more})
    columns = [
        "layer",
        "shape",
        "channels cut",
        "weight bits",
        "activation bits",
        "runs as integers",
        *others,
    ]
    lines = [
        f"# Trial {verification.trial}",
        "",
        f"{verdict} Task `{task}`, profile `{profile}`, {made}.",
        "",
        "| | uncompressed | this network |",
        "|---|---|---|",
        *(f"| {r.what} | {r.uncompressed} | {r.picked}{r.gain and f' ({r.gain})'} |" for r in rows),
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *(_layer_row(name, policy, network, verification.kernels, others) for name in policy),
        "",
    ]
    if estimates := verification.search.get("estimates"):
        lines += [f"{estimates}.", ""]
    return "\n".join(lines)


def verified(found: Mapping[str, Any]) -> list[Row]:
    """What verification.json says, for whoever shows it: what, uncompressed beside picked, what was gained.

    What it does not say has no row: the measured latency without the hardware, for one.
    """
    given = (found.get(name) for name in ("test", "latency", "size", "search", "memory"))
    test, latency, size, search, memory = (part if isinstance(part, Mapping) else {} for part in given)
    rows = []
    if test:
        uncompressed, picked = test["baseline_accuracy"], test["accuracy"]
        gain = f"{100 * (picked - uncompressed):+.2f} points"
        texts = (quantity("accuracy", uncompressed), quantity("accuracy", picked))
        rows.append(Row("accuracy (test split, read once)", *texts, gain))
        rows.append(Row("its 95 % interval", "", "{:.4f} .. {:.4f}".format(*test["accuracy_ci"]), ""))
    if latency:
        gain = f"{latency['measured_ms'] / latency['baseline_ms']:.3f}x"
        rows.append(_costs("latency, measured", "latency_ms", latency, "baseline_ms", "measured_ms", gain))
        gain = f"{100 * latency['error']:+.1f} %"
        if "predicted_baseline_ms" in latency:
            gain = f"{latency['predicted_ms'] / latency['predicted_baseline_ms']:.3f}x, {gain}"
        names = ("predicted_baseline_ms", "predicted_ms")
        rows.append(_costs("as the search predicted", "latency_ms", latency, *names, gain))
    else:
        estimated, _, _ = str(search.get("estimates") or "").lower().partition(":")
        for name in ("latency_ms", "energy_mj"):
            if search.get(name) is not None:
                what = objective(name).label
                text = f"{what}, predicted{', estimated' if what in estimated else ''}"
                rows.append(Row(text, "", quantity(name, search[name]), ""))
    for name, pair in (search.get("objectives") or {}).items():
        rows.append(_costs(objective(name).label, name, pair, "uncompressed", "picked", _share(pair)))
    if size:
        gain = f"1/{size['baseline_bytes'] / size['bytes']:.1f}"
        rows.append(_costs("model file", "size_bytes", size, "baseline_bytes", "bytes", gain))
    if memory:
        rows += _memory(memory)
    if test:
        rows.append(Row("same answers as the torch network", "", agreeing(test["agreement"]), ""))
    return rows


def agreeing(share: float | None) -> str:
    """A share of examples as text; None: the file was not run here."""
    return "not run here" if share is None else f"{share:.2%}"


def _memory(memory: Mapping[str, Any]) -> list[Row]:
    """Peak memory as it was counted, beside the live tensors that the search went by."""
    names = ("baseline_peak_memory_bytes", "peak_memory_bytes", "predicted_peak_memory_bytes")
    before, now, predicted = (quantity("size_bytes", memory[name]) if memory[name] else "" for name in names)
    return [Row("peak memory, measured", before, now, ""), Row("peak memory, predicted", "", predicted, "")]


def _costs(what: str, name: str, values: Mapping[str, Any], base: str, picked: str, gain: str) -> Row:
    uncompressed = quantity(name, values[base]) if values.get(base) is not None else ""
    return Row(what, uncompressed, quantity(name, values[picked]), gain)


def _share(pair: Mapping[str, float]) -> str:
    return f"{pair['picked'] / pair['uncompressed']:.3f}x" if pair.get("uncompressed") else ""


def _layer_row(
    name: str, policy: "Policy", network: "Network", kernels: dict[str, Any], others: list[str]
) -> str:
    """``others``: techniques whose numbers have a column of their own."""
    layer = policy[name]
    if name in policy.absent:
        return f"| {name} | left out |{' |' * (4 + len(others))}"
    integer = "yes" if name in kernels["integer"] else "no"
    more = "".join(f" {layer.value(other):g} |" for other in others)
    return (
        f"| {name} | {network.layer[name].shape} | {100 * layer.sparsity:.0f} % | {layer.weight_bits} |"
        f" {layer.activation_bits} | {integer} |{more}"
    )
