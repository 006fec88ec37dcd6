"""The card of an exported network: what it is, what was measured, and where each figure is from."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from leanfront.search.run.verified import Row, verified

if TYPE_CHECKING:
    from leanfront.compression.graph import Network
    from leanfront.compression.policy import Policy
    from leanfront.search.pick.verify import Verification


def card(
    verification: "Verification",
    policy: "Policy",
    network: "Network",
    profile: str,
    task: str,
    made: str,
    more: Sequence[str] = (),
) -> str:
    """Markdown. ``network`` is the one after the cut; ``more``: lines that are said of the part's design."""
    rows = [
        *verified(asdict(verification)),
        Row("multiply-accumulates", "", f"{network.macs / 1e6:.1f} M", ""),
    ]
    not_run = verification.kernels.get("not_run")
    ran = verification.engine.get("ran")
    verdict = f"Not verified: {not_run}." if not_run else f"Verified{f' in {ran}' if ran else ''}."
    if not verification.passed:
        verdict = "NOT as promised: " + "; ".join(verification.failures)
    if verification.untold:
        verdict = f"{verdict.removesuffix('.')}. Not verified: {'; '.join(verification.untold)}."
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
        *more,
    ]
    if estimates := verification.search.get("estimates"):
        lines += [f"{estimates}.", ""]
    return "\n".join(lines)


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
