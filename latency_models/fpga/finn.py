"""A pipeline's engines as FINN's folding configuration names them.

Sources, of Xilinx/finn as of 2025 (v0.10 and after): names of engines, src/finn/transformation/fpgadataflow/
specialize_layers.py; what divides what, matrixvectoractivation.py, vectorvectoractivation.py and
convolutioninputgenerator.py in src/finn/custom_op/fpgadataflow; the file, src/finn/qnn-data/build_dataflow/
folding_config.json. No torch, and no FINN.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from leanfront.hw_profiles import HardwareProfile
from leanfront.latency_models.cost import LayerEngine

RTL_BITS = 4
"""From so many bits of both operands on FINN takes an engine in RTL, below in HLS."""

Folding = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Named:
    """An engine's node, and how parallel it can be there: PE divides outputs, SIMD products."""

    node: str
    pe: int
    simd: int


def named(engines: Sequence[LayerEngine], profile: HardwareProfile) -> Mapping[str, Named]:
    """Layer -> its node, in order. Depthwise engines are in RTL where DSP blocks make three products of 8
    bits: AMD's DSP58."""
    resources = profile.resources
    depthwise_rtl = resources is not None and resources.multiplier.macs.get("8", 0.0) >= 3
    count: Counter[str] = Counter()
    found = {}
    for engine in engines:
        rtl = min(engine.weight_bits, engine.activation_bits) >= RTL_BITS
        rtl = rtl and (depthwise_rtl or not engine.depthwise)
        kind = f"{'VVAU' if engine.depthwise else 'MVAU'}_{'rtl' if rtl else 'hls'}"
        pe, simd = next_divisor(engine.outputs, engine.pe), next_divisor(engine.products, engine.simd)
        found[engine.layer] = Named(f"{kind}_{count[kind]}", pe, simd)
        count[kind] += 1
    return found


def folding(engines: Sequence[LayerEngine], profile: HardwareProfile) -> Folding:
    """The configuration, {"Defaults": {}, "MVAU_rtl_0": {"PE": ..., "SIMD": ...}, ...}: engines of layers and
    the windows in front of them. What else FINN makes (paddings, pools, thresholds, FIFOs) is not in it."""
    found: Folding = {"Defaults": {}}
    windows = 0
    nodes = named(engines, profile)
    for engine in engines:
        node = nodes[engine.layer]
        if engine.windowed:
            whole = node.simd > (1 if engine.depthwise else engine.read)
            lanes = node.pe if engine.depthwise else next_divisor(engine.read, min(node.simd, engine.read))
            found[f"ConvolutionInputGenerator_rtl_{windows}"] = {
                "SIMD": engine.read if whole else lanes,
                "parallel_window": int(whole),
            }
            windows += 1
        found[node.node] = {"PE": node.pe, "SIMD": node.simd}
    return found


def next_divisor(whole: int, least: int) -> int:
    """The least divisor of a number that is not below another: FINN folds into equal parts."""
    return next(part for part in range(max(1, min(least, whole)), whole + 1) if whole % part == 0)
