"""The card of an exported network: what it is, what was measured, and where each figure is from."""

from typing import Any

from leanfront.compression.graph import Network
from leanfront.compression.policy import Policy
from leanfront.search.pick.verify import Verification, agreeing
from leanfront.search.run.front import quantity


def card(
    verification: Verification, policy: Policy, network: Network, profile: str, task: str, made: str
) -> str:
    """Markdown. ``network`` is the one after the cut."""
    test, latency, size = verification.test, verification.latency, verification.size
    low, high = test["accuracy_ci"]
    rows = [
        ("accuracy (test split, read once)", f"{test['baseline_accuracy']:.4f}", f"{test['accuracy']:.4f}"),
        ("95 % confidence interval", "", f"{low:.4f} .. {high:.4f}"),
        ("drop", "", f"{100 * (test['baseline_accuracy'] - test['accuracy']):.2f} points"),
    ]
    if latency:
        rows += [
            (
                "latency, measured",
                quantity("latency_ms", latency["baseline_ms"]),
                f"{quantity('latency_ms', latency['measured_ms'])} ({latency['ratio']:.3f}x)",
            ),
            ("latency, predicted", "", quantity("latency_ms", latency["predicted_ms"])),
        ]
    else:
        rows += [(f"{what}, predicted", "", figure) for what, figure in predictions(verification)]
    rows += [
        (
            "model file",
            quantity("size_bytes", size["baseline_bytes"]),
            f"{quantity('size_bytes', size['bytes'])} (1/{size['baseline_bytes'] / size['bytes']:.1f})",
        ),
        *_memory_rows(verification.memory),
        ("multiply-accumulates", "", f"{network.macs / 1e6:.1f} M"),
        ("file against torch network: same answer", "", agreeing(test["agreement"])),
    ]
    not_run = verification.kernels.get("not_run")
    verdict = f"Not verified: {not_run}." if not_run else "Verified."
    if not verification.passed:
        verdict = "NOT as promised: " + "; ".join(verification.failures)
    lines = [
        f"# Trial {verification.trial}",
        "",
        f"{verdict} Task `{task}`, profile `{profile}`, {made}.",
        "",
        "| | uncompressed | this network |",
        "|---|---|---|",
        *(f"| {name} | {base} | {value} |" for name, base, value in rows),
        "",
        "| layer | shape | channels cut | weight bits | activation bits | runs as integers |",
        "|---|---|---|---|---|---|",
        *(_layer_row(name, policy, network, verification.kernels) for name in policy),
        "",
    ]
    if estimates := verification.search.get("estimates"):
        lines += [f"{estimates}.", ""]
    return "\n".join(lines)


def _memory_rows(memory: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Peak memory as it was counted, beside the live tensors that the search went by."""
    if not memory:
        return []
    names = ("baseline_peak_memory_bytes", "peak_memory_bytes", "predicted_peak_memory_bytes")
    before, now, predicted = (quantity("size_bytes", memory[name]) if memory[name] else "" for name in names)
    return [("peak memory, measured", before, now), ("peak memory, predicted", "", predicted)]


def predictions(verification: Verification) -> list[tuple[str, str]]:
    """What the search predicted for the part, where it was not measured here: (what, figure with unit)."""
    named = (("latency", "latency_ms"), ("energy", "energy_mj"))
    search = verification.search
    return [(what, quantity(name, search[name])) for what, name in named if search.get(name) is not None]


def _layer_row(name: str, policy: Policy, network: Network, kernels: dict[str, Any]) -> str:
    layer = policy[name]
    if layer.left_out:
        return f"| {name} | left out | | | | |"
    integer = "yes" if name in kernels["integer"] else "no"
    return (
        f"| {name} | {network.layer[name].shape} | {100 * layer.sparsity:.0f} % | {layer.weight_bits} |"
        f" {layer.activation_bits} | {integer} |"
    )
