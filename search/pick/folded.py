"""The folding of a pipeline's engines beside the file: for FINN, and for who reads the card."""

from leanfront.compression.graph import Network
from leanfront.compression.policy import Policy
from leanfront.hw_profiles import HardwareProfile
from leanfront.latency_models.fpga.finn import Folding, folding, named
from leanfront.latency_models.registry import model_of


def folded(profile: HardwareProfile, network: Network, policy: Policy) -> tuple[Folding, list[str]]:
    """What FINN reads as folding.json, and what the card says of it; both empty where the part is no pipeline
    of engines. ``network``: cut already."""
    engines = () if profile.measured else model_of(profile).engines(network, policy)
    if not engines:
        return {}, []
    nodes = named(engines, profile)
    lines = [
        "The latency was computed with these engines. folding.json has them for FINN, which folds into equal",
        "parts: the next divisors of outputs (PE) and products (SIMD), so no engine is slower there.",
        "",
        "| layer | PE | SIMD | cycles | node in folding.json | PE | SIMD |",
        "|---|---|---|---|---|---|---|",
    ]
    for engine in engines:
        node = nodes[engine.layer]
        own = f"{engine.pe} | {engine.simd} | {engine.cycles}"
        lines.append(f"| {engine.layer} | {own} | {node.node} | {node.pe} | {node.simd} |")
    return folding(engines, profile), [*lines, ""]
