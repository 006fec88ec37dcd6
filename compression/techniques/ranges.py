"""Ranges of quantized tensors: which part of what a tensor holds its grid should cover.

A rule is one row of ``RULES``. Which is best depends on the network (a tail that min-max keeps may be what a
decision rests on, or noise that costs all others their precision), so callers try them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from leanfront.compression.capture.program import called
from leanfront.compression.techniques.quantize import quantizers, unquantized

Clips = Mapping[str, tuple[float, float]]
"""Tensor -> the shares of its lowest and its highest value between which its grid lies."""

_BINS = 2048
_WIDER = 2.0
"""A histogram covers as many times the mean of the batches' extremes; what lies beyond counts at its ends."""
_TAIL = 1e-4
_SHARES = np.linspace(0.2, 1.0, 41)


@dataclass(frozen=True)
class Histogram:
    """Values of a tensor. low, high: the mean of the batches' extremes, 0 among them; centres, counts:
    (bins,); bits: of its grid."""

    low: float
    high: float
    bits: int
    centres: NDArray[np.float64]
    counts: NDArray[np.float64]

    def error(self, low: float, high: float) -> float:
        """Sum of squared differences that a grid from ``low`` to ``high`` makes."""
        step = max((high - low) / (2**self.bits - 1), 1e-30)
        held = np.clip(np.round(self.centres / step), round(low / step), round(high / step)) * step
        return float((self.counts * (held - self.centres) ** 2).sum())


def _extremes(found: Histogram) -> tuple[float, float]:
    return 1.0, 1.0


def _percentile(found: Histogram) -> tuple[float, float]:
    """All but one in ten thousand on each side (Wu et al. 2020, Integer Quantization for Deep Learning
    Inference, section 3.2: 99.99 %)."""
    below = np.cumsum(found.counts) / max(found.counts.sum(), 1.0)
    low = found.centres[int(np.searchsorted(below, _TAIL))]
    high = found.centres[min(int(np.searchsorted(below, 1.0 - _TAIL)), len(below) - 1)]
    return _share(low, found.low), _share(high, found.high)


def _share(value: float, extreme: float) -> float:
    """Of an extreme; never less than a tenth, lest a tensor that is nearly always 0 loses all else."""
    return float(np.clip(value / extreme, 0.1, 1.0)) if extreme else 1.0


def _least_squares(found: Histogram) -> tuple[float, float]:
    """Both ends together first, then each alone."""
    low, high = found.low, found.high
    together = min(_SHARES, key=lambda share: found.error(share * low, share * high))
    top = min(_SHARES, key=lambda share: found.error(together * low, share * high))
    bottom = min(_SHARES, key=lambda share: found.error(share * low, top * high)) if low else 1.0
    return float(bottom), float(top)


RULES: Mapping[str, Callable[[Histogram], tuple[float, float]]] = {
    "extremes": _extremes,
    "percentile": _percentile,
    "least squares": _least_squares,
}
"""What is said of a rule -> of a tensor the shares of its extremes that its grid covers."""


@torch.no_grad()
def candidates(module: nn.Module, batches: Sequence[Any]) -> dict[str, Clips]:
    """Rule -> clips of all tensors, from ``batches`` of inputs as the module takes them; those alone that
    differ from the extremes and from each other. The module must be calibrated; it is left as it is."""
    found = _histograms(module, batches)
    made = {name: {key: rule(one) for key, one in found.items()} for name, rule in RULES.items()}
    different: dict[str, Clips] = {}
    for name, clips in made.items():
        if clips not in different.values():
            different[name] = clips
    return different


@torch.no_grad()
def set_clips(module: nn.Module, clips: Clips) -> None:
    """Let the grids of a module's tensors cover these shares of their extremes."""
    for name, quantizer in quantizers(module).items():
        if name in clips:
            quantizer.clip.copy_(torch.tensor(clips[name]))


def _histograms(module: nn.Module, batches: Sequence[Any]) -> dict[str, Histogram]:
    there = {name: one for name, one in quantizers(module).items() if one.batches and one.step is None}
    edges = {name: (_WIDER * float(one.low), _WIDER * float(one.high)) for name, one in there.items()}
    edges = {name: ends for name, ends in edges.items() if np.isfinite(ends).all() and ends[0] < ends[1]}
    counts = {name: torch.zeros(_BINS, dtype=torch.float64) for name in edges}

    def counted(name: str) -> Callable[[nn.Module, Any], None]:
        low, high = edges[name]

        def hook(_: nn.Module, given: Any) -> None:
            values = given[0].detach().float().clamp(low, high)
            counts[name] += torch.histc(values, _BINS, low, high).double().cpu()

        return hook

    handles = [there[name].register_forward_pre_hook(counted(name)) for name in edges]
    try:
        with unquantized(module):
            for batch in batches:
                called(module, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: Histogram(
            low / _WIDER, high / _WIDER, there[name].bits,
            low + (np.arange(_BINS) + 0.5) * (high - low) / _BINS, counts[name].numpy(),
        )
        for name, (low, high) in edges.items()
    }  # fmt: skip
